"""Following files of recipes, whose merges may start from each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from taskbasis.errors import Problems, UsageError
from taskbasis.following import account, follow
from taskbasis.io.journal import run_key
from taskbasis.io.remote import open_anywhere
from taskbasis.io.storing import AS_IT_IS
from taskbasis.io.writer import check_destination
from taskbasis.preparing import Made, Prepared, prepare
from taskbasis.recipes import to_yaml
from taskbasis.recipes.schema import RecipeFile
from taskbasis.saving import Saved
from taskbasis.sidefiles import read_config


def follow_all(
    recipe: RecipeFile,
    out: str | Path,
    scratch: Path,
    seed: int = 0,
    *,
    lora_dtype: str | None = None,
    tell: Callable[[str], None] = lambda sentence: None,
    **how: Any,
) -> Saved:
    """Follow a file of recipes: all of them in order, the last one (or the one without a name)
    to ``out``.

    Args:
        scratch: a folder for merges that others start from.
        lora_dtype: what sums of models and adapters are rounded to; None: they are not.
        tell: is told every note, once.
        how: as for :func:`follow`; ``storing`` is for the last merge alone.
    """
    ordered = recipe.in_order()
    needed = {name for document in recipe.documents for name in recipe.needs(document)}
    finals = [one for one in ordered if one.name not in needed]
    if len(finals) != 1:
        names = ", ".join(str(one.name) for one in finals)
        raise UsageError(f"{len(finals)} merges of the file are wanted ({names}); leave one")
    ahead = look_ahead(recipe, seed, lora_dtype)
    inputs = [file for prepared in ahead.values() for file in prepared.files]
    check_destination(Path(out), how.get("replace_used", False), inputs)
    outputs = ahead[finals[0].name].outputs
    how.get("storing", AS_IT_IS).check(one.name for one in outputs if one.dtype.mergeable)
    made: dict[str, Made] = {}
    parents: list[str] = []
    for number, document in enumerate(ordered):
        prepared = ahead[document.name]
        if recipe.needs(document):
            prepared = prepare(document, made, seed, lora_dtype)
        for note in (*prepared.notes, *left_out(prepared)):
            tell(note)
        if document is finals[0]:
            return follow(prepared, out, **how, recipe=recipe, inputs=inputs, parents=parents)
        assert document.name is not None
        parents += prepared.parents
        path = scratch / f"{number:02d}"  # no name of a recipe reaches the disk
        _follow_once(prepared, path, **{**how, "card": False, "storing": AS_IT_IS})
        made[document.name] = Made(open_anywhere(path), read_config(path))
    raise AssertionError("the last merge returns")


def _follow_once(prepared: Prepared, path: Path, **how: Any) -> None:
    """Write a merge that others start from, unless a run that was killed has done it."""
    text = to_yaml(RecipeFile((prepared.document,)))
    key = run_key([text, prepared.seed, prepared.lora_dtype], prepared.files, None, resume=False)
    done = path.with_suffix(".done")
    if key is None or not done.exists() or done.read_text(encoding="utf-8") != repr(key):
        follow(prepared, path, **{**how, "replace_used": True})
        done.write_text(repr(key), encoding="utf-8")


def look_ahead(
    recipe: RecipeFile, seed: int = 0, lora_dtype: str | None = None
) -> dict[str | None, Prepared]:
    """All merges of a file, before any is made: in order, by name.

    What starts from another merge sees its tensors' names, dtypes and shapes.

    Raises:
        UsageError, MismatchError, FileError: a merge cannot be followed. SeveralErrors: for
            several reasons, or several merges; those that start from one of them are not looked at.
    """
    problems, found = Problems(), dict[str | None, Prepared]()
    made: dict[str, Made] = {}
    for document in recipe.in_order():
        if any(name not in made for name in recipe.needs(document)):
            continue
        with problems:
            prepared = prepare(document, made, seed, lora_dtype)
            found[document.name] = prepared
            if document.name is not None:
                made[document.name] = prepared.unmade()
    problems.check()
    return found


def left_out(prepared: Prepared) -> list[str]:
    """What to say of tensors that whole models have and the output has not."""
    if any(part.slices for part in prepared.document.parts()):
        return []  # layers are left out on purpose
    return [
        f"{len(unused)} tensors of {model} are not part of the merge, such as {unused[0]!r}"
        for model, unused in account(prepared).items()
        if unused
    ]
