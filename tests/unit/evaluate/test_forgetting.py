"""The search for density and scale: its rules, and that it cannot see the test split."""

import inspect
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskbasis.errors import UsageError, ValueProblem
from taskbasis.evaluate import ForgetChoice, Task, report_forgetting, search_forgetting
from taskbasis.evaluate.forgetting import DENSITIES, SCALES


def at(density, scale):
    return {"density": np.float64(density), "scale": np.float64(scale)}


def blind(name, function):
    """A task that fails the test when anyone asks for the test split."""

    def score(model, split):
        assert split == "validation", "a search looked at the test split"
        return function(float(model["density"]), float(model["scale"]))

    return Task(name, score)


def tabled(name, values, untouched):
    """A task with a given score at every (density, scale)."""
    return blind(name, lambda d, s: untouched if s == 0 else values[d, s])


def test_the_default_grid_holds_plain_negation_and_the_untouched_model():
    assert tuple(sorted(DENSITIES)) == DENSITIES
    assert DENSITIES[-1] == 1.0
    assert SCALES[0] == 0.0
    assert SCALES[4] == 1.0
    assert SCALES[-1] == 3.0
    assert {round(b - a, 12) for a, b in itertools.pairwise(SCALES)} == {0.25}


def test_fewer_entries_at_a_larger_scale_win_where_they_do_less_harm():
    target = blind("t", lambda d, s: max(0.0, 1 - s * math.sqrt(d)))
    control = blind("c", lambda d, s: 1 - 0.1 * s * d)
    choice = search_forgetting(at, target, [control], {"c": 1.0}, [0.25, 1.0], [0.5, 1, 2, 3])
    assert (choice.density, choice.scale, choice.score) == (0.25, 2.0, 0.0)
    grid = [(0.25, 0.0), *((d, s) for d in (0.25, 1.0) for s in (0.5, 1.0, 2.0, 3.0))]
    assert [(p.density, p.scale) for p in choice.points] == grid
    assert [p.feasible for p in choice.points] == [s * d <= 0.5 for d, s in grid]
    for point in choice.points:
        assert point.target == max(0.0, 1 - point.scale * math.sqrt(point.density))
        assert point.controls == {"c": 1 - 0.1 * point.scale * point.density}
        assert point.share == point.controls["c"]
    assert (choice.target, choice.kept, choice.keep) == ("t", {"c": 1.0}, 0.95)
    assert choice.chosen is choice.points[3]


score = st.integers(0, 4).map(lambda value: value / 4)
grids = st.integers(1, 3).flatmap(
    lambda n: st.lists(st.tuples(score, score, score), min_size=4 * n, max_size=4 * n)
)


@given(grids, st.tuples(score, score), st.sampled_from([0.0, 0.5, 0.95, 1.0]), st.booleans())
def test_it_is_a_loop_over_feasible_points(scores, own, keep, names_zero):
    """Brute force: the untouched model first, then strictly better feasible points in order."""
    densities = [(i + 1) / 4 for i in range(len(scores) // 4)]
    scales = [1.0, 0.5, 3.0, 2.0]
    pairs = [(d, s) for d in densities for s in scales]
    columns = [dict(zip(pairs, column, strict=True)) for column in zip(*scores, strict=True)]
    kept = {"one": 0.5 + own[0], "two": 0.25 + own[1]}
    target = tabled("t", columns[0], 0.75)
    controls = [tabled(n, c, kept[n]) for n, c in zip(kept, columns[1:], strict=True)]
    best, found = 0.75, (densities[0], 0.0)
    for pair in pairs:
        enough = all(c[pair] >= keep * kept[n] for n, c in zip(kept, columns[1:], strict=True))
        if enough and columns[0][pair] < best:
            best, found = columns[0][pair], pair
    tried = [*scales[:2], 0.0, *scales[2:]] if names_zero else scales
    choice = search_forgetting(at, target, controls, kept, densities, tried, keep)
    assert ((choice.density, choice.scale), choice.score) == (found, best)
    for point in choice.points[1:]:
        pair = point.density, point.scale
        shares = [c[pair] / kept[n] for n, c in zip(kept, columns[1:], strict=True)]
        assert point.share == min(shares)


def test_the_first_of_equal_minima_wins_densities_outer_scales_inner():
    low = {(0.5, 2.0): 0.1, (0.1, 3.0): 0.1, (0.1, 1.0): 0.1}
    target = blind("t", lambda d, s: low.get((d, s), 0.5))
    control = blind("c", lambda d, s: 1.0)

    def found(densities, scales):
        choice = search_forgetting(at, target, [control], {"c": 1.0}, densities, scales)
        return choice.density, choice.scale

    assert found([0.5, 0.1], [1, 2, 3]) == (0.5, 2.0)
    assert found([0.1, 0.5], [1, 2, 3]) == (0.1, 1.0)
    assert found([0.1, 0.5], [3, 2, 1]) == (0.1, 3.0)


def test_where_nothing_is_feasible_or_lower_the_model_stays():
    target, control = blind("t", lambda d, s: 1 - s), blind("c", lambda d, s: 0.2 if s else 0.8)
    choice = search_forgetting(at, target, [control], {"c": 0.8}, [0.1, 1.0], [1, 2])
    assert (choice.density, choice.scale, choice.score) == (0.1, 0.0, 1.0)
    assert [point.feasible for point in choice.points] == [True, False, False, False, False]
    worse = blind("t", lambda d, s: 0.5 + s)
    kept = blind("c", lambda d, s: 1.0)
    assert search_forgetting(at, worse, [kept], {"c": 1.0}, [1.0], [1]).scale == 0.0


def test_every_control_counts():
    target = blind("t", lambda d, s: 1 - s / 4)
    easy, hard = blind("easy", lambda d, s: 0.9), blind("hard", lambda d, s: 0.6 - 0.02 * s)
    both = {"easy": 0.9, "hard": 0.6}
    assert search_forgetting(at, target, [easy], both, [1.0], [1, 2]).scale == 2.0
    choice = search_forgetting(at, target, [easy, hard], both, [1.0], [1, 2])
    assert choice.scale == 1.0  # 0.58 is 96.7 % of 0.6; 0.56 is 93.3 %
    assert choice.points[2].share == pytest.approx(0.56 / 0.6)
    assert choice.kept == both
    assert search_forgetting(at, target, [easy], both, [1.0], [1]).kept == {"easy": 0.9}


def test_the_untouched_model_is_feasible_even_where_its_own_scores_waver():
    wavering = blind("c", lambda d, s: 0.1)
    choice = search_forgetting(at, blind("t", lambda d, s: 1.0), [wavering], {"c": 1.0}, [1.0], [1])
    assert choice.scale == 0.0
    assert choice.points[0].feasible


def test_every_point_is_built_once_and_the_whole_curve_is_kept():
    built = []

    def build(density, scale):
        built.append((density, scale))
        return at(density, scale)

    target, control = blind("t", lambda d, s: s), blind("c", lambda d, s: 0.0 if s else 1.0)
    choice = search_forgetting(build, target, [control], {"c": 1.0}, [0.2, 0.4], [0, 1, 2])
    assert built == [(0.2, 0.0), (0.2, 1.0), (0.2, 2.0), (0.4, 1.0), (0.4, 2.0)]
    assert len(choice.points) == len(built), "a scale that fails does not end its line"


def test_faults_are_found_before_anything_is_built():
    def build(density, scale):
        raise AssertionError("built in vain")

    a, b, again = blind("a", min), blind("b", min), blind("a", max)
    kept = {"b": 1.0, "a": 1.0}
    for controls, grid, keep, said in (
        ([], {}, 0.95, "at least one control"),
        ([b], {}, 1.5, "keep is 1.5"),
        ([b], {}, math.nan, "keep is nan"),
        ([b], {"densities": []}, 0.95, "densities .* one finite number or more"),
        ([b], {"scales": [math.inf]}, 0.95, "scales .* one finite number or more"),
        ([b], {"scales": [0.5, 0.5]}, 0.95, "scales .* name a number twice"),
        ([b], {"densities": [0.5, 0.0]}, 0.95, "a density of 0.0 has no meaning"),
        ([b], {"densities": [1.5]}, 0.95, "a density of 1.5 has no meaning"),
        ([again], {}, 0.95, "'a' is named twice"),
        ([b, b], {}, 0.95, "'b' is named twice"),
        ([blind("bb", min)], {}, 0.95, "'bb' has no score .* did you mean 'b'"),
    ):
        with pytest.raises(UsageError, match=said):
            search_forgetting(build, a, controls, kept, keep=keep, **grid)


@pytest.mark.parametrize("bad", [0.0, -0.5, math.nan, math.inf])
def test_a_control_of_which_no_share_can_be_kept_is_an_error_naming_it(bad):
    tasks = blind("a", min), [blind("b", min)]
    with pytest.raises(ValueProblem, match=r"scores .* on the control 'b'"):
        search_forgetting(at, *tasks, {"b": bad})


@pytest.mark.parametrize("name", ["t", "c"])
def test_a_nan_stops_the_search(name):
    values = {"t": 0.5, "c": 0.5, name: math.nan}
    target, control = (blind(n, lambda d, s, n=n: values[n] if s else 0.5) for n in "tc")
    with pytest.raises(ValueProblem, match=f"'{name}' scored nan on validation"):
        search_forgetting(at, target, [control], {"c": 0.5}, [1.0], [1.0])


def test_a_choice_is_scored_once_on_test_beside_the_untouched_model():
    calls = []

    def build(density, scale):
        calls.append((density, scale))
        return at(density, scale)

    def measured(name, slope):
        def score(model, split):
            calls.append((name, split))
            return 1 - slope * float(model["scale"]) - (0.1 if split == "test" else 0.0)

        return Task(name, score)

    tasks = [measured("t", 0.5), measured("c", 0.0)]
    choice = search_forgetting(build, tasks[0], tasks[1:], {"c": 1.0}, [0.3], [1.0])
    assert all(split == "validation" for _, split in calls if isinstance(split, str))
    calls.clear()
    untouched, forgotten = report_forgetting(choice, build, tasks)
    assert untouched == {"t": 0.9, "c": 0.9}
    assert forgotten == {"t": 0.4, "c": 0.9}
    both = [("t", "test"), ("c", "test")]
    assert calls == [(0.3, 0.0), *both, (0.3, 1.0), *both]


def test_an_untouched_choice_is_not_scored_twice():
    calls = []

    def score(model, split):
        calls.append(split)
        return 1.0

    tasks = [Task("t", score), Task("c", lambda model, split: 1.0)]
    choice = search_forgetting(at, tasks[0], tasks[1:], {"c": 1.0}, [1.0], [1.0])
    calls.clear()
    untouched, forgotten = report_forgetting(choice, at, tasks)
    assert untouched == forgotten
    assert untouched is not forgotten
    assert calls == ["test"]


@pytest.mark.parametrize("forged", [0.3, None, (0.1, 0.3)])
def test_only_a_finished_search_reaches_test(forged):
    def build(density, scale):
        raise AssertionError("test was reached without a search")

    with pytest.raises(UsageError, match="finished search"):
        report_forgetting(forged, build, [])


def test_the_search_takes_no_split_and_a_choice_is_frozen():
    assert "split" not in inspect.signature(search_forgetting).parameters
    choice = ForgetChoice(0.1, 0.5, 0.2, (), "t", {}, 0.95)
    with pytest.raises(AttributeError):
        choice.scale = 0.2  # type: ignore[misc]
