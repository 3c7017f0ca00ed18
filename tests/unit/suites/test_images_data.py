"""The image sets and what is asked of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taskbasis.errors import FileError
from taskbasis.suites import images_data
from taskbasis.suites.images_data import (
    SETS,
    TASKS,
    answers,
    find_sets,
    load_set,
    load_sets,
    mixture,
    pixels,
    seen_classes,
)
from taskbasis.suites.images_model import IMAGES, smaller


def write(path: Path, **changed: Any) -> Path:
    images = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 1), np.uint8)
    labels = np.arange(40, dtype=np.int16) % 3
    arrays = {
        "x_train": images, "y_train": labels, "x_test": images, "y_test": labels,
        "classes": np.array(["a", "b", "c"]),
    }  # fmt: skip
    np.savez(
        path, **{name: value for name, value in (arrays | changed).items() if value is not None}
    )
    return path


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Six small sets whose images carry their own number."""
    monkeypatch.setattr(images_data, "SIZES", {"validation": 8, "test": 6})
    (tmp_path / "images").mkdir()
    for number, name in enumerate(SETS):
        labels = np.arange(40, dtype=np.int16) % (number + 2)
        classes = np.array([f"class {place}" for place in range(number + 2)])
        file = tmp_path / "images" / f"{name}.npz"
        write(file, y_train=labels, y_test=labels, classes=classes)
    return load_sets(tmp_path, seed=1)


def test_pixels_are_centred_and_grey_fills_the_channels() -> None:
    grey = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1) * np.ones((1, 32, 32, 1), np.uint8)
    found = pixels(grey)
    assert found.shape == (2, 3, 32, 32)
    assert found.dtype == np.float32
    assert (found[0].max(), found[1].min()) == (-2.0, 2.0)
    colour = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(1, 32, 32, 3)
    assert pixels(colour)[0, 2, 4, 5] == colour[0, 4, 5, 2] / np.float32(63.75) - 2


def test_validation_comes_out_of_the_training_part(sets: Any) -> None:
    for held in sets.values():
        seen = [set(held.images[split][:, 0, 0, 0].tolist()) for split in ("train", "validation")]
        assert (len(seen[0]), len(seen[1]), len(seen[0] & seen[1])) == (32, 8, 0)
        assert len(held.labels["test"]) == 6


def test_the_base_learns_half_of_the_classes(sets: Any) -> None:
    chosen = seen_classes(sets, seed=1)
    assert [len(found) for found in chosen.values()] == [1, 2, 2, 3, 3, 4]
    images, labels = mixture(sets, 1, "train")
    assert len(images) == len(labels)
    assert set(labels.tolist()) == set(range(15))
    assert np.array_equal(labels, mixture(sets, 1, "train")[1])


def test_questions_answer_for_every_class() -> None:
    labels = np.array([0, 1, 2, 3])
    classes = ("ship", "cat", "frog", "truck")
    assert answers("class", labels, classes).tolist() == [0, 1, 2, 3]
    assert answers("parity", labels, classes).tolist() == [0, 1, 0, 1]
    assert answers("animal", labels, classes).tolist() == [0, 1, 1, 0]
    assert {name for name, _ in TASKS.values()} == set(SETS)


def test_sets_are_found_in_the_folder_or_in_its_images(tmp_path: Path) -> None:
    for name in SETS:
        write(tmp_path / f"{name}.npz")
    assert list(find_sets(tmp_path)) == list(SETS)
    (tmp_path / "dogcat.npz").unlink()
    with pytest.raises(FileError, match=r"dogcat\.npz is missing; the images suite needs mnist"):
        find_sets(tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y_test": None}, "no archive of x_train"),
        ({"x_train": np.zeros((40, 28, 28, 1), np.uint8)}, r"x_train has shape \(40, 28, 28, 1\)"),
        ({"x_test": np.zeros((40, 32, 32), np.uint8)}, r"x_test has shape \(40, 32, 32\)"),
        ({"y_train": np.arange(40)}, "y_train does not give every image one of the classes"),
        ({"y_test": np.zeros(3, int)}, "y_test does not give every image"),
        ({"classes": np.array(["a", None], dtype=object)}, "no archive"),
        (
            {"x_train": np.zeros((9, 32, 32, 1), np.uint8), "y_train": np.zeros(9, int)},
            "150 of them",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    """An array of objects is refused, too: nothing is ever unpickled."""
    with pytest.raises(FileError, match=message):
        load_set(write(tmp_path / "s.npz", **changed), 0)


def test_text_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "s.npz").write_text("x")
    with pytest.raises(FileError, match="no archive"):
        load_set(tmp_path / "s.npz", 0)


def test_quick_settings_differ_and_so_are_not_mixed_up() -> None:
    assert smaller(IMAGES).steps < IMAGES.steps
    assert smaller(IMAGES) != IMAGES
