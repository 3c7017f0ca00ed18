"""Rows by token: against the rules written out token by token; and what fits nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskbasis.errors import MismatchError, UsageError
from taskbasis.io.dtypes import BY_NAME, F32
from taskbasis.io.gathered import Gathered
from taskbasis.io.tensors import ArrayBlob, TensorInfo, TensorStore
from taskbasis.recipes.schema import Location, ModelRef, TokenRule, TokenSource
from taskbasis.vocabulary import Vocabulary
from taskbasis.vocabulary.rows import Rows, gather, has_tokens, input_rows, look_alikes

NAME = "model.embed_tokens.weight"


def ref(name: str) -> ModelRef:
    return ModelRef(Location(name))


def info(name: str, array: Any) -> TensorInfo:
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return TensorInfo(name, BY_NAME[array.dtype.name], array.shape, ArrayBlob(raw, "a file"))


def store(**arrays: Any) -> TensorStore:
    return TensorStore(Path("m"), {name: info(name, array) for name, array in arrays.items()})


def aligned(
    names: list[str | None],
    models: Mapping[str, tuple[Mapping[str, int], Any]],
    base: str | None = None,
    **rules: TokenRule,
) -> tuple[dict[str, Any], Any]:
    """What each model's tensor looks like, and the counts."""
    stores = {ref(n): store(**{NAME: array}) for n, (_, array) in models.items()}
    known = {ref(n): Vocabulary(words, {}, Path(n)) for n, (words, _) in models.items()}
    inputs = [(one, own[NAME]) for one, own in stores.items()]
    rows = Rows(names, known, rules, stores)
    found, counts = gather(rows, NAME, inputs, ref(base) if base else None)
    return {str(one): seen for one, seen in found.items()}, counts


def rows(*values: float) -> Any:
    return np.array([[value, -value] for value in values], np.float32)


def first(seen: Mapping[str, TensorInfo]) -> dict[str, list[float]]:
    return {name: seen[name].load()[:, 0].tolist() for name in seen}


BASE = ({"x": 0, "y": 1, "only": 2}, rows(1, 2, 3))
A = ({"y": 0, "x": 1, "more": 2, "shared": 3}, rows(20, 10, 30, 40))
B = ({"x": 0, "shared": 1}, rows(100, 400))


def test_by_name() -> None:
    seen, counts = aligned(
        ["x", "y", "only", "more", "shared", None], {"base": BASE, "a": A, "b": B}, "base"
    )
    mean = 220.0
    assert first(seen) == {
        "base": [1, 2, 3, 30, mean, pytest.approx((1 + 2 + 3 + 30 + mean) / 5)],
        "a": [10, 20, 3, 30, 40, pytest.approx((10 + 20 + 3 + 30 + 40) / 5)],
        "b": [100, 2, 3, 30, 400, pytest.approx((100 + 2 + 3 + 30 + 400) / 5)],
    }
    assert counts.lacking == {ref("base"): 2, ref("a"): 1, ref("b"): 3}
    assert (counts.averaged, counts.zero, counts.padding, counts.forced) == (1, 0, 1, 0)
    assert {one.dtype for one in seen.values()} == {F32}


def test_without_a_base_the_mean_of_those_that_have_it() -> None:
    seen, _ = aligned(["x", "y", "shared", "none"], {"one": BASE, "a": A, "b": B})
    assert first(seen) == {
        "one": [1, 2, 220, 0],
        "a": [10, 20, 40, 0],
        "b": [100, 11, 400, 0],
    }


def test_rules_of_a_recipe() -> None:
    seen, counts = aligned(
        ["x", "y", "only", "shared", "new"],
        {"base": BASE, "a": A, "b": B},
        "base",
        x=TokenRule(TokenSource(ref("a")), force=True),
        y=TokenRule(TokenSource(ref("a"), "more")),
        only=TokenRule(TokenSource()),
        shared=TokenRule(TokenSource(ref("a"), token_id=1), force=True),
        new=TokenRule(TokenSource(ref("base"), "only")),
    )
    assert first(seen) == {
        "base": [10, 2, 3, 10, 3],
        "a": [10, 20, 0, 10, 3],
        "b": [10, 30, 0, 10, 3],
    }
    assert counts.forced == 2


def test_a_rule_without_a_source_only_asks_for_the_token() -> None:
    seen, _ = aligned(["x", "only"], {"base": BASE, "a": A}, "base", only=TokenRule())
    assert first(seen) == {"base": [1, 3], "a": [10, 3]}


def test_rows_beyond_a_tensor_are_lacking() -> None:
    """A tokenizer may list tokens that its model has no row for."""
    seen, counts = aligned(
        ["x", "y", "only"], {"a": ({"x": 0, "y": 1, "only": 2}, rows(5, 6)), "b": BASE}
    )
    assert first(seen)["a"] == [5, 6, 3]
    assert counts.lacking == {ref("a"): 1, ref("b"): 0}


def test_what_is_in_place_is_read_as_it_is() -> None:
    seen, _ = aligned(["x", "y", "only"], {"base": BASE, "a": A}, "base")
    assert not isinstance(seen["base"].blob, Gathered)
    assert isinstance(seen["a"].blob, Gathered)


def test_means_of_16_bits_are_kept_in_32() -> None:
    half = [(words, array.astype(ml_dtypes.bfloat16)) for words, array in (A, B)]
    plain, _ = aligned(["x", "shared"], {"a": half[0], "b": half[1]})
    assert {one.dtype.name for one in plain.values()} == {"bfloat16"}
    odd = ({"z": 0, "shared": 1}, rows(0, 1.0078125).astype(ml_dtypes.bfloat16))
    seen, _ = aligned(["x", "shared"], {"a": half[0], "b": half[1], "c": odd})
    assert seen["c"].dtype == F32
    third = ({"z": 0}, rows(0).astype(ml_dtypes.bfloat16))
    ones = ({"shared": 0}, rows(1.0).astype(ml_dtypes.bfloat16))
    seen, _ = aligned(["shared"], {"a": ones, "b": (odd[0], odd[1]), "c": third})
    assert first(seen)["c"] == [1.00390625]  # between two numbers of bfloat16


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_against_the_rules_token_by_token(data: Any) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 999)))
    tokens = [f"t{n}" for n in range(data.draw(st.integers(1, 12)))]
    models = {}
    for name in "abc"[: data.draw(st.integers(1, 3))]:
        own = [token for token in tokens if random.random() < 0.6] or tokens[:1]
        random.shuffle(own)
        height = len(own) + int(random.integers(-1, 3)) or 1
        words = {token: at for at, token in enumerate(own)}
        models[name] = (words, random.standard_normal((height, 2)).astype(np.float32))
    base = data.draw(st.sampled_from([None, *models]))
    names: list[str | None] = [*tokens, None]
    random.shuffle(names)  # type: ignore[arg-type]
    rule, chosen = None, data.draw(st.sampled_from(tokens))
    owners = [n for n, (words, array) in models.items() if words.get(chosen, 99) < len(array)]
    if owners:
        rule = TokenRule(TokenSource(ref(owners[0])), force=data.draw(st.booleans()))
    seen, _ = aligned(names, models, base, **({chosen: rule} if rule else {}))
    for name, (words, array) in models.items():
        expected = np.zeros((len(names), 2))
        for row, token in enumerate(names):
            if token is None:
                continue
            has = {
                n: m[1][m[0][token]] for n, m in models.items() if m[0].get(token, 99) < len(m[1])
            }
            if rule and token == chosen and (rule.force or name not in has):
                expected[row] = has[owners[0]]
            elif name in has:
                expected[row] = has[name]
            elif base in has:
                expected[row] = has[base]
            elif has:
                expected[row] = np.mean([value.astype(float) for value in has.values()], axis=0)
        rest = [row for row, token in enumerate(names) if token is None]
        known = [row for row, token in enumerate(names) if token is not None]
        expected[rest] = expected[known].mean(axis=0)
        np.testing.assert_allclose(seen[name].load(), expected, rtol=1e-6, atol=1e-7)
        assert words
        assert array.size


@pytest.mark.parametrize(("rule", "said"), [
    (TokenSource(ref("base"), "onlx"),
     "token 'x' is to be 'onlx' of base, whose tokenizer has no such token; did you mean 'only'"),
    (TokenSource(ref("a"), "zzz"), "zzz' of a, .*; see its tokenizer for what there is"),
    (TokenSource(ref("a"), token_id=4),
     r"token 'x' is to be row 4 of a, but tensor .* has only 4 rows, numbered from 0"),
])  # fmt: skip
def test_rules_for_what_is_not_there(rule: TokenSource, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        aligned(["x"], {"base": BASE, "a": A}, "base", x=TokenRule(rule))


def test_rows_of_other_widths() -> None:
    with pytest.raises(MismatchError, match=r"has shape \[2, 3\] in b, .*\[3, 2\] in a; is it of"):
        aligned(["x"], {"a": BASE, "b": (B[0], np.zeros((2, 3), np.float32))})
    with pytest.raises(MismatchError, match="holds int32; rows of different vocabularies are"):
        aligned(["x"], {"a": BASE, "b": (B[0], np.zeros((2, 2), np.int32))})


@pytest.mark.parametrize(("name", "shape", "wanted"), [
    ("model.embed_tokens.weight", (9, 4), True),
    ("transformer.wte.weight", (9, 4), True),
    ("bert.embeddings.word_embeddings.weight", (9, 4), True),
    ("model.language_model.embed_tokens_per_layer.weight", (9, 4), True),
    ("lm_head.weight", (9, 4), True),
    ("lm_head.bias", (9,), True),
    ("cls.predictions.bias", (9,), True),
    ("cls.predictions.decoder.weight", (9, 4), True),
    ("backbone.embeddings.weight", (9, 4), True),
    ("output.weight", (9, 4), True),
    ("output.weight", (3, 4), False),
    ("cls.predictions.transform.dense.weight", (9, 4), False),
    ("transformer.wpe.weight", (9, 4), False),
    ("bert.embeddings.token_type_embeddings.weight", (9, 4), False),
    ("model.norm.weight", (9,), False),
])  # fmt: skip
def test_which_tensors_have_a_row_for_each_token(name: str, shape: Any, wanted: bool) -> None:
    assert has_tokens(name, [info(name, np.zeros(shape, np.float32))], [{9}]) == wanted


@pytest.mark.parametrize(("name", "shape"), [
    ("final_logits_bias", (1, 9)),
    ("lm_head.weight", (8, 4)),
    ("lm_head.bias", ()),
])  # fmt: skip
def test_a_head_of_another_size(name: str, shape: Any) -> None:
    with pytest.raises(UsageError, match="should have a row for each token, but its shape is"):
        has_tokens(name, [info(name, np.zeros(shape, np.float32))], [{9}])


def test_how_many_rows_a_model_has() -> None:
    wide = np.zeros((9, 4), np.float32)
    assert input_rows(store(**{NAME: wide, "lm_head.weight": wide[:3]})) == {9}
    assert input_rows(store(**{"backbone.embeddings.weight": wide})) == {9}
    assert input_rows(store(w=wide)) == set()


def test_tensors_that_look_like_rows_of_tokens() -> None:
    wide = np.zeros((9, 4), np.float32)
    held = {NAME: wide, "model.layers.0.up.weight": wide, "codebook": wide, "norm": wide[:, 0]}
    assert look_alikes(store(**held), {NAME}) == ["codebook"]
    square = {NAME: np.zeros((4, 4), np.float32), "pooler": np.zeros((4, 4), np.float32)}
    assert look_alikes(store(**square), {NAME}) == []
