"""Models of one vocabulary or of several, seen with the rows of the output's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from taskbasis.errors import FileError, MismatchError, UsageError
from taskbasis.io.regular import parse_json
from taskbasis.io.tensors import TensorInfo, TensorStore
from taskbasis.recipes.planning import Wanted
from taskbasis.recipes.schema import Document, ModelRef, Tokenizer
from taskbasis.vocabulary.files import Files, renumbered, resized, with_tokens
from taskbasis.vocabulary.joining import Joined, join
from taskbasis.vocabulary.reading import (
    TOKENIZER,
    Vocabulary,
    read_vocabulary,
    tokenizer_files,
)
from taskbasis.vocabulary.reloading import reload
from taskbasis.vocabulary.rows import (
    Counts,
    Rows,
    gather,
    has_tokens,
    input_rows,
    look_alikes,
)
from taskbasis.vocabulary.templates import choose_template, with_template

Stores = Mapping[ModelRef, TensorStore]

Config = Mapping[str, Any] | None

CONFIGS = ("config.json", "generation_config.json")
"""What says numbers of tokens, beside the tokenizer."""


def tokens_beside(folder: Path) -> Files:
    """What stands beside a model's weights and says something of its tokens."""
    return tokenizer_files(folder, CONFIGS)


@dataclass(frozen=True)
class Aligned:
    """The output's tokens, and the models' tensors as they are merged.

    Attributes:
        files: of the output's tokenizer, by name.
        infos: for every tensor whose rows are tokens what each model has of it; none where all
            models have the same tokens in the same rows.
        rows: how many rows the output has for tokens; None where that stays.
        before: how many each model has.
        joined, old: the output's tokens, and those by which the config was written; None where
            they are the same.
        notes: what was found and done, a sentence each.
    """

    files: Files = field(repr=False)
    infos: Mapping[tuple[ModelRef, str], TensorInfo] = field(default_factory=dict, repr=False)
    rows: int | None = None
    before: Mapping[ModelRef, set[int]] = field(default_factory=dict, repr=False)
    joined: Joined | None = None
    old: Vocabulary | None = None
    notes: tuple[str, ...] = ()

    def resized(self, config: Config, model: ModelRef) -> Config:
        """A model's config with the output's number of rows."""
        if config is None or self.rows is None:
            return config
        return cast(Config, resized(config, self.before[model], self.rows))

    def config(self, config: Config, donor: ModelRef) -> Config:
        """The donor's config with the new number of rows and the new numbers of tokens."""
        config = self.resized(config, donor)
        if config is not None and self.joined is not None and self.old is not None:
            return cast(Config, renumbered(config, self.old, self.joined)[0])
        return config


def align(
    document: Document,
    stores: Stores,
    wanted: Mapping[str, Wanted],
    donor: ModelRef,
    tokenizers: Mapping[ModelRef, Mapping[str, bytes]],
) -> Aligned:
    """See to it that a row means the same token in all models that are merged.

    Args:
        document: the recipe; without ``tokenizer`` all vocabularies have to be the same.
        stores: the models' tensors.
        wanted: where every tensor of the output comes from.
        donor: whose config the output takes.
        tokenizers: the models' files, as :func:`taskbasis.vocabulary.tokens_beside` reads them.

    Raises:
        MismatchError: the vocabularies differ, and the recipe does not say which the output has;
            or they cannot be told. UsageError: it asks for tokens or rows that are not there.
        FileError: a tokenizer is damaged, or is not what it should be once it is opened again.
    """
    known, template, note = check_tokens(document, stores, tokenizers)
    asked = document.tokenizer
    giver = asked.source if asked and isinstance(asked.source, ModelRef) else donor
    folder = stores[giver].path
    files = {name: raw for name, raw in tokenizers[giver].items() if name in TOKENIZER}
    notes = () if note is None else (note,)
    if asked is None:
        beyond = _rowless(known, stores)
        return Aligned(with_template(files, template, folder), notes=(*notes, *beyond))
    if not _differ(asked, known, stores):
        told = _kept(known[giver], files, folder, input_rows(stores[giver]))
        return Aligned(with_template(files, template, folder), notes=(*notes, *told))
    whole, assumed = _complete(known, stores, giver)
    models = _merged(document)
    others = [
        (whole[ref], max(input_rows(stores[ref]), default=0)) for ref in whole if ref in models
    ]
    joined = join(whole[giver], others if asked.source == "union" else (), asked.tokens)
    _check_size(joined, stores[giver].path)
    multiple = asked.pad_to_multiple_of or 1
    rows = -(-joined.size // multiple) * multiple
    infos, said = _gathered(Rows(joined.names(rows), whole, asked.tokens, stores), wanted)
    edited = with_tokens(files, folder, joined)
    problem = reload(edited, files, joined, folder)
    found = Aligned(
        with_template(edited, template, folder),
        infos,
        rows,
        {ref: input_rows(store) for ref, store in stores.items()},
        None if whole[donor].same(whole[giver]) else joined,
        whole[donor],
    )
    more, lost = _generation(found, tokenizers[donor], stores[donor].path)
    summary = _summary(asked, giver, whole, joined, rows)
    more_said = (*assumed, *_beyond(whole, stores), *said)
    notes = (*notes, summary, *more_said, *lost, *((problem,) if problem else ()))
    return replace(found, files={**found.files, **more}, notes=notes)


def _generation(
    found: Aligned, files: Mapping[str, bytes], folder: Path
) -> tuple[Files, tuple[str, ...]]:
    """generation_config.json with the new numbers of tokens; and which are left out, there or in
    config.json."""
    if found.joined is None or found.old is None:
        return {}, ()
    more: Files = {}
    lost: list[str] = []
    for name in CONFIGS:
        if name in files:
            content = parse_json(files[name], str(folder / name))
            content, keys = renumbered(content, found.old, found.joined)
            lost += [f"{key} in {folder / name}: the output has no such token" for key in keys]
            if name != "config.json":
                more[name] = (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
    return more, tuple(lost)


def check_tokens(
    document: Document, stores: Stores, tokenizers: Mapping[ModelRef, Mapping[str, bytes]]
) -> tuple[dict[ModelRef, Vocabulary | None], str | None, str | None]:
    """The models' vocabularies, the chat template that is asked for, and what to say of that.

    Raises:
        MismatchError: vocabularies differ, and the recipe does not say which the output has: rows
            of the embeddings mean different tokens. UsageError: the template is none.
        FileError: a tokenizer is damaged.
    """
    models = _merged(document)
    held = [(str(ref), tokenizers[ref], stores[ref].path) for ref in stores if ref in models]
    template, note = choose_template(document.chat_template, held)
    known = {ref: read_vocabulary(tokenizers[ref], store.path) for ref, store in stores.items()}
    if document.tokenizer is None:
        told = [(ref, _used(v, stores[ref])) for ref, v in known.items() if v is not None]
        for ref, found in told:
            _check_same(told[0], (ref, found))
    return known, template, note


def _used(vocabulary: Vocabulary, store: TensorStore) -> Vocabulary:
    """The tokens that have a row; a tokenizer may have more than its model was given."""
    rows = max(input_rows(store), default=None)
    if rows is None:
        return vocabulary
    return replace(vocabulary, numbers={t: n for t, n in vocabulary.numbers.items() if n < rows})


def _rowless(known: Mapping[ModelRef, Vocabulary | None], stores: Stores) -> tuple[str, ...]:
    """What to say of tokens that have no row."""
    found = []
    for ref, own in known.items():
        if own is None:
            continue
        used = _used(own, stores[ref]).numbers
        beyond = [token for token in own.numbers if token not in used]
        if beyond:
            found.append(
                f"{len(beyond)} tokens of {ref} have no row in its embeddings, such as "
                f"{beyond[0]!r}, and are not compared"
            )
    return tuple(found)


def _check_same(one: tuple[ModelRef, Vocabulary], other: tuple[ModelRef, Vocabulary]) -> None:
    (first, ours), (second, theirs) = one, other
    if ours.same(theirs):
        return
    if ours.raw is not None or theirs.raw is not None:
        raise MismatchError(
            f"the tokenizers of {first} and {second} differ, and which tokens they have cannot "
            f"be told from {ours.file if ours.raw is not None else theirs.file}; give both a "
            "tokenizer.json"
        )
    unlike = _unlike(ours, theirs)
    raise MismatchError(
        f"{len(unlike)} tokens of {first} and {second} differ, e.g. {unlike[0]!r} is "
        f"{ours.numbers.get(unlike[0], 'missing')} and "
        f"{theirs.numbers.get(unlike[0], 'missing')}; say which vocabulary the output has, and "
        "rows are aligned by token: tokenizer_source: union, base or a model"
    )


def _unlike(ours: Vocabulary, theirs: Vocabulary) -> list[str]:
    return sorted(
        token
        for token in {*ours.numbers, *theirs.numbers}
        if ours.numbers.get(token) != theirs.numbers.get(token)
    )


def _merged(document: Document) -> set[ModelRef]:
    """The models that are merged; others may only give a tokenizer or a token."""
    found = {source.model for source in document.sources()}
    pieces = [piece.base_model for part in document.parts() for piece in part.slices]
    return found | {ref for ref in (document.base_model, *pieces) if ref is not None}


def _differ(asked: Tokenizer, known: Mapping[ModelRef, Vocabulary | None], stores: Stores) -> bool:
    """Whether any row has to move."""
    if asked.tokens or asked.pad_to_multiple_of:
        return True
    told = [found for found in known.values() if found is not None]
    heights = {frozenset(input_rows(store)) for store in stores.values()} - {frozenset()}
    return any(not told[0].same(other) for other in told) or len(heights) > 1


def _kept(
    vocabulary: Vocabulary | None, files: Files, folder: Path, rows: set[int]
) -> tuple[str, ...]:
    """All models have the same tokens in the same rows: nothing moves, nothing is cut off."""
    if vocabulary is None:
        return (f"{folder} has no tokenizer, so the output has none, either",)
    if vocabulary.raw is not None:
        return ()
    joined = Joined(vocabulary.numbers)
    more = max(rows, default=0) - joined.size
    problem = reload(files, files, joined, folder)
    said = () if problem is None else (problem,)
    if more <= 0:
        return said
    return (
        f"{more} rows beyond the {joined.size} tokens are merged like the others; mergekit cuts "
        "them off",
        *said,
    )


def _complete(
    known: Mapping[ModelRef, Vocabulary | None], stores: Stores, giver: ModelRef
) -> tuple[dict[ModelRef, Vocabulary], list[str]]:
    """The vocabularies, of models without a tokenizer the donor's where the rows agree."""
    own = known[giver]
    if own is None:
        raise UsageError(
            f"{stores[giver].path} has no tokenizer, but the recipe says what becomes of its "
            "tokens; put its tokenizer.json beside it"
        )
    found, told = {}, []
    for ref, vocabulary in known.items():
        if vocabulary is None:
            if input_rows(stores[ref]) != input_rows(stores[giver]):
                raise MismatchError(
                    f"{ref} has no tokenizer, and not as many rows as {giver}, so that nobody can "
                    "tell their tokens; put its tokenizer.json beside it"
                )
            vocabulary = own
            told.append(f"{ref} has no tokenizer; it is taken to have {giver}'s tokens")
        if vocabulary.raw is not None:
            raise MismatchError(
                f"which tokens {ref} has cannot be told from {vocabulary.file}; write a "
                "tokenizer.json: "
                "transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            )
        found[ref] = vocabulary
    return found, told


def _check_size(joined: Joined, folder: Path) -> None:
    """A number far beyond the others is damage, and would be a model of as many rows."""
    if joined.size > 4 * len(joined.numbers) + 65536:
        token = max(joined.numbers, key=lambda one: joined.numbers[one])
        raise FileError(
            f"{folder}: its tokenizer gives {token!r} the number {joined.numbers[token]}, but has "
            f"only {len(joined.numbers)} tokens; is it damaged?"
        )


def _beyond(known: Mapping[ModelRef, Vocabulary], stores: Stores) -> list[str]:
    """What to say of rows that have no token."""
    found = []
    for ref, vocabulary in known.items():
        more = max(input_rows(stores[ref]), default=0) - Joined(vocabulary.numbers).size
        if more > 0:
            found.append(f"{more} rows of {ref} have no token and are left out")
    return found


def _gathered(
    seen: Rows, wanted: Mapping[str, Wanted]
) -> tuple[dict[tuple[ModelRef, str], TensorInfo], list[str]]:
    """The tensors whose rows are tokens, and what to say of them."""
    stores, heights = seen.stores, {ref: input_rows(s) for ref, s in seen.stores.items()}
    infos: dict[tuple[ModelRef, str], TensorInfo] = {}
    counts: dict[str, Counts] = {}
    for name, one in wanted.items():
        inputs = [(each.model, stores[each.model][each.tensor]) for each in one.inputs]
        if has_tokens(name, [info for _, info in inputs], [heights[ref] for ref, _ in inputs]):
            found, counts[name] = gather(seen, name, inputs, one.base)
            infos |= {(ref, name): info for ref, info in found.items()}
    if not infos:
        raise UsageError(
            "no tensor of the output is an embedding by its name (embed_tokens, wte, "
            "word_embeddings, lm_head and so on), so no rows can be aligned by token; remove "
            "the tokenizer settings"
        )
    said: list[str] = []
    for name, count in counts.items():
        said += [
            note for note in _told(name, count) if note.partition(": ")[2] not in " ".join(said)
        ]
    for ref, store in stores.items():
        others = look_alikes(store, set(counts))
        if others:
            said.append(
                f"{others[0]} of {ref} has as many rows as there are tokens, but by its name they "
                "are none; it is merged as it is"
            )
    return infos, said


def _told(name: str, count: Counts) -> list[str]:
    lacking = ", ".join(f"{ref} lacks {n}" for ref, n in count.lacking.items() if n)
    ways = [
        f"{number} {what}"
        for number, what in (
            (count.averaged, "are the mean of the models that have them"),
            (count.zero, "are zeros, since none of its models has them"),
            (count.forced, "are forced"),
            (count.padding, "are padding: the mean of all others"),
        )
        if number
    ]
    found = []
    if lacking:
        others = "" if count.zero else "; others' rows stand in"
        found.append(f"{name}: of the output's tokens {lacking}{others}")
    if ways:
        found.append(f"{name}: of its rows {', '.join(ways)}")
    return found


def _summary(
    asked: Tokenizer,
    giver: ModelRef,
    known: Mapping[ModelRef, Vocabulary],
    joined: Joined,
    rows: int,
) -> str:
    new = [str(one["content"]) for one in joined.new]
    own = len(joined.numbers) - len(new)
    what = asked.source if isinstance(asked.source, str) else f"of {asked.source}"
    unlike: Sequence[str] = [
        f"{ref} differs in {len(_unlike(known[giver], theirs))}"
        for ref, theirs in known.items()
        if not known[giver].same(theirs)
    ]
    more = f", {len(new)} added, such as {new[0]!r}" if new else ""
    apart = f"; {', '.join(unlike)}" if unlike else ""
    return f"tokenizer {what}: {own} tokens of {giver}{more}, in {rows} rows{apart}"
