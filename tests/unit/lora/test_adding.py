"""Signed sums of adapters: equal to dense arithmetic, or a sentence why not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from taskbasis.engine import Engine
from taskbasis.errors import (
    FileError,
    HeaderError,
    MemoryCapError,
    MismatchError,
    TaskbasisError,
    UsageError,
    ValueProblem,
)
from taskbasis.lora import add_adapters
from taskbasis.vectors import TaskVector

Array = NDArray[Any]
Write = Callable[..., Path]
Products = Callable[[Path], dict[str, NDArray[np.float64]]]
ONE = Engine(workers=1)

SHAPES = {
    "net.0.q": (5, 4),
    "net.0.up": (3, 7),
    "net.1.q": (5, 4),
    "net.emb": (3, 9),
    "net.sq": (4, 4),
}
"""(out, in) of the modules; an embedding's out is its dimension."""


@dataclass(frozen=True)
class Set:
    """Random adapters with what their configs say, and their dense deltas."""

    folders: dict[str, Path]
    weights: list[float]
    dense: dict[str, NDArray[np.float64]]


def draw(seed: int, write: Write, where: str) -> Set:
    """Adapters of random modules, ranks, alphas, rsLoRA and weights; deltas in float64."""
    random = np.random.default_rng(seed)
    turned = bool(random.integers(2))
    folders, weights, dense = {}, [], dict[str, NDArray[np.float64]]()
    for number in range(random.integers(1, 5)):
        modules = [name for name in SHAPES if random.random() < 0.6] or ["net.0.q"]
        rank, alpha, stable = (
            int(random.integers(1, 6)),
            float(random.choice([1, 3, 8, 16, -2, 0.7])),
            bool(random.integers(2)),
        )
        ranks = {m: int(random.integers(1, 6)) for m in modules if random.random() < 0.4}
        alphas = {m: float(random.integers(1, 9)) for m in modules if random.random() < 0.4}
        weight = float(random.choice([1.0, -0.9, 0.3, -2.5, 1e-3]))
        kind = random.choice(["float32", "float16", "bfloat16"])
        pairs = {}
        for module in modules:
            own = ranks.get(module, rank)
            pairs[module] = tuple(
                random.standard_normal(shape).astype(
                    ml_dtypes.bfloat16 if kind == "bfloat16" else kind
                )
                for shape in ((SHAPES[module][0], own), (own, SHAPES[module][1]))
            )
            scaling = alphas.get(module, alpha) / (math.sqrt(own) if stable else own)
            up, down = (part.astype(np.float64) for part in pairs[module])
            delta = weight * scaling * (up @ down)
            if module == "net.emb" or turned:
                delta = delta.T
            name = f"{module}.weight"
            dense[name] = dense.get(name, 0) + delta
        folders[f"a{number}"] = write(
            f"{where}/a{number}",
            pairs,
            r=rank,
            lora_alpha=alpha,
            use_rslora=stable,
            fan_in_fan_out=turned,
            rank_pattern=ranks,
            alpha_pattern=alphas,
        )
        weights.append(weight)
    return Set(folders, weights, dense)


def assert_equal(found: dict[str, Array], wanted: dict[str, Array], share: float = 1e-6) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].shape == value.shape
        assert np.abs(found[name] - value).max() <= share * max(np.abs(value).max(), 1e-12), name


@pytest.mark.parametrize("block", range(8))
def test_signed_sums_of_200_random_sets_equal_dense_arithmetic(
    block: int, write_adapter: Write, products: Products, tmp_path: Path
) -> None:
    """In Frobenius norm to 1e-6 of the largest term's, and by what the report says of it."""
    for seed in range(25 * block, 25 * block + 25):
        given_set = draw(seed, write_adapter, f"s{seed}")
        made = add_adapters(
            given_set.folders, given_set.weights, tmp_path / f"out{seed}", engine=ONE
        )
        found = products(made.path)
        assert found.keys() == given_set.dense.keys()
        terms = [
            abs(weight) * max(np.abs(delta).max() for delta in products(folder).values())
            for weight, folder in zip(given_set.weights, given_set.folders.values(), strict=True)
        ]
        missed = 0.0
        for name, value in given_set.dense.items():
            assert np.abs(found[name] - value).max() <= 1e-6 * max(terms), (seed, name)
            missed += float(np.sum((found[name] - value) ** 2))
        whole = math.sqrt(sum(float(np.sum(v**2)) for v in given_set.dense.values()))
        assert made.adapted == pytest.approx(whole, rel=1e-9)
        stated = math.sqrt(sum(row.error**2 for row in made.rows))
        assert stated == pytest.approx(math.sqrt(missed), rel=1e-3, abs=1e-13 * max(terms))


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**40), kept=st.integers(1, 6), by_energy=st.booleans())
def test_compressed_sums_are_the_best_of_their_rank_and_say_how_good(
    seed: int,
    kept: int,
    by_energy: bool,
    write_adapter: Write,
    products: Products,
    tmp_path: Path,
) -> None:
    number = len(list(tmp_path.iterdir()))
    given_set = draw(seed, write_adapter, f"s{number}")
    cut: dict[str, Any] = {"energy": kept / 6} if by_energy else {"rank": kept}
    out = tmp_path / f"out{number}"
    made = add_adapters(given_set.folders, given_set.weights, out, engine=ONE, **cut)
    found = products(out)
    stated = {f"{row.module}.weight": row for row in made.rows}
    for name, value in given_set.dense.items():
        values = np.linalg.svd(value, compute_uv=False)
        total = np.sum(values**2)
        rank = kept
        if by_energy:
            wanted = kept / 6 * total * (1 - 1e-12)
            rank = int(np.searchsorted(np.cumsum(values**2), wanted)) + 1
        best = math.sqrt(np.sum(values[rank:] ** 2))
        if name not in found:
            assert name.removesuffix(".weight") in made.rules["zero"]
            continue
        error = np.linalg.norm(found[name] - value)
        assert error <= best + 1e-6 * np.sqrt(total)
        assert stated[name].rank <= min(rank, *value.shape)
        assert stated[name].norm == pytest.approx(np.sqrt(total))
        assert stated[name].error == pytest.approx(error, rel=1e-6, abs=1e-9 * np.sqrt(total))


# By hand.

ROW, COLUMN = np.array([[1.0, 2.0]], np.float32), np.array([[1.0], [3.0]], np.float32)


def two(write: Write, **second: Any) -> dict[str, Path]:
    """q is COLUMN ROW times 2 in one, and twice that in the other; only the second has k."""
    one = write("one", {"q": (COLUMN, ROW)}, lora_alpha=2)
    both = {"q": (2 * COLUMN, ROW), "k": (COLUMN, 5 * ROW)}
    return {"one": one, "two": write("two", both, **{"lora_alpha": 2, **second})}


def test_a_difference_by_hand(
    write_adapter: Write, products: Products, config: Any, tmp_path: Path
) -> None:
    made = add_adapters(two(write_adapter), [1, -0.5], tmp_path / "out", engine=ONE)
    found = products(tmp_path / "out")
    np.testing.assert_array_equal(found["q.weight"], 0 * COLUMN @ ROW)
    np.testing.assert_array_equal(found["k.weight"], -5 * COLUMN @ ROW)
    assert [(row.module, row.rank) for row in made.rows] == [("k", 1), ("q", 2)]
    assert made.error == 0
    said = config(tmp_path / "out")
    assert (said["r"], said["lora_alpha"]) == (2, 2)
    assert said["rank_pattern"] == said["alpha_pattern"] == {"^k": 1}
    assert said["target_modules"] == ["k", "q"]
    assert made.nbytes == 4 * (2 * 2 + 2 * 2 + 2 + 2)


def test_what_cancels_is_dropped_when_it_is_compressed(
    write_adapter: Write, products: Products, tmp_path: Path
) -> None:
    made = add_adapters(two(write_adapter), [1, -0.5], tmp_path / "out", rank=1, engine=ONE)
    assert [row.module for row in made.rows] == ["k"]
    assert made.rules == {"zero": ("q",)}
    assert set(products(tmp_path / "out")) == {"k.weight"}


def test_a_sum_that_is_zero_is_told(write_adapter: Write, tmp_path: Path) -> None:
    one = write_adapter("one", {"q": (COLUMN, ROW)})
    with pytest.raises(ValueProblem, match="the sum is zero in every module"):
        add_adapters({"a": one, "b": one}, [1, -1], tmp_path / "out", rank=4, engine=ONE)
    assert not (tmp_path / "out").exists()


def test_weights_by_name_and_by_default(
    write_adapter: Write, products: Products, tmp_path: Path
) -> None:
    folders = two(write_adapter)
    for number, weights in enumerate(({"two": -1.0}, [1, -1])):
        add_adapters(folders, weights, tmp_path / f"o{number}", engine=ONE)
    one, other = (products(tmp_path / f"o{number}") for number in (0, 1))
    assert_equal(one, other, 0)
    add_adapters(folders, {}, tmp_path / "plain", engine=ONE)
    np.testing.assert_array_equal(products(tmp_path / "plain")["q.weight"], 6 * COLUMN @ ROW)


def test_one_adapter_with_weight_1_comes_back(
    write_adapter: Write, products: Products, tmp_path: Path
) -> None:
    folders = two(write_adapter, use_rslora=True, lora_alpha=-3)
    add_adapters({"two": folders["two"]}, [1], tmp_path / "out", engine=ONE)
    assert_equal(products(tmp_path / "out"), products(folders["two"]), 0)


def test_averaging_the_factors_apart_is_something_else(
    write_adapter: Write, products: Products, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    pairs = [(random.standard_normal((4, 2)), random.standard_normal((2, 5))) for _ in "ab"]
    folders = {str(n): write_adapter(str(n), {"q": pair}) for n, pair in enumerate(pairs)}
    add_adapters(folders, [0.5, 0.5], tmp_path / "out", engine=ONE)
    right = sum(0.5 * up @ down for up, down in pairs)
    wrong = 0.5 * sum(up for up, _ in pairs) @ (0.5 * sum(down for _, down in pairs))
    found = products(tmp_path / "out")["q.weight"]
    np.testing.assert_allclose(found, right, rtol=1e-6)
    assert np.abs(found - wrong).max() > 0.1


def test_convolutions_keep_their_kernels(
    write_adapter: Write, products: Products, tmp_path: Path
) -> None:
    random = np.random.default_rng(1)
    pairs = {
        name: (random.standard_normal((6, r, 1, 1)), random.standard_normal((r, 2, 3, 3)))
        for name, r in (("a", 2), ("b", 3))
    }
    folders = {name: write_adapter(name, {"conv": pair}) for name, pair in pairs.items()}
    for cut in ({}, {"rank": 5}):
        add_adapters(folders, [1, -1], tmp_path / f"out{len(cut)}", engine=ONE, **cut)
        one, other = (
            np.einsum("or,rikl->oikl", up[:, :, 0, 0], down) for up, down in pairs.values()
        )
        found = products(tmp_path / f"out{len(cut)}")["conv.weight"]
        np.testing.assert_allclose(found, one - other, atol=1e-5)


def test_the_sum_is_the_sum_of_the_task_vectors(
    write_adapter: Write, write_folder: Callable[..., Path], tmp_path: Path
) -> None:
    base = write_folder("base", {"q.weight": np.eye(2, dtype=np.float32), "k.weight": COLUMN @ ROW})
    folders = two(write_adapter)
    add_adapters(folders, [1, 0.25], tmp_path / "out", base=base, engine=ONE)
    summed = TaskVector(base, folders["one"]) + 0.25 * TaskVector(base, folders["two"])
    assert_equal(TaskVector(base, tmp_path / "out").tensors(), summed.tensors(), 1e-6)


def test_with_a_base_targets_are_as_short_as_they_can_be(
    write_adapter: Write, write_folder: Callable[..., Path], config: Any, tmp_path: Path
) -> None:
    names = ("h.0.q", "h.1.q", "h.0.k", "h.1.k")
    base = write_folder("base", {f"{name}.weight": COLUMN @ ROW for name in names})
    one = write_adapter("one", dict.fromkeys(names[:3], (COLUMN, ROW)))
    add_adapters({"one": one}, [2], tmp_path / "out", base=base, engine=ONE)
    assert config(tmp_path / "out")["target_modules"] == ["h.0.k", "q"]
    add_adapters({"one": one}, [2], tmp_path / "all", engine=ONE)
    assert config(tmp_path / "all")["target_modules"] == ["h.0.k", "h.0.q", "h.1.q"]


def test_rounding_of_b_is_stated(write_adapter: Write, products: Products, tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    pair = random.standard_normal((8, 3)), random.standard_normal((3, 9))
    one = write_adapter("one", {"q": pair})
    dense = 0.3 * pair[0] @ pair[1]
    for dtype, least, most in (
        ("float64", 0, 1e-15),
        ("float32", 1e-9, 1e-7),
        ("float16", 1e-5, 1e-3),
        ("bfloat16", 1e-4, 1e-2),
    ):
        made = add_adapters({"one": one}, [0.3], tmp_path / dtype, dtype=dtype, engine=ONE)
        error = np.linalg.norm(products(made.path)["q.weight"] - dense) / np.linalg.norm(dense)
        assert least <= made.error <= most
        assert made.error == pytest.approx(error, rel=1e-6, abs=1e-15)


def test_the_same_bytes_for_any_number_of_workers(write_adapter: Write, tmp_path: Path) -> None:
    given_set = draw(7, write_adapter, "s")
    for cut in ({}, {"rank": 2}, {"energy": 0.8}):
        written = []
        for workers in (1, 2, 5):
            out = tmp_path / f"o{workers}{len(cut)}{cut.get('rank')}"
            add_adapters(
                given_set.folders, given_set.weights, out, engine=Engine(workers=workers), **cut
            )
            written.append({path.name: path.read_bytes() for path in out.iterdir()})
        assert written[0] == written[1] == written[2]
        assert set(written[0]) == {
            "README.md",
            "adapter_config.json",
            "adapter_model.safetensors",
            "taskbasis_digests.json",
        }


def test_the_base_is_named_once(write_adapter: Write, config: Any, tmp_path: Path) -> None:
    folders = two(write_adapter, base_model_name_or_path="org/base")
    add_adapters(folders, [1, 1], tmp_path / "known", engine=ONE)
    assert config(tmp_path / "known")["base_model_name_or_path"] == "org/base"
    assert 'base_model: "org/base"' in (tmp_path / "known" / "README.md").read_text()
    add_adapters({"one": folders["one"]}, [1], tmp_path / "unknown", engine=ONE)
    assert config(tmp_path / "unknown")["base_model_name_or_path"] is None
    assert "base_model" not in (tmp_path / "unknown" / "README.md").read_text()


# What is refused.


def refused(kind: type[TaskbasisError], out: Path, *args: Any, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        add_adapters(*args[:1], args[1] if len(args) > 1 else {}, out, engine=ONE, **options)
    assert not out.exists()
    assert [path for path in out.parent.iterdir() if path.name.startswith(".")] == []
    return str(caught.value)


def test_weights_that_mean_nothing(write_adapter: Write, tmp_path: Path) -> None:
    folders, out = two(write_adapter), tmp_path / "out"
    assert refused(UsageError, out, {}) == "there is no adapter to add; give at least one"
    assert refused(UsageError, out, folders, [1.0]) == "2 adapters (one, two) need as many weights"
    assert refused(UsageError, out, folders, {"on": 1}) == (
        "there is no adapter 'on'; did you mean 'one'?"
    )
    assert refused(UsageError, out, folders, [1, 0]) == (
        "the weight of 'two' is 0; leave the adapter out"
    )
    assert "must be a finite number, not nan" in refused(UsageError, out, folders, [1, math.nan])
    assert "a rank of 0 keeps nothing" in refused(UsageError, out, folders, [1, 1], rank=0)
    assert "is not a float type" in refused(UsageError, out, folders, [1, 1], dtype="int8")


def test_adapters_of_two_bases(write_adapter: Write, config: Any, tmp_path: Path) -> None:
    one = write_adapter("one", {"q": (COLUMN, ROW)}, base_model_name_or_path="a/x")
    other = write_adapter("two", {"q": (COLUMN, ROW)}, base_model_name_or_path="b/y")
    both = {"one": one, "two": other}
    assert refused(MismatchError, tmp_path / "out", both) == (
        f"{one} was trained on the base 'a/x' and {other} on 'b/y'; deltas of two bases do not "
        "mix. If both are the same, say what it is called with --base-name"
    )
    add_adapters(both, {}, tmp_path / "out", base_name="a/x", engine=ONE)
    assert config(tmp_path / "out")["base_model_name_or_path"] == "a/x"


def test_modules_of_two_sizes(write_adapter: Write, tmp_path: Path) -> None:
    one = write_adapter("one", {"q": (COLUMN, ROW)})
    other = write_adapter("two", {"q": (COLUMN, np.ones((1, 3), np.float32))})
    assert refused(MismatchError, tmp_path / "out", {"one": one, "two": other}) == (
        f"tensor 'base_model.model.q.lora_B.weight' of {other / 'adapter_model.safetensors'}: the "
        "module is ((2,), (3,)) (out, in) there, but ((2,), (2,)) in "
        f"{one / 'adapter_model.safetensors'}; the adapters belong to models of two sizes"
    )


def test_modules_that_lie_both_ways(write_adapter: Write, tmp_path: Path) -> None:
    one = write_adapter("one", {"q": (COLUMN, ROW)})
    other = write_adapter("two", {"q": (COLUMN, ROW)}, fan_in_fan_out=True)
    message = refused(MismatchError, tmp_path / "out", {"one": one, "two": other})
    assert message == (
        "two sets fan_in_fan_out (for 'q') and one does not (for 'q'), but their sum has one "
        "config; set it alike in both: true where the model is made of Conv1D, as GPT-2 is"
    )
    apart = write_adapter("three", {"k": (COLUMN, ROW)}, fan_in_fan_out=True)
    message = refused(MismatchError, tmp_path / "out", {"one": one, "three": apart})
    assert message.startswith("three sets fan_in_fan_out (for 'k') and one does not (for 'q')")


def test_embeddings_and_convolutions_lie_one_way_in_any_config(
    write_adapter: Write, products: Products, tmp_path: Path
) -> None:
    table = write_adapter("table", {"emb": (COLUMN, ROW)})
    kernel = write_adapter("kernel", {"c": (np.ones((2, 1, 1)), np.ones((1, 3, 2)))})
    layer = write_adapter("layer", {"q": (COLUMN, ROW)}, fan_in_fan_out=True)
    add_adapters(
        {"table": table, "kernel": kernel, "layer": layer}, [1, 2, 3], tmp_path / "out", engine=ONE
    )
    found = products(tmp_path / "out")
    np.testing.assert_array_equal(found["emb.weight"], (COLUMN @ ROW).T)
    np.testing.assert_array_equal(found["q.weight"], 3 * (COLUMN @ ROW).T)
    np.testing.assert_array_equal(found["c.weight"], np.full((2, 3, 2), 2.0))


def test_an_embedding_and_a_linear_layer(write_adapter: Write, tmp_path: Path) -> None:
    one = write_adapter("one", {"emb": (COLUMN, ROW)})
    other = write_adapter("three", {"x.q": (COLUMN, ROW)})
    plain = (other / "adapter_model.safetensors").read_bytes()
    (other / "adapter_model.safetensors").write_bytes(plain.replace(b"x.q.", b"emb."))
    assert refused(MismatchError, tmp_path / "out", {"one": one, "two": other}) == (
        "module 'emb' is an embedding in one and a linear layer in two; they belong to two models"
    )


def test_models_of_two_classes(write_adapter: Write, tmp_path: Path) -> None:
    one = write_adapter("one", {"h.0.q": (COLUMN, ROW)})
    other = write_adapter("two", {"bert.h.0.q": (COLUMN, ROW)})
    assert refused(MismatchError, tmp_path / "out", {"one": one, "two": other}) == (
        f"{other} and {one} call the same modules differently (one puts 'bert.' before all of "
        "them): 'two' and 'one' were trained in models of two classes; train or save them in one"
    )


def test_other_modules_are_no_reason(
    write_adapter: Write, products: Products, tmp_path: Path
) -> None:
    one = write_adapter("one", {"h.0.q": (COLUMN, ROW)})
    other = write_adapter("two", {"h.1.q": (COLUMN, ROW)})
    add_adapters({"one": one, "two": other}, [1, -2], tmp_path / "out", engine=ONE)
    found = products(tmp_path / "out")
    np.testing.assert_array_equal(found["h.0.q.weight"], COLUMN @ ROW)
    np.testing.assert_array_equal(found["h.1.q.weight"], -2 * COLUMN @ ROW)


def test_whole_tensors_need_the_base(
    write_adapter: Write, write_folder: Callable[..., Path], products: Products, tmp_path: Path
) -> None:
    table = np.ones((3, 2), np.float32)
    more = {"base_model.model.emb.weight": table}
    one = write_adapter("one", {"q": (COLUMN, ROW)}, more)
    message = refused(MismatchError, tmp_path / "out", {"one": one})
    assert message == (
        f"tensor 'base_model.model.emb.weight' of {one / 'adapter_model.safetensors'} is a whole "
        "tensor beside the factors; give the base with --base, to see whether it was trained, too"
    )
    same = write_folder("same", {"q.weight": COLUMN @ ROW, "emb.weight": table})
    add_adapters({"one": one}, {}, tmp_path / "out", base=same, engine=ONE)
    assert set(products(tmp_path / "out")) == {"q.weight"}
    other = write_folder("other", {"q.weight": COLUMN @ ROW, "emb.weight": 2 * table})
    assert "was trained whole, so no factors hold its change; make a model of it" in refused(
        MismatchError, tmp_path / "new", {"one": one}, base=other
    )


def test_values_that_are_not_finite_or_too_large(write_adapter: Write, tmp_path: Path) -> None:
    one = write_adapter("one", {"q": (COLUMN * np.float32("nan"), ROW)})
    message = refused(ValueProblem, tmp_path / "out", {"one": one})
    assert message == (
        f"tensor 'base_model.model.q.lora_B.weight' of {one / 'adapter_model.safetensors'}: a "
        "value of its factors is NaN or infinite; repair the adapter, or leave it out"
    )
    large = write_adapter("large", {"q": (COLUMN * 1e6, ROW)})
    message = refused(ValueProblem, tmp_path / "out", {"large": large}, dtype="float16")
    assert message == (
        "q: a value of its factors is too large for float16; store the adapter in float32 or "
        "bfloat16"
    )


def test_where_it_may_not_be_written(write_adapter: Write, tmp_path: Path) -> None:
    one = write_adapter("one", {"q": (COLUMN, ROW)})
    with pytest.raises(UsageError, match="an adapter is a folder of a config and its factors"):
        add_adapters({"one": one}, {}, tmp_path / "x.safetensors")
    before = (one / "adapter_model.safetensors").read_bytes()
    with pytest.raises(FileError, match="would touch the input"):
        add_adapters({"one": one}, {}, one, replace_used=True)
    assert (one / "adapter_model.safetensors").read_bytes() == before
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes").write_text("mine")
    with pytest.raises(FileError, match="already exists; pass --replace"):
        add_adapters({"one": one}, {}, tmp_path / "used")
    add_adapters({"one": one}, {}, tmp_path / "used", replace_used=True)
    assert not (tmp_path / "used" / "notes").exists()


def test_what_is_no_lora_adapter(write_adapter: Write, tmp_path: Path) -> None:
    dora = write_adapter("dora", {"q": (COLUMN, ROW)}, use_dora=True)
    assert "DoRA divides by the norms" in refused(FileError, tmp_path / "out", {"d": dora})
    wrong = write_adapter("wrong", {"q": (COLUMN, ROW)}, r=2)
    assert "says rank 2 of that module" in refused(HeaderError, tmp_path / "out", {"w": wrong})
    assert "no such file or folder" in refused(
        FileError, tmp_path / "out", {"none": tmp_path / "none"}
    )


def test_a_memory_cap_is_kept_or_refused(write_adapter: Write, tmp_path: Path) -> None:
    one = write_adapter("one", {"q": (COLUMN, ROW)})
    with pytest.raises(MemoryCapError, match="is too small"):
        add_adapters({"one": one}, {}, tmp_path / "out", rank=1, engine=Engine(1, memory=1000))
    assert not (tmp_path / "out").exists()
