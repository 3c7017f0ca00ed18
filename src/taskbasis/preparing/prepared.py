"""A recipe whose models are opened and whose every tensor is accounted for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from taskbasis.io.adapted import stored_dtype
from taskbasis.io.dtypes import DType, floating, widest
from taskbasis.io.remote import located
from taskbasis.io.storing import AS_IT_IS, Storing
from taskbasis.io.tensors import TensorInfo, TensorStore, Unmade
from taskbasis.io.writer import OutputTensor
from taskbasis.plan import Plan
from taskbasis.recipes import Document, ModelRef, Translation
from taskbasis.recipes.configs import Config
from taskbasis.saving import Edit
from taskbasis.sidefiles import with_dtype
from taskbasis.vocabulary import Files


@dataclass(frozen=True)
class Made:
    """A merge of the same file that others start from.

    Attributes:
        store: its tensors: written, or known by their headers alone.
        config: its config.json; None: it has none.
        tokens: the files of its tokenizer; None: they stand beside its tensors.
    """

    store: TensorStore
    config: Config | None
    tokens: Files | None = None


@dataclass(frozen=True)
class Prepared:
    """A recipe whose models are opened and whose every tensor is accounted for.

    Attributes:
        document: the recipe.
        stores: the models' tensors, those of adapters added, by the names that are merged.
        translation: how every tensor of the output is merged, in our words.
        edits: one for the tensors that share a step, in the order of the steps.
        notes: what the reader of the recipe should know.
        seed: of methods that draw at random.
        made: the names of merges of the same file that it may start from.
        config: the output's config.json, but for its dtype; None: the donor has none.
        changed: whether that differs from the donor's.
        tokens: the files of the output's tokenizer, by name.
        beside: how floats are stored, beside what the recipe says of their dtype.
        lora_dtype: what sums of models and adapters are rounded to; None: they are not.
    """

    document: Document
    stores: Mapping[ModelRef, TensorStore]
    translation: Translation
    edits: tuple[Edit, ...]
    notes: tuple[str, ...]
    seed: int = 0
    made: frozenset[str] = frozenset()
    config: Config | None = None
    changed: bool = False
    tokens: Files = field(default_factory=dict, repr=False)
    beside: Storing = AS_IT_IS
    lora_dtype: str | None = None

    @property
    def tokenizer(self) -> TensorStore:
        """The model whose tokenizer the output takes."""
        asked = self.document.tokenizer.source if self.document.tokenizer else None
        return self.stores[asked] if isinstance(asked, ModelRef) else self.donor

    @property
    def parents(self) -> list[str]:
        """The models and adapters that it is made of, but for merges of the same file."""
        own = [ref for ref in self.stores if ref.model.path not in self.made]
        adapters = [str(located(str(ref.lora))) for ref in self.stores if ref.lora is not None]
        return [*(str(self.stores[ref].path) for ref in own), *adapters]

    @property
    def files(self) -> list[Path]:
        """What is read, which no output may touch; not what is yet to be made."""
        stores = [store for store in self.stores.values() if store.files]
        return [file for store in stores for file in (store.path, *store.files)]

    @property
    def donor(self) -> TensorStore:
        """The model whose config and tokenizer the output takes: the base, or the first."""
        return self.stores[donor_of(self.document)]

    @property
    def dtype(self) -> DType | None:
        """What floats are stored in; None: the widest of what goes into a tensor."""
        name = self.document.out_dtype or self.document.dtype
        return floating(name) if name else None

    @property
    def storing(self) -> Storing:
        """How floats are stored."""
        return replace(self.beside, dtype=self.dtype)

    @cached_property
    def plans(self) -> tuple[Plan, ...]:
        """The edits resolved against headers."""
        return tuple(edit.plan(self.storing) for edit in self.edits)

    @property
    def outputs(self) -> list[OutputTensor]:
        """The tensors of the output, by name."""
        found = []
        for plan in self.plans:
            for merge in plan.merges:
                held = [info for info in (*merge.rows, merge.base) if info is not None]
                inputs = [stored_dtype(info) for info in held]
                own = stored_dtype(merge.base) if merge.base is not None else inputs[0]
                dtype = self.storing.of(merge.name, widest(inputs) if merge.rows else own)
                found.append(OutputTensor(merge.name, dtype, merge.shape))
            found += [OutputTensor(info.name, info.dtype, info.shape) for info in plan.copies]
        return sorted(found, key=lambda tensor: tensor.name)

    def unmade(self) -> Made:
        """The output as others see it before it is made: names, dtypes and shapes."""
        name, config = str(self.document.name), self.config
        config = None if config is None else with_dtype(config, self.dtype)
        infos = {t.name: TensorInfo(t.name, t.dtype, t.shape, Unmade(name)) for t in self.outputs}
        return Made(TensorStore(self.tokenizer.path, infos), config, self.tokens)


def donor_of(document: Document) -> ModelRef:
    """The model whose config the output takes: the base, or the first."""
    return document.base_model or next(document.sources()).model


def merged_models(document: Document, stores: Mapping[ModelRef, TensorStore]) -> list[ModelRef]:
    """The models whose weights meet, the donor first."""
    named = [donor_of(document), *(source.model for source in document.sources())]
    return [ref for ref in dict.fromkeys(named) if ref in stores]
