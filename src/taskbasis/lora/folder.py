"""Writing adapters as PEFT reads them: factors, config and card, whole or not at all."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.engine import Engine
from taskbasis.errors import FileError, UsageError, ValueProblem
from taskbasis.io.adapter_config import CONFIG
from taskbasis.io.dtypes import DType, to_array
from taskbasis.io.writer import OutputTensor, Staged, check_destination
from taskbasis.lora.made import Row

Pair = tuple[NDArray[Any], NDArray[Any]]
"""B [out, r] and A [r, in], in the dtype that they are stored in."""

_STEM = "adapter_model"


@dataclass(frozen=True)
class Module:
    """One module of an adapter: what its two tensors are called and shaped.

    Attributes:
        name: as the model in memory calls it.
        rank: r.
        up: out, and the axes of length 1 that follow r in a convolution's B.
        down: in, and the kernel's axes behind.
        embedding: whether it is an embedding, whose factors have names of their own.
    """

    name: str
    rank: int
    up: tuple[int, ...]
    down: tuple[int, ...]
    embedding: bool = False

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of A and B, by their names in the file."""
        start = f"base_model.model.{self.name}.lora_"
        a, b = ("embedding_A", "embedding_B") if self.embedding else ("A.weight", "B.weight")
        return {
            start + a: (self.rank, *self.down),
            start + b: (self.up[0], self.rank, *self.up[1:]),
        }


@dataclass(frozen=True)
class Head:
    """What an adapter's config says beside its ranks.

    Attributes:
        base_name: the base it belongs to.
        targets: what PEFT finds the adapted modules by.
        fan_in_fan_out: whether the base's matrices are [in, out] (Conv1D).
        task_type: PEFT's word for what the model does, which decides its wrapper; may be None.
    """

    base_name: str
    targets: tuple[str, ...]
    fan_in_fan_out: bool = False
    task_type: str | None = None


def check_out(out: str | Path, replace: bool, inputs: Iterable[Path]) -> Path:
    """The folder to write, refused before any work is done.

    Raises:
        UsageError: it is named as a file. FileError: it is refused.
    """
    path = Path(out)
    if path.suffix == ".safetensors":
        raise UsageError(f"{path}: an adapter is a folder of a config and its factors; name one")
    check_destination(path, replace, inputs)
    return path


def write_adapter(
    out: Path,
    modules: Sequence[Module],
    make: Callable[[Module], tuple[Pair, Row]],
    head: Head,
    card: Callable[[Sequence[Row]], str],
    dtype: DType,
    *,
    replace: bool,
    inputs: Iterable[Path],
    engine: Engine,
) -> tuple[int, tuple[Row, ...]]:
    """Write an adapter's folder.

    Every scaling is 1 (lora_alpha = r, module by module), so that the factors' product is the
    delta for any program, even for one that knows no patterns.

    Args:
        make: the factors of a module, stored as they are; any thread may call.
        card: the sentences of its README.md.

    Returns:
        The bytes of its factors, and the rows that ``make`` gave.
    """
    if not modules:
        raise ValueProblem(f"{out}: no module is left to adapt, so there is nothing to write")
    tensors = [
        OutputTensor(name, dtype, shape)
        for module in modules
        for name, shape in module.shapes.items()
    ]
    with Staged(
        out,
        tensors,
        {"format": "pt"},
        shard_size=None,
        replace=replace,
        inputs=inputs,
        stem=_STEM,
    ) as staged:

        def work(module: Module, scratch: object) -> Row:
            (up, down), row = make(module)
            for name, values in zip(module.shapes, (down, up), strict=True):
                staged.write_array(name, values)
            return row

        def size(module: Module) -> int:
            return module.rank * (module.up[0] + module.down[0]) * dtype.itemsize

        with closing(engine.map(work, modules, size, "write")) as results:
            rows = tuple(results)
        staged.add_file(CONFIG, _config(modules, head))
        staged.add_file("README.md", _card(head, card(rows)))
        staged.commit()
    return sum(tensor.nbytes for tensor in tensors), rows


def stored(matrix: NDArray[Any], dtype: DType, where: str) -> NDArray[Any]:
    """A factor in the dtype it is stored in, rounded to nearest even.

    Raises:
        ValueProblem: a value is too large for it.
    """
    kind = to_array(np.empty(0, dtype.bits), dtype).dtype
    with np.errstate(over="ignore", under="ignore"):
        found = np.ascontiguousarray(matrix).astype(kind)
    if not np.all(np.isfinite(found.astype(np.float64))):
        raise ValueProblem(
            f"{where}: a value of its factors is too large for {dtype.name}; store the adapter in "
            "float32 or bfloat16"
        )
    return found


def _config(modules: Sequence[Module], head: Head) -> bytes:
    rank = max(module.rank for module in modules)
    # Anchored and escaped: a pattern is a regular expression that may match the end of a name.
    others = {f"^{re.escape(m.name)}": m.rank for m in modules if m.rank != rank}
    content = {
        "peft_type": "LORA",
        "task_type": head.task_type,
        "base_model_name_or_path": head.base_name or None,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": list(head.targets),
        "fan_in_fan_out": head.fan_in_fan_out,
        "bias": "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
        "inference_mode": True,
    }
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _card(head: Head, text: str) -> bytes:
    lines = ["---", "library_name: peft"]
    if head.base_name:
        lines.append(f"base_model: {json.dumps(head.base_name)}")
    return "\n".join([*lines, "tags:", "- lora", "---", "", text, ""]).encode()


def find_targets(names: Collection[str], others: Collection[str] | None = None) -> tuple[str, ...]:
    """What PEFT is told to adapt: last parts of names where all modules so called are adapted.

    PEFT adapts every module whose name is one of these or ends in one after a dot. A module that
    it finds without factors would be adapted by nothing, with a warning; so whole names are given
    where a last part would find too many.

    Args:
        names: the adapted modules.
        others: all other modules; None where they are not known.

    Raises:
        FileError: a whole name is the end of another module's, too.

    >>> find_targets(["h.0.q", "h.0.k"], ["h.1.k", "h.0.norm"])
    ('h.0.k', 'q')
    """
    if others is None:
        return tuple(sorted(names))
    ends = {other.rpartition(".")[2] for other in others}
    found = set()
    for name in names:
        end = name.rpartition(".")[2]
        found.add(name if end in ends else end)
    for name in found:
        if any(other.endswith("." + name) for other in others):
            raise FileError(
                f"module {name!r} cannot be told from another whose name ends in it; leave both "
                "out of the adapter"
            )
    return tuple(sorted(found))
