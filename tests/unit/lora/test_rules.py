"""Which tensors are adapted, which way round they lie, and what is said of the others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from taskbasis.errors import UsageError
from taskbasis.io.tensors import TensorStore
from taskbasis.lora.rules import lying, matching, module_of, modules_of, rule_of

Open = Callable[..., TensorStore]


@pytest.mark.parametrize(
    ("name", "shape", "rule"),
    [
        ("model.layers.0.self_attn.q_proj.weight", (8, 8), "adapted"),
        ("model.layers.0.self_attn.q_proj.bias", (8,), "one axis"),
        ("model.norm.weight", (8,), "one axis"),
        ("scale", (), "one axis"),
        ("model.embed_tokens.weight", (32, 8), "embedding"),
        ("transformer.wte.weight", (32, 8), "embedding"),
        ("transformer.wpe.weight", (16, 8), "embedding"),
        ("bert.embeddings.word_embeddings.weight", (32, 8), "embedding"),
        ("shared.weight", (32, 8), "embedding"),
        (
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            (4, 2),
            "embedding",
        ),
        ("gpt_neox.embed_in.weight", (32, 8), "embedding"),
        ("embed_out.weight", (32, 8), "head"),
        ("lm_head.weight", (32, 8), "head"),
        ("lm_head.decoder.weight", (32, 8), "head"),
        ("lm_head.dense.weight", (8, 8), "adapted"),
        ("cls.predictions.decoder.weight", (32, 8), "head"),
        ("cls.predictions.transform.dense.weight", (8, 8), "adapted"),
        ("embed_state.weight", (8, 3), "adapted"),  # it has a bias, so it is no table
        ("conv.weight", (4, 3, 3, 3), "convolution"),
        ("experts.gate_up_proj", (4, 8, 8), "parameter"),
        ("attn.in_proj_weight", (24, 8), "parameter"),
        ("A_log", (8, 4), "parameter"),
    ],
)
def test_rules_by_name_and_axes(name: str, shape: tuple[int, ...], rule: str) -> None:
    assert rule_of(name, shape, {name, "embed_state.bias"}) == rule


def test_modules_and_what_holds_them() -> None:
    assert module_of("a.b.weight") == "a.b"
    assert module_of("a.b.bias") == "a.b.bias"
    assert modules_of(["a.b.weight", "a.c"]) == {"a", "a.b"}


def test_patterns_are_matched_or_refused() -> None:
    names = ["h.0.q.weight", "h.1.q.weight", "h.0.k.weight"]
    assert matching("--include", ["*.q.*", "h.0.*"], names) == set(names)
    assert matching("--include", [], names) == set()
    with pytest.raises(UsageError) as caught:
        matching("--include", ["h.0.q.wieght"], names)
    assert str(caught.value) == (
        "--include 'h.0.q.wieght' matches no tensor of the delta; did you mean 'h.0.q.weight'?"
    )


def zeros(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {name.replace("__", "."): np.zeros(shape, np.float32) for name, shape in shapes.items()}


def test_without_a_bias_a_layer_is_linear(open_folder: Open) -> None:
    base = open_folder("b", zeros(q__weight=(4, 6), k__weight=(4, 4)))
    assert lying(["q.weight", "k.weight"], base, None) == set()
    assert lying(["q.weight"], base, True) == set()


def test_the_length_of_a_bias_tells(open_folder: Open) -> None:
    base = open_folder("b", zeros(q__weight=(4, 6), q__bias=(4,), s__weight=(4, 4), s__bias=(4,)))
    assert lying(["q.weight", "s.weight"], base, None) == set()
    turned = zeros(q__weight=(4, 6), q__bias=(6,), s__weight=(4, 4), s__bias=(4,), k__weight=(4, 4))
    found = lying(["q.weight", "s.weight", "k.weight"], open_folder("t", turned), None)
    assert found == {"q.weight", "s.weight"}  # the square one lies as the others do


def test_square_layers_alone_must_be_told(open_folder: Open) -> None:
    base = open_folder("b", zeros(s__weight=(4, 4), s__bias=(4,)))
    with pytest.raises(UsageError) as caught:
        lying(["s.weight"], base, None)
    assert str(caught.value) == (
        "all linear layers with a bias are square, e.g. 's.weight', so nothing tells [out, in] "
        "from the [in, out] of Conv1D; say --fan-in-fan-out (GPT-2 and its kin) or "
        "--no-fan-in-fan-out (all others)"
    )
    assert lying(["s.weight"], base, True) == {"s.weight"}
    assert lying(["s.weight"], base, False) == set()


def test_a_bias_that_fits_neither_side_is_refused(open_folder: Open) -> None:
    base = open_folder("b", zeros(q__weight=(4, 6), q__bias=(5,)))
    with pytest.raises(UsageError, match=r"shape \[4, 6\] and its bias \[5\], so it is no linear"):
        lying(["q.weight"], base, None)
