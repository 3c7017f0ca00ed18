"""The registry of contenders: complete, distinct, and picked by name."""

from dataclasses import asdict

import pytest

from taskbasis.basis import CONSTRUCTIONS as KNOWN
from taskbasis.bench.contenders import (
    CONSTRUCTIONS,
    FACTORS,
    LEARNT,
    MAGNITUDE,
    TUNED,
    contenders,
    pick,
)
from taskbasis.bench.store import digest, slug
from taskbasis.errors import UsageError
from taskbasis.learn import How
from taskbasis.methods import method, registered


def test_labels_and_their_files_are_distinct() -> None:
    found = contenders()
    assert len({one.label for one in found}) == len(found)
    assert len({slug(one.label) for one in found}) == len(found)
    assert len({digest(asdict(one)) for one in found}) == len(found)


def test_every_method_exists_with_its_options() -> None:
    for one in contenders():
        assert one.recipe.method in registered(), one.label
        options = dict(one.recipe.options)
        made = method(one.recipe.method, **options)
        assert all(getattr(made, name) == value for name, value in options.items())


def test_what_is_learnt_can_be_learnt() -> None:
    for how in LEARNT.values():
        How(**how)  # type: ignore[arg-type]
    wanted = {one.recipe.scores for one in contenders()} - {None}
    assert wanted == set(LEARNT)
    assert set(FACTORS) - {MAGNITUDE} <= set(LEARNT)


def test_every_construction_stands_at_a_half_and_a_quarter() -> None:
    assert set(CONSTRUCTIONS) == set(KNOWN)
    sums = {
        (one.recipe.basis, one.recipe.share)
        for one in contenders()
        if one.recipe.basis and one.recipe.method == "task_arithmetic" and not one.recipe.atoms
    }
    assert sums == {(name, share) for name in CONSTRUCTIONS for share in (2, 4)}


def test_every_factor_has_the_same_variants() -> None:
    found = {}
    for factor in FACTORS:
        chosen = (f"STA {factor}, density chosen", f"STA {factor} exclusive, density chosen")
        fixed = (f"STA {factor} 0", f"STA {factor} 1")
        mine = [o for o in contenders() if o.label in chosen or o.label.startswith(fixed)]
        mine = [one for one in mine if one.recipe.basis is None]
        found[factor] = [(one.label.split(factor)[1], one.densities, one.forgets) for one in mine]
        assert all(one.recipe.scores == (None if factor == MAGNITUDE else factor) for one in mine)
    assert len({str(variants) for variants in found.values()}) == 1
    assert len(found["weight"]) == 7


def test_untuned_means_that_nothing_is_chosen() -> None:
    for one in contenders():
        assert one.tuned == ("tuned" in one.label or "chosen" in one.label), one.label
    assert next(one for one in contenders() if one.label == TUNED).forgets == (None,)


def test_contenders_are_picked_by_label_or_family_in_the_order_of_the_table() -> None:
    known = contenders()
    assert pick(known, []) == known
    labels = [one.label for one in pick(known, ["sta delta*", "RegMean"])]
    assert labels[0] == "RegMean"
    assert len(labels) > 5
    assert all(label == "RegMean" or label.startswith("STA delta") for label in labels)
    assert [one.label for one in pick(known, ["TIES, TUNED"])] == ["TIES, tuned"]
    assert "autoencoder T/2 atoms, tuned" in [o.label for o in pick(known, ["autoencoder"])]
    with pytest.raises(UsageError, match="'RegMaen'; did you mean 'regmean'"):
        pick(known, ["ties", "RegMaen"])
