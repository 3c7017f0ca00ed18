"""Recipes resolved against headers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from taskbasis.errors import Problems
from taskbasis.io.tensors import TensorStore
from taskbasis.preparing.edits import make_edit
from taskbasis.preparing.opening import open_model, with_ties
from taskbasis.preparing.prepared import Made, Prepared, donor_of, merged_models
from taskbasis.preparing.rounded import rounded_elsewhere
from taskbasis.recipes import Document, ModelRef, Translation, translate
from taskbasis.recipes.configs import Config, Origin, differences, relayered
from taskbasis.recipes.layers import Tower, find_place, find_towers
from taskbasis.vocabulary import Aligned, Files, align, check_tokens, tokens_beside


def prepare(
    document: Document,
    made: Mapping[str, Made] | None = None,
    seed: int = 0,
    lora_dtype: str | None = None,
) -> Prepared:
    """Open the models of a recipe, and resolve every tensor; headers alone are read.

    A model with an adapter on it is the model that merging the adapter gives, its sums formed as
    they are read: in float32, so that a 16-bit model loses nothing of the update.

    Args:
        made: merges of the same file, by name.
        seed: of methods that draw at random.
        lora_dtype: what the sums of models and adapters are rounded to, instead.

    Raises:
        UsageError, MismatchError, FileError: the recipe cannot be followed. SeveralErrors: for
            several reasons; all of what is wrong with its models, vocabularies, names and shapes
            is found here.
    """
    made, problems = made or {}, Problems()
    models = _open_all(document, made, lora_dtype, problems)
    configs, tokenizers, heads = models.configs, models.tokenizers, models.heads
    with problems:
        check_tokens(document, models.stores, tokenizers)
    tied = with_ties(document, models.stores, configs)
    stores = dict(tied.stores)
    names = {ref: list(store) for ref, store in stores.items()}
    for ref in document.references() if names else ():
        names.setdefault(ref, next(iter(names.values())))  # to see what else is wrong
    translation = None
    if names:
        with problems:
            translation = translate(document, names, seed)
    if translation is None or len(stores) < len(names):
        problems.check()
        raise AssertionError("what was not opened or translated is a problem")
    groups = translation.grouped().items()
    donor, edits, aligned = donor_of(document), [], Aligned({})
    unaligned = document.tokenizer is not None
    with problems:
        aligned = align(document, stores, translation.wanted, donor, tokenizers)
        unaligned = False
    for step, tensors in groups if not unaligned else ():  # no second word on the same rows
        with problems:
            edits.append(make_edit(step, tensors, translation, stores, aligned))
    config, left = configs[donor], tuple[str, ...]()
    with problems:
        config, left = _config(document, translation, stores, configs)
    problems.check()
    if config is not None and tied.untied:
        config = {**config, "tie_word_embeddings": False}
    config = aligned.config(config, donor)
    merged = {
        str(ref): aligned.resized(configs[ref], ref) for ref in merged_models(document, stores)
    }
    notes = (
        *(*translation.notes, *heads.values(), *tied.notes, *aligned.notes),
        *rounded_elsewhere(document, stores, translation),
        *(*differences(merged, str(donor)), *left),
    )
    if any(ref.override_architecture for ref in stores):
        notes += ("override_architecture has no effect: tensors are matched by name and shape",)
    return Prepared(
        document,
        stores,
        translation,
        tuple(edits),
        notes,
        seed,
        frozenset(made),
        config,
        config != configs[donor] or donor in heads,
        aligned.files,
        lora_dtype=lora_dtype,
    )


@dataclass
class _Models:
    """The models of a recipe that could be opened."""

    stores: dict[ModelRef, TensorStore] = field(default_factory=dict)
    configs: dict[ModelRef, Config | None] = field(default_factory=dict)
    tokenizers: dict[ModelRef, Files] = field(default_factory=dict)
    heads: dict[ModelRef, str] = field(default_factory=dict)
    """What to say of those whose adapter has a head of its own."""


def _open_all(
    document: Document, made: Mapping[str, Made], lora_dtype: str | None, problems: Problems
) -> _Models:
    """The models, their configs and tokenizers; what is wrong with one is noted."""
    found = _Models(tokenizers={ref: {} for ref in document.references()})
    for ref in document.references():
        with problems:
            found.stores[ref], found.configs[ref], note = open_model(ref, made, lora_dtype)
            found.heads |= {ref: note} if note else {}
            one = made.get(ref.model.path)
            beside = one.tokens if one is not None else None
            found.tokenizers[ref] = beside or tokens_beside(found.stores[ref].path)
    return found


def _config(
    document: Document,
    translation: Translation,
    stores: Mapping[ModelRef, TensorStore],
    configs: Mapping[ModelRef, Config | None],
) -> tuple[Config | None, tuple[str, ...]]:
    """The output's config, with its layers; and what of it to look at, in sentences."""
    donor = donor_of(document)
    config, notes = configs[donor], tuple[str, ...]()
    if config is None or not any(part.slices for part in document.parts()):
        return config, notes
    towers = {ref: find_towers(store) for ref, store in stores.items()}
    for tower in find_towers(translation.wanted):
        origins = _origins(tower, translation, towers, configs)
        known = [one for one in towers[donor] if one.prefix == tower.prefix]
        own = (known or towers[donor] or [tower])[0]
        if [origin.layer for origin in origins] != list(range(own.layers)):
            where = str(stores[donor].path / "config.json")
            config, told = relayered(config, own, origins, where)
            notes += told
    return config, notes


def _origins(
    tower: Tower,
    translation: Translation,
    towers: Mapping[ModelRef, Sequence[Tower]],
    configs: Mapping[ModelRef, Config | None],
) -> list[Origin]:
    """Where each layer of a block of the output comes from: its first source."""
    found: dict[int, Origin] = {}
    for name, wanted in translation.wanted.items():
        place = find_place(name, [tower])
        if place is None or place.layer in found:
            continue
        first = wanted.inputs[0]
        own = find_place(first.tensor, towers[first.model]) or place
        ref = first.model
        found[place.layer] = Origin(str(ref), configs[ref], own.tower, own.layer)
    return [found[layer] for layer in range(tower.layers)]
