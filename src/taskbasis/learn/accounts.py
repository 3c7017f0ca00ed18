"""Which tensors of a model are scored, and by what rule each of the others is not.

head       of the classifier on top, which belongs to one task
buffer     float numbers that are not parameters (running means, positions)
integer    integers, booleans and other types without arithmetic
excluded   named by a pattern of the caller
tied       another name for a tensor that is scored
unused     in the file, but no parameter of the module that is asked
unreached  no gradient comes to it from the loss: scored 0
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from taskbasis.difference import excluded
from taskbasis.errors import MismatchError, ValueProblem
from taskbasis.io.tensors import TensorStore


@dataclass(frozen=True)
class Accounts:
    """Every tensor of a model's file, scored or left out by a rule.

    Attributes:
        wanted: parameters of the module that are scored, and their names in the file.
        rules: the names in the file that are not, by rule.
    """

    wanted: Mapping[str, str]
    rules: Mapping[str, tuple[str, ...]]


def account(
    store: TensorStore,
    names: Mapping[str, str],
    rules: Mapping[str, tuple[str, ...]],
    exclude: Sequence[str] = (),
) -> Accounts:
    """Sort the tensors of a file.

    Args:
        store: the model's file.
        names: the module's parameters, and their names in the file.
        rules: what the problem leaves out.
        exclude: patterns of names in the file.

    Raises:
        UsageError: a pattern matches nothing.
        MismatchError: two parameters go by one name.
        ValueProblem: nothing is left to score.
    """
    taken: dict[str, str] = {}
    for name, stored in names.items():
        if stored in taken:
            raise MismatchError(
                f"the parameters {taken[stored]!r} and {name!r} both go by {stored!r} in the file"
            )
        taken[stored] = name
    left_out = excluded(exclude, store)
    wanted = {name: stored for name, stored in names.items() if stored not in left_out}
    if not wanted:
        raise ValueProblem(
            f"{store.path}: no tensor is left to score; the rules are "
            + (", ".join(sorted(rules)) or "the patterns of --exclude alone")
        )
    found: dict[str, set[str]] = {"excluded": left_out}
    known = {*taken, *left_out}
    for rule, those in rules.items():
        found[rule] = {name for name in those if name in store and name not in known}
        known |= found[rule]
    for name, info in store.items():
        if name not in known:
            rule = "unused" if info.dtype.mergeable else "integer"
            found.setdefault(rule, set()).add(name)
    return Accounts(
        wanted, {rule: tuple(sorted(those)) for rule, those in sorted(found.items()) if those}
    )
