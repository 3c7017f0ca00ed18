"""Scoring: shared features, exact names, and no stale answers."""

import math
import shutil

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from taskbasis.errors import MismatchError, ValueProblem
from taskbasis.suites import digits_score
from taskbasis.suites.digits_score import Scorer
from taskbasis.suites.network import Network


@pytest.fixture
def model(world):
    return load_file(world.base / "model.safetensors")


@pytest.fixture
def scorer(world):
    return Scorer(world.base.parent, world.seed)


@pytest.fixture
def forwards(monkeypatch):
    """How many forward passes were made."""
    calls = []
    original = digits_score.features

    def counted(encoder, images):
        calls.append(len(images))
        return original(encoder, images)

    monkeypatch.setattr(digits_score, "features", counted)
    return calls


def test_all_tasks_of_one_model_share_a_forward_pass(scorer, model, forwards):
    first = [scorer.score(task, model, "validation") for task in ("parity", "prime", "control")]
    copy = {name: tensor.copy() for name, tensor in reversed(model.items())}
    again = [scorer.score(task, copy, "validation") for task in ("parity", "prime", "control")]
    assert first == again
    assert forwards == [269]
    scorer.score("parity", model, "test")
    assert forwards == [269, 450]


def test_a_model_changed_in_place_is_scored_anew(scorer, model, forwards):
    before = scorer.score("control", model, "validation")
    for tensor in model.values():
        tensor *= 0
    after = scorer.score("control", model, "validation")
    assert len(forwards) == 2
    assert before > 0.8 > 0.4 > after


def test_only_the_last_models_are_remembered(scorer, model, forwards, monkeypatch):
    monkeypatch.setattr(digits_score, "_REMEMBERED", 2)

    def shifted(by):
        return {name: tensor + np.float32(by) for name, tensor in model.items()}

    for by in (0, 1, 0, 2, 0, 1):  # 1 is forgotten when 2 comes, 0 was used since
        scorer.score("parity", shifted(by), "validation")
    assert len(forwards) == 4
    assert len(scorer._known) == 2


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_other_dtypes_are_scored_as_their_values(scorer, model, dtype):
    cast = {name: tensor.astype(dtype) for name, tensor in model.items()}
    back = {name: tensor.astype(np.float32) for name, tensor in cast.items()}
    assert scorer.score("control", cast, "test") == scorer.score("control", back, "test")


def test_tensors_that_are_not_contiguous_are_scored_as_their_values(scorer, model):
    turned = {name: np.asfortranarray(tensor) for name, tensor in model.items()}
    assert scorer.score("parity", turned, "test") == scorer.score("parity", model, "test")


def test_a_model_that_is_not_finite_scores_nan_and_evaluate_refuses_it(scorer, world, model):
    model["layernorm.weight"][0] = np.nan
    assert math.isnan(scorer.score("parity", model, "test"))
    with pytest.raises(ValueProblem, match="'parity' scored nan on test"):
        world.scores(model, "test")


def test_tensors_of_another_model_are_refused_by_name(scorer, model):
    name = "layernorm.weight"
    with pytest.raises(MismatchError, match=f"'{name}' is missing from the model"):
        scorer.score("parity", {n: t for n, t in model.items() if n != name}, "test")
    with pytest.raises(MismatchError, match="'pooler' does not belong to the model"):
        scorer.score("parity", {**model, "pooler": np.zeros(1)}, "test")
    with pytest.raises(MismatchError, match=rf"'{name}' has shape \(1,\), not \(32,\)"):
        scorer.score("parity", {**model, name: np.zeros(1)}, "test")


def test_a_file_whose_tensors_are_not_the_transformers_is_refused(world, model, tmp_path):
    def network(tensors):
        shutil.copy(world.base / "config.json", tmp_path)
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
        return Network(tmp_path, "ViTModel", add_pooling_layer=False)

    with pytest.raises(MismatchError, match=r"holds \['zzz'\], which its ViTModel does not use"):
        network({**model, "zzz": np.zeros((2, 2), np.float32)})
    with pytest.raises(MismatchError, match=r"layernorm\.bias"):
        network({name: tensor for name, tensor in model.items() if name != "layernorm.bias"})


def test_every_tensor_of_the_file_reaches_the_transformer(scorer, model, world):
    """Moving any one tensor moves the features: no name is lost on the way."""
    images = torch.tensor(scorer._digits.images[:16])

    def encoded(tensors):
        network = scorer._network
        with torch.no_grad():
            return digits_score.features(network.take(*network.checked(tensors)), images).numpy()

    plain = encoded(model)
    rng = np.random.default_rng(0)
    for name, tensor in model.items():
        noise = rng.standard_normal(tensor.shape).astype(np.float32)
        moved = encoded({**model, name: tensor + noise})
        if name.endswith("key.bias"):  # softmax over keys does not see a shift that all share
            np.testing.assert_allclose(moved, plain, atol=1e-4)
        else:
            assert np.abs(moved - plain).max() > 1e-3, name
