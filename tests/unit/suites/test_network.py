"""The live encoder: it takes the tensors it is given, under the names of the file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from taskbasis.errors import MismatchError
from taskbasis.suites.network import HeadLoss, Network


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("vit") / "base"
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        image_size=8, patch_size=4, num_channels=1, hidden_size=16, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=16,
    )  # fmt: skip
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def network(folder: Path) -> Network:
    return Network(folder, "ViTModel", add_pooling_layer=False)


@pytest.fixture(scope="module")
def tensors(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


def output(module: Any, images: Any) -> Any:
    with torch.no_grad():
        return module(images).last_hidden_state


def test_every_tensor_reaches_its_parameter(
    network: Network, folder: Path, tensors: dict[str, Any], tmp_path: Path
) -> None:
    """The module with changed tensors computes what transformers computes from their file."""
    rng = np.random.default_rng(0)
    changed = {n: t + rng.normal(0, 0.1, t.shape).astype(np.float32) for n, t in tensors.items()}
    module = transformers.ViTModel.from_pretrained(folder, add_pooling_layer=False)
    module.save_pretrained(tmp_path / "changed")
    save_file(changed, tmp_path / "changed" / "model.safetensors", {"format": "pt"})
    expected = transformers.ViTModel.from_pretrained(
        tmp_path / "changed", add_pooling_layer=False
    ).eval()
    images = torch.randn(3, 1, 8, 8)
    found = network.take(*network.checked(changed))
    torch.testing.assert_close(output(found, images), output(expected, images))
    back = network.take(*network.checked(tensors))
    torch.testing.assert_close(output(back, images), output(module.eval(), images))


def test_a_digest_names_all_numbers(network: Network, tensors: dict[str, Any]) -> None:
    digest, checked = network.checked(tensors)
    assert network.checked(dict(reversed(tensors.items())))[0] == digest
    for name in tensors:
        moved = {**tensors, name: tensors[name] + np.float32(1e-3)}
        assert network.checked(moved)[0] != digest, name
    assert list(checked) == sorted(tensors)
    assert network.checked({n: t.astype(np.float64) for n, t in tensors.items()})[0] == digest


def test_weights_are_copied_once_per_digest(network: Network, tensors: dict[str, Any]) -> None:
    digest, checked = network.checked(tensors)
    parameter = next(network.take(digest, checked).parameters())
    kept = parameter.detach().clone()
    with torch.no_grad():
        parameter.add_(1)
    network.take(digest, checked)
    assert torch.equal(parameter, kept + 1)  # known already: nothing was copied
    network.take(b"other", checked)
    assert torch.equal(parameter, kept)


def test_other_models_are_refused(network: Network, tensors: dict[str, Any]) -> None:
    name = sorted(tensors)[0]
    with pytest.raises(MismatchError, match=f"{name!r} is missing"):
        network.checked({n: t for n, t in tensors.items() if n != name})
    with pytest.raises(MismatchError, match="'odd' does not belong"):
        network.checked({**tensors, "odd": np.zeros(1, np.float32)})
    with pytest.raises(MismatchError, match=r"has shape \(1,\), not"):
        network.checked({**tensors, name: np.zeros(1, np.float32)})


def test_a_head_gives_the_loss_of_every_sample() -> None:
    weight = np.array([[1.0, -1.0]], np.float32)
    loss = HeadLoss(lambda module, batch: batch["x"], weight, np.zeros(2, np.float32))
    batch = {"x": torch.tensor([[0.0], [2.0]]), "classes": torch.tensor([0, 1])}
    expected = [np.log(2), np.log(1 + np.exp(4))]
    np.testing.assert_allclose(loss(None, batch).numpy(), expected, rtol=1e-6)
