"""Moments: against X^T X / n of what hooks of the tests themselves see."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from taskbasis.engine import Engine, give_back_memory, resident_bytes
from taskbasis.errors import MemoryCapError, MismatchError, UsageError, ValueProblem
from taskbasis.learn import Problem, collecting, moments
from taskbasis.learn.huggingface import hf_problem
from taskbasis.learn.inputs import CONV, EMBEDDING, LINEAR, NORM, TRANSPOSED, uses
from taskbasis.scores import Moments
from taskbasis.vectors import Checkpoint


def inputs_one_by_one(problem, name):
    """What enters a module, sample by sample without padding: a list of arrays."""
    part = problem.module.get_submodule(name)
    seen = []
    handle = part.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append([*args, *kwargs.values()][0].clone()),
        with_kwargs=True,
    )
    with torch.no_grad():
        for number in range(len(problem.samples)):
            problem.loss(problem.module, problem.collate([problem.samples[number]]))
    handle.remove()
    return seen


def gram(rows):
    rows = np.concatenate([r.reshape(-1, r.shape[-1]).double().numpy() for r in rows])
    return rows.T @ rows / len(rows), len(rows)


def write(module, path):
    save_file(module.state_dict(), path)
    return path


def test_a_linear_layer_has_the_moment_of_its_inputs(net, tmp_path):
    problem, _, tuned = net
    found = moments(problem, tmp_path / "m.safetensors", model=tuned, batch=3)
    for name in ("first", "second"):
        expected, count = gram(inputs_one_by_one(problem, name))
        np.testing.assert_allclose(found.moment(f"{name}.weight"), expected, rtol=1e-6, atol=1e-7)
        assert found.numbers[f"{name}.weight"] == count == 10
    assert found.origin.rules == {
        "no moment": ("first.bias", "idle.bias"),
        "unreached": ("idle.weight",),
        "unused": ("scale",),
    }
    assert found.origin.model.fingerprint == Checkpoint(tuned).fingerprint
    assert found.origin.options["samples"] == 10
    assert found.origin.options["transposed"] == []


@pytest.mark.parametrize("family", ["bert", "roberta", "masked", "gpt2", "llama-tied", "vit"])
@pytest.mark.parametrize("batch", [1, 5])
def test_transformers_agree_with_dense_moments_and_padding_is_left_out(
    library, tmp_path, family, batch
):
    _, tuned, data = library(family)
    problem = hf_problem(tuned, data)
    found = moments(problem, tmp_path / "m.safetensors", model=tuned, batch=batch)
    checked = set()
    for use in uses(problem.module, problem.names):
        name = use.parameter.removesuffix(".weight")
        seen = inputs_one_by_one(problem, name)
        if use.kind in (LINEAR, TRANSPOSED):
            expected, count = gram(seen)
        elif use.kind == NORM:
            part = problem.module.get_submodule(name)
            with torch.no_grad():
                out = [part(x) for x in seen]
                if getattr(part, "bias", None) is not None:
                    out = [x - part.bias for x in out]
                expected, count = gram([x / part.weight for x in out])
            expected = np.diag(expected)
        elif use.kind == EMBEDDING:
            words = np.concatenate([x.reshape(-1).numpy() for x in seen])
            expected, count = np.bincount(words, minlength=use.shape[0]) / len(words), len(words)
        else:
            continue
        stored = problem.names[use.parameter]
        assert found.numbers[stored] == count, stored
        scale = np.abs(expected).max()
        np.testing.assert_allclose(
            found.moment(stored), expected, rtol=1e-4, atol=1e-5 * scale, err_msg=stored
        )
        checked.add(use.kind)
    kinds = {"gpt2": {TRANSPOSED, NORM, EMBEDDING}, "vit": {LINEAR, NORM}}
    assert checked == kinds.get(family, {LINEAR, NORM, EMBEDDING})


def test_weights_stored_the_other_way_round_are_named(library, tmp_path):
    _, tuned, data = library("gpt2")
    found = moments(hf_problem(tuned, data), tmp_path / "m.safetensors", model=tuned)
    assert found.origin.options["transposed"] == sorted(
        f"transformer.h.{layer}.{part}.weight"
        for layer in (0, 1)
        for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    )
    assert found.moment("transformer.h.0.mlp.c_fc.weight").shape == (16, 16)
    assert found.moment("transformer.h.0.mlp.c_proj.weight").shape == (64, 64)


def test_a_tied_weight_is_an_embedding_and_an_untied_head_a_linear_layer(library, tmp_path):
    _, tied, data = library("llama-tied")
    found = moments(hf_problem(tied, data), tmp_path / "a.safetensors", model=tied)
    assert found.moment("model.embed_tokens.weight").shape == (10,)
    assert found.moment("model.embed_tokens.weight").sum() == pytest.approx(1)
    _, untied, data = library("llama-untied")
    found = moments(hf_problem(untied, data), tmp_path / "b.safetensors", model=untied)
    assert found.moment("lm_head.weight").shape == (16, 16)


@pytest.mark.parametrize("padding", [0, 1, (2, 1), "same", "valid"])
def test_convolutions_see_patches(tmp_path, padding):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        conv = torch.nn.Conv2d(2, 3, (3, 5), padding=padding, bias=False)
        samples = [torch.randn(2, 5, 6) for _ in range(3)]
    module = torch.nn.Sequential(conv)
    model = write(module, tmp_path / "m.safetensors")
    problem = Problem(module, samples, torch.stack, lambda m, x: m(x).square().sum((1, 2, 3)))
    found = moments(problem, tmp_path / "out.safetensors", model=model)
    moment = found.moment("0.weight")
    # E ||w x||^2 over patches, by the moment and by the layer itself
    weight = conv.weight.detach().reshape(3, -1).double().numpy()
    out = conv(torch.stack(samples)).detach().double()
    positions = out.shape[0] * out.shape[2] * out.shape[3]
    assert moment.shape == (30, 30)
    assert found.numbers["0.weight"] == positions
    for row in range(3):
        expected = float(out[:, row].square().sum()) / positions
        assert weight[row] @ moment @ weight[row] == pytest.approx(expected, rel=1e-5)


def test_strides_and_dilation_count(tmp_path):
    conv = torch.nn.Conv2d(1, 1, 2, stride=3, dilation=2, bias=False)
    image = torch.arange(49.0).reshape(1, 7, 7)
    problem = Problem(
        conv, [image], torch.stack, lambda m, x: m(x).sum((1, 2, 3)), {"weight": "weight"}
    )
    model = write(conv, tmp_path / "m.safetensors")
    found = moments(problem, tmp_path / "out.safetensors", model=model)
    rows = [
        [image[0, y, x], image[0, y, x + 2], image[0, y + 2, x], image[0, y + 2, x + 2]]
        for y in (0, 3)
        for x in (0, 3)
    ]
    expected = np.array(rows).T @ np.array(rows) / 4
    np.testing.assert_allclose(found.moment("weight"), expected, rtol=1e-6)


def test_what_has_no_moment_is_left_out_by_rule(tmp_path):
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.token = torch.nn.Parameter(torch.ones(4))
            self.groups = torch.nn.Conv2d(2, 2, 1, groups=2)
            self.norm = torch.nn.BatchNorm2d(2)
            self.wide = torch.nn.Linear(8, 1)
            self.narrow = torch.nn.Linear(1, 1)

        def forward(self, x):
            return self.narrow(self.wide(self.norm(self.groups(x)).flatten(1) * self.token.sum()))

    module = Odd().eval()
    problem = Problem(
        module, [torch.randn(2, 2, 2)], torch.stack, lambda m, x: m(x)[:, 0],
        rules={"buffer": ("norm.running_mean", "norm.running_var")},
    )  # fmt: skip
    model = write(module, tmp_path / "m.safetensors")
    found = moments(problem, tmp_path / "out.safetensors", model=model, widest=7)
    assert set(found.infos) == {"narrow.weight"}
    rules = found.origin.rules
    assert rules["too wide"] == ("wide.weight",)
    assert {"token", "groups.weight", "norm.weight", "wide.bias"} < set(rules["no moment"])
    assert rules["buffer"] == ("norm.running_mean", "norm.running_var")
    assert rules["integer"] == ("norm.num_batches_tracked",)


def test_positions_looked_up_once_count_for_every_sample(library, tmp_path):
    """Three texts of 3, 4 and 5 tokens: position 0 is used three times, position 4 once."""
    _, tuned, data = library("bert")
    whole = hf_problem(tuned, data)
    numbers = [0, 1, 4]
    lengths = [len(whole.samples[n]["input_ids"]) for n in numbers]
    some = replace(whole, samples=[whole.samples[n] for n in numbers])
    found = moments(some, tmp_path / "m.safetensors", model=tuned)
    moment = found.moment("bert.embeddings.position_embeddings.weight")
    expected = np.array([sum(at < length for length in lengths) for at in range(12)])
    np.testing.assert_allclose(moment * sum(lengths), expected, rtol=1e-6)


@pytest.fixture
def wide(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = torch.nn.Sequential(*(torch.nn.Linear(900, 900) for _ in range(4)))
        samples = [torch.randn(900) for _ in range(3)]
    problem = Problem(module, samples, torch.stack, lambda m, x: m(x).square().mean(1))
    return problem, write(module, tmp_path / "m.safetensors")


def test_several_rounds_give_the_same_bytes(wide, tmp_path, monkeypatch):
    problem, model = wide
    moments(problem, tmp_path / "one.safetensors", model=model)
    monkeypatch.setattr(collecting, "ROUND_BYTES", 2 * 8 * 900 * 900)
    found = uses(problem.module, problem.names)
    assert [len(part) for part in collecting._rounds(found, None)] == [2, 2]
    moments(problem, tmp_path / "two.safetensors", model=model)
    one, two = (tmp_path / f"{name}.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_a_cap_makes_rounds_or_says_what_is_needed(wide, tmp_path):
    problem, model = wide
    size = 8 * 900 * 900
    engine = Engine(1, memory=resident_bytes() + int(4 * size / 0.75))
    assert len(collecting._rounds(uses(problem.module, problem.names), engine.memory)) >= 2
    give_back_memory()  # or what other tests have freed would be room
    with pytest.raises(MemoryCapError, match=r"largest moment needs 17\.3 MB more"):
        moments(
            problem, tmp_path / "m2.safetensors", model=model,
            engine=Engine(1, memory=resident_bytes() + (1 << 20)),
        )  # fmt: skip
    assert not (tmp_path / "m2.safetensors").exists()


def test_equal_inputs_give_equal_bytes_and_the_seed_draws(library, tmp_path):
    _, tuned, data = library("bert")
    problem = hf_problem(tuned, data)
    more = {"model": tuned, "samples": 4}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        moments(problem, tmp_path / f"{name}.safetensors", seed=seed, **more)
    a, b, c = ((tmp_path / f"{name}.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_bfloat16_activations_are_summed_in_float64(tmp_path):
    layer = torch.nn.Linear(1, 1, bias=False).bfloat16()
    samples = [torch.ones(1, dtype=torch.bfloat16) for _ in range(300)]
    problem = Problem(layer, samples, torch.stack, lambda m, x: m(x).float()[:, 0])
    model = write(layer, tmp_path / "m.safetensors")
    found = moments(problem, tmp_path / "out.safetensors", model=model, samples=300, batch=1)
    assert found.moment("weight") == [[1.0]]  # sums in bfloat16 would stop at 256


def test_bad_requests_are_refused(net, tmp_path):
    problem, _, tuned = net
    out = tmp_path / "m.safetensors"
    for options, text in (
        ({"samples": 0}, "0 samples teach nothing"),
        ({"batch": 0}, "batch is 0"),
        ({"widest": 0}, "widest is 0"),
        ({"seed": -2}, "the seed is -2"),
        ({"exclude": ["nothing*"]}, "matches no tensor"),
    ):
        with pytest.raises(UsageError, match=text):
            moments(problem, out, model=tuned, **options)
    with pytest.raises(ValueProblem, match="has a moment"):
        moments(replace(problem, names={"first.bias": "first.bias"}), out, model=tuned)
    with pytest.raises(MismatchError, match="holds no tensor 'other'"):
        moments(replace(problem, names={"first.weight": "other"}), out, model=tuned)
    bad = [(torch.full((3,), float("nan")), 0), *problem.samples]
    with pytest.raises(ValueProblem, match=r"moment of 'first.weight' .* is not finite"):
        moments(replace(problem, samples=bad), out, model=tuned)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base.safetensors", "tuned.safetensors"]


def test_the_file_opens_as_moments(net, tmp_path):
    problem, _, tuned = net
    moments(problem, tmp_path / "m.safetensors", model=tuned)
    found = Moments.open(tmp_path / "m.safetensors")
    assert found.moment("second.weight").shape == (5, 5)
    assert {use.kind for use in uses(problem.module, problem.names)} == {LINEAR}
    assert CONV not in {use.kind for use in uses(problem.module, problem.names)}
