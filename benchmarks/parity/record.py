"""Runs mergekit and PEFT on the cases, in their own environment, and records what they give.

    python benchmarks/parity/record.py tests/reference/mergekit           writes the recording
    python benchmarks/parity/record.py tests/reference/mergekit --check   compares with a fresh run

``inputs.safetensors`` holds the models (``world/model/tensor``), ``outputs.safetensors`` a row per
case, its tensors one after the other, and ``masks/<case>``, what random methods kept, as bits;
``cases.json`` says what was run, and with what.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from cases import Case, cases
from inputs import WORLDS
from mergekit.merge_methods import merge_tensors
from peft.utils import merge_utils
from safetensors.torch import load_file, save_file

PROGRAMS = ("mergekit", "peft", "torch", "numpy")
ABSENT = asdict(Case("mergekit", "", "", ()))
"""What is not said of a case: what most cases have."""

Models = Mapping[str, Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class Recording:
    """What was run, on what, and what it gave."""

    about: dict[str, Any]
    inputs: dict[str, torch.Tensor]
    outputs: dict[str, torch.Tensor]


def worlds() -> dict[str, dict[str, dict[str, torch.Tensor]]]:
    """Every world's models, in its dtype."""
    return {
        world: {
            model: {
                name: torch.from_numpy(values).to(getattr(torch, dtype))
                for name, values in tensors.items()
            }
            for model, tensors in make().items()
        }
        for world, (make, dtype) in WORLDS.items()
    }


def merged(case: Case, models: Models, name: str, dtype: torch.dtype) -> torch.Tensor:
    """What the other program makes of one tensor, in the dtype that it computes in."""
    tensors = [models[model][name] for model in case.models]
    if case.library == "peft":
        base = models["base"][name].to(dtype)
        deltas = [tensor.to(dtype) - base for tensor in tensors]
        options = {k: v for k, v in case.parameters.items() if k != "weights"}
        weights = torch.tensor(case.parameters["weights"], dtype=dtype)
        return base + getattr(merge_utils, case.method)(deltas, weights, **options)
    if case.base is not None and case.base not in case.models:
        tensors = [models[case.base][name], *tensors]
    return merge_tensors(
        tensors,
        case.method,
        parameters=case.parameters,
        base_index=None if case.base is None else 0,
        dtype=dtype,
    )


@contextmanager
def drawing(masks: list[torch.Tensor], given: list[torch.Tensor] | None) -> Iterator[None]:
    """Notes every mask that is drawn; where masks are given, they are drawn instead."""
    draw, left = torch.bernoulli, iter(given or ())

    def noted(chances: torch.Tensor) -> torch.Tensor:
        mask = draw(chances) if given is None else next(left).reshape(chances.shape).to(chances)
        masks.append(mask.reshape(-1).bool())
        return mask

    with patch.object(torch, "bernoulli", noted):
        yield


def run(
    case: Case, models: Models, dtype: str, given: list[torch.Tensor] | None = None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """All tensors of a merge in one row, in the dtype of the models, and the masks drawn."""
    rows, masks = [], []
    torch.manual_seed(case.seed)
    for number, name in enumerate(case.tensors):
        drawn: list[torch.Tensor] = []
        with drawing(drawn, None if given is None else list(given[number])):
            row = merged(case, models, name, getattr(torch, dtype))
        rows.append(row.to(models["base"][name].dtype).reshape(-1))
        masks.append(torch.stack(drawn) if drawn else torch.zeros(0, row.numel()).bool())
    return torch.cat(rows), masks


def units(left: torch.Tensor, right: torch.Tensor) -> int:
    """How many numbers of their dtype the two are apart, at most."""
    whole = {torch.float32: torch.int32, torch.bfloat16: torch.int16}[left.dtype]
    lowest = torch.iinfo(whole).min
    places = [row.view(whole).long() for row in (left, right)]
    first, second = (torch.where(row < 0, lowest - row, row) for row in places)
    return int((first - second).abs().max())


def packed(masks: list[torch.Tensor]) -> torch.Tensor:
    """Masks as bits: one row per model, its tensors one after the other."""
    return torch.from_numpy(np.packbits(torch.cat(masks, dim=1).numpy(), axis=1))


def recorded(case: Case, models: Models) -> tuple[dict[str, Any], torch.Tensor, list[torch.Tensor]]:
    """What is said of a case, its result, and the masks drawn.

    Both programs round on the way in the dtype they compute in, which is no part of a method. So
    a case is run in float64, too; where that gives another result, by more than one unit of the
    stored dtype, and the case is not one that is wrong, the finer result is what is recorded.
    """
    said = {key: value for key, value in asdict(case).items() if value != ABSENT[key]}
    result, masks = run(case, models, case.dtype)
    if case.dtype != "float32":
        return said, result, masks
    finer, _ = run(case, models, "float64", masks)
    away = units(result, finer)
    if away > 1:
        said["units"] = away
    if away > 1 and not case.wrong:
        said["dtype"], result = "float64", finer
    return said, result, masks


def record() -> Recording:
    """Runs every case."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # PEFT's, that a density of 1 does nothing
    given = worlds()
    inputs = {
        f"{world}/{model}/{name}": tensor
        for world, models in given.items()
        for model, tensors in models.items()
        for name, tensor in tensors.items()
    }
    outputs, described = {}, {}
    for name, case in cases().items():
        described[name], outputs[name], masks = recorded(case, given[case.world])
        if any(len(mask) for mask in masks):
            outputs[f"masks/{name}"] = packed(masks)
    about = {"programs": {name: version(name) for name in PROGRAMS}, "cases": described}
    return Recording(about, inputs, outputs)


def write(recording: Recording, folder: Path) -> None:
    """Stores a recording, one case per line."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(recording.inputs, folder / "inputs.safetensors")
    save_file(recording.outputs, folder / "outputs.safetensors")
    programs = json.dumps(recording.about["programs"])
    lines = [f'  "{name}": {json.dumps(case)}' for name, case in recording.about["cases"].items()]
    text = f'{{"programs": {programs},\n"cases": {{\n' + ",\n".join(lines) + "\n}}\n"
    (folder / "cases.json").write_text(text, encoding="utf-8")


def read(folder: Path) -> Recording:
    """The recording in a folder."""
    about = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
    found = (load_file(folder / f"{name}.safetensors") for name in ("inputs", "outputs"))
    return Recording(about, *found)


def differences(stored: Recording, fresh: Recording) -> Iterator[str]:
    """What a fresh run found otherwise.

    Results may differ by a unit, since processors do; those that are wrong, by what they lose to
    rounding. How much that is may differ, too.
    """
    for what in ("programs", "cases"):
        old, new = stored.about[what], json.loads(json.dumps(fresh.about[what]))
        for name in sorted(old.keys() | new.keys()):
            first, second = (_without_units(side.get(name)) for side in (old, new))
            if first != second:
                yield f"{name}: recorded {first}, found {second}"
    lost = {name: case.get("units", 1) for name, case in stored.about["cases"].items()}
    wrong = {name for name, case in stored.about["cases"].items() if "wrong" in case}
    for old, new in ((stored.inputs, fresh.inputs), (stored.outputs, fresh.outputs)):
        for name in sorted(old.keys() | new.keys()):
            if name not in old or name not in new:
                yield f"{name}: a tensor that is on one side only"
            elif old[name].dtype != new[name].dtype or old[name].shape != new[name].shape:
                yield f"{name}: another dtype or shape"
            elif name not in lost:
                if not torch.equal(old[name], new[name]):
                    yield f"{name}: other models, or another mask"
            elif (away := units(old[name], new[name])) > (4 * lost[name] if name in wrong else 1):
                yield f"{name}: differs by {away} units"


def _without_units(said: Any) -> Any:
    return {k: v for k, v in said.items() if k != "units"} if isinstance(said, dict) else said


def main() -> int:
    """Writes the recording, or compares it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the recording is")
    parser.add_argument("--check", action="store_true", help="compare it with a fresh run")
    options = parser.parse_args()
    fresh = record()
    if not options.check:
        write(fresh, options.folder)
        size = sum(path.stat().st_size for path in options.folder.iterdir())
        print(f"{len(fresh.about['cases'])} cases, {size / 1000:.0f} kB, in {options.folder}")
        return 0
    found = list(differences(read(options.folder), fresh))
    print("\n".join(found) or f"{len(fresh.about['cases'])} cases: as recorded")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
