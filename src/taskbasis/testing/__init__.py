"""The contract of a method, for everybody who writes one.

    from taskbasis.testing import check_method

    def test_mine():
        check_method(Mine(strength=0.3))

A method works on stretches of tensors that it does not choose, on threads that it does not see,
and its result must not show it. :func:`check_method` runs every clause below on small arrays;
each clause is a function that can be called alone. A breach is an :class:`AssertionError` naming
the method and the clause. No file is touched, and nothing is random.
"""

from __future__ import annotations

from taskbasis.methods import Method
from taskbasis.testing.clauses import (
    COUNTS,
    WORKERS,
    BrokenContract,
    check_cuts,
    check_finite,
    check_learnt,
    check_linear,
    check_needs,
    check_order,
    check_pure,
    check_record,
    check_shape,
    check_signs,
    check_stages,
    check_workers,
    check_zeros,
)
from taskbasis.testing.trials import (
    Trial,
    merged,
    moment_samples,
    samples,
    score_samples,
    trials,
)

__all__ = [
    "COUNTS",
    "WORKERS",
    "BrokenContract",
    "Trial",
    "check_cuts",
    "check_finite",
    "check_learnt",
    "check_linear",
    "check_method",
    "check_needs",
    "check_order",
    "check_pure",
    "check_record",
    "check_shape",
    "check_signs",
    "check_stages",
    "check_workers",
    "check_zeros",
    "merged",
    "moment_samples",
    "samples",
    "score_samples",
    "trials",
]


def check_method(
    method: Method, *, ordered: bool | None = None, tolerance: float | None = None
) -> None:
    """Check that a method keeps its contract.

    A method that takes scores or moments is tried with them, too; one that requires them, never
    without.

    Args:
        method: the method, with the options it is to be tried with.
        ordered: whether its result may depend on the order of the vectors; as its class says, by
            default. Say so in the method's docstring, too.
        tolerance: how far, relative to the largest entry, results may differ when vectors are cut
            elsewhere. 0, the default, means the same bits, which a method without stages, or with
            stages that count, always gives; for one that says ``float_sums`` it is 1e-6.

    Raises:
        BrokenContract: naming the first clause that is broken.

    >>> from taskbasis.methods import method
    >>> check_method(method("task_arithmetic"))
    >>> check_method(method("magmax"), ordered=False)
    Traceback (most recent call last):
        ...
    taskbasis.testing.clauses.BrokenContract: magmax: the order of the vectors changes the result; \
declare it with ordered=True where that is meant
    >>> check_method(method("magmax"))
    """
    check_record(method)
    check_needs(method)
    check_shape(method)
    check_finite(method)
    check_zeros(method)
    check_pure(method)
    check_learnt(method)
    check_stages(method)
    default = 1e-6 if method.float_sums else 0.0
    check_cuts(method, default if tolerance is None else tolerance)
    check_workers(method)
    check_linear(method)
    check_signs(method)
    if not (method.ordered if ordered is None else ordered):
        check_order(method)
