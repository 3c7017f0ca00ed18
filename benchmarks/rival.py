"""mergekit as the contestant: its environment, its commands; and the recipes that both follow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from measure import run

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
VERBS = {
    "mergekit-yaml": "mergekit.scripts.run_yaml:main",
    "mergekit-extract-lora": "mergekit.scripts.extract_lora:main",
}

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

    @property
    def python(self) -> str:
        """Its interpreter."""
        return str(self._bin / "python")

    def versions(self) -> dict[str, str]:
        """Of mergekit and what it stands on."""
        printed = run([self.python, "-c", _VERSIONS], OFFLINE).printed
        found: dict[str, str] = json.loads(printed.strip().splitlines()[-1])
        return found


def merging(recipe: Path, output: Path) -> list[str]:
    """The words of ``mergekit-yaml``: weights and ``config.json``, no tokenizer, no card."""
    return [
        str(recipe),
        str(output),
        "--no-copy-tokenizer",
        "--no-write-model-card",
        "--quiet",
        "--out-shard-size",
        "5B",
    ]


def extracting(base: Path, tuned: Path, output: Path, rank: int, include: str) -> list[str]:
    """The words of ``mergekit-extract-lora`` for the linear layers that match a pattern."""
    return [
        f"--model={tuned}",
        f"--base-model={base}",
        f"--out-path={output}",
        f"--max-rank={rank}",
        f"--include-regex={include}",
        "--skip-undecomposable",
        "--quiet",
    ]


def recipe(
    method: str,
    models: Sequence[Path],
    base: Path | None = None,
    each: Mapping[str, float] | None = None,
    shared: Mapping[str, object] | None = None,
) -> str:
    """A recipe that is computed in float32 and written in bf16, by both programs.

    JSON is YAML, so any path may stand here.

    Args:
        method: mergekit's name.
        models: whose weights are merged.
        base: the base model, for methods that take one.
        each: parameters of every model.
        shared: parameters of the method.
    """
    content: dict[str, object] = {"merge_method": method}
    if base is not None:
        content["base_model"] = str(base)
    content["models"] = [
        {"model": str(one), **({"parameters": dict(each)} if each else {})} for one in models
    ]
    if shared:
        content["parameters"] = dict(shared)
    return json.dumps({**content, "dtype": "float32", "out_dtype": "bfloat16"}, indent=1) + "\n"
