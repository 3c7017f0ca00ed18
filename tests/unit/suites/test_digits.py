"""The digits suite, really trained in miniature: what it makes, and that it makes it again."""

import hashlib
import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import ViTModel
from transformers.utils import logging as transformers_logging

from taskbasis.errors import FileError, UsageError
from taskbasis.evaluate import Effort, judge, load_tasks, measure, reference_rows
from taskbasis.report import FULL, Report
from taskbasis.suites import digits
from taskbasis.suites.digits import MARKER, open_world, prepare
from taskbasis.suites.digits_data import LABELS
from taskbasis.suites.digits_model import Settings

TINY = Settings(hidden=8, layers=1, attention_heads=1, pretrain_steps=3, steps=3, batch=16)


def tensors(folder):
    return load_file(folder / "model.safetensors")


def files(folder):
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in found
    }


@pytest.fixture(scope="module")
def vectors(world):
    base = tensors(world.base)
    return {
        name: {key: value - base[key] for key, value in tensors(path).items()}
        for name, path in world.tuned.items()
    }


class Full:
    """All task vectors, in memory."""

    def __init__(self, base, vectors):
        self.base, self.vectors, self.names = base, vectors, list(vectors)
        self.storage_bytes = sum(a.nbytes for v in vectors.values() for a in v.values())

    def combine(self, weights):
        return {
            key: value + sum(weight * self.vectors[name][key] for name, weight in weights.items())
            for key, value in self.base.items()
        }

    def add(self, scale):
        return self.combine(dict.fromkeys(self.names, scale))


def test_everything_is_an_ordinary_hugging_face_folder(world):
    assert list(world.tuned) == list(LABELS) == [task.name for task in world.tasks]
    for folder in (world.base, *world.tuned.values()):
        assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
        assert json.loads((folder / "config.json").read_text())["model_type"] == "vit"
        for path in folder.iterdir():
            assert oct(path.stat().st_mode & 0o777) == "0o644"


def test_transformers_opens_them_and_computes_the_same_accuracy(world):
    module = ViTModel.from_pretrained(world.tuned["prime"], add_pooling_layer=False).eval()
    data = digits.Scorer(world.base.parent, 0)._digits
    heads = load_file(world.base.parent / "heads.safetensors")
    chosen = data.splits["test"]
    with torch.no_grad():
        hidden = module(torch.tensor(data.images[chosen])).last_hidden_state[:, 0].numpy()
    answers = (hidden @ heads["prime.weight"] + heads["prime.bias"]).argmax(1)
    expected = float((answers == data.classes("prime", chosen)).mean())
    found = world.tasks[list(LABELS).index("prime")].score(tensors(world.tuned["prime"]), "test")
    assert found == pytest.approx(expected, abs=1 / len(chosen))


def test_all_models_have_the_same_tensors_and_only_they_move(world):
    base = tensors(world.base)
    for folder in world.tuned.values():
        tuned = tensors(folder)
        assert {n: (t.shape, t.dtype) for n, t in tuned.items()} == {
            n: (t.shape, t.dtype) for n, t in base.items()
        }
        assert any(not np.array_equal(tuned[name], base[name]) for name in base)


def test_fine_tuning_helps_its_own_task_and_the_base_knows_its_digits(world):
    base = world.scores(tensors(world.base), "test")
    own = {task.name: task.score(tensors(world.tuned[task.name]), "test") for task in world.tasks}
    assert base["control"] > 0.9
    assert np.mean(list(own.values())) > np.mean([base[name] for name in own]) + 0.08
    assert sum(own[name] > base[name] for name in own) >= 7


def test_the_suite_can_be_judged_from_end_to_end(world, vectors):
    base = tensors(world.base)
    tuned = {name: tensors(path) for name, path in world.tuned.items()}
    yardstick = measure(base, tuned, world.tasks, world.control, world.seed)
    coarse = (0.0, 0.25, 0.5)
    effort = Effort(grid=coarse, coarse=coarse, per_size=1)
    full = Full(base, vectors)
    rows = [*reference_rows(yardstick, full.storage_bytes), *judge(full, yardstick, FULL, effort)]
    found = {(row.method, row.metric): row.value for row in rows}
    assert found[FULL, "recovery normalised"] == pytest.approx(1, abs=0.01)
    assert found[FULL, "addition accuracy"] >= found["base", "addition accuracy"] - 0.02
    assert found[FULL, "negation target"] < found["base", "negation target"]
    assert found[FULL, "negation control"] > 0.85
    assert FULL in Report(rows).aggregate().to_markdown()


def test_equal_seeds_give_equal_bytes_and_other_seeds_do_not(tmp_path):
    one = prepare(tmp_path / "one", 3, settings=TINY)
    torch.manual_seed(99)  # what the caller did to torch before does not matter
    two = prepare(tmp_path / "two", 3, settings=TINY)
    three = prepare(tmp_path / "three", 4, settings=TINY)
    assert files(one.base.parent) == files(two.base.parent)
    for name, digest in files(three.base.parent).items():
        if name.endswith(".safetensors"):
            assert digest != files(one.base.parent)[name]


def test_torch_is_left_as_it_was_found(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    transformers_logging.enable_progress_bar()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        prepare(tmp_path / "d", 0, settings=TINY)
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert transformers_logging.is_progress_bar_enabled()


def test_nothing_is_printed(tmp_path, capfd, caplog):
    with caplog.at_level(logging.WARNING):
        world = prepare(tmp_path / "d", 0, settings=TINY)
        world.scores(tensors(world.base), "validation")
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert caplog.records == []


def test_what_is_there_is_reused(world, small, monkeypatch):
    def make(*args):
        raise AssertionError("made again")

    monkeypatch.setattr(digits, "make", make)
    again = prepare(world.base.parent, 0, settings=small)
    assert again.tuned == world.tuned
    for seed, settings in ((1, small), (0, replace(small, steps=61))):
        with pytest.raises(FileError, match="another seed or other settings"):
            prepare(world.base.parent, seed, settings=settings)


def test_progress_is_told_in_sentences(tmp_path):
    told = []
    prepare(tmp_path / "d", 0, told.append, settings=TINY)
    assert len(told) == 9
    assert told[0] == "pre-training on the digits 0 to 4"
    assert told[-1] == "fine-tuning for segments (8 of 8)"


def test_a_used_folder_is_refused_and_an_empty_one_is_filled(tmp_path):
    used = tmp_path / "used"
    used.mkdir()
    (used / "letter.txt").write_text("dear")
    with pytest.raises(FileError, match=r"in use and holds no digits\.json"):
        prepare(used, 0, settings=TINY)
    with pytest.raises(FileError, match="in use"):
        prepare(used / "letter.txt", 0, settings=TINY)
    with pytest.raises(UsageError, match="the seed is -1"):
        prepare(used, -1, settings=TINY)
    assert [path.name for path in tmp_path.rglob("*")] == ["used", "letter.txt"]
    empty = tmp_path / "deep" / "empty"
    empty.mkdir(parents=True)
    assert prepare(empty, 0, settings=TINY).base == empty / "base"
    assert oct(empty.stat().st_mode & 0o777) == "0o755"


def test_an_interrupted_making_leaves_nothing(tmp_path):
    def stop(sentence):
        if "loop" in sentence:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "d", 0, stop, settings=TINY)
    assert list(tmp_path.iterdir()) == []


def test_damage_is_told_in_sentences(tmp_path):
    world = prepare(tmp_path / "d", 0, settings=TINY)
    folder = tmp_path / "d"
    marker = (folder / MARKER).read_text()
    (folder / MARKER).write_text("{")
    with pytest.raises(FileError, match="damaged"):
        open_world(folder)
    (folder / MARKER).write_text('{"format": "other"}')
    with pytest.raises(FileError, match="not the marker"):
        open_world(folder)
    (folder / MARKER).write_text(marker)
    (world.tuned["loop"] / "model.safetensors").unlink()
    with pytest.raises(FileError, match=r"loop/model\.safetensors is missing"):
        open_world(folder)
    with pytest.raises(FileError, match=r"digits\.json cannot be read"):
        open_world(tmp_path / "nothing")


def test_tasks_are_found_by_their_short_text(world):
    folder = world.base.parent
    tasks = load_tasks(f"digits:{folder}")
    (control,) = load_tasks(f"digits-control:{folder}")
    base = tensors(world.base)
    found = {task.name: task.score(base, "validation") for task in [*tasks, control]}
    assert found == world.scores(base, "validation")
