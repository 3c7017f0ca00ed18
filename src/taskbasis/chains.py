"""Following files of recipes, whose merges may start from each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from taskbasis.errors import UsageError
from taskbasis.following import Prepared, account, follow, open_location, prepare
from taskbasis.io.writer import check_destination
from taskbasis.recipes.schema import RecipeFile
from taskbasis.saving import Saved


def follow_all(
    recipe: RecipeFile,
    out: str | Path,
    scratch: Path,
    seed: int = 0,
    *,
    tell: Callable[[str], None] = lambda sentence: None,
    **how: Any,
) -> Saved:
    """Follow a file of recipes: all of them in order, the last one (or the one without a name)
    to ``out``.

    Args:
        scratch: a folder for merges that others start from.
        tell: is told every note, once.
        how: as for :func:`follow`.
    """
    ordered = recipe.in_order()
    needed = {name for document in recipe.documents for name in recipe.needs(document)}
    finals = [one for one in ordered if one.name not in needed]
    if len(finals) != 1:
        names = ", ".join(str(one.name) for one in finals)
        raise UsageError(f"{len(finals)} merges of the file are wanted ({names}); leave one")
    inputs, ready = _look_ahead(recipe, seed)
    check_destination(Path(out), how.get("replace_used", False), inputs)
    made: dict[str, Path] = {}
    parents: list[str] = []
    for number, document in enumerate(ordered):
        prepared = ready.get(document.name) or prepare(document, made, seed)
        for note in (*prepared.notes, *left_out(prepared)):
            tell(note)
        if document is finals[0]:
            return follow(prepared, out, **how, recipe=recipe, inputs=inputs, parents=parents)
        assert document.name is not None
        parents += prepared.parents
        made[document.name] = scratch / f"{number:02d}"  # no name of a recipe reaches the disk
        follow(prepared, made[document.name], **{**how, "card": False})
    raise AssertionError("the last merge returns")


def _look_ahead(recipe: RecipeFile, seed: int) -> tuple[list[Path], dict[str | None, Prepared]]:
    """All files that are read, and the merges that start from nothing made first."""
    names = {document.name for document in recipe.documents if document.name}
    files: list[Path] = []
    ready: dict[str | None, Prepared] = {}
    for document in recipe.documents:
        if not recipe.needs(document):
            ready[document.name] = prepare(document, None, seed)
            files += ready[document.name].files
            continue
        for ref in document.references():
            if ref.model.path not in names:
                store = open_location(ref.model, {})
                files += [store.path, *store.files]
    return files, ready


def left_out(prepared: Prepared) -> list[str]:
    """What to say of tensors that whole models have and the output has not."""
    if any(part.slices for part in prepared.document.parts()):
        return []  # layers are left out on purpose
    return [
        f"{len(unused)} tensors of {model} are not part of the merge, such as {unused[0]!r}"
        for model, unused in account(prepared).items()
        if unused
    ]
