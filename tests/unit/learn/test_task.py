"""hf:MODEL:DATA scores any model in a folder's architecture; specs and suites give problems."""

import math
import shutil
from functools import partial

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from taskbasis.errors import FileError, MismatchError, UsageError
from taskbasis.evaluate import Task, evaluate, load_tasks
from taskbasis.learn import Problem, importance, moments
from taskbasis.learn.huggingface import Reading, hf_problem
from taskbasis.learn.skeleton import quiet
from taskbasis.learn.spec import problem_of
from taskbasis.learn.task import hf_task
from taskbasis.suites.digits import prepare
from taskbasis.suites.digits_model import Settings, features
from taskbasis.vectors import Checkpoint, EditedModel, TaskVector

TINY = Settings(hidden=8, layers=1, attention_heads=1, pretrain_steps=3, steps=3, batch=16)
ONLY_SCORES = [Task("norm", lambda model, split: 0.5)]
WRONG = [Task("odd", lambda model, split: 0.5, lambda folder: "not a problem")]


def tensors(folder):
    return load_file(folder / "model.safetensors")


def halves(count):
    order = np.random.default_rng(0).permutation(count)
    return sorted(order[: round(count / 2)]), sorted(order[round(count / 2) :])


def accuracy(folder, data, numbers):
    """What transformers itself says, one text at a time."""
    problem = hf_problem(folder, data)
    with quiet():
        plain = type(problem.module).from_pretrained(folder).eval()
    right = 0
    for number in numbers:
        batch = problem.collate([problem.samples[number]])
        label = int(batch.pop("labels"))
        with torch.no_grad():
            right += int(plain(**batch).logits.argmax()) == label
    return right / len(numbers)


@pytest.mark.parametrize("family", ["bert", "vit"])
def test_a_model_that_was_put_together_again_has_its_own_accuracy(library, family):
    base, tuned, data = library(family)
    task = load_tasks(f"hf:{tuned}:{data}")[0]
    assert task.name == "tuned"
    validation, test = halves(12 if family == "vit" else 8)
    merged = (Checkpoint(base) + TaskVector(base, tuned)).tensors()
    for split, numbers in (("validation", validation), ("test", test)):
        expected = accuracy(tuned, data, numbers)
        assert task.score(merged, split) == expected
        assert task.score(EditedModel(Checkpoint(tuned)).tensors(), split) == expected


def test_the_head_stays_the_folders(library):
    base, tuned, data = library("bert")
    task = hf_task(tuned, data)
    own = EditedModel(Checkpoint(tuned)).tensors()
    spoilt = {**own, "classifier.weight": own["classifier.weight"] * -1}
    assert task.score(spoilt, "test") == task.score(own, "test")
    body = {name: array for name, array in own.items() if "classifier" not in name}
    assert task.score(body, "test") == task.score(own, "test")
    assert sorted(base.iterdir())


def test_models_are_scored_one_after_the_other(library):
    base, tuned, data = library("vit")
    task = hf_task(tuned, data)
    models = [EditedModel(Checkpoint(path)).tensors() for path in (base, tuned)]
    first = [task.score(model, "test") for model in models]
    assert [task.score(model, "test") for model in models] == first
    broken = {name: array * np.nan for name, array in models[0].items()}
    assert math.isnan(task.score(broken, "test"))
    assert task.score(models[1], "test") == first[1]


@pytest.mark.parametrize("family", ["gpt2", "masked"])
def test_a_language_model_scores_its_probability_per_token(library, family):
    _, tuned, data = library(family)
    task = hf_task(tuned, data)
    _, test = halves(8)
    problem = hf_problem(tuned, data)
    found = task.score(EditedModel(Checkpoint(tuned)).tensors(), "test")
    assert 0 < found <= 1
    if family == "gpt2":
        with torch.no_grad():
            losses = [
                float(problem.loss(problem.module, problem.collate([problem.samples[n]])))
                for n in test
            ]
        assert found == pytest.approx(math.exp(-np.mean(losses)), rel=1e-5)


def test_an_encoder_is_scored_under_a_classifiers_head(library, tmp_path):
    """The base is a BertModel, whose names lack the prefix."""
    _, tuned, data = library("bert")
    with quiet():
        body = transformers.BertForSequenceClassification.from_pretrained(tuned).bert
        body.save_pretrained(tmp_path / "encoder")
    assert "encoder.layer.0.output.dense.weight" in tensors(tmp_path / "encoder")
    task = hf_task(tuned, data)
    scored = task.score(EditedModel(Checkpoint(tmp_path / "encoder")).tensors(), "test")
    assert scored == task.score(EditedModel(Checkpoint(tuned)).tensors(), "test")
    problem = task.problem(tmp_path / "encoder")
    found = importance(problem, tmp_path / "s.safetensors", model=tmp_path / "encoder")
    assert set(found.infos) == set(tensors(tmp_path / "encoder"))


def test_a_classifier_has_changed_since_its_encoder(library, tmp_path):
    """Names of the base differ by a prefix; scores go by the model's own."""
    base, tuned, data = library("bert")
    with quiet():
        body = transformers.BertForSequenceClassification.from_pretrained(base).bert
        body.save_pretrained(tmp_path / "encoder")
    more = {"model": tuned, "dtype": "float32"}
    for factor in ("delta", "magnitude"):
        problem = None if factor == "magnitude" else hf_problem(tuned, data)
        plain = importance(
            problem, tmp_path / f"{factor}-a.safetensors", base=base, factor=factor,
            exclude=["classifier*"], **more,
        )  # fmt: skip
        under = importance(
            problem, tmp_path / f"{factor}-b.safetensors", base=tmp_path / "encoder",
            factor=factor, exclude=["classifier*"], **more,
        )  # fmt: skip
        assert plain.infos.keys() == under.infos.keys()
        assert all(name.startswith("bert.") for name in under.infos)
        for name in plain.infos:
            np.testing.assert_array_equal(plain.scores(name), under.scores(name))


def test_problems_of_a_task_take_the_weights_of_any_model(library, tmp_path):
    base, tuned, data = library("bert")
    task = hf_task(tuned, data)
    problem = task.problem(base)
    state = problem.module.state_dict()
    assert np.array_equal(state["bert.pooler.dense.weight"].numpy(),
                          tensors(base)["bert.pooler.dense.weight"])  # fmt: skip
    assert np.array_equal(state["classifier.weight"].numpy(), tensors(tuned)["classifier.weight"])
    validation, _ = halves(8)
    assert len(problem.samples) == len(validation)  # never the test half
    whole = hf_problem(tuned, data)
    assert [s["input_ids"] for s in problem.samples] == [
        whole.samples[n]["input_ids"] for n in validation
    ]
    found = importance(problem, tmp_path / "s.safetensors", model=base)
    assert found.origin.rules["head"] == ("classifier.bias", "classifier.weight")


def splits_of(rows, task):
    scorer = task.score.__self__
    return {name: len(encoded) for name, encoded in scorer._splits.items()}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"all": 8}, {"train": 4, "validation": 4, "test": 4}),
        ({"validation": 3, "test": 5}, {"train": 3, "validation": 3, "test": 5}),
        ({"train": 2, "dev": 3, "test": 5}, {"train": 2, "validation": 3, "test": 5}),
        ({"train": 20, "test": 5}, {"train": 18, "validation": 2, "test": 5}),
        ({"train": 20, "validation": 8}, {"train": 20, "validation": 4, "test": 4}),
        ({"test": 6}, {"train": 3, "validation": 3, "test": 3}),
    ],
)
def test_splits_that_are_missing_are_made(library, given, expected):
    _, tuned, _ = library("bert")
    data = {name: [{"text": f"good {at}", "label": 0} for at in range(count)]
            for name, count in given.items()}  # fmt: skip
    data = data.get("all", data)
    found = splits_of(data, hf_task(tuned, data))
    assert {name: found[name] for name in expected} == expected


def test_rows_of_validation_and_test_do_not_meet(library):
    _, tuned, data = library("bert")
    splits = hf_task(tuned, data).score.__self__._splits
    rows = [set(splits[name].rows.numbers) for name in ("validation", "test")]
    assert rows[0] | rows[1] == set(range(8))
    assert not rows[0] & rows[1]


def test_data_that_cannot_be_split_is_refused(library):
    base, tuned, _ = library("bert")
    model = EditedModel(Checkpoint(base)).tensors()
    rows = [{"text": "good", "label": 1}]
    with pytest.raises(UsageError, match=r"has no rows for (validation|test)"):
        hf_task(tuned, rows).score(model, "test")
    with pytest.raises(UsageError, match="has the splits train, extra; a task needs"):
        hf_task(tuned, {"train": rows, "extra": rows}).score(model, "test")


def test_other_models_are_refused(library):
    _, tuned, data = library("bert")
    _, other, _ = library("gpt2")
    task = hf_task(tuned, data)
    own = EditedModel(Checkpoint(tuned)).tensors()
    lacking = {name: array for name, array in own.items() if "pooler.dense.bias" not in name}
    with pytest.raises(MismatchError, match=r"no tensor 'bert.pooler.dense.bias'"):
        task.score(lacking, "test")
    with pytest.raises(MismatchError, match=r"has shape \[3\], not \[16\]"):
        task.score({**own, "bert.pooler.dense.bias": np.zeros(3, np.float32)}, "test")
    with pytest.raises(MismatchError, match="has no tensor"):
        task.score(EditedModel(Checkpoint(other)).tensors(), "test")
    with pytest.raises(MismatchError, match="holds no tensor"):
        task.problem(other)


def test_specs_that_name_nothing(tmp_path):
    for spec in ("hf:nowhere:data.tsv", f"hf:{tmp_path}", f"hf:{tmp_path}:"):
        with pytest.raises((UsageError, FileError), match="write hf:MODEL_FOLDER:DATA"):
            load_tasks(spec)


def test_folders_and_data_with_colons_in_their_names(library, tmp_path):
    _, tuned, data = library("bert")
    odd = tmp_path / "a:b"
    shutil.copytree(tuned, odd)
    table = shutil.copy(data, tmp_path / "c:d.tsv")
    task = load_tasks(f"hf:{odd}:{table}")[0]
    assert task.name == "a:b"
    assert 0 <= task.score(tensors(odd), "test") <= 1


# -- what --task names ---------------------------------------------------------------------------


def test_a_path_is_data_for_the_model_itself(library):
    _, tuned, data = library("bert")
    problem = problem_of(str(data), tuned)
    assert isinstance(problem, Problem)
    assert problem.about["data"] == str(data)
    assert len(problem_of(str(data), tuned, Reading(max_length=3)).samples[1]["input_ids"]) == 3


def test_a_spec_is_a_task_of_a_suite(library):
    base, tuned, data = library("bert")
    problem = problem_of(f"hf:{tuned}:{data}", base)
    assert len(problem.samples) == 4


@pytest.mark.parametrize(
    ("spec", "error", "text"),
    [
        ("nothing.tsv", FileError, "no such data; name a file"),
        ("digits:nowhere:parity", FileError, "digits.json cannot be read"),
        (f"{__name__}:ONLY_SCORES", UsageError, "task 'norm' only scores models"),
        (f"{__name__}:ONLY_SCORES:nrom", UsageError, "did you mean 'norm'"),
        (f"{__name__}:WRONG", UsageError, "the problem of task 'odd' is a str"),
    ],
)
def test_what_names_no_problem(library, spec, error, text):
    _, tuned, _ = library("bert")
    with pytest.raises(error, match=text):
        problem_of(spec, tuned)


def test_a_suite_reads_its_own_data(library):
    _, tuned, data = library("bert")
    with pytest.raises(UsageError, match="reads its own data"):
        problem_of(f"hf:{tuned}:{data}", tuned, Reading(split="test"))


# -- the digits ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("digits") / "world", 0, settings=TINY)


def test_digits_are_problems(world, tmp_path):
    folder = world.base.parent
    tuned = world.tuned["parity"]
    problem = problem_of(f"digits:{folder}:parity", tuned)
    assert set(problem.names.values()) == set(tensors(tuned))
    assert len(problem.samples) == 1078  # the training split
    found = importance(problem, tmp_path / "s.safetensors", model=tuned, samples=20)
    assert found.origin.options["gradients"] == "per_sample"
    assert found.origin.rules == {}
    assert evaluate(tensors(tuned), world.tasks, "test")["parity"] > 0
    with pytest.raises(UsageError, match="names 8 tasks; add one of :parity, high"):
        problem_of(f"digits:{folder}", tuned)
    control = problem_of(f"digits-control:{folder}", world.base)
    assert len(control.samples) < 1078
    assert world.control.problem(world.base).about == control.about


def test_the_loss_of_digits_is_that_of_their_head(world):
    heads = load_file(world.base.parent / "heads.safetensors")
    problem = world.tasks[0].problem(world.base)
    images, classes = batch = problem.collate([problem.samples[at] for at in range(5)])
    with torch.no_grad():
        found = problem.loss(problem.module, batch)
        hidden = features(problem.module, images).numpy()
    logits = hidden @ heads["parity.weight"] + heads["parity.bias"]
    logits -= np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -logits[range(5), classes.numpy()]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_digits_scores_equal_a_loop_of_single_samples(world, tmp_path):
    tuned = world.tuned["prime"]
    problem = problem_of(f"digits:{world.base.parent}:prime", tuned)
    more = {"model": tuned, "samples": 6, "base": world.base, "factor": "delta"}
    fast, slow = (
        importance(problem, tmp_path / f"{way}.safetensors", gradients=way, dtype="float32", **more)
        for way in ("per_sample", "single")
    )
    largest = max(float(slow.scores(name).max()) for name in slow.infos)
    for name in slow.infos:
        np.testing.assert_allclose(
            fast.scores(name), slow.scores(name), rtol=1e-4, atol=1e-6 * largest
        )


def test_digits_have_moments(world, tmp_path):
    tuned = world.tuned["loop"]
    problem = problem_of(f"digits:{world.base.parent}:loop", tuned)
    found = moments(problem, tmp_path / "m.safetensors", model=tuned, samples=7)
    name = next(name for name in found.infos if name.endswith("projection.weight"))
    patches = found.moment(name)
    assert patches.shape == (16, 16)
    images = np.stack([problem.samples[at][0] for at in draw_of(problem, 7)])
    rows = images.reshape(-1, 2, 4, 2, 4).transpose(0, 1, 3, 2, 4).reshape(-1, 16)
    np.testing.assert_allclose(patches, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)


def draw_of(problem, count):
    return sorted(np.random.default_rng(0).permutation(len(problem.samples))[:count])


def test_a_model_of_another_shape_is_refused(world, tmp_path):
    shutil.copytree(world.base, tmp_path / "odd")
    changed = tensors(world.base)
    name = next(name for name in changed if name.endswith("layernorm.bias"))
    save_file({**changed, name: np.zeros(3, np.float32)}, tmp_path / "odd" / "model.safetensors")
    ask = partial(problem_of, f"digits:{world.base.parent}:parity")
    with pytest.raises(MismatchError, match=r"has shape \[3\] in the file"):
        ask(tmp_path / "odd")


def test_running_statistics_are_the_models_own() -> None:
    import torch

    from taskbasis.learn import Problem
    from taskbasis.learn.task import put_model
    from taskbasis.recipe import Naming

    module = torch.nn.BatchNorm1d(2)
    problem = Problem(module, [0], list, lambda *_: None)
    given = {name: np.full(p.shape, 3.0, np.float32) for name, p in module.named_parameters()}
    given |= {"running_mean": np.array([1, 2], "f4"), "running_var": np.array([4, 5], "f4")}
    put_model(problem.module, problem.names, given, Naming())
    for name, values in given.items():
        np.testing.assert_array_equal(dict(module.state_dict())[name].numpy(), values)
