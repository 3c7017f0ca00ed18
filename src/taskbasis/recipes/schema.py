"""What a mergekit recipe says, as inert data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from taskbasis.recipes.problems import NOWHERE, Mark, Problem

Value = bool | int | float
"""A parameter's value, once filters and gradients are resolved."""


@dataclass(frozen=True)
class Location:
    """A folder, a file or a name on the hub, and its revision.

    >>> str(Location("org/model", "main"))
    'org/model@main'
    """

    path: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.path}@{self.revision}" if self.revision else self.path


@dataclass(frozen=True)
class ModelRef:
    """A model, perhaps with an adapter on it: ``path[@revision][+lora[@revision]]``.

    >>> str(ModelRef(Location("org/model"), Location("org/adapter", "v2")))
    'org/model+org/adapter@v2'
    """

    model: Location
    lora: Location | None = None
    override_architecture: str | None = None

    def __str__(self) -> str:
        return f"{self.model}+{self.lora}" if self.lora else str(self.model)


@dataclass(frozen=True)
class Rule:
    """One value, or a gradient of several, for tensors whose names contain ``filter``."""

    values: tuple[Value, ...]
    filter: str | None = None

    def matches(self, tensor: str) -> bool:
        return self.filter is None or self.filter in tensor


Setting = tuple[Rule, ...]
"""What a recipe says of a parameter in one place: the first rule that matches holds."""

Settings = Mapping[str, Setting]
"""Settings by the parameter's name."""


@dataclass(frozen=True)
class Source:
    """A model that goes into a merge, or of a slice some of its layers.

    Attributes:
        layers: the first layer and the one after the last; None: all of them.
    """

    model: ModelRef
    layers: tuple[int, int] | None = None
    parameters: Settings = field(default_factory=dict)
    mark: Mark = field(default=NOWHERE, compare=False)
    sound: bool = field(default=True, compare=False)


@dataclass(frozen=True)
class Slice:
    """Some layers of the output, and the layers that they are merged from."""

    sources: tuple[Source, ...]
    base_model: ModelRef | None = None
    parameters: Settings = field(default_factory=dict)
    mark: Mark = field(default=NOWHERE, compare=False)
    sound: bool = field(default=True, compare=False)


@dataclass(frozen=True)
class Module:
    """One tower of the output: merged from whole models, or from slices."""

    name: str
    models: tuple[Source, ...] = ()
    slices: tuple[Slice, ...] = ()
    parameters: Settings = field(default_factory=dict)
    mark: Mark = field(default=NOWHERE, compare=False)


@dataclass(frozen=True)
class TokenSource:
    """Where the embedding of a token comes from: a model's token, or zeros.

    Attributes:
        model: whose; None: it is zero.
        token, token_id: which of that model's tokens; the same one where neither is given.
    """

    model: ModelRef | None = None
    token: str | None = None
    token_id: int | None = None


@dataclass(frozen=True)
class TokenRule:
    """What a recipe says of one token's embedding."""

    source: TokenSource | None = None
    force: bool = False


@dataclass(frozen=True)
class Tokenizer:
    """The output's vocabulary: of all models together, of the base, or of one model."""

    source: Literal["union", "base"] | ModelRef = "union"
    tokens: Mapping[str, TokenRule] = field(default_factory=dict)
    pad_to_multiple_of: int | None = None


@dataclass(frozen=True)
class Document:
    """One merge: exactly one of ``models``, ``slices`` and ``modules`` is there.

    ``tokenizer_source: X`` is ``tokenizer: {source: X}``. The output is stored in ``out_dtype``,
    else in ``dtype``, else in the widest dtype of a tensor's inputs. Nothing is rounded to
    ``dtype`` before it is merged, as mergekit does; where that makes a difference a note says so.
    """

    merge_method: str
    models: tuple[Source, ...] = ()
    slices: tuple[Slice, ...] = ()
    modules: tuple[Module, ...] = ()
    base_model: ModelRef | None = None
    parameters: Settings = field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer: Tokenizer | None = None
    chat_template: str | None = None
    name: str | None = None
    mark: Mark = field(default=NOWHERE, compare=False)
    sound: bool = field(default=True, compare=False)

    def parts(self) -> tuple[Module, ...]:
        """The modules; models or slices alone are a module without a name."""
        return self.modules or (Module("", self.models, self.slices, mark=self.mark),)

    def sources(self) -> Iterator[Source]:
        """Every source, in the order of the file."""
        for part in self.parts():
            yield from part.models
            for piece in part.slices:
                yield from piece.sources

    def references(self) -> tuple[ModelRef, ...]:
        """Every model that is named, in the order of the file; the base first."""
        named = [self.base_model, *(source.model for source in self.sources())]
        named += [piece.base_model for part in self.parts() for piece in part.slices]
        if self.tokenizer is not None:
            if isinstance(self.tokenizer.source, ModelRef):
                named.append(self.tokenizer.source)
            rules = self.tokenizer.tokens.values()
            named += [rule.source.model for rule in rules if rule.source is not None]
        return tuple(dict.fromkeys(ref for ref in named if ref is not None))


@dataclass(frozen=True)
class RecipeFile:
    """A file of recipes: one merge, or several that build upon each other.

    Attributes:
        documents: in the order of the file.
        notes: what the file says that has no effect or another than it seems, with lines.
    """

    documents: tuple[Document, ...]
    notes: tuple[Problem, ...] = field(default=(), compare=False)

    def needs(self, document: Document) -> tuple[str, ...]:
        """The names of the merges of this file that a merge starts from."""
        names = {other.name for other in self.documents if other.name}
        paths = [ref.model.path for ref in document.references()]
        return tuple(dict.fromkeys(path for path in paths if path in names))

    def in_order(self) -> tuple[Document, ...]:
        """The documents, each after those that it needs.

        Raises:
            ValueError: some need each other in a circle; reading a file refuses that.
        """
        done: list[Document] = []
        left = list(self.documents)
        while left:
            names = {other.name for other in left}
            ready = [one for one in left if not names.intersection(self.needs(one))]
            if not ready:
                raise ValueError(" and ".join(str(one.name) for one in left))
            done += ready
            left = [one for one in left if one not in ready]
        return tuple(done)
