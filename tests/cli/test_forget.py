"""forget: from the base, from a merged model, and by searching for how much to take out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file

from taskbasis import Checkpoint
from taskbasis.masks import Masks
from taskbasis.recipe import Binding
from taskbasis.scores import ImportanceWriter, Origin

Tensors = dict[str, Any]

TASKS = """
import numpy as np
from pathlib import Path
from safetensors.numpy import load_file
from taskbasis import Task

START, TUNED = (load_file(f"{name}/model.safetensors") for name in ("base", "a"))
asked = []

def flat(model):
    return np.concatenate([(np.float64(model[k]) - START[k]).ravel() for k in sorted(START)])

def known(model, split):
    asked.append(split)
    vector = flat(TUNED)
    reached = float(flat(model) @ vector / (vector @ vector))
    return 0.5 + 0.4 * np.tanh(reached) - (0.01 if split == "test" else 0)

def near(slope):
    def score(model, split):
        asked.append(split)
        drift = np.abs(flat(model)).mean() / np.abs(flat(TUNED)).mean()
        return float(1 / (1 + slope * drift)) - (0.02 if split == "test" else 0)
    return score

tasks = [Task("a", known), Task("general", near(0.1)), Task("hard", near(0.2))]
hopeless = [Task("a", known), Task("fragile", near(1e6)), Task("zero", lambda m, s: 0.0)]
"""


class World(NamedTuple):
    """A folder with fine-tunes, stored vectors, masks and models merged with them."""

    path: Path
    call: Any

    def weights(self, name: str) -> Tensors:
        place = self.path / name
        return load_file(place / "model.safetensors" if place.is_dir() else place)

    def delta(self, name: str) -> Tensors:
        base, tuned = self.weights("base"), self.weights(name)
        return {key: tuned[key] - base[key] for key in base}

    def listing(self) -> list[str]:
        return sorted(str(path.relative_to(self.path)) for path in self.path.rglob("*"))


@pytest.fixture
def world(desk: Path, call: Any, monkeypatch: pytest.MonkeyPatch) -> World:
    """Vectors, masks that overlap and masks that do not, and what was merged with each."""
    (desk / "few_tasks.py").write_text(TASKS)
    monkeypatch.syspath_prepend(desk)
    sys.modules.pop("few_tasks", None)
    for words in (
        *(f"extract base {name} -o {name}.safetensors" for name in "abc"),
        "select a.safetensors b.safetensors c.safetensors -o shared.masks.safetensors"
        " --set density=0.4 --set exclusive=false",
        "select a.safetensors b.safetensors c.safetensors -o own.masks.safetensors"
        " --set density=0.4 --set exclusive=true",
        *(
            f"merge base a b c --method task_arithmetic --masks {kind}.masks.safetensors -o {kind}"
            for kind in ("shared", "own")
        ),
    ):
        assert call(f"{words} -q").code == 0
    return World(desk, call)


def top(values: Any, density: float) -> Any:
    """Which entries are among the largest share, by their magnitude."""
    count = max(1, int(density * values.size))
    return np.abs(values) >= np.sort(np.abs(values), axis=None)[-count]


def write_scores(world: World, name: str) -> dict[str, Any]:
    """Random scores of a fine-tune in a file, and the same as arrays."""
    model = Binding(name, None, Checkpoint(world.path / name).fingerprint)
    random = np.random.default_rng(7)
    delta = world.delta(name)
    scores = {key: random.random(value.shape).astype(np.float32) for key, value in delta.items()}
    shapes = {key: value.shape for key, value in delta.items()}
    out = world.path / f"{name}.scores.safetensors"
    with ImportanceWriter(out, shapes, Origin(model)) as writer:
        for key, value in scores.items():
            writer.write(key, value)
        writer.commit()
    return scores


# From the base.


@pytest.mark.parametrize("vector", ["a", "a.safetensors"])
def test_the_largest_entries_are_taken_out_of_the_base(world: World, vector: str) -> None:
    said = world.call(f"forget base {vector} -o out --scale 0.5 --set density=0.3")
    assert said.code == 0
    base, delta, found = world.weights("base"), world.delta("a"), world.weights("out")
    kept = {key: top(value, 0.3) for key, value in delta.items()}
    for key, value in base.items():
        wanted = value - np.where(kept[key], np.float32(0.5) * delta[key], 0)
        np.testing.assert_array_equal(found[key], wanted)
    squares = [sum(np.sum(d[k] ** 2) for k, d in both) for both in (
        [(kept[key], delta[key]) for key in delta], [(..., delta[key]) for key in delta]
    )]  # fmt: skip
    share = sum(k.sum() for k in kept.values()) / sum(k.size for k in kept.values())
    row = next(line for line in said.out.splitlines() if line.startswith("│ a "))
    assert f"{share:.2%}" in row
    assert f"{(squares[0] / squares[1]) ** 0.5:.1%}" in row
    assert "wrote out: 380 B; tensors: 4 merged" in said.out
    assert "not an exact removal" not in said.out
    assert (world.path / "out" / "config.json").exists()


def test_scores_select_the_entries(world: World) -> None:
    scores = write_scores(world, "a")
    assert world.call("forget base a --scores a.scores.safetensors -o out").code == 0
    found, base, delta = world.weights("out"), world.weights("base"), world.delta("a")
    for key, value in base.items():
        chosen = top(scores[key].astype(np.float16), 0.3)
        np.testing.assert_array_equal(found[key], value - np.where(chosen, delta[key], 0))


def test_everything_is_plain_negation(world: World) -> None:
    assert world.call("forget base a -o out --set density=1 --scale 0.7").code == 0
    assert world.call("negate base a -o negated --scale 0.7").code == 0
    same = [(world.path / name / "model.safetensors").read_bytes() for name in ("out", "negated")]
    assert same[0] == same[1]


def test_a_stored_mask_selects(world: World) -> None:
    said = world.call("forget base a --mask shared.masks.safetensors:a -o out")
    assert said.code == 0
    masks = Masks.open(world.path / "shared.masks.safetensors")
    base, delta, found = world.weights("base"), world.delta("a"), world.weights("out")
    kept = {key: masks["a"].entries(key) for key in base}
    for key, value in base.items():
        np.testing.assert_array_equal(found[key], value - np.where(kept[key], delta[key], 0))
    row = next(line for line in said.out.splitlines() if line.startswith("│ a "))
    density = sum(k.sum() for k in kept.values()) / sum(k.size for k in kept.values())
    others = {k: masks["b"].entries(k) | masks["c"].entries(k) for k in base}
    common = sum((kept[k] & others[k]).sum() for k in base) / sum(k.sum() for k in kept.values())
    norms = [sum(np.sum(np.square(d[m])) for d, m in ((delta[k], kept[k] | whole) for k in base))
             for whole in (False, True)]  # fmt: skip
    assert f"{density:.2%}" in row
    assert f"{common:.1%}" in row
    assert f"{(norms[0] / norms[1]) ** 0.5:.1%}" in row
    assert "not an exact removal" not in said.out


def test_a_task_of_a_basis_and_what_is_left_out(world: World) -> None:
    assert world.call("basis fit a b c --base base -k 3 --method svd -o lib -q").code == 0
    assert world.call("forget base lib:a -o one --set density=1").code == 0
    assert (
        world.call("forget base a -o two --set density=1 --exclude norm --dtype float16").code == 0
    )
    for key, value in world.weights("base").items():
        np.testing.assert_allclose(world.weights("one")[key], value - world.delta("a")[key],
                                   atol=2e-6)  # fmt: skip
    two = world.weights("two")
    assert two["norm"].dtype == np.float16
    np.testing.assert_array_equal(two["norm"], world.weights("base")["norm"].astype(np.float16))


# From a merged model.


def test_masks_that_exclude_each_other_take_a_task_out_exactly(world: World) -> None:
    said = world.call("forget own --base base --mask own.masks.safetensors:b -o out")
    assert said.code == 0
    masks = Masks.open(world.path / "own.masks.safetensors")
    base, merged, found = (world.weights(name) for name in ("base", "own", "out"))
    kept = {key: masks["b"].entries(key) for key in base}
    for key in base:
        np.testing.assert_array_equal(found[key], np.where(kept[key], base[key], merged[key]))
    share = sum(k.sum() for k in kept.values()) / sum(k.size for k in kept.values())
    assert f"{share:.2%} of the entries, those of 'b' alone, are again as in base" in said.out
    assert "an exact removal" in said.out
    named = world.call(
        "forget own b.safetensors --base base --mask own.masks.safetensors:b -o same"
    )
    assert named.code == 2
    assert "leave out b.safetensors" in named.err
    assert world.call("forget own --base base --mask own.masks.safetensors:b -o q -q").out == ""


def test_masks_that_overlap_are_subtracted_and_said_not_to_be_exact(world: World) -> None:
    words = "forget shared a.safetensors --base base --mask shared.masks.safetensors:a"
    said = world.call(f"{words} -o out --scale 0.5")
    assert said.code == 0
    mask = Masks.open(world.path / "shared.masks.safetensors")["a"]
    merged, delta, found = world.weights("shared"), world.delta("a"), world.weights("out")
    for key, value in merged.items():
        part = np.where(mask.entries(key), np.float32(0.5) * delta[key], 0)
        np.testing.assert_array_equal(found[key], value - part)
    assert "not an exact removal" in said.out
    assert "merged into shared at scale 0.5" in said.out
    assert "shared with others" in said.out
    # At the scale it was merged with, what is left are the other tasks, up to rounding.
    assert world.call(f"{words} -o back").code == 0
    others = Masks.open(world.path / "shared.masks.safetensors")
    for key, value in world.weights("base").items():
        rest = sum(np.where(others[n].entries(key), world.delta(n)[key], 0) for n in "bc")
        np.testing.assert_allclose(world.weights("back")[key], value + rest, atol=1e-6)


def test_scores_and_magnitudes_select_from_a_merged_model_too(world: World) -> None:
    scores = write_scores(world, "a")
    for option, ranked in (("--scores a.scores.safetensors", scores), ("", world.delta("a"))):
        out = f"out{len(option)}"
        said = world.call(f"forget shared a.safetensors --base base -o {out} {option}")
        assert said.code == 0
        assert "not an exact removal" in said.out
        merged, delta, found = world.weights("shared"), world.delta("a"), world.weights(out)
        for key, value in merged.items():
            rank = ranked[key].astype(np.float16) if option else ranked[key]
            wanted = value - np.where(top(rank, 0.3), delta[key], 0)
            np.testing.assert_array_equal(found[key], wanted)


# Searching.


def modules() -> Any:
    return sys.modules["few_tasks"]


SEARCH = "forget base a.safetensors --tasks few_tasks:tasks --control general"


def test_the_search_chooses_on_validation_and_reports_test_once(world: World) -> None:
    said = world.call(
        f"{SEARCH} --densities 0.2,1 --scales 0.5,1,2,3 --keep 0.8 --json points.json"
        " --plot curve.png -o out"
    )
    assert said.code == 0, said.err
    found = json.loads((world.path / "points.json").read_text())
    assert [(p["density"], p["scale"]) for p in found["points"]] == [
        (0.2, 0), *((d, s) for d in (0.2, 1.0) for s in (0.5, 1, 2, 3))
    ]  # fmt: skip
    feasible = [p for p in found["points"] if p["controls"]["general"] >= 0.8 * 1.0]
    assert [p["feasible"] for p in found["points"]] == [p in feasible for p in found["points"]]
    assert 2 < len(feasible) < 9
    best = min(feasible, key=lambda p: p["target"])
    assert found["chosen"] == {"density": best["density"], "scale": best["scale"]}
    assert (found["kept"], found["keep"], found["target"]) == ({"general": 1.0}, 0.8, "a")
    tests = [place for place, split in enumerate(modules().asked) if split == "test"]
    assert tests == list(range(len(modules().asked) - 4, len(modules().asked)))
    assert found["test"]["untouched"] == {"a": 0.49, "general": 0.98}
    assert found["test"]["forgotten"]["a"] == pytest.approx(best["target"] - 0.01)
    row = next(line for line in said.out.splitlines() if line.startswith("│ general"))
    left = found["test"]["forgotten"]["general"]
    assert row.split()[2:] == ["│", "control", "│", "0.9800", "│", f"{left:.4f}", "│",
                               f"{left / 0.98:.1%}", "│"]  # fmt: skip
    assert f"density {best['density']:g}, scale {best['scale']:g}: the lowest a" in said.out
    assert ("largest scale" in said.out) == (best["scale"] == 3)
    for name in ("points.json", "curve.png"):
        assert f"wrote {name}" in said.out
    assert (world.path / "curve.png").read_bytes().startswith(b"\x89PNG")
    words = f"forget base a.safetensors --set density={best['density']} --scale {best['scale']}"
    assert world.call(f"{words} -o alone").code == 0
    one, two = (world.path / name / "model.safetensors" for name in ("out", "alone"))
    assert one.read_bytes() == two.read_bytes(), "what was measured is what is written"


def test_equal_searches_write_equal_text(world: World) -> None:
    for name in ("one", "two"):
        words = f"{SEARCH} --densities 0.5 --scales 1,2 --json {name}.json"
        assert world.call(f"{words} -q").out == ""
    assert (world.path / "one.json").read_bytes() == (world.path / "two.json").read_bytes()
    assert not [path for path in world.path.iterdir() if path.name.startswith(".")]


def test_every_control_is_kept(world: World) -> None:
    words = f"{SEARCH} --densities 0.5 --scales 0.5,1,1.5,2,2.5 --keep 0.8 --json"
    assert world.call(f"{words} one.json -q").code == 0
    assert world.call(f"{words} both.json -q --control hard").code == 0
    one, both = (json.loads((world.path / f"{n}.json").read_text()) for n in ("one", "both"))
    assert one["chosen"]["scale"] > both["chosen"]["scale"] > 0
    for point in both["points"]:
        assert point["share"] == min(point["controls"].values())
    assert set(both["test"]["forgotten"]) == {"a", "general", "hard"}


def test_a_search_in_a_merged_model_starts_from_it(world: World) -> None:
    words = "forget shared a.safetensors --base base --tasks few_tasks:tasks --control hard"
    said = world.call(f"{words} --densities 0.4 --scales 1 --json p.json -o out")
    assert said.code == 0, said.err
    found = json.loads((world.path / "p.json").read_text())
    tasks = {task.name: task for task in modules().tasks}
    merged = world.weights("shared")
    assert found["points"][0]["target"] == tasks["a"].score(merged, "validation") > 0.6
    assert found["kept"] == {"hard": tasks["hard"].score(merged, "validation")}
    assert (found["model"], found["base"]) == ("shared", "base")
    assert found["points"][1]["target"] < found["points"][0]["target"]
    assert "│ a " in said.out
    changed = world.weights("out")
    assert any((changed[key] != merged[key]).any() for key in merged)


@pytest.mark.parametrize("kind", ["shared", "own"])
def test_with_a_mask_only_the_scale_is_searched(world: World, kind: str) -> None:
    words = f"forget {kind} a.safetensors --base base --mask {kind}.masks.safetensors:a"
    words += " --tasks few_tasks:tasks --control hard --json p.json -o out"
    said = world.call(f"{words} --scales 0.5,1")
    assert said.code == 0, said.err
    found = json.loads((world.path / "p.json").read_text())
    mask = Masks.open(world.path / f"{kind}.masks.safetensors")["a"]
    kept = [mask.entries(tensor) for tensor in mask.shapes]
    density = sum(k.sum() for k in kept) / sum(k.size for k in kept)
    assert [(p["density"], p["scale"]) for p in found["points"]] == [
        (density, 0), (density, 0.5), (density, 1)
    ]  # fmt: skip
    assert found["mask"] == f"{kind}.masks.safetensors:a"
    assert found["chosen"]["scale"] == 1
    assert f"density {density:.4g}, scale 1" in said.out
    assert "the largest scale that was tried" in said.out
    delta = world.delta("a")
    for key, value in world.weights(kind).items():
        wanted = value - np.where(mask.entries(key), delta[key], 0)
        np.testing.assert_array_equal(world.weights("out")[key], wanted)


def test_the_target_may_be_named_by_vector_or_option(world: World) -> None:
    end = "--tasks few_tasks:tasks --densities 0.5 --scales 1 -q --json"
    assert world.call(f"forget base a=b.safetensors --control hard {end} one.json").code == 0
    words = f"forget base b.safetensors --target general --control hard {end} two.json"
    assert world.call(words).code == 0
    targets = [json.loads((world.path / f"{n}.json").read_text())["target"] for n in ("one", "two")]
    assert targets == ["a", "general"]


def test_where_nothing_can_be_taken_out_the_model_is_written_as_it_is(world: World) -> None:
    said = world.call(
        "forget base a --tasks few_tasks:hopeless --control fragile --scales 1 -o out"
    )
    assert said.code == 0
    assert "untouched: no point has a lower a and keeps 0.95 of controls" in said.out
    assert said.err == "warning: nothing could be taken out; out holds base as it is\n"
    found, base = world.weights("out"), world.weights("base")
    assert all((found[key] == value).all() for key, value in base.items())


# Mistakes: one sentence, and nothing written.

T = "--tasks few_tasks:tasks"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("forget base a", "say with -o where to write, or with --tasks what to search for"),
        (
            "forget base -o x",
            "name the VECTOR to take out; without one, entries are only put back where --mask "
            "excludes the others' and --base says what MODEL was merged on",
        ),
        (
            "forget shared --base base --mask shared.masks.safetensors:a -o x",
            "name the VECTOR to take out; without one, entries are only put back where --mask "
            "excludes the others' and --base says what MODEL was merged on",
        ),
        (
            "forget own --mask own.masks.safetensors:a -o x",
            "name the VECTOR to take out; without one, entries are only put back where --mask "
            "excludes the others' and --base says what MODEL was merged on",
        ),
        (
            "forget base a --mask own.masks.safetensors:a --set density=0.1 -o x",
            "--mask is a selection already made; leave out --scores and --set",
        ),
        (
            "forget base a --mask own.masks.safetensors:a --scores s -o x",
            "--mask is a selection already made; leave out --scores and --set",
        ),
        (
            "forget base a --mask own.masks.safetensors -o x",
            "--mask own.masks.safetensors: name the task, as own.masks.safetensors:NAME (a, b, c)",
        ),
        (
            "forget base a --mask own.masks.safetensors:d -o x",
            "own.masks.safetensors has no mask 'd'; known: a, b, c",
        ),
        (
            "forget own --base base --mask own.masks.safetensors:a --scale 0.5 -o x",
            "own.masks.safetensors:a excludes the other tasks' masks, so its entries are put back "
            "as they were in base, exactly; --scale has no meaning there",
        ),
        (
            "forget own --base base --mask own.masks.safetensors:a --exclude norm -o x",
            "own.masks.safetensors:a excludes the other tasks' masks, so its entries are put back "
            "as they were in base, exactly; --exclude has no meaning there",
        ),
        (
            "forget own --base base --mask own.masks.safetensors:a --dtype float16 -o x",
            "own.masks.safetensors:a excludes the other tasks' masks, so its entries are put back "
            "as they were in base, exactly; --dtype has no meaning there",
        ),
        (
            "forget shared a --base base -o x",
            "a is a checkpoint; extract its task vector first, then add that to shared",
        ),
        (
            "forget base a --set exclusive=true -o x",
            "exclusive compares the scores of several vectors; make such masks with "
            "taskbasis select, then pass one as --mask MASKS:NAME",
        ),
        (
            "forget base a --set densty=0.1 -o x",
            "method 'sta' has no option 'densty'; did you mean 'density'?",
        ),
        ("forget base a --scale nan -o x", "the scale must be a finite number, not nan"),
        ("forget base a --keep 0.9 -o x", "--keep is for a search; name the tasks with --tasks"),
        (
            "forget base a --control general -o x",
            "--control is for a search; name the tasks with --tasks",
        ),
        ("forget base a --plot p.png -o x", "--plot is for a search; name the tasks with --tasks"),
        (
            f"forget base a {T} --control general --scale 2",
            "with --tasks the scale is searched; give the scales to try as --scales",
        ),
        (
            f"forget base a {T} --control general --set density=0.1",
            "with --tasks the density is searched; give the densities to try as --densities",
        ),
        (
            f"forget base a {T} --control general --mask own.masks.safetensors:a --densities 0.1",
            "--mask has the density it has; leave out --densities",
        ),
        (f"forget base a {T}", "name at least one --control, the task that must be kept"),
        (
            f"forget base b {T} --control general",
            "--target: there is no task 'b' to score 'b' with; name it with --target; "
            "known: a, general, hard",
        ),
        (
            f"forget base a {T} --control genral",
            "--control: there is no task 'genral'; did you mean 'general'?",
        ),
        (
            f"forget base a {T} --control general --target hrd",
            "--target: there is no task 'hrd'; did you mean 'hard'?",
        ),
        (
            f"forget base a {T} --control a",
            "'a' is named twice; the target and every control must be different tasks",
        ),
        (
            f"forget base a {T} --control general --densities 0.1;1",
            "--densities '0.1;1': write numbers with commas, e.g. 0.1,0.5",
        ),
        (
            f"forget base a {T} --control general --densities 0.1,2",
            "a density of 2.0 has no meaning; use a share above 0, up to 1",
        ),
        (
            f"forget base a {T} --control general --scales 1,1",
            "the scales [1.0, 1.0] name a number twice",
        ),
        (
            f"forget base a {T} --control general --keep 2",
            "keep is 2.0; it is a share, from 0 to 1",
        ),
        (
            f"forget base a {T} --control general --plot p.pdf",
            "p.pdf does not end in .png, the one format that is drawn",
        ),
    ],
)
def test_usage(world: World, words: str, sentence: str) -> None:
    before = world.listing()
    said = world.call(words)
    assert said.sentence == sentence
    assert said.code == 2
    assert [name for name in world.listing() if "__pycache__" not in name] == before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("forget shared a.safetensors -o x", "Apply it to its own base, or say with --base what "
         "shared was merged on"),
        (
            f"forget shared a.safetensors {T} --control general -o x",
            "Apply it to its own base, or say with --base what shared was merged on",
        ),
        ("forget shared a.safetensors --base stranger -o x", "Apply it to its own base"),
        (
            "forget own --base stranger --mask own.masks.safetensors:a -o x",
            "own.masks.safetensors:a belongs to the base base",
        ),
        ("forget base b --scores a.scores.safetensors -o x", "were learnt of the model a"),
        ("forget base a --mask nowhere.safetensors:a -o x", "nowhere.safetensors: no such file"),
        ("forget base a -o base", "writing there would touch the input base"),
        ("forget base a -o b", "b: already exists; pass --replace"),
        (f"forget base a {T} --control general -o b", "b: already exists; pass --replace"),
        (
            f"forget base a {T} --control general --json b/config.json",
            "b/config.json: already exists; pass --replace",
        ),
        (
            f"forget base a {T} --control general --json base/new.json",
            "writing there would touch the input base",
        ),
        (f"forget base a {T} --control general --json no/p.json", "does not exist; create it"),
        (f"forget base a {T} --control general --plot no/p.png", "does not exist; create it"),
        (
            "forget base a --tasks few_tasks:hopeless --control zero",
            "the untouched model scores 0.0 on the control 'zero'",
        ),
    ],
)  # fmt: skip
def test_other_mistakes(world: World, words: str, sentence: str) -> None:
    write_scores(world, "a")
    before = world.listing()
    said = world.call(words)
    assert sentence in said.sentence
    assert said.code == 1
    assert [name for name in world.listing() if "__pycache__" not in name] == before
    if "--tasks" in words and "zero" not in words and "few_tasks" in sys.modules:
        assert modules().asked == [], "refused before anything was scored"


def test_a_test_split_that_fails_leaves_nothing(world: World) -> None:
    """The search is over, but what cannot be reported is not written."""
    (world.path / "blind_tasks.py").write_text(
        "from taskbasis import Task\n"
        "def score(model, split):\n"
        "    return float('nan') if split == 'test' else 0.5\n"
        "tasks = [Task('a', score), Task('c', score)]\n"
    )
    sys.modules.pop("blind_tasks", None)
    before = world.listing()
    words = "forget base a --tasks blind_tasks:tasks --control c --densities 1 --scales 1"
    said = world.call(f"{words} -o out --json p.json --plot p.png")
    assert said.code == 1
    assert "task 'a' scored nan on test" in said.sentence
    assert [name for name in world.listing() if "__pycache__" not in name] == before


def test_places_of_one_search_must_differ(world: World) -> None:
    said = world.call(f"{SEARCH} --json same -o same")
    assert said.code == 2
    assert "must name different places" in said.err
    assert not (world.path / "same").exists()
