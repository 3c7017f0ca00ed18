"""Every verb does what it says, and says what it did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from taskbasis import Basis, TaskVector


def weights(path: Path) -> dict[str, Any]:
    return load_file(path / "model.safetensors" if path.is_dir() else path)


def delta(desk: Path, name: str) -> dict[str, Any]:
    base, tuned = weights(desk / "base"), weights(desk / name)
    return {key: tuned[key] - base[key] for key in base}


def assert_sum(desk: Path, out: Path, *terms: tuple[float, str]) -> None:
    """``out`` is the base plus the given multiples of the fine-tunes' deltas, exactly."""
    found, base = weights(out), weights(desk / "base")
    assert found.keys() == base.keys()
    for key, value in base.items():
        total = np.zeros_like(value)
        for coefficient, name in terms:
            total = total + np.float32(coefficient) * delta(desk, name)[key]
        np.testing.assert_array_equal(found[key], value + total)


def test_extract(desk: Path, call: Any) -> None:
    said = call("extract base a -o a.safetensors")
    assert said.code == 0
    assert said.err == ""
    assert "wrote a.safetensors: 380 B; tensors: 4 stored" in said.out
    assert "of which rounding took 0.000%" in said.out
    for key, value in load_file(desk / "a.safetensors").items():
        np.testing.assert_array_equal(value, delta(desk, "a")[key])


def test_extract_reports_the_norm(desk: Path, call: Any) -> None:
    norm = np.sqrt(sum(np.sum(v.astype(float) ** 2) for v in delta(desk, "b").values()))
    assert f"norm of the delta {norm:.6g}," in call("extract base b -o b.safetensors").out


def test_extract_with_exclude_says_so(desk: Path, call: Any) -> None:
    said = call("extract", "base", "a", "-o", "a.safetensors", "--exclude", "layers.*")
    assert "2 stored" in said.out
    assert "2 excluded" in said.out
    assert load_file(desk / "a.safetensors").keys() == {"embed.weight", "norm"}


@pytest.mark.parametrize("kind", ["stored", "checkpoint", "mixed"])
@pytest.mark.promise("What is added equals a dense sum in float32, bit for bit.")
def test_add(desk: Path, call: Any, kind: str) -> None:
    assert call("extract base a -o a.safetensors -q").code == 0
    specs = {"stored": "a.safetensors b", "checkpoint": "a b", "mixed": "a.safetensors b"}[kind]
    said = call(f"add base {specs} -o out --scale 0.4")
    assert said.code == 0
    assert "wrote out: 380 B; tensors: 4 merged" in said.out
    assert_sum(desk, desk / "out", (0.4, "a"), (0.4, "b"))
    assert (desk / "out" / "config.json").read_bytes() == (
        desk / "base" / "config.json"
    ).read_bytes()


def test_add_with_exclude_holds_for_stored_vectors_too(desk: Path, call: Any) -> None:
    call("extract base a -o a.safetensors -q")
    assert call("add", "base", "a.safetensors", "b", "-o", "out", "--exclude", "norm").code == 0
    np.testing.assert_array_equal(weights(desk / "out")["norm"], weights(desk / "base")["norm"])
    said = call("add", "base", "a.safetensors", "-o", "x", "--exclude", "nrm")
    assert said.code == 2
    assert said.sentence == "--exclude 'nrm' matches no tensor; did you mean 'norm'?"


def test_negate(desk: Path, call: Any) -> None:
    assert call("negate base c -o out --scale 0.5").code == 0
    assert_sum(desk, desk / "out", (-0.5, "c"))


def test_analogy(desk: Path, call: Any) -> None:
    assert call("analogy base --plus c --plus b --minus a -o out").code == 0
    assert_sum(desk, desk / "out", (1, "c"), (1, "b"), (-1, "a"))


def test_a_single_file_out(desk: Path, call: Any) -> None:
    assert call("add base a -o merged.safetensors").code == 0
    assert_sum(desk, desk / "merged.safetensors", (1, "a"))


def test_dtype_and_shards(desk: Path, call: Any) -> None:
    assert call("add base a -o out --dtype bfloat16 --out-shard-size 90").code == 0
    assert json.loads((desk / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    index = json.loads((desk / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 3
    assert index["metadata"]["total_size"] == 190


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("base", ["base: a checkpoint", "4 tensors (4 float32), 95 numbers, 380 B in 1 file"]),
        ("a.safetensors", ["a.safetensors: a task vector of base (fingerprint "]),
        ("lib", ["lib: a basis of 4 tasks in 2 atoms (autoencoder, model codes"]),
    ],
)
def test_show(desk: Path, call: Any, path: str, said: list[str]) -> None:
    call("extract base a -o a.safetensors -q")
    call("basis fit a b c d --base base -k 2 -o lib -q")
    answer = call(f"show {path}")
    assert answer.code == 0
    for part in said:
        assert part in answer.out


def test_show_tensors_and_fingerprint(desk: Path, call: Any) -> None:
    from taskbasis import Checkpoint

    said = call("show base --tensors --fingerprint")
    assert f"fingerprint {Checkpoint('base').fingerprint}" in said.out
    assert "embed.weight" in said.out
    assert "[8, 5]" in said.out


@pytest.fixture
def library(desk: Path, call: Any) -> Basis:
    """A basis of four tasks in four atoms, so that it recovers everything."""
    assert call("basis fit a b c d --base base -k 4 --method svd -o lib -q").code == 0
    return Basis.open(desk / "lib")


def assert_near(desk: Path, out: Path, *terms: tuple[float, str]) -> None:
    """Like :func:`assert_sum`, up to the rounding of the basis."""
    found, base = weights(out), weights(desk / "base")
    for key, value in base.items():
        total = sum(coefficient * delta(desk, name)[key] for coefficient, name in terms)
        np.testing.assert_allclose(found[key], value + total, atol=2e-6)


def test_basis_fit_says_what_it_saves_and_loses(desk: Path, call: Any) -> None:
    said = call("basis fit a b c d --base base -k 2 --method svd -o lib.safetensors")
    assert said.code == 0
    made = Basis.open("lib.safetensors")
    assert "a basis of 4 tasks in 2 atoms (svd, model codes, normalize mean)" in said.out
    share = 1 - made.nbytes / made.full_nbytes
    assert f"{share:.1%} saved" in said.out
    for name, error in made.errors.items():
        line = next(line for line in said.out.splitlines() if f"│ {name} " in line)
        assert f"{error:.4f}" in line
        assert ("dropped" in line) == made.dropped(name)
    assert f"fingerprint {made.contents.base.fingerprint}" in said.out
    assert call("basis show lib.safetensors").out == said.out


def test_basis_fit_passes_every_option_on(desk: Path, call: Any) -> None:
    words = (
        "basis fit a b=b x=c --base base -k 0.7 --method cluster --normalize cosine "
        "--random-seed 5 --set inner=ties --set density=0.5 --dtype bfloat16 -o lib -q"
    )
    assert call(words).code == 0
    made = Basis.open(desk / "lib")
    assert made.names == ("a", "b", "x")
    assert made.contents.options == {
        "method": "cluster",
        "k": "0.7",
        "normalize": "cosine",
        "granularity": "model",
        "budget": "even",
        "seed": 5,
        "option_density": 0.5,
        "option_inner": "ties",
    }
    assert made.contents.dtype is not None
    assert made.contents.dtype.name == "bfloat16"
    words = "basis fit a b c --base base --granularity layer --budget spectrum -k 2 -o two -q"
    assert call(words).code == 0
    options = Basis.open(desk / "two").contents.options
    assert (options["granularity"], options["budget"]) == ("layer", "spectrum")


def test_basis_fit_of_stored_vectors_needs_no_base(desk: Path, call: Any) -> None:
    for name in "ab":
        call(f"extract base {name} -o {name}.safetensors -q")
    assert call("basis fit a.safetensors second=b.safetensors -k 1 -o lib").code == 0
    assert Basis.open(desk / "lib").names == ("a", "second")


def test_tasks_of_a_basis_are_vectors(desk: Path, call: Any, library: Basis) -> None:
    assert call("add base lib:a lib:c -o out --scale 0.5").code == 0
    assert_near(desk, desk / "out", (0.5, "a"), (0.5, "c"))
    assert call("negate base lib:b -o less").code == 0
    assert_near(desk, desk / "less", (-1, "b"))
    assert call("analogy base --plus lib:a --plus b --minus lib:c -o fourth").code == 0
    assert_near(desk, desk / "fourth", (1, "a"), (1, "b"), (-1, "c"))


def test_basis_recover(desk: Path, call: Any, library: Basis) -> None:
    assert call("basis recover lib b --base base -o model").code == 0
    assert_near(desk, desk / "model", (1, "b"))
    assert call("basis recover lib b -o b.safetensors --scale 2").code == 0
    twice = TaskVector.open("b.safetensors").tensors()
    for key, value in delta(desk, "b").items():
        np.testing.assert_allclose(twice[key], 2 * value, atol=2e-6)


def test_basis_add(desk: Path, call: Any, library: Basis) -> None:
    said = call("basis add lib --base base -o all --scale 0.25")
    assert "the sum of the recovered tasks; cosine to the full sum 1.0000" in said.out
    assert_near(desk, desk / "all", *((0.25, name) for name in "abcd"))
    said = call("basis add lib --base base -o some --weight a=0.5 --weight c=-1")
    assert "cosine" not in said.out
    assert_near(desk, desk / "some", (0.5, "a"), (-1, "c"))
    said = call("basis add lib --atoms -o atoms.safetensors")
    assert f"the sum of the atoms; cosine to the full sum {library.sum_cosines[0]:.4f}" in said.out
    for key, value in library.add_atoms().tensors().items():
        np.testing.assert_array_equal(load_file("atoms.safetensors")[key], value)


def test_basis_negate(desk: Path, call: Any, library: Basis) -> None:
    assert call("basis negate lib d --base base -o less --scale 0.5").code == 0
    assert_near(desk, desk / "less", (-0.5, "d"))


def test_basis_update(desk: Path, call: Any) -> None:
    call("basis fit a b c --base base -k 3 --method svd -o lib -q")
    said = call("basis update lib new=d --base base -k 4 -o more --dtype float16")
    assert said.code == 0
    assert "relative error (upper bound)" in said.out
    made = Basis.open(desk / "more")
    assert made.names == ("a", "b", "c", "new")
    assert made.contents.dtype is not None
    assert made.contents.dtype.name == "float16"
    assert call("basis recover more new --base base -o model -q").code == 0
    found, wanted = weights(desk / "model"), weights(desk / "d")
    for key, value in wanted.items():
        np.testing.assert_allclose(found[key], value, atol=1e-3)


def test_basis_nearest(desk: Path, call: Any, library: Basis) -> None:
    call("extract base c -o c.safetensors -q")
    for words in ("basis nearest lib c.safetensors", "basis nearest lib c --base base"):
        said = call(words)
        assert said.code == 0
        assert "nearest task: c (1.0000)" in said.out
        assert "nearest atom: atom " in said.out
        assert "share of its norm outside the span of the atoms: 0.0" in said.out


def test_replace(desk: Path, call: Any) -> None:
    assert call("add base a -o out -q").code == 0
    (desk / "out" / "stale").write_text("")
    said = call("add base b -o out")
    assert said.code == 1
    assert (
        said.sentence == "out: already exists; pass --replace to replace it whole, or name another"
    )
    assert call("add base b -o out --replace -q").code == 0
    assert_sum(desk, desk / "out", (1, "b"))
    assert not (desk / "out" / "stale").exists()


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_workers_change_nothing(desk: Path, call: Any, workers: int) -> None:
    assert call(f"add base a b -o out -j {workers} --memory 8GiB -q").code == 0
    assert_sum(desk, desk / "out", (1, "a"), (1, "b"))


@pytest.mark.parametrize(
    "words",
    [
        "extract base a -o out",
        "add base a b -o out",
        "negate base a -o out",
        "analogy base --plus a --minus b -o out",
        "basis fit a b c --base base -k 2 -o out",
        "basis recover lib a -o out",
        "basis negate lib a --base base -o out",
        "basis add lib -o out",
        "basis add lib --atoms -o out",
        "basis update lib z=a --base base -o out",
    ],
)
def test_quiet_prints_nothing(desk: Path, call: Any, library: Basis, words: str) -> None:
    said = call(f"{words} --quiet")
    assert (said.code, said.out, said.err) == (0, "", "")
    assert (desk / "out").is_dir()


def test_basis_show_can_list_its_groups(desk: Path, call: Any) -> None:
    assert call("basis fit a b c d --base base -k 2 --granularity tensor -o lib -q").code == 0
    short, long = call("basis show lib").out, call("basis show lib -v").out
    assert long.startswith(short)
    for group in Basis.open(desk / "lib").contents.groups:
        line = next(line for line in long[len(short) :].splitlines() if f"│ {group.name} " in line)
        lost = np.sqrt(group.error.sum() / np.trace(group.gram))
        assert f"│ {group.atoms} │" in " ".join(line.split())
        assert f"{lost:.4f}" in line
