"""The images suite in miniature: made on small sets, made again, scored, and resumed."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import ViTModel

from taskbasis.errors import FileError, UsageError
from taskbasis.evaluate import load_tasks
from taskbasis.learn import importance
from taskbasis.suites import images
from taskbasis.suites.images import open_control, open_tasks, open_world, prepare
from taskbasis.suites.images_data import SETS, TASKS
from taskbasis.suites.images_model import IMAGES, smaller
from taskbasis.suites.world import World

TINY = smaller(IMAGES)
NAMES = ["mnist-parity", "dog-or-cat"]


def write_sets(folder: Path, count: int = 260) -> Path:
    """Six sets whose images are noise about a level that tells the class."""
    folder.mkdir(parents=True)
    for number, name in enumerate(SETS):
        rng = np.random.default_rng(number)
        classes = number + 2
        labels = np.arange(count) % classes
        levels = 40 + 170 * labels[:, None, None, None] / classes
        pixels = levels + rng.normal(0, 8, (count, 32, 32, 1 if number % 2 else 3))
        np.savez(
            folder / f"{name}.npz",
            x_train=pixels.clip(0, 255).astype(np.uint8), y_train=labels.astype(np.int16),
            x_test=pixels[:30].clip(0, 255).astype(np.uint8), y_test=labels[:30].astype(np.int16),
            classes=np.array([f"class {place}" for place in range(classes)]),
        )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("data") / "images").parent


@pytest.fixture(scope="module")
def world(data: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    return prepare(data, tmp_path_factory.mktemp("suite") / "i", 0, print, TINY, NAMES)


def tensors(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


def digests(folder: Path) -> dict[str, str]:
    found = sorted(path for path in folder.rglob("*.safetensors"))
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def test_everything_is_an_ordinary_folder_of_the_bases_shape(world: World) -> None:
    assert [task.name for task in world.tasks] == NAMES == list(world.tuned)
    base = tensors(world.base)
    for folder in world.tuned.values():
        assert {n: t.shape for n, t in tensors(folder).items()} == {
            n: t.shape for n, t in base.items()
        }
        assert any(not np.array_equal(t, base[n]) for n, t in tensors(folder).items())
        assert not list(folder.parent.glob(".*"))


def test_a_score_is_the_accuracy_that_transformers_gives(world: World, data: Path) -> None:
    module = ViTModel.from_pretrained(world.tuned["dog-or-cat"], add_pooling_layer=False).eval()
    with np.load(data / "images" / "dogcat.npz") as stored:
        pixels, labels = stored["x_test"], stored["y_test"]
    batch = torch.tensor(pixels.astype(np.float32) / 63.75 - 2).permute(0, 3, 1, 2)
    batch = batch.expand(-1, 3, -1, -1)
    head = load_file(world.base.parent / "heads" / "dog-or-cat.safetensors")
    with torch.no_grad():
        found = module(batch).last_hidden_state[:, 0].numpy()
    expected = ((found @ head["weight"] + head["bias"]).argmax(1) == labels).mean()
    score = world.tasks[1].score(tensors(world.tuned["dog-or-cat"]), "test")
    assert score == pytest.approx(expected, abs=1 / 30)


def test_equal_seeds_give_equal_bytes_and_others_do_not(
    world: World, data: Path, tmp_path: Path
) -> None:
    torch.manual_seed(99)
    again = prepare(data, tmp_path / "again", 0, print, TINY, NAMES)
    assert digests(again.base.parent) == digests(world.base.parent)
    other = prepare(data, tmp_path / "other", 1, print, TINY, NAMES[:1])
    assert digests(other.base)["model.safetensors"] != digests(world.base)["model.safetensors"]


def test_what_is_there_is_reused_and_what_is_missing_is_made(data: Path, tmp_path: Path) -> None:
    said: list[str] = []
    first = prepare(data, tmp_path / "s", 0, said.append, TINY, NAMES[:1])
    assert said == ["seed 0: pre-training", "seed 0: fine-tuning for mnist-parity (2 of 8)"]
    before = digests(first.base.parent)
    said.clear()
    second = prepare(data, tmp_path / "s", 0, said.append, TINY, NAMES)
    assert said == ["seed 0: fine-tuning for dog-or-cat (6 of 8)"]
    assert before.items() <= digests(second.base.parent).items()
    assert list(second.tuned) == NAMES
    said.clear()
    assert list(prepare(data, tmp_path / "s", 0, said.append, TINY, NAMES[1:]).tuned) == NAMES[1:]
    assert said == []


def test_an_interrupted_run_goes_on(
    world: World, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune: Callable[..., None] = images.tune

    def stopped(*args: Any) -> None:
        if args[-1] == 6:  # dog-or-cat
            raise KeyboardInterrupt
        tune(*args)

    monkeypatch.setattr(images, "tune", stopped)
    with pytest.raises(KeyboardInterrupt):
        prepare(data, tmp_path / "s", 0, print, TINY, NAMES)
    monkeypatch.setattr(images, "tune", tune)
    said: list[str] = []
    found = prepare(data, tmp_path / "s", 0, said.append, TINY, NAMES)
    assert said == ["seed 0: fine-tuning for dog-or-cat (6 of 8)"]
    assert digests(found.base.parent) == digests(world.base.parent)


def test_other_data_settings_or_seeds_are_refused(world: World, data: Path, tmp_path: Path) -> None:
    folder = world.base.parent
    with pytest.raises(FileError, match="its seed is 0, not 1"):
        prepare(data, folder, 1, print, TINY, NAMES)
    with pytest.raises(FileError, match="its settings"):
        prepare(data, folder, 0, print, IMAGES, NAMES)
    other = write_sets(tmp_path / "other", 261)
    with pytest.raises(FileError, match="its data"):
        prepare(other, folder, 0, print, TINY, NAMES)
    with pytest.raises(UsageError, match="did you mean 'dog-or-cat'"):
        prepare(data, folder, 0, print, TINY, ["dog-or-cats"])


def test_a_missing_model_is_named(data: Path, tmp_path: Path) -> None:
    made = prepare(data, tmp_path / "s", 0, print, TINY, NAMES[:1])
    (made.tuned["mnist-parity"] / "model.safetensors").unlink()
    with pytest.raises(FileError, match="mnist-parity holds no model"):
        open_world(tmp_path / "s")


def test_tasks_are_found_by_folder(world: World) -> None:
    folder = str(world.base.parent)
    assert [task.name for task in open_tasks(folder)] == NAMES
    assert [task.name for task in open_control(folder)] == ["control"]
    spec = f"taskbasis.suites.images:open_world:{folder}"
    with pytest.raises(UsageError):
        load_tasks(spec)
    model = tensors(world.base)
    assert open_tasks(folder)[0].score(model, "validation") == world.tasks[0].score(
        model, "validation"
    )


def test_a_model_that_is_not_finite_scores_nan(world: World) -> None:
    model = {name: np.full_like(tensor, np.nan) for name, tensor in tensors(world.base).items()}
    assert np.isnan(world.tasks[0].score(model, "test"))


def test_importance_can_be_learnt_from_the_training_images(world: World, tmp_path: Path) -> None:
    """Scores equal |theta g| of single images, taken by hand."""
    task = world.tasks[0]
    assert task.problem is not None
    folder = world.tuned[task.name]
    problem = task.problem(folder)
    assert sorted(problem.names.values()) == sorted(tensors(folder))
    assert len(problem.samples) == 260 - 150
    found = importance(problem, tmp_path / "s.safetensors", model=folder, samples=4, seed=0)
    head = load_file(world.base.parent / "heads" / f"{task.name}.safetensors")
    module = ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()
    total: dict[str, Any] = {}
    for number in sorted(np.random.default_rng(0).permutation(110)[:4]):
        image, kind = problem.samples[number]
        hidden = module(torch.tensor(image)[None]).last_hidden_state[:, 0]
        logits = hidden @ torch.tensor(head["weight"]) + torch.tensor(head["bias"])
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([kind]))
        grads = torch.autograd.grad(loss, list(module.parameters()))
        for (name, parameter), grad in zip(module.named_parameters(), grads, strict=True):
            total[name] = total.get(name, 0) + (parameter * grad).abs().detach().numpy() / 4
    assert {name: found.scores(stored).shape for name, stored in problem.names.items()} == {
        name: array.shape for name, array in total.items()
    }
    scale = max(array.max() for array in total.values())
    for name, stored in problem.names.items():
        np.testing.assert_allclose(found.scores(stored) / scale, total[name] / scale, atol=1e-3)


def test_the_eight_tasks_are_as_documented() -> None:
    assert len(TASKS) == 8
    assert {name for name, _ in TASKS.values()} == set(SETS)
