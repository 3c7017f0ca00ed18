"""mergekit as the contestant: its environment, its configuration, its command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from measure import run

# The same result as ours: float32 inside, rounded to bf16 once. The other is the one people
# write; it rounds every difference and every sum on the way, and is faster for it.
SAME, ROUNDED = "mergekit", "mergekit, dtype bfloat16"
DTYPES = {SAME: "float32", ROUNDED: "bfloat16"}
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

_VERSIONS = """
import json
from importlib.metadata import version
print(json.dumps({n: version(n) for n in ("mergekit", "torch", "transformers", "safetensors")}))
"""


class Mergekit:
    """mergekit in an environment of its own.

    Args:
        environment: the folder that ``setup_mergekit`` made.
    """

    def __init__(self, environment: Path) -> None:
        self._bin = environment / "bin"

    @property
    def installed(self) -> bool:
        """Whether it is there."""
        return (self._bin / "mergekit-yaml").exists()

    def versions(self) -> dict[str, str]:
        """Of mergekit and what it stands on."""
        printed = run([str(self._bin / "python"), "-c", _VERSIONS], OFFLINE).printed
        found: dict[str, str] = json.loads(printed.strip().splitlines()[-1])
        return found

    def command(self, recipe: Path, output: Path, shard_size: str) -> list[str]:
        """Merges by the recipe; writes weights and ``config.json``, no tokenizer, no card."""
        return [
            str(self._bin / "mergekit-yaml"),
            str(recipe),
            str(output),
            "--no-copy-tokenizer",
            "--no-write-model-card",
            "--quiet",
            "--out-shard-size",
            shard_size,
        ]


def task_arithmetic(base: Path, tuned: Sequence[Path], scale: float, dtype: str) -> str:
    """The recipe of base + scale x sum of (tuned - base), written in bf16.

    JSON strings are YAML strings, so any path may stand here.
    """
    models = "".join(
        f"  - model: {json.dumps(str(one))}\n    parameters:\n      weight: {scale}\n"
        for one in tuned
    )
    return (
        f"merge_method: task_arithmetic\nbase_model: {json.dumps(str(base))}\n"
        f"models:\n{models}dtype: {dtype}\nout_dtype: bfloat16\n"
    )
