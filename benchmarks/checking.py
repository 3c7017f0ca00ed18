"""Results held against their references, before anything is timed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import POOL
from compare import Tensor, tensors
from jobs import Checks
from numpy.typing import NDArray
from records import OURS, Check
from references import Merge, Models, compare_with
from safetensors import safe_open

from taskbasis.engine import Engine
from taskbasis.io.folder import open_tensors
from taskbasis.library import Basis
from taskbasis.recipe import Binding
from taskbasis.scores import ImportanceWriter, Origin
from taskbasis.stored import bind

SAMPLE = 3  # matrices or tensors that are looked at where all would take longer than the job
OPTIMAL = 1.003  # times the least error of a rank: what is promised for pure noise, which this is


def merged(merge: Merge, models: Models, both: bool = True) -> Checks:
    """A merge against its dense reference: ours, which must agree, and where ``both`` theirs."""
    return late(lambda: merge, models, both)


def late(make: Callable[[], Merge], models: Models, both: bool = True) -> Checks:
    """The same with a reference that takes a while to prepare."""

    def check(outputs: Mapping[str, Path]) -> list[Check]:
        merge, found = make(), []
        for by, path in outputs.items():
            if both or by == OURS:
                agreement = compare_with(path, models, merge)
                found.append(Check(by, agreement.sentence(), agreement.good, by == OURS))
        return found

    return check


def vector(base: Path, tuned: Path, outputs: Mapping[str, Path]) -> list[Check]:
    """Differences rounded to bf16 once."""
    found, ours = [], tensors(outputs[OURS])
    models, worst, count = Models(base, [tuned], (1.0,)), 0, 0
    for name in models.sample():
        _, rows = models.load(name)
        stored = ours[name].block(0, ours[name].count)
        worst += int(np.count_nonzero(stored != rows[0].astype(stored.dtype)))
        count += rows.size
    found.append(
        Check(OURS, f"{worst:,} of {count:,} entries differ from the difference", not worst)
    )
    return found


def write_scores(tuned: Path, out: Path, seed: int) -> None:
    """Random scores in the library's own format: magnitudes of normal numbers, used again."""
    store = open_tensors(tuned)
    pool = np.abs(np.random.default_rng(seed).standard_normal(POOL, np.float32))
    shapes = {name: info.shape for name, info in store.items()}
    bound = bind(Binding(str(store.path), store), Engine())
    with ImportanceWriter(out, shapes, Origin(bound, None, {"factor": "random"})) as writer:
        for number, (name, shape) in enumerate(sorted(shapes.items())):
            size = int(np.prod(shape))
            writer.write(name, np.resize(np.roll(pool, 7919 * number), size).reshape(shape))
        writer.commit()


def adapter(base: Path, tuned: Path, rank: int, outputs: Mapping[str, Path]) -> list[Check]:
    """What each adapter misses of a few matrices, as a multiple of what any of its rank must."""
    models, found = Models(base, [tuned], (1.0,)), []
    for by, folder in outputs.items():
        factors = _factors(folder)
        names = sorted(factors)
        chosen = [names[place] for place in np.linspace(0, len(names) - 1, SAMPLE).astype(int)]
        ratios, kept = [], []
        for name in chosen:
            shape = models.tensors[0][name].shape
            delta = models.load(name)[1][0].reshape(shape).astype(np.float64)
            sizes = squared_singular_values(delta)
            missed = np.linalg.norm(delta - factors[name]()) ** 2
            ratios.append(float(np.sqrt(missed / sizes[rank:].sum())))
            kept.append(float((sizes.sum() - missed) / sizes[:rank].sum()))
        worst = max(ratios)
        sentence = (
            f"misses {worst:.5f} times what the best of its rank misses, and keeps "
            f"{100 * min(kept):.1f} % of the squared norm that it keeps, at worst of {len(chosen)} "
            f"matrices ({len(names)} adapted)"
        )
        found.append(Check(by, sentence, worst <= OPTIMAL, by == OURS))
    return found


def squared_singular_values(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Largest first.

    >>> squared_singular_values(np.array([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]])).tolist()
    [16.0, 9.0]
    """
    small = matrix.T @ matrix if len(matrix) > matrix.shape[1] else matrix @ matrix.T
    return np.maximum(np.linalg.eigvalsh(small)[::-1], 0)


def _factors(folder: Path) -> dict[str, Callable[[], NDArray[np.float64]]]:
    """The update of every adapted weight, to be multiplied out when it is looked at."""
    config = json.loads((folder / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]
    file: Any = safe_open(folder / "adapter_model.safetensors", "np")
    found: dict[str, Callable[[], NDArray[np.float64]]] = {}
    for key in file.keys():  # noqa: SIM118 - not a mapping
        if key.endswith(".lora_A.weight"):
            stem = key.removesuffix(".lora_A.weight")
            rank = file.get_slice(key).get_shape()[0]
            own = scale * config["r"] / config.get("rank_pattern", {}).get(stem, config["r"])

            def update(stem: str = stem, own: float = own, rank: int = rank) -> NDArray[np.float64]:
                left = file.get_tensor(f"{stem}.lora_B.weight").astype(np.float64)
                right = file.get_tensor(f"{stem}.lora_A.weight").astype(np.float64)
                return np.asarray(own * left @ right)

            found[stem.removeprefix("base_model.model.") + ".weight"] = update
    return found


def gram(vectors: Sequence[Path], outputs: Mapping[str, Path]) -> list[Check]:
    """A few tensors' matrices against a product in float64."""
    found = np.load(outputs[OURS])
    opened = [tensors(path) for path in vectors]
    names = sorted(opened[0], key=lambda name: opened[0][name].count)
    worst = 0.0
    chosen = [
        name for name in (names[0], names[len(names) // 2], *_layered(names)) if name in found
    ]
    for name in chosen:
        rows = np.stack([one[name].block(0, one[name].count).astype(np.float64) for one in opened])
        exact = rows @ rows.T
        sizes = np.sqrt(np.diag(exact))
        worst = max(worst, float(np.abs((found[name] - exact) / np.outer(sizes, sizes)).max()))
    sentence = f"off by {worst:.1g} of the norms at most, in {len(chosen)} of {len(names)} tensors"
    return [Check(OURS, sentence, worst < 1e-6 and len(chosen) > 1)]


def _layered(names: Sequence[str]) -> list[str]:
    return [name for name in names if "layers.0.mlp.up_proj" in name][:1]


def basis(vectors: Sequence[Path], outputs: Mapping[str, Path]) -> list[Check]:
    """The stated error of the first task against vectors and atoms multiplied out, densely."""
    library = Basis.open(outputs[OURS])
    stored, own = tensors(outputs[OURS]), tensors(vectors[0])
    codes = library.contents.groups[0].codes.decoder[:, 0]
    missed = whole = 0.0
    for name in own:
        exact = own[name].block(0, own[name].count).astype(np.float64)
        whole += float(exact @ exact)
        exact -= _combined(stored, name, codes)
        missed += float(exact @ exact)
    dense, stated = float(np.sqrt(missed / whole)), library.errors[library.names[0]]
    sentence = f"the error of the first task is {dense:.6f}, stated is {stated:.6f}"
    return [Check(OURS, sentence, abs(dense - stated) <= 1e-3 * stated)]


def recovered(library: Path, base: Path, task: str, outputs: Mapping[str, Path]) -> list[Check]:
    """The base plus atoms times codes."""
    opened, stored = Basis.open(library), tensors(library)
    codes = opened.contents.groups[0].codes.decoder[:, opened.names.index(task)]
    models = Models(base, [], ())

    def merge(name: str, origin: NDArray[np.float64], rows: object) -> NDArray[np.float64]:
        return _combined(stored, name, codes)

    def sizes(name: str) -> NDArray[np.float64]:
        return _combined(stored, name, codes, np.abs)

    found = compare_with(outputs[OURS], models, merge, sizes)
    return [Check(OURS, found.sentence(), found.good)]


def _combined(
    stored: Mapping[str, Tensor],
    name: str,
    codes: NDArray[np.float64],
    of: Callable[[NDArray[np.float64]], NDArray[np.float64]] = np.asarray,
) -> NDArray[np.float64]:
    total = np.zeros(stored[f"atom.0:{name}"].count)
    for number, code in enumerate(codes):
        atom = stored[f"atom.{number}:{name}"]
        total += of(code * atom.block(0, atom.count).astype(np.float64))
    return total


def solved(outputs: Mapping[str, Path]) -> list[Check]:
    """Above the least loss of any atoms, and far below that of none."""
    found = np.load(outputs[OURS])
    ratio = float(found["loss"] / found["bound"])
    return [Check(OURS, f"{ratio:.3f} times the least loss of any atoms", 1 - 1e-9 <= ratio < 1.5)]
