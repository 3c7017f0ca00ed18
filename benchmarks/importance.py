#!/usr/bin/env python3
"""How much memory scoring a large model takes: at most its weights and one set of gradients.

    python benchmarks/importance.py --work WORK [--size tiny|125m|1b] [--samples 2]

Makes a Llama-shaped bf16 checkpoint and a word-level tokenizer (kept in ``--work``), scores it with
``taskbasis importance`` for next-token prediction, without a cap and with one, and writes
``benchmarks/results/importance.md``. The files must be equal byte for byte.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from checkpoints import Maker
from measure import Run, run
from report import machine, mebibytes

SENTENCE = "once upon a time there was little fox who would not sleep before it had counted"
WORDS = tuple(SENTENCE.split())
LENGTH = 32


def prepare(work: Path, size: str) -> tuple[Path, Path]:
    """The model with its tokenizer, and two sentences to score it on."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    base = Maker(work, size).base()
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(["?", *WORDS])}, "?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?").save_pretrained(base)
    data = work / "sentences.tsv"
    lines = [" ".join(WORDS[(n + k) % len(WORDS)] for k in range(LENGTH)) for n in range(8)]
    data.write_text("text\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return base, data


def score(base: Path, data: Path, out: Path, samples: int, memory: int | None) -> Run:
    """One run of the verb; whatever stood at ``out`` is replaced."""
    command = [sys.executable, "-m", "taskbasis", "importance", str(base), "--task", str(data)]
    command += ["-o", str(out), "--samples", str(samples), "--replace", "-q"]
    return run([*command, *(["--memory", str(memory)] if memory else [])])


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 24):
            found.update(piece)
    return found.hexdigest()


def page(size: str, weights: int, rows: Sequence[tuple[str, Run]], same: bool) -> str:
    """The table, with what the peaks are to be held against."""
    gradients = 2 * weights  # bf16 weights, float32 sums
    lines = [
        f"| {label} | {mebibytes(found.peak)} | {found.peak / (weights + gradients):.2f} "
        f"| {found.wall:.1f} |"
        for label, found in rows
    ]
    facts = machine()
    return "\n".join(
        [
            f"# Memory of `taskbasis importance`: {size}",
            "",
            f"Weights {mebibytes(weights)} (bf16), one set of gradients {mebibytes(gradients)} "
            "(float32). Peaks are of the whole process, torch and Python included.",
            "",
            "| run | peak resident | of weights + gradients | seconds |",
            "|---|--:|--:|--:|",
            *lines,
            "",
            f"Score files equal byte for byte: {'yes' if same else 'NO'}.",
            "",
            ", ".join(f"{name}: {value}" for name, value in facts.items()),
            "",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Make, score twice, compare, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--size", choices=("tiny", "125m", "1b"), default="1b")
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    base, data = prepare(options.work, options.size)
    weights = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    rows, made = [], []
    for label, memory in (("no cap", None), ("capped", weights + (weights // 2) + (2 << 30))):
        out = options.work / f"scores-{label.replace(' ', '-')}.safetensors"
        found = score(base, data, out, options.samples, memory)
        if found.code:
            print(found.printed, file=sys.stderr)
            return 1
        text = label if memory is None else f"--memory {mebibytes(memory)}"
        rows.append((text, found))
        made.append(digest(out))
        out.unlink()
    text = page(options.size, weights, rows, made[0] == made[1])
    print(text)
    options.results.mkdir(parents=True, exist_ok=True)
    name = "importance.md" if options.size == "1b" else f"importance-{options.size}.md"
    (options.results / name).write_text(text, encoding="utf-8")
    return 0 if made[0] == made[1] else 1


if __name__ == "__main__":
    sys.exit(main())
