"""Importance: every choice against a loop that anyone can read."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from taskbasis.digest import fingerprint, store_digests
from taskbasis.engine import Engine
from taskbasis.errors import FileError, MismatchError, UsageError, ValueProblem
from taskbasis.io.folder import open_tensors
from taskbasis.learn import Problem, importance
from taskbasis.learn.huggingface import hf_problem
from taskbasis.scores import Importance
from taskbasis.vectors import Checkpoint

FLOAT = {"dtype": "float32"}


def loop(problem, numbers=None):
    """The gradients [n, ...] of single samples, one ordinary backward pass each, by file name."""
    module = problem.module.eval()
    numbers = range(len(problem.samples)) if numbers is None else numbers
    found = {name: [] for name in problem.names}
    flags = {name: p.requires_grad for name, p in module.named_parameters()}
    for number in numbers:
        for parameter in module.parameters():
            parameter.requires_grad_(True)
            parameter.grad = None
        batch = problem.collate([problem.samples[number]])
        problem.loss(module, batch).sum().backward()
        for name, parameter in module.named_parameters():
            if name in found:
                grad = parameter.grad
                found[name].append(torch.zeros_like(parameter) if grad is None else grad.clone())
    for name, parameter in module.named_parameters():
        parameter.grad = None
        parameter.requires_grad_(flags[name])
    return {
        problem.names[name]: torch.stack(grads).detach().float().numpy()
        for name, grads in found.items()
    }


def scores(found):
    return {name: found.scores(name) for name in found.infos}


def same(found, expected, rtol=1e-5):
    found = scores(found) if isinstance(found, Importance) else found
    assert found.keys() == expected.keys()
    scale = max(float(np.abs(values).max(initial=0)) for values in expected.values())
    for name, values in expected.items():  # the gradient of a key's bias is rounding noise alone
        np.testing.assert_allclose(found[name], values, rtol=rtol, atol=1e-6 * scale, err_msg=name)


def put(problem, path):
    tensors = load_file(path)
    with torch.no_grad():
        for name, parameter in problem.module.named_parameters():
            parameter.copy_(torch.tensor(tensors[name]))


# -- the formula ---------------------------------------------------------------------------------


@pytest.mark.parametrize("gradients", ["auto", "per_sample", "single"])
def test_the_default_is_the_mean_of_weight_times_gradient(net, tmp_path, gradients):
    problem, _, tuned = net
    found = importance(
        problem, tmp_path / "s.safetensors", model=tuned, gradients=gradients, **FLOAT
    )
    put(problem, tuned)
    weights = load_file(tuned)
    expected = {n: np.abs(weights[n] * g).mean(0) for n, g in loop(problem).items()}
    same(found, expected)
    kind = "per_sample" if gradients == "auto" else gradients
    assert found.origin.options["gradients"] == kind


@pytest.mark.parametrize("gradients", ["per_sample", "single"])
@pytest.mark.parametrize(
    ("factor", "aggregation"),
    [
        ("weight", "abs_mean"),
        ("weight", "mean_square"),
        ("delta", "mean_abs"),
        ("delta", "mean_square"),
        ("grad", "mean_abs"),
        ("grad", "abs_mean"),
        ("grad", "mean_square"),
        ("fisher", "mean_abs"),
        ("fisher_delta", "mean_abs"),
    ],
)
def test_factors_and_aggregations(net, tmp_path, factor, aggregation, gradients):
    problem, base, tuned = net
    found = importance(
        problem, tmp_path / "s.safetensors", model=tuned, base=base, factor=factor,
        aggregation=aggregation, gradients=gradients, **FLOAT,
    )  # fmt: skip
    put(problem, tuned)
    theta, start = load_file(tuned), load_file(base)
    expected = {}
    for name, g in loop(problem).items():
        delta = theta[name] - start[name]
        if factor == "fisher":
            expected[name] = (g**2).mean(0)
        elif factor == "fisher_delta":
            expected[name] = 0.5 * delta**2 * (g**2).mean(0)
        else:
            f = {"weight": theta[name], "delta": delta, "grad": np.float32(1)}[factor]
            expected[name] = {
                "mean_abs": lambda f=f, g=g: np.abs(f * g).mean(0),
                "abs_mean": lambda f=f, g=g: np.abs(f * g.mean(0)),
                "mean_square": lambda f=f, g=g: ((f * g) ** 2).mean(0),
            }[aggregation]()
    same(found, expected)


def test_fisher_says_that_it_is_a_mean_of_squares(net, tmp_path):
    problem, _, tuned = net
    found = importance(problem, tmp_path / "s.safetensors", model=tuned, factor="fisher")
    assert found.origin.options["aggregation"] == "mean_square"
    with pytest.raises(UsageError, match="mean of squares"):
        importance(
            problem, tmp_path / "t.safetensors", model=tuned, factor="fisher",
            aggregation="abs_mean",
        )  # fmt: skip


def test_gradients_at_the_base_are_taken_there_and_the_module_comes_back(net, tmp_path):
    problem, base, tuned = net
    found = importance(
        problem,
        tmp_path / "s.safetensors",
        model=tuned,
        base=base,
        at="base",
        factor="weight",
        **FLOAT,
    )
    after = {n: p.detach().numpy().copy() for n, p in problem.module.named_parameters()}
    theta = load_file(tuned)
    assert all(np.array_equal(after[name], theta[name]) for name in after)
    put(problem, base)
    same(found, {n: np.abs(theta[n] * g).mean(0) for n, g in loop(problem).items()})


@pytest.mark.parametrize("aggregation", ["mean_abs", "abs_mean"])
def test_the_path_is_the_mean_over_its_points(net, tmp_path, aggregation):
    problem, base, tuned = net
    found = importance(
        problem, tmp_path / "s.safetensors", model=tuned, base=base, at="path", points=3,
        factor="delta", aggregation=aggregation, **FLOAT,
    )  # fmt: skip
    theta, start = load_file(tuned), load_file(base)
    every = []
    for share in (0.0, 0.5, 1.0):
        with torch.no_grad():
            for name, parameter in problem.module.named_parameters():
                between = start[name] + np.float32(share) * (theta[name] - start[name])
                parameter.copy_(torch.tensor(between))
        every.append(loop(problem))
    expected = {}
    for name in every[0]:
        grads = np.concatenate([found[name] for found in every])
        grads = np.abs(grads).mean(0) if aggregation == "mean_abs" else np.abs(grads.mean(0))
        expected[name] = np.abs(theta[name] - start[name]) * grads
    same(found, expected)
    assert found.origin.options["points"] == 3


def test_integrated_gradients_add_up_to_the_change_of_the_loss(net, tmp_path):
    """Completeness, for one weight that moved alone, so that the sign cannot cancel."""
    problem, base, _ = net
    moved = load_file(base)
    moved["second.weight"][1, 2] += 0.8
    save_file(moved, tmp_path / "moved.safetensors")
    found = importance(
        problem, tmp_path / "s.safetensors", model=tmp_path / "moved.safetensors", base=base,
        at="path", points=101, factor="delta", aggregation="abs_mean", **FLOAT,
    )  # fmt: skip
    batch = problem.collate(problem.samples)
    losses = []
    for path in (base, tmp_path / "moved.safetensors"):
        put(problem, path)
        with torch.no_grad():
            losses.append(float(problem.loss(problem.module, batch).mean()))
    total = sum(float(s.sum()) for s in scores(found).values())
    assert total == pytest.approx(abs(losses[1] - losses[0]), rel=0.02)


# -- the ways of taking gradients ----------------------------------------------------------------


def test_batches_are_an_approximation_and_say_so(net, tmp_path):
    problem, _, tuned = net
    found = importance(
        problem, tmp_path / "s.safetensors", model=tuned, factor="grad", gradients="batch",
        batch=4, **FLOAT,
    )  # fmt: skip
    assert found.origin.options["approximation"] == "4 samples are treated as one"
    put(problem, tuned)
    expected = {}
    for name, g in loop(problem).items():
        parts = [4 * np.abs(g[:4].mean(0)), 4 * np.abs(g[4:8].mean(0)), 2 * np.abs(g[8:].mean(0))]
        expected[name] = sum(parts) / 10
    same(found, expected)


def test_the_absolute_mean_needs_no_single_samples(net, tmp_path):
    problem, _, tuned = net
    more = {"model": tuned, "aggregation": "abs_mean", **FLOAT}
    auto = importance(problem, tmp_path / "a.safetensors", **more)
    single = importance(problem, tmp_path / "b.safetensors", gradients="single", **more)
    same(auto, scores(single), rtol=1e-4)
    assert auto.origin.options["gradients"] == "batch"
    assert "approximation" not in auto.origin.options


class Picky(torch.nn.Module):
    """Decides by a value which way to go, which torch.func cannot follow."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([0.5, -1.0]))

    def forward(self, x):
        return (self.weight * x).sum(1) if bool(x.sum() > 0) else (self.weight * x * 2).sum(1)


@pytest.fixture
def picky(tmp_path):
    save_file({"weight": np.array([0.5, -1.0], np.float32)}, tmp_path / "picky.safetensors")
    samples = [torch.tensor([1.0, 2.0]), torch.tensor([-1.0, -3.0])]
    problem = Problem(Picky(), samples, torch.stack, lambda module, x: module(x) ** 2)
    return problem, tmp_path / "picky.safetensors"


def test_auto_falls_back_where_torch_func_refuses(picky, tmp_path):
    problem, model = picky
    found = importance(problem, tmp_path / "s.safetensors", model=model, **FLOAT)
    assert found.origin.options["gradients"] == "single"
    same(found, {n: np.abs(problem.module.weight.detach().numpy() * g).mean(0)
                 for n, g in loop(problem).items()})  # fmt: skip


def test_asking_for_what_torch_func_refuses_says_what_to_do(picky, tmp_path):
    problem, model = picky
    with pytest.raises(UsageError, match="--gradients single"):
        importance(problem, tmp_path / "s.safetensors", model=model, gradients="per_sample")
    assert not (tmp_path / "s.safetensors").exists()


def test_samples_of_different_shapes_are_vectorised_apart(tmp_path):
    class Mean(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([2.0]))

        def forward(self, x):
            return (self.weight * x).mean(1)

    save_file({"weight": np.array([2.0], np.float32)}, tmp_path / "m.safetensors")
    samples = [torch.ones(1 + number % 3) * number for number in range(6)]
    problem = Problem(Mean(), samples, torch.stack, lambda module, x: module(x) ** 2)
    found = importance(
        problem, tmp_path / "s.safetensors", model=tmp_path / "m.safetensors",
        gradients="per_sample", **FLOAT,
    )  # fmt: skip
    mean = np.mean([2 * 2 * number**2 for number in range(6)])  # d(w x)^2/dw = 2 w x^2
    np.testing.assert_allclose(found.scores("weight"), [2 * mean], rtol=1e-6)


@pytest.mark.parametrize("family", ["bert", "roberta", "masked", "gpt2", "llama-tied", "vit"])
def test_transformers_agree_with_a_loop_of_single_samples(library, tmp_path, family):
    _, tuned, data = library(family)
    problem = hf_problem(tuned, data)
    with_func = importance(
        problem, tmp_path / "a.safetensors", model=tuned, gradients="per_sample", **FLOAT
    )
    single = importance(
        problem, tmp_path / "b.safetensors", model=tuned, gradients="single", **FLOAT
    )
    theta = load_file(tuned / "model.safetensors")
    expected = {n: np.abs(theta[n] * g).mean(0) for n, g in loop(problem).items()}
    same(with_func, expected, rtol=1e-4)
    same(single, expected, rtol=1e-5)


# -- which samples -------------------------------------------------------------------------------


def test_the_seed_draws_the_samples_without_replacement(net, tmp_path):
    problem, _, tuned = net
    found = importance(
        problem, tmp_path / "s.safetensors", model=tuned, samples=4, seed=3, factor="grad", **FLOAT
    )
    chosen = sorted(np.random.default_rng(3).permutation(10)[:4])
    put(problem, tuned)
    same(found, {n: np.abs(g).mean(0) for n, g in loop(problem, chosen).items()})
    assert found.origin.options["samples"] == 4
    assert found.origin.options["available"] == 10


def test_fewer_samples_than_asked_are_all_used_and_reported(net, tmp_path):
    problem, _, tuned = net
    found = importance(problem, tmp_path / "s.safetensors", model=tuned, samples=500)
    assert found.origin.options["samples"] == 10


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_scores_do_not_depend_on_the_order_of_the_samples(net, tmp_path, data):
    problem, _, tuned = net
    order = data.draw(st.permutations(range(10)))
    mixed = replace(problem, samples=[problem.samples[at] for at in order])
    more = {"model": tuned, "replace": True, **FLOAT}
    one = importance(problem, tmp_path / "a.safetensors", **more)
    two = importance(mixed, tmp_path / "b.safetensors", **more)
    same(one, scores(two), rtol=1e-4)


# -- the file ------------------------------------------------------------------------------------


def test_equal_inputs_give_equal_bytes(net, library, tmp_path):
    problem, base, tuned = net
    _, folder, data = library("bert")
    for number, gradients in enumerate(("per_sample", "single", "batch")):
        for copy in ("a", "b"):
            torch.manual_seed(number if copy == "a" else 99)  # the caller's seed does not matter
            importance(
                problem, tmp_path / f"{copy}{number}.safetensors", model=tuned, base=base,
                factor="delta", gradients=gradients,
            )  # fmt: skip
            importance(
                hf_problem(folder, data), tmp_path / f"h{copy}{number}.safetensors", model=folder,
                gradients=gradients,
            )  # fmt: skip
        for kind in ("", "h"):
            one, two = (tmp_path / f"{kind}{copy}{number}.safetensors" for copy in "ab")
            assert one.read_bytes() == two.read_bytes()


def test_the_file_is_bound_to_the_model_and_the_base(net, tmp_path):
    problem, base, tuned = net
    found = importance(problem, tmp_path / "s.safetensors", model=tuned, base=base, factor="delta")
    assert found.origin.model.fingerprint == Checkpoint(tuned).fingerprint
    assert found.origin.base.fingerprint == Checkpoint(base).fingerprint
    alone = importance(problem, tmp_path / "t.safetensors", model=Checkpoint(tuned))
    assert alone.origin.base is None
    store = open_tensors(tuned)
    assert alone.origin.model.fingerprint == fingerprint(store_digests(store, Engine()))


def test_how_it_was_made_is_in_the_file(library, tmp_path):
    _, tuned, data = library("bert")
    found = importance(hf_problem(tuned, data), tmp_path / "s.safetensors", model=tuned, seed=5)
    options = Importance.open(tmp_path / "s.safetensors").origin.options
    assert options == found.origin.options
    assert options == {
        "factor": "weight",
        "aggregation": "mean_abs",
        "at": "tuned",
        "samples": 8,
        "available": 8,
        "seed": 5,
        "gradients": "per_sample",
        "weights": "float32",
        "loss": "cross-entropy of the label",
        "data": str(data),
    }
    json.dumps(options)


def test_the_module_gets_the_files_weights_whatever_it_held(net, tmp_path):
    """Scores are bound to the file, so they are the file's."""
    problem, _, tuned = net
    before = importance(problem, tmp_path / "a.safetensors", model=tuned, **FLOAT)
    with torch.no_grad():
        for parameter in problem.module.parameters():
            parameter.zero_()
    after = importance(problem, tmp_path / "b.safetensors", model=tuned, **FLOAT)
    same(after, scores(before))


def test_everything_else_about_the_module_is_put_back(net, tmp_path):
    problem, _, tuned = net
    module = problem.module.train()
    module.first.weight.requires_grad_(False)
    module.second.weight.grad = torch.ones(2, 5)
    state = torch.get_rng_state()
    importance(problem, tmp_path / "s.safetensors", model=tuned)
    assert module.training
    assert not module.first.weight.requires_grad
    assert module.first.bias.requires_grad
    assert torch.equal(module.second.weight.grad, torch.ones(2, 5))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()


def test_dropout_is_off(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.9)).train()
    tensors = {name: p.detach().numpy() for name, p in module.state_dict().items()}
    save_file(tensors, tmp_path / "m.safetensors")
    samples = [torch.randn(3) for _ in range(3)]
    problem = Problem(module, samples, torch.stack, lambda m, x: m(x).square().sum(1))
    kept = importance(
        problem, tmp_path / "a.safetensors", model=tmp_path / "m.safetensors", **FLOAT
    )
    plain = replace(problem, module=torch.nn.Sequential(torch.nn.Linear(3, 4)))
    same(kept, scores(importance(
        plain, tmp_path / "b.safetensors", model=tmp_path / "m.safetensors", **FLOAT
    )))  # fmt: skip


# -- what is left out ----------------------------------------------------------------------------


def test_a_parameter_that_the_loss_does_not_reach_scores_zero_and_is_named(net, tmp_path):
    problem, _, tuned = net
    for gradients in ("per_sample", "single"):
        found = importance(
            problem, tmp_path / f"{gradients}.safetensors", model=tuned, gradients=gradients
        )
        assert found.origin.rules["unreached"] == ("idle.bias", "idle.weight")
        assert not found.scores("idle.weight").any()
        assert found.scores("first.weight").any()


def test_every_tensor_of_the_file_is_scored_or_named_by_a_rule(net, tmp_path):
    problem, _, tuned = net
    save_file({**load_file(tuned), "steps": np.array(3), "extra": np.ones(2, np.float32)},
              tmp_path / "more.safetensors")  # fmt: skip
    buffers = replace(problem, rules={"buffer": ("scale",)})
    found = importance(
        buffers, tmp_path / "s.safetensors", model=tmp_path / "more.safetensors",
        exclude=["second.*"],
    )  # fmt: skip
    rules = dict(found.origin.rules)
    assert rules.pop("unreached") == ("idle.bias", "idle.weight")
    assert rules == {
        "buffer": ("scale",),
        "excluded": ("second.weight",),
        "integer": ("steps",),
        "unused": ("extra",),
    }
    named = {name for names in rules.values() for name in names}
    assert named | found.infos.keys() == set(open_tensors(tmp_path / "more.safetensors"))


def test_heads_belong_to_their_task(library, tmp_path):
    _, tuned, data = library("bert")
    found = importance(hf_problem(tuned, data), tmp_path / "s.safetensors", model=tuned)
    assert found.origin.rules == {"head": ("classifier.bias", "classifier.weight")}
    assert "bert.pooler.dense.weight" in found.infos


def test_language_models_are_scored_whole_and_ties_once(library, tmp_path):
    _, tuned, data = library("llama-tied")
    found = importance(hf_problem(tuned, data), tmp_path / "s.safetensors", model=tuned)
    assert set(found.infos) == set(load_file(tuned / "model.safetensors"))
    assert "lm_head.weight" not in found.infos
    _, untied, data = library("llama-untied")
    found = importance(hf_problem(untied, data), tmp_path / "t.safetensors", model=untied)
    assert "lm_head.weight" in found.infos


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"factor": "wieght"}, "did you mean 'weight'"),
        ({"aggregation": "mean"}, "there is no aggregation 'mean'"),
        ({"at": "end"}, "there is no at 'end'"),
        ({"gradients": "exact"}, "there is no gradients 'exact'"),
        ({"samples": 0}, "samples is 0; give 1 or more"),
        ({"seed": -1}, "seed is -1"),
        ({"points": 1, "at": "path"}, "points is 1; give 2 or more"),
        ({"batch": 0}, "batch is 0"),
        ({"factors": "weight"}, "no option 'factors'; did you mean 'factor'"),
        ({"factor": "delta"}, "name it with --base"),
        ({"factor": "fisher_delta"}, "name it with --base"),
        ({"at": "base"}, "gradients at 'base' needs the model"),
        ({"at": "path"}, "name it with --base"),
        ({"dtype": "bfloat16"}, "float16 or float32"),
        ({"exclude": ["frist*"]}, "matches no tensor"),
    ],
)
def test_bad_choices_are_refused_before_anything_is_written(net, tmp_path, options, text):
    problem, _, tuned = net
    with pytest.raises(UsageError, match=text):
        importance(problem, tmp_path / "s.safetensors", model=tuned, **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base.safetensors", "tuned.safetensors"]


def test_a_module_and_a_file_that_do_not_fit_are_refused(net, tmp_path):
    problem, _, tuned = net
    tensors = load_file(tuned)
    missing = {name: values for name, values in tensors.items() if name != "first.bias"}
    save_file(missing, tmp_path / "missing.safetensors")
    with pytest.raises(MismatchError, match=r"holds no tensor 'first.bias'"):
        importance(problem, tmp_path / "s.safetensors", model=tmp_path / "missing.safetensors")
    save_file({**tensors, "first.bias": np.zeros(6, np.float32)}, tmp_path / "shape.safetensors")
    with pytest.raises(MismatchError, match=r"first.bias.* has shape \[6\], but .* \[5\]"):
        importance(problem, tmp_path / "s.safetensors", model=tmp_path / "shape.safetensors")
    with pytest.raises(MismatchError, match=r"missing.safetensors holds no tensor 'first.bias'"):
        importance(
            problem, tmp_path / "s.safetensors", model=tuned,
            base=tmp_path / "missing.safetensors", at="base",
        )  # fmt: skip
    with pytest.raises(MismatchError, match=r"no parameter 'frist.bias'; did you mean"):
        replace(problem, names={"frist.bias": "first.bias"})
    doubled = replace(problem, names={"idle.bias": "b", "second.weight": "b"})
    with pytest.raises(MismatchError, match="both go by 'b'"):
        importance(doubled, tmp_path / "s.safetensors", model=tuned)


def test_nothing_to_score_is_an_error(net, tmp_path):
    problem, _, tuned = net
    with pytest.raises(ValueProblem, match="no tensor is left"):
        importance(problem, tmp_path / "s.safetensors", model=tuned, exclude=["*"])
    with pytest.raises(ValueProblem, match="depends on none"):
        importance(
            replace(problem, names={"idle.bias": "idle.bias"}), tmp_path / "s.safetensors",
            model=tuned,
        )  # fmt: skip
    with pytest.raises(ValueProblem, match="no samples"):
        replace(problem, samples=[])


def test_an_infinite_loss_names_the_sample(net, tmp_path):
    problem, _, tuned = net
    bad = list(problem.samples)
    bad[6] = (torch.tensor([float("nan"), 0, 0]), 0)
    for gradients in ("per_sample", "single"):
        with pytest.raises(ValueProblem, match="the loss of sample 6 is nan"):
            importance(
                replace(problem, samples=bad), tmp_path / "s.safetensors", model=tuned,
                gradients=gradients,
            )  # fmt: skip
    assert not (tmp_path / "s.safetensors").exists()


@pytest.mark.parametrize("gradients", ["per_sample", "single"])
def test_an_infinite_gradient_names_the_tensor_and_the_sample(tmp_path, gradients):
    class Root(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = torch.nn.Parameter(torch.zeros(1))
            self.plain = torch.nn.Parameter(torch.ones(1))

        def forward(self, x):
            return (x + self.shift).abs().sqrt().sum(1) + self.plain

    module = Root()
    save_file({"shift": np.zeros(1, np.float32), "plain": np.ones(1, np.float32)},
              tmp_path / "m.safetensors")  # fmt: skip
    samples = [torch.tensor([float(at)]) for at in (4, 1, 0, 9)]
    problem = Problem(module, samples, torch.stack, lambda m, x: m(x))
    with pytest.raises(ValueProblem, match="gradient of 'shift' is not finite for sample 2"):
        importance(
            problem, tmp_path / "s.safetensors", model=tmp_path / "m.safetensors",
            gradients=gradients,
        )  # fmt: skip
    assert not list(tmp_path.glob("*s.safetensors*"))


def test_a_loss_that_is_already_a_mean_is_refused(net, tmp_path):
    problem, _, tuned = net
    mean = replace(problem, loss=lambda module, batch: problem.loss(module, batch).mean())
    with pytest.raises(ValueProblem, match=r"gave shape \[\] for 1 samples"):
        importance(mean, tmp_path / "s.safetensors", model=tuned)


def test_inputs_are_never_written_over(net, tmp_path):
    problem, _, tuned = net
    with pytest.raises(FileError, match="would touch the input"):
        importance(problem, tuned, model=tuned, replace=True)
    (tmp_path / "s.safetensors").write_text("mine")
    with pytest.raises(FileError, match="already exists"):
        importance(problem, tmp_path / "s.safetensors", model=tuned)


# -- without data --------------------------------------------------------------------------------


def test_magnitude_is_the_change_since_the_base(net, library, tmp_path):
    _, base, tuned = net
    found = importance(
        None, tmp_path / "s.safetensors", model=tuned, base=base, factor="magnitude", **FLOAT
    )
    old, new = load_file(base), load_file(tuned)
    same(found, {name: np.abs(new[name] - old[name]) for name in old})
    assert found.origin.options == {"factor": "magnitude", "of": "delta"}
    assert found.origin.base.fingerprint == Checkpoint(base).fingerprint


def test_magnitude_without_a_base_is_the_size_of_the_weights(net, tmp_path):
    _, _, tuned = net
    found = importance(
        None, tmp_path / "s.safetensors", model=tuned, factor="magnitude", exclude=["idle*"],
        **FLOAT,
    )  # fmt: skip
    tensors = load_file(tuned)
    same(found, {n: np.abs(v) for n, v in tensors.items() if not n.startswith("idle")})
    assert found.origin.rules == {"excluded": ("idle.bias", "idle.weight")}


def test_magnitude_takes_no_data_and_other_factors_do(net, tmp_path):
    problem, _, tuned = net
    with pytest.raises(UsageError, match="magnitude needs no data"):
        importance(problem, tmp_path / "s.safetensors", model=tuned, factor="magnitude")
    with pytest.raises(UsageError, match="magnitude needs no data"):
        importance(None, tmp_path / "s.safetensors", model=tuned, factor="magnitude", samples=3)
    with pytest.raises(UsageError, match="factor grad needs data"):
        importance(None, tmp_path / "s.safetensors", model=tuned, factor="grad")


def test_a_parameter_that_enters_as_a_view_leaves_the_others_alone(tmp_path: Path) -> None:
    """Autograd may hand the hook a view of a gradient that is still on its way backwards."""
    from safetensors.torch import save_file as save_torch

    class Shifted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)
            self.shift = torch.nn.Parameter(torch.randn(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.tanh(self.first(x)) + self.shift.view(1, -1))

    def loss(module: torch.nn.Module, batch: Any) -> Any:
        return torch.nn.functional.cross_entropy(module(batch[0]), batch[1], reduction="none")

    torch.manual_seed(0)
    module = Shifted()
    samples = [(torch.randn(3), torch.tensor(n % 2)) for n in range(5)]
    save_torch(module.state_dict(), tmp_path / "tuned.safetensors")
    wanted = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    for x, y in samples:
        module.zero_grad()
        loss(module, (x[None], y[None])).sum().backward()
        for name, parameter in module.named_parameters():
            wanted[name] += (parameter.grad * parameter).detach().abs() / len(samples)
    for gradients in ("single", "per_sample"):
        found = importance(
            Problem(module, samples, torch.utils.data.default_collate, loss),
            tmp_path / f"{gradients}.safetensors",
            model=tmp_path / "tuned.safetensors",
            gradients=gradients,
            dtype="float32",
        )
        for name, values in wanted.items():
            np.testing.assert_allclose(found.scores(name), values.numpy(), rtol=1e-5, atol=1e-9)


def test_the_factor_is_delta_where_the_base_is_given(tmp_path: Path) -> None:
    from taskbasis.learn.scoring import with_factor

    assert with_factor({}, based=True)["factor"] == "delta"
    assert with_factor({}, based=False)["factor"] == "weight"
    assert with_factor({"factor": "grad"}, based=True)["factor"] == "grad"
