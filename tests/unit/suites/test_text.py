"""The text suite in miniature: made on a few sentences, scored, resumed, with either encoder."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from taskbasis import TaskVector, merge
from taskbasis.errors import FileError, UsageError
from taskbasis.learn import importance, moments
from taskbasis.suites import text
from taskbasis.suites.text import open_control, open_tasks, open_world, prepare
from taskbasis.suites.text_model import (
    Reader,
    TextSettings,
    all_features,
    features,
    load_encoder,
    loader_of,
    new_tokenizer,
)
from taskbasis.suites.world import World

TINY = TextSettings(
    max_length=8, steps=12, rate=2e-2, batch=8, head_texts=64, head_strength=0.003, hidden=16,
    layers=1, attention_heads=2, words=40, pretrain_steps=4, validation=12, test=16,
)  # fmt: skip
WORDS = {
    "animal": (("cat", "dog", "owl"), ("car", "bus", "van")),
    "mood": (("good", "fine", "nice"), ("bad", "sad", "poor")),
    "size": (("huge", "vast", "big"), ("tiny", "small", "wee")),
}


def write_sets(folder: Path, rows: int = 80) -> Path:
    folder.mkdir(parents=True)
    for number, (name, kinds) in enumerate(WORDS.items()):
        rng = np.random.default_rng(number)
        for part, count in (("train", rows), ("test", 20)):
            lines = []
            for row in range(count):
                kind = row % 2
                others = ["the", "a", "one", "of"][: rng.integers(1, 5)]
                sentence = [*others, kinds[kind][rng.integers(3)]]
                lines.append(f"{name[0]}{kind}\t{' '.join(rng.permutation(sentence))}\n")
            (folder / f"{name}.{part}.tsv").write_text("".join(lines), encoding="utf-8")
    return folder


def silent(sentence: str) -> None:
    del sentence


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("data") / "text").parent


@pytest.fixture(scope="module")
def world(data: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    return prepare(data, tmp_path_factory.mktemp("suite") / "t", 0, silent, settings=TINY)


def tensors(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


def digests(folder: Path) -> dict[str, str]:
    found = sorted(path for path in folder.rglob("*") if path.suffix in (".safetensors", ".json"))
    kept = [path for path in found if path.name not in ("tasks.json", "text.json")]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in kept}


def test_every_folder_opens_with_its_tokenizer_under_the_bases_names(world: World) -> None:
    base = tensors(world.base)
    for folder in (world.base, *world.tuned.values()):
        encoder = transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        assert tokenizer.tokenize("the cat") == ["the", "cat"]
        assert encoder.config.hidden_size == 16
        assert {n: t.shape for n, t in tensors(folder).items()} == {
            n: t.shape for n, t in base.items()
        }
    assert not [name for name in base if "pooler" in name]


def test_a_score_is_the_accuracy_of_the_module(world: World, data: Path) -> None:
    """Taken by hand: every sentence alone, so nothing is padded."""
    folder = world.tuned["mood"]
    encoder, tokenizer = load_encoder(folder)
    head = load_file(world.base.parent / "heads" / "mood.safetensors")
    rows = [line.split("\t") for line in (data / "text" / "mood.test.tsv").read_text().splitlines()]
    asked = np.random.default_rng([0, 2]).permutation(len(rows))[:16]
    right = []
    for row in asked:
        ids = torch.tensor([tokenizer(rows[row][1])["input_ids"]])
        with torch.no_grad():
            mean = encoder(input_ids=ids).last_hidden_state.mean(1).numpy()
        found = (mean @ head["weight"] + head["bias"]).argmax()
        right.append(f"m{found}" == rows[row][0])
    score = world.tasks[list(WORDS).index("mood")].score(tensors(folder), "test")
    assert score == pytest.approx(np.mean(right))


def test_fine_tuning_helps_its_task(world: World) -> None:
    """On such sentences a head alone finds most, so the loss is looked at, not the accuracy."""
    task = world.tasks[1]
    assert task.problem is not None
    losses = []
    for folder in (world.base, world.tuned[task.name]):
        problem = task.problem(folder)
        batch = problem.collate([problem.samples[n] for n in range(len(problem.samples))])
        with torch.no_grad():
            losses.append(float(problem.loss(problem.module, batch).mean()))
    assert losses[1] < 0.8 * losses[0]


def test_a_control_is_the_mean_over_the_others(world: World) -> None:
    model = tensors(world.tuned["animal"])
    share = math.ceil(16 / 2)
    scorer = world.tasks[0].score.func.__self__  # type: ignore[attr-defined]
    parts = [scorer.right(name, model, "test", share).mean() for name in ("mood", "size")]
    assert world.kept("animal").name == "not-animal"
    assert world.kept("animal").score(model, "test") == pytest.approx(np.mean(parts))
    third = math.ceil(16 / 3)
    whole = [scorer.right(name, model, "test", third).mean() for name in WORDS]
    assert world.control.score(model, "test") == pytest.approx(np.mean(whole))


def test_limits_are_the_first_of_the_same_sentences(world: World) -> None:
    some = open_world(world.base.parent, {"test": 5})
    model = tensors(world.base)
    scorer = world.tasks[0].score.func.__self__  # type: ignore[attr-defined]
    assert some.tasks[0].score(model, "test") == pytest.approx(
        scorer.right("animal", model, "test", 16)[:5].mean()
    )
    assert some.tasks[0].score(model, "validation") == world.tasks[0].score(model, "validation")


def test_only_what_is_asked_is_run_and_only_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = open_world(world.base.parent)
    counts: list[int] = []
    original = text.TextScorer.answers

    def counted(self: Any, module: Any, task: str, split: Any, part: slice) -> Any:
        counts.append(part.stop - part.start)
        return original(self, module, task, split, part)

    monkeypatch.setattr(text.TextScorer, "answers", counted)
    model = tensors(world.base)
    first, again = (fresh.kept("animal").score(model, "test") for _ in range(2))
    assert first == again
    assert counts == [8, 8]
    fresh.tasks[1].score(model, "test")
    assert counts == [8, 8, 8]  # the rest of that task's sentences
    model["embeddings.word_embeddings.weight"] += 1
    fresh.tasks[1].score(model, "test")
    assert counts == [8, 8, 8, 16]


def test_a_model_that_is_not_finite_scores_nan(world: World) -> None:
    model = {name: np.full_like(tensor, np.nan) for name, tensor in tensors(world.base).items()}
    assert math.isnan(world.tasks[0].score(model, "test"))
    assert math.isnan(world.control.score(model, "validation"))


def test_equal_seeds_give_equal_bytes(world: World, data: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)
    again = prepare(data, tmp_path / "again", 0, silent, settings=TINY)
    assert digests(again.base.parent) == digests(world.base.parent)
    other = prepare(data, tmp_path / "other", 1, silent, ["animal"], settings=TINY)
    assert digests(other.base)["model.safetensors"] != digests(world.base)["model.safetensors"]


def test_a_task_does_not_depend_on_which_others_are_asked_for(
    world: World, data: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    found = prepare(data, tmp_path / "s", 0, said.append, ["size"], settings=TINY)
    assert said[1:] == ["seed 0: fine-tuning for size (1 of 1)"]
    assert digests(found.tuned["size"]) == digests(world.tuned["size"])
    assert found.kept("size") is found.control  # there are no others
    said.clear()
    more = prepare(data, tmp_path / "s", 0, said.append, ["mood", "size"], settings=TINY)
    assert said == ["seed 0: fine-tuning for mood (1 of 2)"]
    assert list(more.tuned) == ["mood", "size"]
    assert more.kept("size").name == "not-size"


def test_an_interrupted_run_goes_on(
    world: World, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    tune = text.tune

    def stopped(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        tune(*args)

    monkeypatch.setattr(text, "tune", stopped)
    with pytest.raises(KeyboardInterrupt):
        prepare(data, tmp_path / "s", 0, silent, settings=TINY)
    assert [path.name for path in (tmp_path / "s" / "tuned").iterdir()] == ["animal"]
    found = prepare(data, tmp_path / "s", 0, silent, settings=TINY)
    assert len(calls) == 4
    assert digests(found.base.parent) == digests(world.base.parent)


def test_a_given_encoder_is_fine_tuned_instead(world: World, data: Path, tmp_path: Path) -> None:
    """One with a pooling layer, of which the base keeps nothing, so that names agree."""
    _, tokenizer = load_encoder(world.base)
    torch.manual_seed(3)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=16,
    )  # fmt: skip
    given = tmp_path / "given"
    transformers.BertModel(config).save_pretrained(given)
    tokenizer.save_pretrained(given)
    made = prepare(data, tmp_path / "s", 0, silent, ["mood", "size"], given, TINY)
    base, before = tensors(made.base), tensors(given)
    assert {name for name in before if "pooler" not in name} == set(base)
    assert all(np.array_equal(before[name], base[name]) for name in base)
    vectors = [TaskVector(made.base, path) for path in made.tuned.values()]
    merged = merge(made.base, vectors, scale=0.5).tensors()
    assert 0 <= made.tasks[0].score(merged, "test") <= 1
    facts = json.loads((tmp_path / "s" / "text.json").read_text())
    assert len(facts["encoder"]) == 32
    with pytest.raises(FileError, match="its encoder"):
        prepare(data, tmp_path / "s", 0, silent, ["mood"], settings=TINY)


def test_an_encoder_without_a_pooling_layer_works(world: World, data: Path, tmp_path: Path) -> None:
    _, tokenizer = load_encoder(world.base)
    config = transformers.DistilBertConfig(
        vocab_size=len(tokenizer), dim=16, n_layers=1, n_heads=2, hidden_dim=16,
        max_position_embeddings=16,
    )  # fmt: skip
    transformers.DistilBertModel(config).save_pretrained(tmp_path / "given")
    tokenizer.save_pretrained(tmp_path / "given")
    made = prepare(data, tmp_path / "s", 0, silent, ["mood"], tmp_path / "given", TINY)
    assert loader_of(made.base) == ("DistilBertModel", {})
    assert 0 <= made.tasks[0].score(tensors(made.base), "test") <= 1


def test_wrong_folders_and_options_are_refused(world: World, data: Path, tmp_path: Path) -> None:
    folder = world.base.parent
    with pytest.raises(FileError, match="its seed is 0, not 2"):
        prepare(data, folder, 2, silent, settings=TINY)
    with pytest.raises(FileError, match="its settings"):
        prepare(data, folder, 0, silent)
    with pytest.raises(UsageError, match="did you mean 'mood'"):
        prepare(data, tmp_path / "s", 0, silent, ["moods"], settings=TINY)
    with pytest.raises(UsageError, match=r"--encoder .* is no folder with a model"):
        prepare(data, tmp_path / "s", 0, silent, encoder=tmp_path / "nowhere", settings=TINY)
    changed = write_sets(tmp_path / "changed", 82)
    with pytest.raises(FileError, match="its digest"):
        prepare(changed, folder, 0, silent, settings=TINY)
    assert not (tmp_path / "s").exists()


def test_a_missing_model_is_named(data: Path, tmp_path: Path) -> None:
    made = prepare(data, tmp_path / "s", 0, silent, ["mood"], settings=TINY)
    (made.tuned["mood"] / "model.safetensors").unlink()
    with pytest.raises(FileError, match="mood holds no model"):
        open_world(tmp_path / "s")


def test_tasks_and_controls_are_found_by_folder(world: World) -> None:
    folder = str(world.base.parent)
    assert [task.name for task in open_tasks(folder)] == list(WORDS)
    names = [task.name for task in open_control(folder)]
    assert names == ["control", "not-animal", "not-mood", "not-size"]


def test_importance_and_moments_can_be_learnt(world: World, tmp_path: Path) -> None:
    """Per-sample gradients side by side, since sentences of one length come without a mask."""
    task, folder = world.tasks[1], world.tuned["mood"]
    assert task.problem is not None
    problem = task.problem(folder)
    scores = importance(problem, tmp_path / "s.safetensors", model=folder, samples=24)
    single = importance(
        task.problem(folder), tmp_path / "1.safetensors", model=folder, samples=24,
        gradients="single",
    )  # fmt: skip
    assert scores.origin.options["gradients"] == "per_sample"
    assert set(scores.infos) == set(tensors(folder))
    largest = max(float(single.scores(name).max()) for name in single.infos)
    for name in scores.infos:
        np.testing.assert_allclose(
            scores.scores(name) / largest, single.scores(name) / largest, atol=1e-3
        )
    found = moments(task.problem(folder), tmp_path / "m.safetensors", model=folder, samples=24)
    assert found.moment("encoder.layer.0.output.dense.weight").shape == (32, 32)


def test_padding_changes_no_feature(world: World) -> None:
    encoder, tokenizer = load_encoder(world.base)
    reader = Reader(tokenizer, 8)
    tokens = reader.read(["cat", "the good dog of one", "a bus"])
    together = all_features(encoder, reader, tokens, size=2)
    with torch.no_grad():
        alone = [features(encoder, (reader.batch([row])[0], None)) for row in tokens]
    np.testing.assert_allclose(together, torch.cat(alone).numpy(), rtol=1e-4, atol=1e-6)


def test_the_vocabulary_is_that_of_the_texts_and_spells_the_rest() -> None:
    made = new_tokenizer(["The cat, the cat", "the Bus"], 2, 8)
    assert made.tokenize("the cat sat") == ["the", "cat", "s", "##a", "##t"]
    assert made.tokenize("x") == ["[UNK]"]
    words = made.get_vocab()
    assert (words["[PAD]"], made.pad_token_id, made.mask_token_id) == (0, 0, 4)
    again = new_tokenizer(["the bus", "the cat, the cat"], 2, 8)
    assert again.get_vocab() == words
    assert Reader(made, 4).read(["the cat the cat the cat"]) == [
        [words[w] for w in ("[CLS]", "the", "cat", "[SEP]")]
    ]
