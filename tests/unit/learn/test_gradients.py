"""Taking gradients in little memory: one alive at a time, several rounds, the same bytes."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from taskbasis.engine import Engine, resident_bytes
from taskbasis.errors import MemoryCapError
from taskbasis.learn import How, Problem, importance, moments, rounds, scoring
from taskbasis.learn.gradients import Sums, alike, blame, groups_of, hooked, vectorised
from taskbasis.learn.huggingface import hf_problem
from taskbasis.learn.rounds import choose_way, reached, split_rounds
from taskbasis.learn.runtime import looking_at, over_tensors


def parameters_of(problem):
    return dict(problem.module.named_parameters())


def nothing(_):
    pass


@pytest.mark.parametrize("family", ["bert", "llama-tied"])
def test_no_more_than_one_gradient_is_alive(library, family):
    _, tuned, data = library(family)
    problem = hf_problem(tuned, data)
    parameters = parameters_of(problem)
    seen = []

    def fold(name, gradient, samples):
        alive = [other for other, p in parameters.items() if p.grad is not None]
        assert alive == []  # this one was taken, and no other is there
        assert gradient.shape == parameters[name].shape
        assert samples == 1
        seen.append(name)

    with looking_at(problem.module):
        hooked(problem, groups_of(problem, [0, 1, 2], 1), parameters, fold, nothing)
    assert len(seen) == 3 * len(parameters)  # a tied weight's gradient comes once, whole
    assert all(p.grad is None for p in parameters.values())


def test_hooks_give_what_autograd_gives(library):
    _, tuned, data = library("gpt2")
    problem = hf_problem(tuned, data)
    parameters = parameters_of(problem)
    found = {}
    with looking_at(problem.module):
        groups = list(groups_of(problem, [2], 1))
        hooked(problem, groups, parameters, lambda n, g, _: found.update({n: g}), nothing)
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        loss = problem.loss(problem.module, groups[0].batch).mean()
        expected = torch.autograd.grad(loss, list(parameters.values()))
    assert found.keys() == parameters.keys()
    for name, gradient in zip(parameters, expected, strict=True):
        assert torch.equal(found[name], gradient)


def test_running_out_of_memory_is_said_with_advice(net, tmp_path):
    problem, _, tuned = net

    def hungry(module, batch):
        return torch.empty(1 << 60)  # more than any machine has

    with pytest.raises(MemoryCapError, match="torch ran out of memory; use shorter samples"):
        importance(replace(problem, loss=hungry), tmp_path / "s.safetensors", model=tuned)
    assert not torch.are_deterministic_algorithms_enabled()


def test_hooks_are_removed_even_when_a_loss_fails(net):
    problem, _, _ = net

    def broken(module, batch):
        raise RuntimeError("no")

    parameters = parameters_of(problem)
    with pytest.raises(RuntimeError, match="no"):
        hooked(replace(problem, loss=broken), groups_of(problem, [0], 1), parameters, None, nothing)
    assert not any(p.requires_grad for p in parameters.values())
    assert not any(getattr(p, "_post_accumulate_grad_hooks", None) for p in parameters.values())


def test_vectorised_gradients_are_those_of_single_samples(net):
    problem, _, _ = net
    parameters = parameters_of(problem)
    many, single = {}, {}
    with looking_at(problem.module):
        vectorised(
            problem, groups_of(problem, range(5), 5), parameters,
            lambda n, g, _: many.update({n: g}), nothing,
        )  # fmt: skip
        for number in range(5):
            hooked(
                problem, groups_of(problem, [number], 1), parameters,
                lambda n, g, _: single.setdefault(n, []).append(g), nothing,
            )  # fmt: skip
    for name, gradients in single.items():
        torch.testing.assert_close(many[name], torch.stack(gradients), rtol=1e-5, atol=1e-7)
    assert set(many) - set(single) == {"idle.weight", "idle.bias"}
    assert not many["idle.weight"].any()


@pytest.mark.parametrize(("summed", "expected"), [
    ("abs", [4.0, 2.0]), ("signed", [2.0, -2.0]), ("square", [10.0, 2.0]),
])  # fmt: skip
def test_sums(summed, expected):
    parameter = {"w": torch.zeros(2)}
    gradients = torch.tensor([[3.0, -1.0], [-1.0, -1.0]])
    one, many = Sums.zeros(summed, parameter), Sums.zeros(summed, parameter)
    for gradient in gradients:
        one.add("w", gradient.clone(), 1)
    many.add_each("w", gradients, 2)
    assert one.values["w"].tolist() == many.values["w"].tolist() == expected


def test_sums_of_narrow_gradients_are_float32():
    sums = Sums.zeros("abs", {"w": torch.zeros(1, dtype=torch.bfloat16)})
    for _ in range(300):  # in bfloat16 the sum would stop at 256
        sums.add("w", torch.ones(1, dtype=torch.bfloat16), 1)
    assert sums.values["w"].dtype == torch.float32
    assert float(sums.values["w"]) == 300


def test_a_gradient_that_is_one_number_repeated_is_not_written_into():
    """Autograd hands out expanded zeros and ones."""
    sums = Sums.zeros("abs", {"w": torch.zeros(3)})
    sums.add("w", torch.tensor(-2.0).expand(3), 1)
    sums.add_each("w", torch.tensor(-2.0).expand(2, 3), 2)
    assert sums.values["w"].tolist() == [6, 6, 6]


# -- rounds --------------------------------------------------------------------------------------


def tight(parameters, tensors):
    """A memory cap that leaves room for the sums of about that many of the largest tensors."""
    largest = max(p.numel() for p in parameters.values())
    return resident_bytes() + int((4 * largest * tensors + 8 * largest) / 0.75) + 4096


@pytest.fixture
def wide(tmp_path):
    """Layers that are large beside the noise of a process's resident memory."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = torch.nn.Sequential(*(torch.nn.Linear(1500, 1500) for _ in range(4)))
        samples = [torch.randn(1500) for _ in range(3)]
    save_file(module.state_dict(), tmp_path / "m.safetensors")
    problem = Problem(module, samples, torch.stack, lambda m, x: m(x).square().mean(1))
    return problem, tmp_path / "m.safetensors"


def test_parameters_are_split_into_rounds_that_fit(wide):
    problem, _ = wide
    parameters = parameters_of(problem)
    whole, _ = split_rounds(parameters, None)
    assert [list(part) for part in whole] == [list(parameters)]
    parts, free = split_rounds(parameters, tight(parameters, 2.5))
    assert [name for part in parts for name in part] == list(parameters)
    assert len(parts) == 2
    assert free == 0


def test_a_cap_below_the_largest_tensor_says_what_is_needed(wide):
    problem, _ = wide
    with pytest.raises(MemoryCapError, match=r"too small: .* need 36\.0 MB more"):
        split_rounds(parameters_of(problem), resident_bytes() + (8 << 20))


@pytest.mark.parametrize("gradients", ["single", "batch"])
def test_several_rounds_give_the_same_bytes(wide, tmp_path, gradients, monkeypatch):
    problem, model = wide
    more = {"model": model, "gradients": gradients, "factor": "fisher"}
    importance(problem, tmp_path / "one.safetensors", **more)
    asked = []
    split = rounds.split_rounds

    def watch(parameters, memory):
        parts, free = split(parameters, memory)
        asked.append(len(parts))
        return parts, free

    monkeypatch.setattr(scoring, "split_rounds", watch)
    engine = Engine(1, memory=tight(parameters_of(problem), 1.5))
    importance(problem, tmp_path / "many.safetensors", engine=engine, **more)
    assert asked[0] >= 2
    assert (tmp_path / "one.safetensors").read_bytes() == (
        tmp_path / "many.safetensors"
    ).read_bytes()


def test_rounds_of_vectorised_gradients_agree(net, tmp_path, monkeypatch):
    problem, _, tuned = net
    one = importance(
        problem, tmp_path / "one.safetensors", model=tuned, gradients="per_sample", dtype="float32"
    )
    monkeypatch.setattr(
        scoring,
        "split_rounds",
        lambda parameters, memory: ([{n: p} for n, p in parameters.items()], None),
    )
    many = importance(
        problem, tmp_path / "many.safetensors", model=tuned, gradients="per_sample", dtype="float32"
    )
    for name in one.infos:
        np.testing.assert_allclose(many.scores(name), one.scores(name), rtol=1e-6, atol=1e-9)


# -- which way -----------------------------------------------------------------------------------


def test_large_models_are_done_one_sample_at_a_time(wide):
    problem, _ = wide
    way = choose_way(problem, How(), [0, 1, 2], parameters_of(problem), free=1 << 20)
    assert (way.kind, way.size) == ("single", 1)


def test_a_vectorised_pass_takes_as_many_samples_as_fit(net):
    problem, _, _ = net
    parameters = parameters_of(problem)
    size = sum(p.numel() for p in parameters.values())
    way = choose_way(problem, How(), list(range(10)), parameters, free=3 * 4 * size * 6)
    assert (way.kind, way.size) == ("per_sample", 6)
    groups = [g.numbers for run in way.runs for g in groups_of(problem, run, way.size)]
    assert groups == [(0, 1, 2, 3, 4, 5), (6, 7, 8, 9)]


def test_texts_of_one_length_go_together(library):
    _, tuned, data = library("bert")
    problem = hf_problem(tuned, data)
    runs = alike(problem, range(8))
    assert sorted(number for run in runs for number in run) == list(range(8))
    for run in runs:
        assert len({len(problem.samples[number]["input_ids"]) for number in run}) == 1
        assert "attention_mask" not in problem.collate([problem.samples[n] for n in run])


def test_reached_is_what_a_gradient_comes_to(net):
    problem, _, _ = net
    with looking_at(problem.module):
        found = reached(problem, 0, parameters_of(problem))
    assert found == {"first.weight", "first.bias", "second.weight"}


def test_blame_finds_the_first_bad_sample(net):
    problem, _, tuned = net
    problem.module.load_state_dict(load_file(tuned))
    bad = [*problem.samples]
    bad[4] = (torch.tensor([float("inf"), 0.0, 0.0]), 1)

    weight = problem.module.first.weight

    def clamped(module, batch):
        return module.first(batch[0]).clamp(-1e30, 1e30).sum(1)

    with looking_at(problem.module):
        odd = replace(problem, samples=bad, loss=clamped)
        assert blame(odd, range(10), "first.weight", weight) == 4
        assert blame(problem, range(10), "first.weight", weight) is None


def test_tensors_of_a_batch_are_found_wherever_they_are():
    batch = {"a": torch.ones(1), "b": [torch.ones(1), (torch.ones(1), "text")], "c": None}
    found = over_tensors(batch, lambda tensor: tensor * 2)
    assert float(found["a"]) == float(found["b"][0]) == float(found["b"][1][0]) == 2
    assert found["b"][1][1] == "text"
    assert found["c"] is None
    assert isinstance(found["b"][1], tuple)


# -- what the person who waits is told ------------------------------------------------------------


class Heard:
    """Keeps what it is told."""

    def __init__(self):
        self.tasks = []

    @contextmanager
    def task(self, title, total):
        done = []
        self.tasks.append((title, total, done))
        yield done.append


def test_progress_adds_up(net, tmp_path):
    problem, base, tuned = net
    for gradients in ("per_sample", "single", "batch"):
        heard = Heard()
        importance(
            problem, tmp_path / f"{gradients}.safetensors", model=tuned, base=base, at="path",
            gradients=gradients, batch=3, engine=Engine(1, progress=heard),
        )  # fmt: skip
        title, total, done = heard.tasks[-1]
        assert title == "gradients of 10 samples"
        assert total == sum(done) == 10 * 5 * 4 * (15 + 5 + 10 + 4 + 2)
    heard = Heard()
    moments(
        problem, tmp_path / "m.safetensors", model=tuned, engine=Engine(1, progress=heard), batch=3
    )
    title, total, done = heard.tasks[-1]
    assert title == "activations of 10 samples"
    assert total == sum(done)
    assert len(done) == 4


def test_an_engine_says_how_many_threads_torch_uses(net, tmp_path):
    problem, _, tuned = net
    seen = []

    def loss(module, batch):
        seen.append(torch.get_num_threads())
        return problem.loss(module, batch)

    asked = replace(problem, loss=loss)
    importance(asked, tmp_path / "a.safetensors", model=tuned, engine=Engine(2))
    assert set(seen) == {2}
    seen.clear()
    importance(asked, tmp_path / "b.safetensors", model=tuned)
    assert set(seen) == {1} == {torch.get_num_threads()}
