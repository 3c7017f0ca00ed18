"""Task vectors without what they share needlessly, as expressions that nobody has computed yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as again
from pathlib import Path

import numpy as np

from taskbasis.basis.disentangling import (
    ALPHA,
    ITERATIONS,
    RATE,
    Redundancy,
    check_numbers,
    mean_cosine,
)
from taskbasis.basis.disentangling import disentangle as solve
from taskbasis.basis.gram import Matrix
from taskbasis.blas import one_thread
from taskbasis.engine import Engine
from taskbasis.errors import UsageError, ValueProblem
from taskbasis.granularity import Granularity, group_name, group_tensors
from taskbasis.io.hidden import HiddenFolder, sync
from taskbasis.io.storing import Rounding
from taskbasis.io.writer import check_destination
from taskbasis.library.basis import inner_products
from taskbasis.library.groups import group_grams
from taskbasis.merging import by_name
from taskbasis.recipe import Combination
from taskbasis.saving import Saved
from taskbasis.vectors import TaskVector


@dataclass(frozen=True, eq=False)
class Disentangled:
    """Task vectors less the vector delta that they share, and what that did.

    Attributes:
        vectors: ``tau_t - delta`` by name, not computed yet.
        delta: the redundant vector, not computed yet.
        groups: what was found in the whole model, or in each layer or tensor.
        before, after: the mean over pairs of ``|cos|`` of whole vectors.
    """

    vectors: Mapping[str, TaskVector]
    delta: TaskVector
    groups: Mapping[str, Redundancy] = field(repr=False)
    before: float
    after: float

    def save(
        self,
        out: str | Path,
        dtype: str = "float32",
        *,
        float32: Sequence[str] = (),
        rounding: Rounding = "nearest",
        rounding_seed: int | None = None,
        replace: bool = False,
        engine: Engine | None = None,
    ) -> list[Saved]:
        """Store ``OUT/NAME.safetensors`` for every vector, all of them or none.

        Each is a sum of all vectors, so T vectors are read T times. How they are stored is said
        as for :meth:`taskbasis.TaskVector.save`.

        Raises:
            FileError: the destination is refused. UsageError: a name cannot be a file's.
            ValueProblem: a value is not finite.
        """
        out, used = Path(out), list(self.vectors.values())
        for name in self.vectors:
            if Path(name).name != name:
                raise UsageError(f"a vector called {name!r} cannot be a file; call it otherwise")
        files = {file for v in used for leaf in v.combination.leaves for file in leaf.files}
        check_destination(out, replace, sorted(files))
        with HiddenFolder(out) as folder:
            folder.take()
            draft = folder.path / "made"
            draft.mkdir()
            saved = [
                vector.save(
                    draft / f"{name}.safetensors",
                    dtype,
                    float32=float32,
                    rounding=rounding,
                    rounding_seed=rounding_seed,
                    engine=engine,
                )
                for name, vector in self.vectors.items()
            ]
            sync(draft)
            folder.show(draft, replace)
            sync(out.resolve().parent)
        return [again(one, path=out / one.path.name) for one in saved]


@one_thread()
def disentangle(
    vectors: Mapping[str, TaskVector] | Sequence[TaskVector],
    *,
    granularity: Granularity = "model",
    alpha: float = ALPHA,
    rate: float = RATE,
    iterations: int = ITERATIONS,
    engine: Engine | None = None,
) -> Disentangled:
    """Adaptive weight disentanglement (AWD): take the one vector delta from all task vectors that
    leaves them most nearly orthogonal, to merge them by any method afterwards.

    ``delta`` minimises ``mean_{i != j} |cos(tau_i - delta, tau_j - delta)| + alpha ||delta||`` by
    steps of the gradient, see :func:`taskbasis.basis.disentangling.disentangle`. It is a sum of
    the vectors, so this costs one pass that reads them for their inner products, and every result
    is a sum of the vectors that is computed when it is saved or merged.

    - ``granularity``: the paper has one delta for the whole model, as one flat vector. With
      ``layer`` or ``tensor`` every group has coefficients of its own. Since ``alpha`` and ``rate``
      are in units of whole vectors, each group is treated as if it were as long as they are.
      A vector that is zero in a group has no part in it and stays zero.
    - Pitfalls: fine-tunes of CLIP are nearly orthogonal as they are, so little may be gained; look
      at ``before`` and ``after``. Where both are equal, alpha or rate may be too large for the
      vectors. The base plus what is left of a vector is no longer that task's model; with delta
      it is.

    Args:
        vectors: by name, or in order; they are then called by their numbers.
        granularity: what has a delta of its own: model, layer or tensor.
        alpha, rate, iterations: of the descent.

    Source: Xiong et al., Multi-Task Model Merging via Adaptive Weight Disentanglement,
    arXiv 2411.18729, at second hand; granularities finer than the model are ours.

    Raises:
        UsageError: a number or the granularity means nothing. BaseError: the vectors have
            different bases. ValueProblem: there is no vector, or a value is not finite.

    >>> folder = getfixture("tiny_checkpoints")
    >>> vectors = [TaskVector(folder / "base", folder / name) for name in ("math", "code")]
    >>> found = disentangle(vectors, alpha=0.0, rate=1.0)
    >>> found.before > 0.99, found.after < 0.01, sorted(found.vectors)
    (True, True, ['0', '1'])
    """
    check_numbers(alpha, rate, iterations)
    group_name("", granularity)
    named = by_name(vectors)
    if not named:
        raise ValueProblem("there is no task vector to disentangle; give at least two")
    grams = inner_products(list(named.values()), engine or Engine())
    members = group_tensors(grams, granularity)
    of_groups = dict(zip(members, group_grams(grams, members), strict=True))
    whole = _total(of_groups.values(), len(named))
    groups = {
        name: solve(_as_long(gram, whole), alpha, rate, iterations)
        for name, gram in of_groups.items()
    }
    left = [one.residues.T @ of_groups[name] @ one.residues for name, one in groups.items()]
    made = list(named.values())

    def combined(of: Callable[[Redundancy], Matrix]) -> TaskVector:
        parts = [(members[name], of(one)) for name, one in groups.items()]
        return _combined(made, parts, granularity)

    def residue(t: int) -> TaskVector:
        return combined(lambda one: np.asarray(one.residues[:, t]))

    return Disentangled(
        {name: residue(t) for t, name in enumerate(named)},
        combined(lambda one: one.coefficients),
        groups,
        mean_cosine(whole),
        mean_cosine(_total(left, len(named))),
    )


def _total(grams: Iterable[Matrix], tasks: int) -> Matrix:
    return np.asarray(sum(grams, np.zeros((tasks, tasks))))


def _as_long(gram: Matrix, whole: Matrix) -> Matrix:
    """The inner products of a group as if its vectors were as long as the whole ones."""
    own = _mean_square(gram)
    return gram * (_mean_square(whole) / own) if own > 0 else gram


def _mean_square(gram: Matrix) -> float:
    """The mean squared norm of the vectors that are not zero."""
    return float(np.trace(gram)) / max(int(np.count_nonzero(np.diag(gram))), 1)


def _combined(
    vectors: Sequence[TaskVector],
    parts: Sequence[tuple[Sequence[str], Matrix]],
    granularity: Granularity,
) -> TaskVector:
    """``sum_j c_j tau_j`` with coefficients of their own for some tensors each, not computed."""
    found = []
    for j, vector in enumerate(vectors):
        if granularity == "model" and parts:
            found.append(float(parts[0][1][j]) * vector)
        else:
            numbers = {tensor: float(c[j]) for tensors, c in parts for tensor in tensors}
            found.append(_times(vector, numbers))
    return sum(found[1:], found[0])


def _times(vector: TaskVector, numbers: Mapping[str, float]) -> TaskVector:
    """The vector with every tensor times a number of its own; 0 where there is none."""
    terms = []
    for term in vector.combination.terms:
        known = term.per_tensor
        own = {t: n * (1.0 if known is None else known.get(t, 0.0)) for t, n in numbers.items()}
        terms.append(again(term, per_tensor=own))
    return TaskVector.of(Combination(tuple(terms)))
