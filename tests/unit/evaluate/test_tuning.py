"""Coefficients by Optuna: what is found, that it repeats, and that it cannot see the test split."""

import inspect
import math
import sys

import numpy as np
import pytest

from taskbasis.errors import MissingExtraError, UsageError, ValueProblem
from taskbasis.evaluate import (
    GRID,
    Choice,
    Task,
    Tuned,
    report_tuned,
    search_addition,
    tune_addition,
)

optuna = pytest.importorskip("optuna")
PLANTED = {"math": 0.85, "code": 0.15, "law": 0.4}


def build(coefficients):
    return {name: np.float64(value) for name, value in coefficients.items()}


def planted(name, most=1.0):
    """Best where all coefficients are the planted ones, and ``most`` there."""

    def score(model, split):
        assert split == "validation", "tuning looked at the test split"
        away = sum((float(model[key]) - best) ** 2 for key, best in PLANTED.items())
        return most * math.exp(-3 * away)

    return Task(name, score)


def test_it_finds_what_no_single_scale_can_in_as_many_trials():
    tasks = [planted(name) for name in PLANTED]
    own = dict.fromkeys(PLANTED, 1.0)
    grid = search_addition(lambda scale: build(dict.fromkeys(PLANTED, scale)), tasks, own)
    for seed in range(3):
        found = tune_addition(build, list(PLANTED), tasks, own, trials=len(GRID), seed=seed)
        assert len(found.trials) == len(grid.points)
        assert found.score > grid.score + 0.05, seed
    longer = tune_addition(build, list(PLANTED), tasks, own, trials=80)
    assert longer.score > 0.95
    for name, best in PLANTED.items():
        assert longer.coefficients[name] == pytest.approx(best, abs=0.15)


def test_the_same_seed_gives_the_same_trials_and_another_others():
    tasks, own = [planted("t")], {"t": 1.0}
    one, two, other = (
        tune_addition(build, list(PLANTED), tasks, own, trials=15, seed=seed) for seed in (3, 3, 4)
    )
    assert one == two
    assert one.seed == 3
    assert one.trials[:4] == other.trials[:4]  # the uniform ones
    assert one.trials[4:] != other.trials[4:]


def test_the_first_trials_are_uniform_between_the_bounds():
    found = tune_addition(
        build, ["math", "code", "law"], [planted("t")], {"t": 1.0}, trials=5, bounds=(-1.0, 3.0)
    )
    starts = [set(trial.coefficients.values()) for trial in found.trials[:4]]
    assert [round(value, 12) for (value,) in starts] == [0.2, 1.4, 3.0, -0.6]
    assert all(-1 <= c <= 3 for trial in found.trials for c in trial.coefficients.values())
    single = tune_addition(build, list(PLANTED), [planted("t")], {"t": 1.0}, trials=1)
    assert set(single.coefficients.values()) == {0.3}


def test_the_objective_is_normalised_and_the_best_trial_is_chosen():
    tasks = [planted("a", 0.4), planted("b", 0.9)]
    found = tune_addition(build, list(PLANTED), tasks, {"a": 0.8, "b": 0.9}, trials=12)
    for trial in found.trials:
        assert trial.objective == pytest.approx(
            (trial.scores["a"] / 0.8 + trial.scores["b"] / 0.9) / 2
        )
    assert found.score == max(trial.objective for trial in found.trials)
    first = next(trial for trial in found.trials if trial.objective == found.score)
    assert found.coefficients == first.coefficients


def test_the_first_of_equals_wins_and_each_model_is_built_once():
    built = []

    def counting(coefficients):
        built.append(dict(coefficients))
        return {}

    task = Task("t", lambda model, split: 0.5)
    found = tune_addition(counting, ["a"], [task], {"t": 1.0}, trials=7)
    assert found.coefficients == {"a": 0.3}
    assert built == [dict(trial.coefficients) for trial in found.trials]


def test_test_is_scored_once_and_only_for_what_was_tuned():
    calls = []

    def score(model, split):
        calls.append(split)
        return float(model["a"]) / (2 if split == "test" else 1)

    task = Task("t", score)
    found = tune_addition(build, ["a"], [task], {"t": 1.0}, trials=3)
    calls.clear()
    assert report_tuned(found, build, [task]) == {"t": 0.5}  # at 1, the best of the first three
    assert calls == ["test"]
    for forged in ({"a": 1.0}, None, Choice(0.3, 1.0, ())):
        with pytest.raises(UsageError, match="test is for a finished search, not for a"):
            report_tuned(forged, build, [task])
    assert "split" not in inspect.signature(tune_addition).parameters


def test_faults_are_found_before_anything_is_built():
    def never(coefficients):
        raise AssertionError("built in vain")

    task, own = Task("t", lambda m, s: 1.0), {"t": 1.0}
    for sentence, names, tasks, known, more in [
        ("vectors with a name each", [], [task], own, {}),
        ("vectors with a name each", ["a", "a"], [task], own, {}),
        ("at least one task", ["a"], [], own, {}),
        ("'t' has no accuracy of its own", ["a"], [task], {"x": 1.0}, {}),
        ("0 trials try nothing", ["a"], [task], own, {"trials": 0}),
        ("bounds 1 and 1 leave nothing", ["a"], [task], own, {"bounds": (1, 1)}),
        ("a seed of -1 draws nothing", ["a"], [task], own, {"seed": -1}),
        ("a seed of 4294967296 draws nothing", ["a"], [task], own, {"seed": 2**32}),
        ("bounds nan and 1 leave nothing", ["a"], [task], own, {"bounds": (math.nan, 1)}),
    ]:
        with pytest.raises(UsageError, match=sentence):
            tune_addition(never, names, tasks, known, **more)
    with pytest.raises(ValueProblem, match="nothing can be normalised by"):
        tune_addition(never, ["a"], [task], {"t": 0.0})


def test_a_score_that_is_not_finite_stops_it():
    with pytest.raises(ValueProblem, match="'t' scored nan on validation"):
        tune_addition(build, ["a"], [Task("t", lambda m, s: math.nan)], {"t": 1.0})


def test_optuna_says_nothing_and_keeps_its_own_level(capfd):
    before = optuna.logging.get_verbosity()
    tune_addition(build, list(PLANTED), [planted("t")], {"t": 1.0}, trials=12)
    assert optuna.logging.get_verbosity() == before
    assert capfd.readouterr() == ("", "")


def test_without_optuna_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "optuna", raising=False)

    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name == "optuna":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    sentence = (
        r"tuning a coefficient for every vector needs the package 'optuna'.*taskbasis\[search\]"
    )
    with pytest.raises(MissingExtraError, match=sentence):
        tune_addition(build, ["a"], [Task("t", lambda m, s: 1.0)], {"t": 1.0})


def test_what_was_tuned_shows_its_trials():
    found = tune_addition(build, ["math", "code", "law"], [planted("<t>")], {"<t>": 1.0}, trials=5)
    assert isinstance(found, Tuned)
    text = found._repr_html_()
    assert "<th>math</th><th>code</th><th>law</th><th>objective</th><th>&lt;t&gt;</th>" in text
    assert text.count("<tr>") == 6
