"""Every method beside a naive dense reference, and its contract, with many of its options.

The references stand in the files ``dense_*.py`` of this folder, one for each group of methods.
"""

from __future__ import annotations

from dataclasses import fields
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from taskbasis.methods import Method, method, registered
from taskbasis.testing import check_method, trials
from taskbasis.testing.clauses import counts


def load(path: Path) -> ModuleType:
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FILES = [load(path) for path in sorted(Path(__file__).parent.glob("dense_*.py"))]
DENSE: dict[str, Any] = {name: dense for file in FILES for name, dense in file.DENSE.items()}
TOLERANCE = {
    name: bound for file in FILES for name, bound in getattr(file, "TOLERANCE", {}).items()
}
OPTIONS: list[Method] = [of for file in FILES for of in file.OPTIONS]


def test_every_method_has_a_reference_and_no_reference_is_idle() -> None:
    assert set(DENSE) == set(registered())


def test_every_option_is_tried_at_another_value_than_its_default() -> None:
    tried = {(of.name, name) for of in OPTIONS for name in differing(of)}
    known = {(name, option) for name, kind in registered().items() for option in options(kind)}
    assert known - tried == set()


def options(kind: type[Method]) -> list[str]:
    return [field.name for field in fields(kind)]


def differing(of: Method) -> list[str]:
    default = method(of.name)
    return [name for name in options(type(of)) if getattr(of, name) != getattr(default, name)]


@pytest.mark.parametrize("of", [*map(method, registered()), *OPTIONS], ids=repr)
def test_equals_its_dense_reference(of: Method) -> None:
    for count in counts(of):
        for length in (0, 1, 40):
            for trial in trials(of, count, length, np.float64):
                found, wanted = trial.merged(of), DENSE[of.name](of, trial)
                assert found.shape == np.shape(wanted)
                bound = TOLERANCE.get(of.name, 1e-5) * np.max(np.abs(wanted), initial=1e-30)
                np.testing.assert_allclose(found, wanted, rtol=0, atol=bound)


@pytest.mark.parametrize("of", OPTIONS, ids=repr)
def test_keeps_the_contract_with_other_options(of: Method) -> None:
    check_method(of)
