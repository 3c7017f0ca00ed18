"""The clip suite on a tiny random CLIP in the published layout, without a network."""

from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.numpy import load_file

from taskbasis import TaskVector, merge
from taskbasis.bench import Bench, run
from taskbasis.errors import FileError, MissingExtraError, UsageError
from taskbasis.evaluate import Effort
from taskbasis.learn import importance
from taskbasis.suites.clip import prepare
from taskbasis.suites.clip_data import EIGHT, FOURTEEN, HUB, SUITES, TWENTY, load_task, prepared
from taskbasis.suites.clip_model import MEAN, PROMPTS, SPREAD
from taskbasis.suites.text_model import new_tokenizer
from taskbasis.suites.world import World

FAMILY = "clip-tiny"
SIZES = {"validation": 6, "test": 8}
CLASSES = {"mnist": ("zero", "one"), "dtd": ("dotted", "lined", "woven")}


def silent(sentence: str) -> None:
    del sentence


def save_clip(folder: Path) -> Any:
    tokenizer = new_tokenizer([p.format("zero one dotted lined woven") for p in PROMPTS], 50, 32)
    eos = tokenizer.sep_token_id
    config = transformers.CLIPConfig(
        text_config={
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": len(tokenizer), "max_position_embeddings": 32,
            "eos_token_id": eos, "bos_token_id": tokenizer.cls_token_id, "pad_token_id": 0,
        },
        vision_config={
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
        },
        projection_dim=8,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base, two fine-tunes, one set as arrays and one as a folder of images."""
    folder = tmp_path_factory.mktemp("clip")
    model = save_clip(folder / "models" / FAMILY)
    for number, task in enumerate(CLASSES):
        vision = transformers.CLIPVisionModel.from_pretrained(folder / "models" / FAMILY)
        torch.manual_seed(number + 1)
        with torch.no_grad():
            for parameter in vision.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        vision.save_pretrained(folder / "models" / f"{FAMILY}_{task}")
    del model
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (30, 20, 16, 1), dtype=np.uint8)
    labels = np.arange(30) % 2
    (folder / "datasets").mkdir()
    np.savez(
        folder / "datasets" / "mnist.npz",
        x_train=images[:20], y_train=labels[:20], x_test=images[20:], y_test=labels[20:],
        classes=np.array(CLASSES["mnist"]),
    )  # fmt: skip
    for part, count in (("train", 6), ("test", 3)):
        for kind in CLASSES["dtd"]:
            place = folder / "datasets" / "dtd" / part / kind
            place.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 255, (24, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def world(data: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("suite") / "c"
    return prepare(data, folder, 0, silent, family=FAMILY, limits=SIZES)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def tensors(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


def test_the_tasks_of_the_folder_are_found(world: World) -> None:
    assert [task.name for task in world.tasks] == ["dtd", "mnist"]
    assert world.kept("dtd").name == "not-dtd"
    base = tensors(world.base)
    assert not [name for name in base if name.startswith("text_model")]
    for folder in world.tuned.values():
        assert {n: t.shape for n, t in tensors(folder).items()} == {
            n: t.shape for n, t in base.items()
        }


def test_fine_tunes_keep_their_numbers(world: World, data: Path) -> None:
    ours = tensors(world.tuned["mnist"])
    theirs = tensors(data / "models" / f"{FAMILY}_mnist")
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_scores_are_clips_own_zero_shot_accuracies(world: World, data: Path) -> None:
    """By hand, through the whole model: similarities of its projected images and prompts."""
    model = transformers.CLIPModel.from_pretrained(data / "models" / FAMILY).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(data / "models" / FAMILY)
    with np.load(data / "datasets" / "mnist.npz") as stored:
        images, labels = stored["x_test"], stored["y_test"]
    asked = np.random.default_rng([0, 2]).permutation(10)[:8]
    head = []
    with torch.no_grad():
        for name in CLASSES["mnist"]:
            rows = []
            for prompt in PROMPTS:
                ids = torch.tensor([tokenizer(prompt.format(name))["input_ids"]])
                pooled = model.text_model(input_ids=ids).pooler_output
                rows.append(torch.nn.functional.normalize(model.text_projection(pooled), dim=-1)[0])
            head.append(torch.nn.functional.normalize(torch.stack(rows).mean(0), dim=-1))
        right = []
        for number in asked:
            # 16 wide and 20 high: nothing to resize, two rows to cut at either end
            grey = images[number][2:18].astype(np.float32).repeat(3, axis=2) / 255
            pixels = torch.tensor(((grey - MEAN) / SPREAD).transpose(2, 0, 1))[None]
            pooled = model.vision_model(pixel_values=pixels).pooler_output
            image = torch.nn.functional.normalize(model.visual_projection(pooled), dim=-1)[0]
            right.append(int(torch.stack(head).mv(image).argmax()) == labels[number])
    found = world.tasks[1].score(tensors(world.base), "test")
    assert found == pytest.approx(np.mean(right))


def test_the_head_is_scaled_as_clip_scales_it(world: World, data: Path) -> None:
    head = load_file(world.base.parent / "heads" / "dtd.safetensors")["weight"]
    model = transformers.CLIPModel.from_pretrained(data / "models" / FAMILY)
    assert head.shape == (8, 3)
    np.testing.assert_allclose(
        np.linalg.norm(head, axis=0), float(model.logit_scale.detach().exp()), rtol=1e-5
    )


def test_models_can_be_merged_and_judged(world: World) -> None:
    vectors = [TaskVector(world.base, path) for path in world.tuned.values()]
    merged = merge(world.base, vectors, scale=0.5).tensors()
    for task in (*world.tasks, world.control, world.kept("dtd")):
        assert 0 <= task.score(merged, "validation") <= 1
    assert world.kept("dtd").score(merged, "test") == world.tasks[1].score(merged, "test")


def test_importance_can_be_learnt(world: World, tmp_path: Path) -> None:
    task, folder = world.tasks[1], world.tuned["mnist"]
    assert task.problem is not None
    problem = task.problem(folder)
    assert len(problem.samples) == 20 - 6
    found = importance(problem, tmp_path / "s.safetensors", model=folder, samples=3)
    assert set(found.infos) == set(tensors(folder))
    assert max(float(found.scores(name).max()) for name in found.infos) > 0


def test_what_is_there_is_not_made_again(world: World, data: Path) -> None:
    said: list[str] = []
    before = {path: path.stat().st_mtime_ns for path in world.base.parent.rglob("*")}
    prepare(data, world.base.parent, 0, said.append, family=FAMILY, limits=SIZES)
    assert said == []
    assert before == {path: path.stat().st_mtime_ns for path in world.base.parent.rglob("*")}
    with pytest.raises(FileError, match="its seed is 0, not 1"):
        prepare(data, world.base.parent, 1, silent, family=FAMILY, limits=SIZES)


def test_seeds_split_anew_and_change_no_model(world: World, data: Path, tmp_path: Path) -> None:
    other = prepare(data, tmp_path / "c", 1, silent, ["mnist"], FAMILY, SIZES)
    assert tensors(other.base).keys() == tensors(world.base).keys()
    splits = [load_task(data, "mnist", seed, 6, 8).parts["validation"] for seed in (0, 1)]
    assert not np.array_equal(splits[0].image(0), splits[1].image(0))


def test_classes_can_be_named_anew(data: Path) -> None:
    (data / "classes").mkdir(exist_ok=True)
    names = data / "classes" / "mnist.txt"
    names.write_text("the number zero\nthe number one\n")
    try:
        assert load_task(data, "mnist", 0, 6, 8).classes == ("the number zero", "the number one")
        names.write_text("alone\n")
        with pytest.raises(FileError, match="labels outside of its 1 classes"):
            load_task(data, "mnist", 0, 6, 8)
    finally:
        names.unlink()


def test_without_a_network_a_sentence_says_what_is_missing(
    data: Path, tmp_path: Path, offline: None
) -> None:
    with pytest.raises(FileError, match=r"openai/clip-none cannot .* DIR/models/clip-none"):
        prepare(data, tmp_path / "a", 0, silent, ["mnist"], "clip-none", SIZES)
    with pytest.raises(UsageError, match="holds no fine-tune clip-none_TASK"):
        prepare(data, tmp_path / "b", 0, silent, None, "clip-none", SIZES)
    (data / "datasets" / "svhn.npz").write_bytes((data / "datasets" / "mnist.npz").read_bytes())
    try:
        with pytest.raises(FileError, match="tanganke/clip-tiny_svhn cannot be fetched"):
            prepare(data, tmp_path / "c", 0, silent, ["svhn"], FAMILY, SIZES)
    finally:
        (data / "datasets" / "svhn.npz").unlink()
    with pytest.raises((FileError, MissingExtraError), match=r"gtsrb|package 'datasets'"):
        prepare(data, tmp_path / "d", 0, silent, ["gtsrb"], FAMILY, SIZES)


def test_unknown_tasks_and_damaged_sets_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no task 'minst'; did you mean 'mnist'"):
        load_task(None, "minst", 0, 6, 8)
    place = tmp_path / "datasets"
    (place / "dtd" / "train").mkdir(parents=True)
    with pytest.raises(FileError, match="needs train/CLASS/IMAGE and test/CLASS/IMAGE"):
        load_task(tmp_path, "dtd", 0, 6, 8)
    (place / "mnist.npz").write_bytes(b"x")
    with pytest.raises(FileError, match="no archive of x_train"):
        load_task(tmp_path, "mnist", 0, 6, 8)
    with pytest.raises(FileError, match="20 of them are wanted"):
        load_task(data, "mnist", 0, 20, 8)


def test_a_model_that_is_no_clip_is_refused(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    (copy / "models" / FAMILY).mkdir(parents=True)
    (copy / "models" / f"{FAMILY}_mnist").mkdir()
    with pytest.raises(FileError, match="cannot be opened as a CLIP model"):
        prepare(copy, tmp_path / "a", 0, silent, None, FAMILY, SIZES)
    source = data / "models" / f"{FAMILY}_mnist"
    for file in source.iterdir():
        (copy / "models" / FAMILY / file.name).write_bytes(file.read_bytes())
    with pytest.raises(FileError, match=r"is no whole CLIP|cannot be opened"):
        prepare(copy, tmp_path / "b", 0, silent, None, FAMILY, SIZES)


def test_a_fine_tune_of_something_else_is_refused(data: Path, tmp_path: Path) -> None:
    config = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        image_size=16, patch_size=8,
    )  # fmt: skip
    other = data / "models" / f"{FAMILY}_stl10"
    transformers.CLIPVisionModel(config).save_pretrained(other)
    sets = data / "datasets"
    (sets / "stl10.npz").write_bytes((sets / "mnist.npz").read_bytes())
    try:
        with pytest.raises(FileError, match="no fine-tune of the base: its tensors are others"):
            prepare(data, tmp_path / "c", 0, silent, ["stl10"], FAMILY, SIZES)
        assert not (tmp_path / "c" / "tuned" / "stl10").exists()
    finally:
        (sets / "stl10.npz").unlink()
        for file in (*other.iterdir(), other):
            file.rmdir() if file.is_dir() else file.unlink()


def test_images_are_cut_as_clip_cuts_them() -> None:
    wide = np.zeros((16, 32, 3), np.uint8)
    wide[:, 8:24] = 200
    assert (prepared(wide, 16) == 200).all()
    assert prepared(np.full((7, 5), 9, np.uint8), 16).shape == (16, 16, 3)
    tall = prepared(np.tile(np.arange(64, dtype=np.uint8)[:, None], (1, 32)), 16)
    assert 14 <= tall[0, 0, 0] <= 18
    assert 46 <= tall[-1, 0, 0] <= 50


def test_the_published_suites_grow() -> None:
    assert [len(names) for names in SUITES.values()] == [8, 14, 20]
    assert TWENTY[:14] == FOURTEEN
    assert FOURTEEN[:8] == EIGHT
    assert set(HUB) == set(TWENTY)


def test_the_bench_runs_on_it_and_names_the_family_in_every_row(data: Path, tmp_path: Path) -> None:
    only = ("task arithmetic, tuned", "sta weight 0.3, λ 1", "regmean")
    asked = Bench(
        "clip", tmp_path / "out", tmp_path / "cache", data, 1, encoder=Path(FAMILY), only=only,
        samples=3, limits=SIZES, effort=Effort((0.0, 0.5), (0.0, 0.5)),
    )  # fmt: skip
    report = run(asked, silent, workers=1)
    assert set(report.methods) >= {"base", "individual models", "RegMean", "STA weight 0.3, λ 1"}
    assert {str(row.extras["checkpoints"]).split()[0] for row in report.rows} == {FAMILY}
    assert "Checkpoints: clip-tiny with FusionBench's" in (
        tmp_path / "out" / "bench-clip.md"
    ).read_text(encoding="utf-8")
