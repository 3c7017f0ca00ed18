"""Seeded signs: a function of seed, vector, tensor and position alone."""

from __future__ import annotations

import numpy as np
import pytest

from taskbasis.io import noise
from taskbasis.io.noise import NoiseBlob, noise_tensor


def values(shape: tuple[int, ...], seed: int = 0, index: int = 0, name: str = "a") -> np.ndarray:
    return noise_tensor(name, shape, seed, index).load()


def test_signs_of_equal_chance() -> None:
    found = values((200, 500))
    assert found.dtype == np.float32
    assert found.shape == (200, 500)
    assert set(np.unique(found)) == {-1.0, 1.0}
    assert abs(found.mean()) < 5 / np.sqrt(found.size)


@pytest.mark.parametrize("step", [1, 7, noise._BLOCK - 1, noise._BLOCK, noise._BLOCK + 1, 40_000])
def test_any_pieces_are_the_same_signs(step: int) -> None:
    size = 40_000 if step > 7 else 500
    info = noise_tensor("a", (40_000,), 0, 0)
    whole, start = info.load(), noise._BLOCK - 250 if step <= 7 else 0
    for at in range(start, start + size, step):
        stop = min(at + step, 40_000)
        out = np.zeros(stop - at, np.float32)
        info.read(at, stop, out)
        assert np.array_equal(out, whole[at:stop])


def test_a_shorter_tensor_begins_the_same() -> None:
    assert np.array_equal(values((100,)), values((30_000,))[:100])


def test_every_key_has_signs_of_its_own() -> None:
    one = values((10_000,))
    for other in (values((10_000,), 1), values((10_000,), 0, 1), values((10_000,), name="b")):
        assert abs(np.mean(one * other)) < 0.05
    blocks = values((2 * noise._BLOCK,)).reshape(2, -1)
    assert abs(np.mean(blocks[0] * blocks[1])) < 0.05


def test_the_stream_is_fixed_for_ever() -> None:
    """A stored basis regenerates its atoms from these bits."""
    signs = values((16,), 3, 1, "layer.weight")
    assert "".join("+" if sign > 0 else "-" for sign in signs) == "---++-+-++------"
    assert NoiseBlob("3/1/layer.weight").label == "seeded noise 3/1/layer.weight"


def test_none_and_one() -> None:
    assert values((0, 3)).shape == (0, 3)
    assert values(()).shape == ()
