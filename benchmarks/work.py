"""The jobs: what each runs, reads and writes, what its result is held against."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import checking
import numpy as np
import references
from checkpoints import SIZES, Maker
from compare import compare_with_exact_sum
from jobs import Checks, Command, Job, discard, our_command, say, their_command, weights
from measure import run
from records import OURS, Check
from rival import Mergekit, extracting, merging, recipe

HALF, DENSITY, RANK, CAP = 0.5, 0.2, 16, "384MiB"
FAMILY = 64
PIECES = Path(__file__).with_name("pieces.py")


@dataclass
class Work:
    """The checkpoints, and a method for every job: it prepares what the job reads.

    Args:
        folder: where checkpoints go.
        size: of the large model.
        program: the taskbasis command.
        mergekit: its environment; None when it is not run.
    """

    folder: Path
    size: str
    program: Path
    mergekit: Mergekit | None
    large: Maker = field(init=False)
    family: Maker = field(init=False)
    cutoffs: list[np.float32] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.large = Maker(self.folder, self.size)
        self.family_size = "125m" if self.size == "1b" else self.size
        self.family = Maker(self.folder, self.family_size)
        self.out = self.folder / f"out-{self.size}"
        self.out.mkdir(parents=True, exist_ok=True)

    # What is there already

    def help(self) -> Job:
        """How long it takes to say something."""
        return self._start("--help", ["--help"])

    def error(self) -> Job:
        """How long it takes to refuse something."""
        missing = str(self.out / "missing.yml")
        return self._start(
            "an error: no such file", ["merge", missing, str(self.out / "x")], missing
        )

    def _start(self, title: str, words: Sequence[str], missing: str = "") -> Job:
        output, fails = self.out / "x", bool(missing)
        ours = our_command(self.program, words, output, fails)
        theirs = self._theirs(
            "mergekit-yaml", [missing, str(output)] if fails else ["--help"], output
        )
        theirs = replace(theirs, fails=fails) if theirs else None
        return Job(title, ours, theirs=theirs, floored=False)

    def extract(self) -> Job:
        """One vector, stored in bf16."""
        output = self.out / "vector.safetensors"
        ours = self.command(self._extracting(self.large, 1, output), output)
        check = partial(checking.vector, self.large.base(), self.large.tuned(1))
        return Job("extract, bf16", ours, self._weights(1), check=check)

    # Merges of two, by one recipe

    def linear(self) -> Job:
        text = recipe("linear", self._tuned(2), each={"weight": HALF})
        job = self._merge("linear", text, self._models(2), references.plain_sum)
        return replace(job, inputs=weights(*self._tuned(2)))

    def task_arithmetic(self) -> Job:
        return self._sum("task_arithmetic", 2)

    def task_arithmetic_8(self) -> Job:
        return self._sum("task_arithmetic of 8", 8)

    def _sum(self, title: str, count: int) -> Job:
        scale = HALF if count == 2 else 0.25
        base, tuned = self.large.base(), self._tuned(count)
        text = recipe("task_arithmetic", tuned, base, {"weight": scale})
        job = self._merge(title, text, self._models(count), None)

        def check(outputs: Mapping[str, Path]) -> list[Check]:
            return [
                Check(by, found.sentence(), found.good, by == OURS)
                for by, path in outputs.items()
                for found in [compare_with_exact_sum(path, base, tuned, scale)]
            ]

        return replace(job, check=check)

    def ties(self) -> Job:
        each = {"weight": HALF, "density": DENSITY}
        text = recipe("ties", self._tuned(2), self.large.base(), each, {"normalize": True})
        models = self._models(2)
        merge = references.mergekit_ties(DENSITY, models.weights)
        return self._merge("ties, as in mergekit", text, models, merge, passes=3)

    def ties_paper(self) -> Job:
        return self._ties_paper("ties, as in the paper")

    def ties_capped(self) -> Job:
        return self._ties_paper(f"ties, as in the paper, --memory {CAP}", "--memory", CAP)

    def _ties_paper(self, title: str, *more: str) -> Job:
        words = ["--method", f"ties:density={DENSITY}", "--weights", f"{HALF},{HALF}", *more]
        models = self._models(2)

        def reference() -> references.Merge:
            if not self.cutoffs:
                self.cutoffs += references.global_cutoffs(models, DENSITY)
            return references.paper_ties(self.cutoffs)

        check = checking.late(reference, models)
        return self._by_words(title, words, models, check, passes=3, beside="ties")

    def dare_ties(self) -> Job:
        each = {"weight": HALF, "density": DENSITY}
        text = recipe("dare_ties", self._tuned(2), self.large.base(), each)
        models = self._models(2)
        merge = references.dare_ties(models, DENSITY)
        return self._merge("dare_ties", text, models, merge, passes=2, both=False)

    def slerp(self) -> Job:
        first, second = self._tuned(2)
        text = recipe("slerp", [first, second], first, shared={"t": HALF})
        models = references.Models(first, [second], (1.0,))
        job = self._merge("slerp", text, models, references.slerp(HALF), passes=2)
        return replace(job, inputs=weights(first, second))

    def model_stock(self) -> Job:
        text = recipe("model_stock", self._tuned(2), self.large.base())
        models = replace(self._models(2), weights=(1.0, 1.0))
        merge = references.model_stock
        return self._merge("model_stock", text, models, merge, passes=2)

    def sta(self) -> Job:
        """Masks from scores: a file per vector, of random numbers."""
        models = replace(self._models(2), weights=(1.0, 1.0))
        scores = [self.out / f"scores-{number}.safetensors" for number in (1, 2)]
        for place, (tuned, path) in enumerate(zip(models.tuned, scores, strict=True)):
            if not path.exists():
                say(f"writing random scores of {tuned.name}")
                checking.write_scores(tuned, path, place)
        words = ["--method", f"sta:density={DENSITY}"]
        words += [word for path in scores for word in ("--scores", str(path))]
        check = checking.late(lambda: references.masked_sum(scores, DENSITY), models)
        job = self._by_words("sta, scores from files", words, models, check)
        return replace(job, inputs=[*job.inputs, *scores])

    # Matrices

    def lora(self) -> Job:
        base, tuned = self.large.base(), self.large.tuned(1)
        mine, other = self.out / "adapter", self.out / "their-adapter"
        words = ["lora", "extract", str(base), str(tuned), "-o", str(mine), "--rank", str(RANK)]
        theirs = self._theirs(
            "mergekit-extract-lora", extracting(base, tuned, other, RANK, "proj"), other
        )
        check = partial(checking.adapter, base, tuned, RANK)
        ours = self.command(words, mine)
        title = f"LoRA extraction, rank {RANK}"
        return Job(title, ours, self._weights(1), theirs, check=check)

    # Bases

    def gram_8(self) -> Job:
        vectors = [self._vector(self.large, number) for number in range(1, 9)]
        return self._gram(f"Gram matrix of 8, {self.size}", vectors)

    def gram_16(self) -> Job:
        return self._gram(f"Gram matrix of 16, {self.family_size}", self.members(16))

    def _gram(self, title: str, vectors: Sequence[Path]) -> Job:
        output = self.out / "gram.npz"
        job = self._piece(title, ["gram", str(output), *map(str, vectors)], output)
        check = partial(checking.gram, vectors)
        return replace(job, inputs=vectors, check=check, floored=True)

    def basis_16(self) -> Job:
        return self._basis(16)

    def basis_64(self) -> Job:
        return self._basis(64)

    def _basis(self, count: int) -> Job:
        vectors, title = self.members(count), f"basis fit, {count // 2} atoms of {count} vectors"
        output = self.library(count)
        check = partial(checking.basis, vectors)
        return Job(title, self.fitting(vectors, output, count // 2), vectors, passes=2, check=check)

    def recover_16(self) -> Job:
        return self._recover(16)

    def recover_64(self) -> Job:
        return self._recover(64)

    def _recover(self, count: int) -> Job:
        library, output = self.library(count), self.out / "recovered"
        if not library.exists():
            say(f"fitting a basis of {count}")
            self._make(self.fitting(self.members(count), library, count // 2))
        base, task = self.family.base(), "vector-1"
        words = ["basis", "recover", str(library), task, "--base", str(base), "-o", str(output)]
        check = partial(checking.recovered, library, base, task)
        inputs = [*weights(library), *weights(base)]
        title = f"recover one of {count} into the model"
        return Job(title, self.command(words, output), inputs, check=check)

    def merge_125m(self) -> Job:
        """A small model, whose merge is mostly what is not bytes."""
        base, tuned = self.family.base(), [self.family.tuned(number) for number in (1, 2)]
        path, output = self.out / "small.yml", self.out / "small"
        path.write_text(recipe("task_arithmetic", tuned, base, {"weight": HALF}))
        models = references.Models(base, tuned, (HALF, HALF))
        return Job(
            f"task_arithmetic, {self.family_size}",
            self.command(["merge", str(path), str(output), "--no-write-model-card"], output),
            weights(base, *tuned),
            self._theirs(
                "mergekit-yaml", merging(path, self.out / "their-small"), self.out / "their-small"
            ),
            check=checking.merged(references.plain_sum, models),
        )

    def solver(self) -> Job:
        """The autoencoder alone: no file is read."""
        output = self.out / "solved.npz"
        job = self._piece("autoencoder solver, T = 100", ["solve", str(output), "100"], output)
        return replace(job, check=checking.solved)

    # What they are made of

    def library(self, count: int) -> Path:
        """Where the basis of so many vectors stands."""
        return self.out / f"library-{count}"

    def discard(self, what: str) -> None:
        """Removes what no further job reads: see :data:`NEEDS`."""
        if what == "models" and self.size == "1b":  # the small ones are the family
            for number in range(3, 9):
                discard(self.large.folder / f"tuned-{number}")
        for path in self.out.glob(f"{what}*"):
            discard(path)

    def _tuned(self, count: int) -> list[Path]:
        return [self.large.tuned(number) for number in range(1, count + 1)]

    def _models(self, count: int) -> references.Models:
        weight = HALF if count == 2 else 0.25
        return references.Models(self.large.base(), self._tuned(count), (weight,) * count)

    def _weights(self, count: int) -> list[Path]:
        return weights(self.large.base(), *self._tuned(count))

    def command(self, words: Sequence[str], output: Path) -> Command:
        """A verb of ours that works without a word."""
        return our_command(self.program, [*words, "--quiet"], output)

    def _theirs(self, verb: str, words: Sequence[str], output: Path) -> Command | None:
        return their_command(self.mergekit, verb, words, output) if self.mergekit else None

    def _merge(
        self,
        title: str,
        text: str,
        models: references.Models,
        merge: references.Merge | None,
        passes: int = 1,
        both: bool = True,
    ) -> Job:
        """The same recipe through both programs."""
        path, mine, other = self.out / "recipe.yml", self.out / "merged", self.out / "their-merged"
        path.write_text(text)
        return Job(
            title,
            self.command(["merge", str(path), str(mine), "--no-write-model-card"], mine),
            weights(models.base, *models.tuned),
            self._theirs("mergekit-yaml", merging(path, other), other),
            passes=passes,
            check=checking.merged(merge, models, both) if merge else None,
        )

    def _by_words(
        self,
        title: str,
        words: Sequence[str],
        models: references.Models,
        check: Checks,
        passes: int = 1,
        beside: str = "",
    ) -> Job:
        """A merge that is told on the command line."""
        output = self.out / "merged"
        names = [str(models.base), *map(str, models.tuned)]
        ours = self.command(["merge", *names, *words, "-o", str(output)], output)
        inputs = weights(models.base, *models.tuned)
        return Job(title, ours, inputs, beside=beside, passes=passes, check=check)

    def _piece(self, title: str, words: Sequence[str], output: Path) -> Job:
        inside = [sys.executable, "pieces:main", *words]
        command = Command([sys.executable, str(PIECES), *words], inside, output)
        return Job(title, command, floored=False)

    def _extracting(self, maker: Maker, number: int, output: Path) -> list[str]:
        words = ["extract", str(maker.base()), str(maker.tuned(number)), "-o", str(output)]
        return [*words, "--dtype", "bfloat16"]

    def fitting(self, vectors: Sequence[Path], output: Path, atoms: int) -> Command:
        """A basis of so many atoms."""
        words = ["basis", "fit", *map(str, vectors), "-o", str(output), "-k", str(atoms)]
        return self.command([*words, "--method", "autoencoder", "--dtype", "bfloat16"], output)

    def members(self, count: int) -> list[Path]:
        """So many stored vectors of the family."""
        return [self._vector(self.family, number) for number in range(1, count + 1)]

    def _vector(self, maker: Maker, number: int) -> Path:
        """A stored vector; its fine-tune is removed again if it was made for this alone."""
        apart = self.large.folder != self.family.folder
        stem = "large" if maker is self.large and apart else "member"
        folder = self.out / f"{stem}-vectors"
        folder.mkdir(exist_ok=True)
        output, tuned = folder / f"vector-{number}.safetensors", maker.folder / f"tuned-{number}"
        if not output.exists():
            stood = tuned.exists()
            say(f"extracting vector {number}")
            self._make(self.command(self._extracting(maker, number, output), output))
            if not stood or (stem == "large" and number > 2):
                discard(tuned)
        return output

    def _make(self, command: Command) -> None:
        done = run(command.words)
        if done.code:
            raise SystemExit(f"what a job reads could not be made: {done.printed.strip()}")


JOBS: Mapping[str, Callable[[Work], Job]] = {
    name: getattr(Work, name)
    for name in (
        *("help", "error", "extract", "linear", "task_arithmetic", "ties", "ties_paper"),
        *("ties_capped", "dare_ties", "slerp", "model_stock", "sta", "lora"),
        *("task_arithmetic_8", "gram_8", "merge_125m", "gram_16", "basis_16", "recover_16"),
        *("basis_64", "recover_64", "solver"),
    )
}

NEEDS: Mapping[str, Sequence[str]] = {
    "scores": ("sta",),
    "models": ("task_arithmetic_8", "gram_8"),
    "large-vectors": ("gram_8",),
    "library-16": ("basis_16", "recover_16"),
    "library-64": ("basis_64", "recover_64"),
    "member-vectors": ("gram_8", "gram_16", "basis_16", "recover_16", "basis_64", "recover_64"),
}
"""What is large and stays for further jobs, and who reads it."""


def disk_needed(size: str) -> int:
    """Bytes at the worst moment: eight fine-tunes with their base, or 64 vectors and a basis."""
    large = SIZES[size].bytes()
    small = SIZES["125m" if size == "1b" else size].bytes()
    return max((9 + 3) * large, 3 * large + (FAMILY + FAMILY // 2 + 6) * small)
