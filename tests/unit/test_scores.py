"""Scores and moments as files: what is written is read again, and nothing else is believed."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from taskbasis import stored
from taskbasis.engine import Engine
from taskbasis.errors import FileError, HeaderError, MismatchError, UsageError, ValueProblem
from taskbasis.io.dtypes import BF16, F16, F32, F64
from taskbasis.merging import merge
from taskbasis.methods.learnt.sta import Sta
from taskbasis.recipe import Binding
from taskbasis.scores import Importance, ImportanceWriter, Moments, MomentsWriter, Origin
from taskbasis.stored import encode
from taskbasis.vectors import Checkpoint, TaskVector

Matrix = NDArray[Any]

MODEL = Binding("models/math", None, "ab" * 16, {"w": "12"})
BASE = Binding("models/base", None, "cd" * 16)
ORIGIN = Origin(MODEL, BASE, {"samples": 256, "factor": "weight"}, {"head": ("cls.w", "cls.b")})


def write(out: Path, scores: dict[str, Matrix], origin: Origin = ORIGIN, **more: Any) -> Path:
    shapes = {name: np.shape(array) for name, array in scores.items()}
    with ImportanceWriter(out, shapes, origin, **more) as writer:
        for name, array in scores.items():
            writer.write(name, array)
        writer.commit()
    return out


def write_moments(out: Path, moments: dict[str, tuple[Matrix, int]], **more: Any) -> Path:
    shapes = {name: np.shape(array) for name, (array, _) in moments.items()}
    with MomentsWriter(out, shapes, Origin(MODEL), **more) as writer:
        for name, (array, count) in moments.items():
            writer.write(name, array, count)
        writer.commit()
    return out


# There and back


def test_where_they_come_from_is_read_again(tmp_path: Path) -> None:
    found = Importance.open(write(tmp_path / "s.safetensors", {"w": np.ones((2, 3))}))
    assert found.origin.model.fingerprint == MODEL.fingerprint
    assert found.origin.model.name == "models/math"
    assert found.origin.model.digests == {"w": "12"}
    assert found.origin.base is not None
    assert found.origin.base.fingerprint == BASE.fingerprint
    assert found.origin.options == {"samples": 256, "factor": "weight"}
    assert found.origin.rules == {"head": ("cls.w", "cls.b")}
    assert str(found) == str(tmp_path / "s.safetensors")
    alone = write(tmp_path / "t.safetensors", {"w": np.ones(1)}, Origin(MODEL))
    assert Importance.open(alone).origin.base is None


def test_what_merging_reads(tmp_path: Path) -> None:
    origin = Origin(MODEL, None, {"transposed": ["turned"]})
    path = write(tmp_path / "s.safetensors", {"w": np.full(2, 3e-9), "turned": np.ones(1)}, origin)
    learnt = Importance.open(path).learnt
    assert learnt.label == str(path)
    assert sorted(learnt.infos) == ["turned", "w"]
    assert learnt.transposed == {"turned"}
    assert path in learnt.files
    assert learnt.model is not None
    assert learnt.model.fingerprint == MODEL.fingerprint
    # 3e-9 lies between 2^-29 and 2^-28, and is brought below 2^15.
    assert learnt.numbers == {"turned": 2.0**-14, "w": 2.0**-43}


DRAWN = st.floats(0, float(np.float32(1e38)), width=32) | st.sampled_from([0.0, 1e-45, 1e-30, 7e37])


@settings(derandomize=True, deadline=None, max_examples=80)
@given(arrays.arrays(np.float32, st.integers(0, 12), elements=DRAWN), st.sampled_from([F16, F32]))
def test_scores_come_back_to_within_half_a_unit(scores: Matrix, dtype: Any) -> None:
    """float16 has 11 significant bits, and below 2^-29 of the largest even steps."""
    found = through_a_file(scores, dtype)
    largest = float(scores.max(initial=0))
    if dtype == F32:
        np.testing.assert_array_equal(found, scores)
        return
    wanted = scores.astype(np.float64)
    tolerance = np.maximum(wanted * 2.0**-11, max(largest * 2.0**-39, 2.0**-149))
    assert np.all(np.abs(found - wanted) <= tolerance)
    assert np.all((found == 0) | (scores > 0))
    assert np.all(np.diff(found[np.argsort(scores)]) >= 0), "the order is kept"


def through_a_file(scores: Matrix, dtype: Any) -> Matrix:
    with tempfile.TemporaryDirectory() as place:
        out = write(Path(place) / "s.safetensors", {"w": scores}, dtype=dtype)
        return Importance.open(out).scores("w")


@pytest.mark.parametrize("exponent", [-149, -140, -126, -100, -20, 0, 15, 100, 126])
def test_a_power_of_two_comes_back_as_it_is(exponent: int, tmp_path: Path) -> None:
    scores = np.ldexp(np.float32([1, 0.5, 0.25]), exponent)
    found = Importance.open(write(tmp_path / "s.safetensors", {"w": scores})).scores("w")
    np.testing.assert_array_equal(found, scores)


def test_tensors_are_scaled_apart(tmp_path: Path) -> None:
    """Gradients of one layer may be a billion times those of another."""
    scores = {"a": np.float32([1e-20, 3e-20]), "b": np.float32([1e9, 3e9]), "none": np.zeros(3)}
    found = Importance.open(write(tmp_path / "s.safetensors", scores))
    for name, wanted in scores.items():
        np.testing.assert_allclose(found.scores(name), wanted, rtol=2.0**-11)


def test_any_real_type_may_be_written(tmp_path: Path) -> None:
    for kind in (np.float16, np.float32, np.float64, np.int64):
        out = write(tmp_path / f"{np.dtype(kind)}.safetensors", {"w": np.array([0, 1, 6], kind)})
        assert Importance.open(out).scores("w").tolist() == [0, 1, 6]


def test_shapes_of_all_kinds(tmp_path: Path) -> None:
    shapes = {"scalar": (), "empty": (0, 4), "cube": (2, 3, 4)}
    rng = np.random.default_rng(0)
    scores = {n: np.asarray(rng.integers(0, 9, s), np.float32) for n, s in shapes.items()}
    found = Importance.open(write(tmp_path / "s.safetensors", scores))
    for name, wanted in scores.items():
        assert found.scores(name).shape == wanted.shape
        np.testing.assert_array_equal(found.scores(name), wanted)


def test_a_slice_of_a_larger_array_is_written_as_it_looks(tmp_path: Path) -> None:
    scores = np.arange(12.0).reshape(3, 4).T[::2]
    found = Importance.open(write(tmp_path / "s.safetensors", {"w": scores})).scores("w")
    np.testing.assert_array_equal(found, scores)


def test_minus_zero_is_zero(tmp_path: Path) -> None:
    """Its bits are larger than those of any score; nothing is counted by it."""
    scores = np.array([-0.0, 0.0, 1.0, 2.0], np.float32)
    found = Importance.open(write(tmp_path / "s.safetensors", {"w": scores})).scores("w")
    assert not np.any(np.signbit(found))


def test_equal_scores_give_equal_bytes(tmp_path: Path) -> None:
    scores = {"b": np.float32([3, 1]), "a": np.float32([[2.5]])}
    first = write(tmp_path / "1.safetensors", scores).read_bytes()
    assert write(tmp_path / "2.safetensors", dict(reversed(scores.items()))).read_bytes() == first


# Other readers, and folders of shards


def test_the_real_safetensors_opens_them(tmp_path: Path) -> None:
    out = write(tmp_path / "s.safetensors", {"w": np.float32([[1, 2]]), "b": np.float32([4])})
    raw = load_file(out)
    assert {n: (a.dtype, a.shape) for n, a in raw.items()} == {
        "w": (np.float16, (1, 2)),
        "b": (np.float16, (1,)),
        "importance.scales": (np.float64, (2,)),
    }
    scales = dict(zip(["b", "w"], raw["importance.scales"], strict=True))
    assert (raw["w"] * scales["w"]).tolist() == [[1, 2]]
    with safe_open(out, "np") as file:
        record = json.loads(file.metadata()["taskbasis"])
    assert record["kind"] == "importance"
    assert record["model"]["fingerprint"] == MODEL.fingerprint


def test_a_folder_of_shards(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    scores = {f"h.{n}.w": rng.random((10, 10)).astype(np.float32) for n in range(5)}
    out = write(tmp_path / "scores", scores, shard_size=500, dtype=F32)
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(files) > 3
    assert files[0].startswith("importance-00001-of")
    found = Importance.open(out)
    for name, wanted in scores.items():
        np.testing.assert_array_equal(found.scores(name), wanted)
    index = json.loads((out / "importance.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == {*scores, "importance.scales"}
    assert {path.name for path in found.learnt.files} >= set(files)


def test_a_used_place_is_not_touched(tmp_path: Path) -> None:
    out = write(tmp_path / "scores", {"w": np.ones(2)})
    with pytest.raises(FileError, match="replace"):
        write(out, {"w": np.zeros(2)})
    assert Importance.open(out).scores("w").tolist() == [1, 1]
    write(out, {"w": np.zeros(2)}, replace=True)
    assert Importance.open(out).scores("w").tolist() == [0, 0]


def test_an_input_is_never_written_over(tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    save_file({"w": np.ones(2, np.float32)}, model)
    with pytest.raises(FileError):
        write(model, {"w": np.ones(2)}, inputs=[model], replace=True)
    assert load_file(model)["w"].tolist() == [1, 1]


# What is refused in writing


@pytest.mark.parametrize(
    "values", [[1, -1e-9], [float("nan"), 1], [float("inf"), 1], [-float("inf"), 1], [2.0**127, 1]]
)
def test_scores_that_mean_nothing(
    values: list[float], tmp_path: Path, leftovers: Callable[[Path], list[str]]
) -> None:
    with pytest.raises(ValueProblem, match=r"the scores of 'w' are not all 0 or larger") as caught:
        write(tmp_path / "s.safetensors", {"w": np.array(values, np.float32)})
    assert "look for NaN in the weights" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert leftovers(tmp_path) == []


def refused(kind: Any, match: str, name: str, values: Matrix | None, tmp_path: Path) -> None:
    """An error of either writer of one tensor, and nothing left."""
    for writer, more in ((ImportanceWriter, ()), (MomentsWriter, (3,))):

        def act(writer: Any = writer, more: Any = more) -> None:
            with writer(tmp_path / "x.safetensors", {"weight": (2,)}, ORIGIN) as opened:
                if values is not None:
                    opened.write(name, values, *more)
                opened.commit()

        with pytest.raises(kind, match=match):
            act()
        assert list(tmp_path.iterdir()) == []


def test_a_tensor_that_was_never_written(tmp_path: Path) -> None:
    refused(ValueProblem, "nothing was written for 'weight'", "weight", None, tmp_path)


def test_a_tensor_of_another_shape(tmp_path: Path) -> None:
    said = r"'weight' has shape \[2, 1\], not \[2\]"
    refused(MismatchError, said, "weight", np.ones((2, 1)), tmp_path)


def test_a_tensor_that_was_not_announced(tmp_path: Path) -> None:
    said = r"'weigth' was not announced; did you mean 'weight'\?"
    refused(MismatchError, said, "weigth", np.ones(2), tmp_path)


def test_no_tensors_at_all_and_a_name_of_our_own(tmp_path: Path) -> None:
    for writer, own in ((ImportanceWriter, "importance.scales"), (MomentsWriter, "moments.counts")):
        with pytest.raises(ValueProblem, match="there is no parameter to write anything of"):
            writer(tmp_path / "x.safetensors", {}, ORIGIN)
        with pytest.raises(ValueProblem, match=f"cannot be called '{own}'"):
            writer(tmp_path / "x.safetensors", {own: (1,)}, ORIGIN)


@pytest.mark.parametrize("dtype", [BF16, F64])
def test_a_type_that_scores_are_not_stored_in(dtype: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"float16 or float32, not {dtype.name}"):
        ImportanceWriter(tmp_path / "x.safetensors", {"w": (1,)}, ORIGIN, dtype)


def test_an_interruption_leaves_nothing(
    tmp_path: Path, leftovers: Callable[[Path], list[str]]
) -> None:
    def act() -> None:
        with ImportanceWriter(tmp_path / "x.safetensors", {"w": (2,)}, ORIGIN) as writer:
            writer.write("w", np.ones(2))
            assert leftovers(tmp_path) != []
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        act()
    assert list(tmp_path.iterdir()) == []


# Moments


def test_moments_come_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    full = rng.standard_normal((4, 4))
    given = {"w": (full @ full.T, 1000), "words": (np.arange(6.0), 7), "one": (np.eye(1), 1)}
    out = write_moments(tmp_path / "m.safetensors", given)
    found = Moments.open(out)
    for name, (wanted, count) in given.items():
        np.testing.assert_array_equal(found.moment(name), wanted.astype(np.float32))
        assert found.numbers[name] == count
    assert load_file(out)["moments.counts"].tolist() == [1, 1000, 7]
    assert found.learnt.numbers == {"w": 1000, "words": 7, "one": 1}
    assert str(found) == str(out)


@pytest.mark.parametrize(
    ("values", "count"),
    [([1, float("nan")], 3), ([float("inf"), 1], 3), ([1e39, 1], 3), ([1, 1], 0)],
)
def test_moments_that_mean_nothing(values: list[float], count: int, tmp_path: Path) -> None:
    with pytest.raises(ValueProblem, match=f"the moment of 'w' over {count} inputs is not finite"):
        write_moments(tmp_path / "m.safetensors", {"w": (np.array(values), count)})
    assert list(tmp_path.iterdir()) == []


# What is refused in reading


def test_other_files_are_named_for_what_they_are(tiny_checkpoints: Path, tmp_path: Path) -> None:
    scores = write(tmp_path / "s.safetensors", {"w": np.ones(2)})
    moments = write_moments(tmp_path / "m.safetensors", {"w": (np.ones(2), 1)})
    vector = tmp_path / "v.safetensors"
    TaskVector(tiny_checkpoints / "base", tiny_checkpoints / "math").save(vector)
    cases = [
        (Importance, moments, "is activation moments, not importance scores; make them with"),
        (
            Importance,
            vector,
            "is a task vector, not importance scores; make them with: taskbasis i",
        ),
        (Importance, tiny_checkpoints / "base", "is a checkpoint, not importance scores"),
        (Moments, scores, "is importance scores, not activation moments; make them with: taskbas"),
        (TaskVector, scores, "is importance scores, not a task vector"),
    ]
    for kind, path, said in cases:
        with pytest.raises(HeaderError) as caught:
            kind.open(path)  # type: ignore[attr-defined]
        assert said in str(caught.value)
    with pytest.raises(FileError, match="no such file"):
        Importance.open(tmp_path / "missing")


def test_a_name_that_is_not_there(tmp_path: Path) -> None:
    scores = Importance.open(write(tmp_path / "s.safetensors", {"weight": np.ones(2)}))
    with pytest.raises(MismatchError, match=r"no scores of 'weigth'; did you mean 'weight'\?"):
        scores.scores("weigth")
    moments = Moments.open(write_moments(tmp_path / "m.safetensors", {"weight": (np.ones(2), 1)}))
    with pytest.raises(MismatchError, match=r"no moments of 'bias'"):
        moments.moment("bias")


def record(**changes: Any) -> dict[str, Any]:
    model = {"name": "m", "fingerprint": "00", "digests": {}}
    return {"model": model, "base": None, "options": {}, "rules": {}, **changes}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": None}, "does not name the model"),
        ({"model": {"name": "m"}}, "does not name the model"),
        ({"base": {"name": "m"}}, "does not name the base"),
        ({"options": None}, "does not say how it was made"),
        ({"options": {"transposed": 5}}, "does not say how it was made"),
        ({"rules": []}, "does not say how it was made"),
        ({"rules": {"head": 3}}, "does not say how it was made"),
    ],
)
def test_a_record_that_is_damaged(changes: Any, said: str, tmp_path: Path) -> None:
    arrays = {"w": np.ones(1, np.float16), "importance.scales": np.ones(1)}
    save_file(arrays, tmp_path / "s.safetensors", encode("importance", record(**changes)))
    with pytest.raises(HeaderError, match=said):
        Importance.open(tmp_path / "s.safetensors")


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"w": np.ones(1, "f2")}, "has no tensor 'importance.scales'"),
        ({"w": np.ones(1, "i8"), "importance.scales": np.ones(1)}, "it must hold floats"),
        ({"w": np.ones(1, "f2"), "importance.scales": np.ones(2)}, "one number for every other"),
        ({"w": np.ones(1, "f2"), "importance.scales": np.ones(1, "f4")}, "one number for every"),
        ({"w": np.ones(1, "f2"), "importance.scales": -np.ones(1)}, "negative, NaN or infinite"),
        ({"w": np.ones(1, "f2"), "importance.scales": np.ones(1) * np.nan}, "negative, NaN or inf"),
    ],
)
def test_tensors_that_are_not_scores(arrays: Any, said: str, tmp_path: Path) -> None:
    save_file(arrays, tmp_path / "s.safetensors", encode("importance", record()))
    with pytest.raises((HeaderError, MismatchError)) as caught:
        Importance.open(tmp_path / "s.safetensors").scores("w")
    assert said in str(caught.value)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_score_in_a_file_that_means_nothing_is_refused_in_merging(
    value: float, write_folder: Any, tmp_path: Path
) -> None:
    base = write_folder("base", {"w": np.zeros(5, np.float32)})
    tuned = write_folder("tuned", {"w": np.ones(5, np.float32)})
    model = stored.bind(Binding(str(tuned), Checkpoint(tuned).store), Engine(1))
    scores = np.array([1, 2, value, 4, 5], np.float16)
    save_file(
        {"w": scores, "importance.scales": np.ones(1)},
        tmp_path / "s.safetensors",
        encode("importance", record(model=stored.encode_binding(model))),
    )
    importance = Importance.open(tmp_path / "s.safetensors")
    with pytest.raises(ValueProblem, match="a score is negative, NaN or infinite; make them again"):
        merge(base, [TaskVector(base, tuned)], Sta(), scores=[importance]).save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_minus_zero_in_a_file_is_counted_as_zero(write_folder: Any, tmp_path: Path) -> None:
    """By another writer: two vectors, so that a bin too far would show in the second."""
    base = write_folder("base", {"w": np.zeros(4, np.float32)})
    vectors, scores = [], []
    for t, values in enumerate(([-0.0, -0.0, 1, 3], [0.0, 4, 2, 0.0])):
        tuned = write_folder(f"t{t}", {"w": np.full(4, 10.0**t, np.float32)})
        model = stored.bind(Binding(str(tuned), Checkpoint(tuned).store), Engine(1))
        save_file(
            {"w": np.array(values, np.float16), "importance.scales": np.ones(1)},
            tmp_path / f"s{t}.safetensors",
            encode("importance", record(model=stored.encode_binding(model))),
        )
        vectors.append(TaskVector(base, tuned))
        scores.append(Importance.open(tmp_path / f"s{t}.safetensors"))
    shared, apart = [0, 10, 11, 1], [0, 10, 10, 1]
    for of, wanted in (
        (Sta(0.5, exclusive=False), shared),
        (Sta(0.5, "model", "rank", exclusive=False), shared),
        (Sta(0.5, exclusive=True), apart),
        (Sta(1.0, threshold=0.1), shared),
    ):
        found = merge(base, vectors, of, scores=scores).tensors()["w"]
        assert found.tolist() == wanted
