"""What has no verb of its own, as commands: the pass of inner products, and the solver alone.

pieces.py gram OUT VECTORS...      the [T, T] matrix of every tensor, as OUT.npz
pieces.py solve OUT T              an autoencoder of T/2 atoms for T tasks, found from a Gram matrix
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def gram(out: Path, vectors: Sequence[str]) -> None:
    """One pass over the vectors."""
    from taskbasis.engine import Engine
    from taskbasis.passes import gram_by_tensor
    from taskbasis.plan import make_plan
    from taskbasis.vectors import TaskVector

    found = [TaskVector.open(path).combination for path in vectors]
    plan = make_plan(found, None, None)
    matrices: dict[str, Any] = gram_by_tensor(plan, Engine())
    np.savez(out, **matrices)


def solve(out: Path, tasks: int, seed: int = 0) -> None:
    """Tasks with cosines of about 0.3 and lengths from 1 to 2."""
    from taskbasis.basis import construction, solve

    draws = np.random.default_rng(seed)
    rows = draws.normal(size=(tasks, 4 * tasks)) + 0.65 * draws.normal(size=4 * tasks)
    rows *= draws.uniform(1, 2, tasks)[:, None]
    codes, quality = solve(rows @ rows.T, construction("autoencoder"), tasks // 2)
    np.savez(out, loss=quality.loss, bound=quality.bound, encoder=codes.encoder)


def main() -> int:
    """Do one piece."""
    what, out, *rest = sys.argv[1:]
    if what == "gram":
        gram(Path(out), [word for word in rest if not word.startswith("-")])
    else:
        solve(Path(out), int(rest[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
