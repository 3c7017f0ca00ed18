"""Reading a file of mergekit recipes, strictly: all that is wrong is said at once."""

from __future__ import annotations

from pathlib import Path

from taskbasis.errors import FileError
from taskbasis.io.regular import read_regular
from taskbasis.recipes.groups import check_document
from taskbasis.recipes.parsing import parse_document
from taskbasis.recipes.problems import NOWHERE, Findings
from taskbasis.recipes.schema import Document, RecipeFile
from taskbasis.recipes.tree import MOST_CHARACTERS, read_trees


def read_recipe(source: str | Path) -> RecipeFile:
    """The recipes of a mergekit YAML file, or of a text (which has more than one line).

    What mergekit 0.1.5 reads is read: ``models``, ``slices`` or ``modules``, parameters with
    filters and gradients, tokenizers, and several documents that name each other. Beyond it,
    unknown keys, keys that stand twice, values out of range and whatever else it passes over are
    errors. Nothing but this one file is opened.

    Raises:
        RecipeError: the recipe is wrong; the message lists everything, with lines and columns.
        FileError: the file cannot be read.

    >>> text = "merge_method: slerp\\nbase_model: a\\nmodels: [model: b]\\nparameters: {t: 0.5}\\n"
    >>> read_recipe(text).documents[0].models[0].model.model.path
    'b'
    >>> read_recipe(text.replace("slerp", "slrep"))
    Traceback (most recent call last):
        ...
    taskbasis.recipes.problems.RecipeError: the recipe, line 1, column 15: there is no merge method
    'slrep' in mergekit; did you mean 'slerp'?
    """
    if isinstance(source, str) and "\n" in source:
        return parse_recipe(source)
    return parse_recipe(_text(Path(source)), str(source))


def _text(path: Path) -> str:
    raw = read_regular(path, 4 * MOST_CHARACTERS)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(f"{path}: no text in UTF-8 (byte {error.start}); a recipe is") from None


def parse_recipe(text: str, where: str = "the recipe") -> RecipeFile:
    """The recipes of a text; see :func:`read_recipe`.

    Args:
        where: what messages call it.

    Raises:
        RecipeError: as there.
    """
    findings = Findings()
    trees = read_trees(text, findings)
    if not trees and not findings.problems:
        findings.wrong(NOWHERE, "there is nothing in it; a recipe needs merge_method and models")
    documents = tuple(parse_document(tree, findings) for tree in trees)
    for document in documents:
        check_document(document, findings)
    _check_names(documents, findings)
    findings.check(where)
    return RecipeFile(documents, tuple(sorted(set(findings.notes))))


def _check_names(documents: tuple[Document, ...], findings: Findings) -> None:
    """Several documents: each with a name of its own, but for one, and no circles."""
    seen: dict[str | None, Document] = {}
    for document in documents:
        if document.name in seen and (document.name is not None or len(documents) > 1):
            first = seen[document.name].mark.line
            what = f"the name {document.name!r} is" if document.name else "a recipe without name is"
            findings.wrong(
                document.mark, f"{what} there already, from line {first}; give it another"
            )
        seen.setdefault(document.name, document)
    names = [name for name in seen if name]
    for document in documents:
        for ref in document.references():
            if ref.model.path in names and ref.model.revision:
                findings.wrong(
                    document.mark,
                    f"{ref.model} is a merge of this file and has no revision; "
                    f"write {ref.model.path!r}",
                )
    if findings.problems:
        return
    try:
        RecipeFile(documents).in_order()
    except ValueError as circle:
        findings.wrong(documents[0].mark, f"recipes need each other in a circle: {circle}")
