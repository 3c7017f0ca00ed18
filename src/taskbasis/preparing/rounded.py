"""Inputs that a recipe's dtype cannot hold: mergekit rounds them first, here nothing is."""

from __future__ import annotations

from collections.abc import Mapping

from taskbasis.io.adapted import stored_dtype
from taskbasis.io.dtypes import floating, widest
from taskbasis.io.tensors import TensorStore
from taskbasis.preparing.prepared import merged_models
from taskbasis.recipes import Document, ModelRef, Translation


def rounded_elsewhere(
    document: Document, stores: Mapping[ModelRef, TensorStore], translation: Translation
) -> tuple[str, ...]:
    """A sentence on the models with tensors in the merge that ``dtype`` does not hold exactly."""
    if document.dtype is None:
        return ()
    asked = floating(document.dtype)
    inputs = [one for wanted in translation.wanted.values() for one in wanted.inputs]
    models, lossy = [], set[str]()
    for ref in merged_models(document, stores):
        names = {one.tensor for one in inputs if one.model == ref}
        infos = [stores[ref][name] for name in sorted(names & stores[ref].infos.keys())]
        kinds = {stored_dtype(info) for info in infos if info.dtype.mergeable}
        found = {kind.name for kind in kinds if widest([asked, kind]) != asked}
        models += [str(ref)] if found else []
        lossy |= found
    if not models:
        return ()
    who = " and ".join(filter(None, (", ".join(models[:-1]), models[-1])))
    return (
        f"{' and '.join(sorted(lossy))} in {who}: mergekit rounds it to dtype {asked.name} before "
        "it merges; here it is merged as it is, and only the result is rounded",
    )
