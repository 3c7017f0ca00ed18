"""The pieces of training: frozen heads, repeatable steps, and torch put back as it was."""

import sys

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from transformers.utils import logging as transformers_logging

from taskbasis.errors import MissingExtraError
from taskbasis.suites.digits_data import LABELS, load
from taskbasis.suites.digits_make import make
from taskbasis.suites.digits_model import (
    Settings,
    features,
    fitted_head,
    new_encoder,
    quiet_and_repeatable,
    train,
)

TINY = Settings(hidden=8, layers=1, attention_heads=2, batch=16)


@pytest.fixture
def sample():
    rng = np.random.default_rng(0)
    found = rng.standard_normal((120, 8)).astype(np.float32) * 3 + 1
    return found, (found @ rng.standard_normal((8, 3))).argmax(1)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_head_is_the_logistic_regression_scaled_and_folded(sample, classes):
    found, answers = sample
    answers = np.minimum(answers, classes - 1)
    weight, bias = fitted_head(found, answers, Settings(head_strength=0.1, head_scale=5.0))
    assert weight.shape == (8, classes)
    assert bias.shape == (classes,)
    assert weight.dtype == bias.dtype == np.float32
    standard = (found - found.mean(0)) / found.std(0)
    expected = LogisticRegression(C=0.1, max_iter=2000).fit(standard, answers)
    logits = found @ weight + bias
    decision = expected.decision_function(standard)
    scaled = logits[:, 1] - logits[:, 0] if classes == 2 else logits
    np.testing.assert_allclose(scaled, 5 * decision, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(logits.argmax(1), expected.predict(standard))


def test_a_feature_that_never_changes_does_no_harm(sample):
    found, answers = sample
    found[:, 0] = 2.0
    weight, bias = fitted_head(found, answers, TINY)
    assert np.isfinite(weight).all()
    assert np.isfinite(bias).all()


def trained(head_learns, steps=4):
    with quiet_and_repeatable(7):
        encoder = new_encoder(TINY)
        weight = torch.randn(8, 2, requires_grad=head_learns)
        bias = torch.zeros(2, requires_grad=head_learns)
        start = weight.detach().clone(), encoder.state_dict()["layernorm.bias"].clone()
        images, answers = torch.randn(40, 1, 8, 8), torch.arange(40) % 2
        train(encoder, (weight, bias), (images, answers), steps, 1e-2, 16, seed=1)
    return encoder, weight.detach(), start


def test_training_moves_the_encoder_and_only_a_head_that_takes_gradients():
    encoder, weight, (head, norm) = trained(head_learns=False)
    assert torch.equal(weight, head)
    assert not torch.equal(encoder.state_dict()["layernorm.bias"], norm)
    _, weight, (head, _) = trained(head_learns=True)
    assert not torch.equal(weight, head)


def test_training_is_repeatable_to_the_bit_and_ends_in_evaluation_mode():
    one, two = trained(True)[0], trained(True)[0]
    assert not one.training
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name]), name


@pytest.mark.parametrize("steps", [0, 1])
def test_hardly_any_steps_are_fine(steps):
    assert trained(False, steps)[0] is not None


def test_features_are_one_vector_per_image():
    with quiet_and_repeatable(0):
        found = features(new_encoder(TINY), torch.zeros(3, 1, 8, 8))
    assert found.shape == (3, 8)
    assert torch.equal(found[0], found[2])


def interrupted_work():
    with quiet_and_repeatable(3):
        assert torch.get_num_threads() == 1
        assert torch.are_deterministic_algorithms_enabled()
        assert not transformers_logging.is_progress_bar_enabled()
        torch.rand(5)
        raise RuntimeError("stop")


def test_torch_is_put_back_even_after_an_error():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    transformers_logging.enable_progress_bar()
    with pytest.raises(RuntimeError, match="stop"):
        interrupted_work()
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    assert transformers_logging.is_progress_bar_enabled()
    assert torch.equal(torch.get_rng_state(), state)


def test_progress_bars_that_were_off_stay_off():
    transformers_logging.disable_progress_bar()
    try:
        with quiet_and_repeatable(0):
            pass
        assert not transformers_logging.is_progress_bar_enabled()
    finally:
        transformers_logging.enable_progress_bar()


def test_only_training_images_are_used(tmp_path, monkeypatch):
    """With every other image wiped out, the bytes stay the same."""
    few = Settings(hidden=8, layers=1, attention_heads=1, pretrain_steps=2, steps=2, batch=16)
    make(tmp_path / "a", 0, few, lambda sentence: None)
    wiped = load(0)
    for split in ("validation", "test"):
        wiped.images[wiped.splits[split]] = np.nan
        wiped.digits[wiped.splits[split]] = 9
    monkeypatch.setattr("taskbasis.suites.digits_make.load", lambda seed: wiped)
    make(tmp_path / "b", 0, few, lambda sentence: None)
    for name in ["heads.safetensors", *(f"tuned/{task}/model.safetensors" for task in LABELS)]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("package", ["sklearn.datasets", "torch"])
def test_a_missing_package_is_named_with_what_to_install(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"the digits suite.*taskbasis\[demo\]"):
        load(0) if package.startswith("sklearn") else quiet_and_repeatable(0).__enter__()
