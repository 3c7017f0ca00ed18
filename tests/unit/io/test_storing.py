"""How floats are stored: patterns, words, and what is refused."""

from __future__ import annotations

import pytest

from taskbasis.errors import UsageError
from taskbasis.io.dtypes import BF16, BY_NAME, F16, F32, F64
from taskbasis.io.storing import AS_IT_IS, Storing, storing


def test_patterns_come_before_the_dtype_and_floats_alone_are_meant() -> None:
    made = Storing(F16, ("*norm*", "head?"))
    assert made.of("layers.0.norm.weight", BF16) is F32
    assert made.of("head1", F64) is F32
    assert made.of("head", BF16) is F16
    assert made.of("norm.steps", BY_NAME["int64"]) is BY_NAME["int64"]
    assert AS_IT_IS.of("a", BF16) is BF16


def test_a_pattern_without_a_tensor() -> None:
    made = Storing(None, ("*norm*", "layer.*"))
    made.check(["a.norm", "layer.0"])
    with pytest.raises(
        UsageError,
        match=r"--keep-float32 'layer\.\*' matches no tensor of floats; did you mean 'layers\.0'\?",
    ):
        made.check(["a.norm", "layers.0"])


def test_what_people_say() -> None:
    assert storing() == AS_IT_IS
    assert storing("bfloat16", "*norm*", "stochastic") == Storing(BF16, ("*norm*",), 0)
    assert storing("float16", ["a", "b"]).options == [
        *("--dtype", "float16", "--keep-float32", "a", "--keep-float32", "b")
    ]
    drawn = storing(None, (), "stochastic", 7)
    assert drawn.options == ["--rounding", "stochastic", "--rounding-seed", "7"]
    assert drawn.record == {"rounding": "stochastic", "rounding_seed": 7}
    assert storing("float16").record == {}
    with pytest.raises(UsageError, match="rounding 'stochastik' is unknown; did you mean 'stoch"):
        storing(rounding="stochastik")
    with pytest.raises(UsageError, match="a rounding seed has no part in rounding to nearest"):
        storing(seed=0)
    with pytest.raises(UsageError, match="'int8' is not a float type"):
        storing("int8")


def test_keys_tell_names_and_seeds_apart() -> None:
    keys = {Storing(seed=seed).key(name) for seed in (0, 1, 10) for name in ("a", "0/a", "b")}
    assert len(keys) == 9
    assert all(0 <= key < 1 << 64 for key in keys)
    assert Storing(seed=1, twins={"b": "a"}).key("b") == Storing(seed=1).key("a")
    assert Storing(seed=1).key("w\udcff") == Storing(seed=1).key("w\udcff")
    assert (
        Storing(seed=0).key("w") == 0xEA994A16FD7FF2CF
    )  # files written with a seed are made again by it
