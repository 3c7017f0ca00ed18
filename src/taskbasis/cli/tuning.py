"""taskbasis search --optimizer tpe"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from taskbasis.cli.options import print_table
from taskbasis.cli.search import own_scores

if TYPE_CHECKING:
    from taskbasis.engine import Engine
    from taskbasis.evaluate import Task
    from taskbasis.vectors import Checkpoint, EditedModel, TaskVector


@dataclass(frozen=True)
class Tuning:
    """How much is tried, where, and by which seed."""

    trials: int
    seed: int
    bounds: tuple[float, float]

    @classmethod
    def of(cls, trials: int | None, seed: int | None, bounds: str | None) -> Tuning:
        """The options as they were given; those that were not have their defaults."""
        from taskbasis.errors import UsageError
        from taskbasis.evaluate.tuning import TRIALS, check_tuning

        try:
            low, high = (0.0, 1.0) if bounds is None else map(float, bounds.split(","))
        except ValueError:
            raise UsageError(f"--bounds {bounds!r}: write two numbers, e.g. 0,1") from None
        found = cls(TRIALS if trials is None else trials, seed or 0, (low, high))
        check_tuning(found.trials, found.seed, found.bounds)  # not after models were scored
        return found


def tune(
    base: Checkpoint,
    vectors: dict[str, TaskVector],
    tasks: dict[str, Task],
    how: Tuning,
    out: str | None,
    replace: bool,
    engine: Engine,
) -> None:
    """Choose a coefficient for every vector on validation, report test, and write the model."""
    from taskbasis.evaluate import report_tuned, tune_addition
    from taskbasis.vectors import EditedModel

    def build(coefficients: Mapping[str, float]) -> EditedModel:
        parts = [coefficients[name] * vector for name, vector in vectors.items()]
        return EditedModel(base) + sum(parts[1:], parts[0])

    judged, individual = own_scores(base, vectors, tasks, engine)
    found = tune_addition(
        lambda coefficients: build(coefficients).tensors(engine),
        list(vectors),
        judged,
        individual,
        trials=how.trials,
        seed=how.seed,
        bounds=how.bounds,
    )
    scores = report_tuned(found, lambda coefficients: build(coefficients).tensors(engine), judged)
    click.echo(
        f"coefficients chosen of {how.trials} trials on validation (objective {found.score:.4f})"
    )
    rows = [
        [name, f"{found.coefficients[name]:.4f}", f"{scores[task.name]:.4f}"]
        for name, task in zip(vectors, judged, strict=True)
    ]
    print_table("", ["vector", "coefficient", "test"], rows)
    if out:
        build(found.coefficients).save(out, replace=replace, engine=engine)
        click.echo(f"wrote {out}")
