"""The test of the base: independent, scaled and related bases, layers made anew, chance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskbasis.diagnosis import Origin, diagnose
from taskbasis.diagnosis.origin import likeness
from taskbasis.errors import BaseError
from taskbasis.vectors import Checkpoint, TaskVector

Write = Callable[..., Path]
SHAPES = {"layers.0.w": (64, 64), "layers.1.w": (64, 48), "head.weight": (10, 48), "norm": (4000,)}


def weights(seed: int, size: float = 1.0) -> dict[str, Any]:
    """Matrices of random numbers, and a norm whose weights are near 1 in every model."""
    random = np.random.default_rng(seed)
    found = {n: size * random.standard_normal(s).astype(np.float32) for n, s in SHAPES.items()}
    return {**found, "norm": np.float32(1) + np.float32(0.01) * found["norm"]}


def moved(start: dict[str, Any], seed: int, by: float = 0.1) -> dict[str, Any]:
    step = weights(seed)
    return {n: np.asarray(v + by * (step[n] - (n == "norm")), np.float32) for n, v in start.items()}


def origin(write: Write, base: dict[str, Any], tuned: dict[str, Any]) -> tuple[Origin, Any]:
    found = diagnose({"v": TaskVector(write("base", base), write("tuned", tuned))})
    return found.origins[0], found


def test_a_fine_tune_of_the_base(write_folder: Write) -> None:
    one, found = origin(write_folder, weights(0), moved(weights(0), 1))
    assert one.whole.verdict == "own"
    assert {layer.verdict for layer in one.layers} == {"own"}
    assert one.whole.ratio == pytest.approx(0.1, rel=0.05)
    assert abs(one.whole.taken) < 0.01
    assert one.whole.resemblance == pytest.approx(1 / 1.01**0.5, abs=0.01)
    assert not one.suspicious
    assert not one.strangers
    assert not any("base" in sentence for sentence in found.sentences)


def test_an_unrelated_base(write_folder: Write) -> None:
    one, found = origin(write_folder, weights(2), moved(weights(0), 1))
    assert one.suspicious
    assert one.whole.verdict == "other"
    assert one.whole.ratio == pytest.approx(2**0.5, abs=0.03)
    assert one.whole.cosine == pytest.approx(-(0.5**0.5), abs=0.03)
    assert one.whole.taken == pytest.approx(1, abs=0.05)
    assert one.whole.resemblance == pytest.approx(0, abs=0.05)
    assert one.strangers == ("head", "layers.0", "layers.1")
    assert found.sentences[0].startswith("v: looks as if it was taken from another base: it takes")


def test_weights_of_norms_do_not_hide_it(write_folder: Write) -> None:
    """All tensors together resemble the base, whose norm is mostly that of weights near 1."""
    small = weights(2, 0.3)
    one, found = origin(write_folder, small, moved(weights(0, 0.3), 1, 0.03))
    whole = found.whole
    assert whole.relative[0] < 0.7
    assert one.whole.verdict == "other"
    assert [layer.name for layer in one.layers] == ["head", "layers.0", "layers.1"]


def test_without_a_matrix_all_tensors_are_looked_at(write_folder: Write) -> None:
    random = np.random.default_rng(0)
    base, other = random.standard_normal((2, 500)).astype(np.float32)
    one, _ = origin(write_folder, {"a": base}, {"a": other})
    assert one.whole.verdict == "other"


@pytest.mark.parametrize(("factor", "verdict"), [
    (0.5, "scaled"), (0.8, "scaled"), (0.95, "own"), (1.0, "own"), (1.25, "scaled"), (2, "scaled"),
])  # fmt: skip
def test_a_scaled_base(write_folder: Write, factor: float, verdict: str) -> None:
    scaled = {n: np.asarray(factor * v, np.float32) for n, v in weights(0).items()}
    one, found = origin(write_folder, scaled, moved(weights(0), 1))
    assert one.whole.verdict == verdict
    assert one.suspicious == (verdict == "scaled")
    assert one.whole.taken == pytest.approx(1 - 1 / factor, abs=0.02)
    if verdict == "scaled":
        assert f"base {1 / factor:.2f} times as long and hardly turns it" in found.sentences[0]


def test_a_layer_made_anew_shows_alone(write_folder: Write) -> None:
    tuned = {**moved(weights(0), 1, 0.05), "head.weight": weights(9)["head.weight"]}
    one, found = origin(write_folder, weights(0), tuned)
    assert not one.suspicious
    assert one.strangers == ("head",)
    (said,) = [text for text in found.sentences if "nothing in common" in text]
    assert said.startswith("v: head has nothing in common with the base, as if made anew, resized")


def test_a_layer_scaled_shows_alone(write_folder: Write) -> None:
    tuned = {**moved(weights(0), 1, 0.05), "layers.1.w": 0.5 * weights(0)["layers.1.w"]}
    one, found = origin(write_folder, weights(0), tuned)
    assert not one.suspicious
    assert "v: makes layers.1 0.50 times as long and hardly turns it" in found.sentences[0]


def test_a_relative_of_the_base_shows_in_what_the_vectors_share(write_folder: Write) -> None:
    """One vector cannot tell; several share the way from one base to the other."""
    true = weights(0)
    relative = Checkpoint(write_folder("relative", moved(true, 1, 0.2)))
    made = {n: write_folder(n, moved(true, seed)) for seed, n in enumerate("abc", 5)}
    found = diagnose({name: TaskVector(relative, path) for name, path in made.items()}, relative)
    assert not any(one.suspicious for one in found.origins)
    assert found.shared is not None
    assert found.shared.share == pytest.approx(0.8, abs=0.03)  # 0.2^2 of 0.2^2 + 0.1^2
    assert any("the vectors share 80%" in sentence for sentence in found.sentences)


def test_vectors_of_another_base_are_not_compared(write_folder: Write) -> None:
    wrong = Checkpoint(write_folder("wrong", weights(2)))
    made = {n: write_folder(n, moved(weights(0), seed)) for seed, n in enumerate("ab", 5)}
    found = diagnose({name: TaskVector(wrong, path) for name, path in made.items()}, wrong)
    assert found.pairs.cosines[0][1] > 0.99
    assert not [text for text in found.sentences if "same way" in text or "share" in text]


def test_only_what_a_vector_changes_is_looked_at(
    write_folder: Write, write_vector: Callable[..., Path]
) -> None:
    base = Checkpoint(write_folder("base", weights(0)))
    name = "layers.1.w"
    tau = weights(3)[name] - weights(0)[name]
    one = TaskVector.open(write_vector("one", base.store, {name: tau}))
    other = TaskVector.open(
        write_vector(
            "other", base.store, {"layers.0.w": tau[:, :1] * 0.01 + np.zeros((64, 64), np.float32)}
        )
    )
    found = diagnose({"one": one, "other": other}, base)
    assert [o.whole.verdict for o in found.origins] == ["other", "own"]
    assert [layer.name for layer in found.origins[1].layers] == ["layers.0"]


def test_a_stored_vector_of_another_base_is_refused(
    write_folder: Write, write_vector: Callable[..., Path]
) -> None:
    base = Checkpoint(write_folder("base", weights(0)))
    path = write_vector("v", base.store, {"norm": weights(0)["norm"]})
    other = Checkpoint(write_folder("other", weights(1)))
    with pytest.raises(BaseError, match="was taken from the base"):
        diagnose([TaskVector.open(path)], other)


@pytest.mark.parametrize("entries", [1, 2, 4, 9])
def test_chance_in_few_entries_is_no_verdict(entries: int) -> None:
    """Of vectors unrelated to the base, as long as it, hardly any is accused."""
    random = np.random.default_rng(entries)
    accused = 0
    for _ in range(500):
        base, tau = random.standard_normal((2, entries))
        found = likeness("w", entries, tau @ tau, base @ base, tau @ base)
        accused += found.verdict != "own"
    assert accused < 0.01 * 500


@given(st.integers(0, 999), st.floats(0.01, 100), st.floats(0.01, 100))
def test_numbers_stay_in_their_range(seed: int, size: float, long: float) -> None:
    base, tau = np.random.default_rng(seed).standard_normal((2, 30))
    base, tau = long * base, size * tau
    found = likeness("w", 30, float(tau @ tau), float(base @ base), float(tau @ base))
    assert -1 - 1e-9 <= found.cosine <= 1 + 1e-9
    assert found.resemblance == pytest.approx(
        (base + tau) @ base / np.linalg.norm(base + tau) / np.linalg.norm(base)
    )
    assert found.taken == pytest.approx(-found.cosine * found.ratio)


def test_zeros_are_unknown_and_a_model_of_zeros_takes_all() -> None:
    for own, base in ((0.0, 1.0), (1.0, 0.0), (0.0, 0.0)):
        assert likeness("w", 9, own, base, 0.0).verdict == "unknown"
    pruned = likeness("w", 10**6, 1.0, 1.0, -1.0)
    assert (pruned.taken, pruned.resemblance, pruned.verdict) == (1, 0, "other")
