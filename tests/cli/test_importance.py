"""importance and moments on the command line, on tiny transformers and plain tables."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from taskbasis.scores import Importance, Moments
from taskbasis.vectors import Checkpoint

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "very", "not"]
TABLE = "0\tbad film\n1\tvery good film\n1\tgood\n0\tnot good\n0\tvery bad\n1\tnot bad film\n"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and a tuned text classifier, their tokenizer, and a table."""
    import torch
    import transformers

    from taskbasis.learn.skeleton import quiet

    root = tmp_path_factory.mktemp("models")
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=12,
        id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1},
    )  # fmt: skip
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(0)
        model = transformers.BertForSequenceClassification(config)
        for name in ("base", "tuned"):
            model.save_pretrained(root / name)
            vocabulary = {word: at for at, word in enumerate(WORDS)}
            transformers.BertTokenizer(vocab=vocabulary).save_pretrained(root / name)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.05 * torch.randn(parameter.shape))
    (root / "data.tsv").write_text(TABLE)
    return root


@pytest.fixture
def desk(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with copies of them."""
    import torch

    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()
    yield tmp_path  # type: ignore[misc]
    assert torch.get_num_threads() == before


Call = Callable[..., Any]
RUN = "importance tuned --task data.tsv -o s.safetensors -j 1"


def test_a_text_classifier_is_scored_in_one_command(desk: Path, call: Call) -> None:
    answer = call(RUN)
    assert (answer.code, answer.err) == (0, "")
    first, options, tensors, scores = answer.out.splitlines()
    assert first.startswith("wrote s.safetensors: ")
    assert options.startswith("6 of 6 samples, factor weight, aggregation mean_abs, at tuned, ")
    assert "gradients per_sample" in options
    assert tensors == "tensors: 39 scored, 2 head"
    found = Importance.open("s.safetensors")
    values = {name: found.scores(name) for name in found.infos}
    mean = sum(map(np.sum, values.values())) / sum(map(np.size, values.values()))
    largest = max(values, key=lambda name: values[name].max())
    assert scores == f"mean score {mean:.4g}, largest {values[largest].max():.4g} in {largest}"
    assert found.origin.model.fingerprint == Checkpoint("tuned").fingerprint


def test_quiet_says_nothing(desk: Path, call: Call) -> None:
    answer = call(f"{RUN} -q")
    assert (answer.code, answer.out, answer.err) == (0, "", "")
    assert Importance.open("s.safetensors").infos


def test_the_options_are_those_of_the_library(desk: Path, call: Call) -> None:
    from taskbasis.engine import Engine
    from taskbasis.learn import importance
    from taskbasis.learn.huggingface import hf_problem

    answer = call(
        f"{RUN} --base base --factor delta --aggregation mean_square --at path --points 3 "
        "--samples 4 --random-seed 2 --gradients single --dtype float32 --exclude *embeddings* -j 1"
    )
    assert answer.code == 0, answer.err
    assert "5 excluded" in answer.out
    found = importance(
        hf_problem("tuned", "data.tsv"), "other.safetensors", model="tuned", base="base",
        factor="delta", aggregation="mean_square", at="path", points=3, samples=4, seed=2,
        gradients="single", dtype="float32", exclude=["*embeddings*"], engine=Engine(1),
    )  # fmt: skip
    assert Path("s.safetensors").read_bytes() == Path("other.safetensors").read_bytes()
    assert found.origin.options["samples"] == 4


def test_an_approximation_is_called_one(desk: Path, call: Call) -> None:
    answer = call(f"{RUN} --gradients batch --batch 3")
    assert answer.code == 0
    assert answer.err == "warning: the scores are an approximation: 3 samples are treated as one\n"


def test_magnitude_needs_no_data(desk: Path, call: Call) -> None:
    answer = call(
        "importance tuned --base base --factor magnitude -o s.safetensors --dtype float32"
    )
    assert answer.code == 0, answer.err
    assert "factor magnitude, of delta" in answer.out
    old, new = (load_file(f"{name}/model.safetensors") for name in ("base", "tuned"))
    found = Importance.open("s.safetensors")
    for name in old:
        np.testing.assert_array_equal(found.scores(name), np.abs(new[name] - old[name]))


def test_a_small_memory_cap_is_kept_or_refused(desk: Path, call: Call) -> None:
    answer = call(f"{RUN} --memory 1MB")
    assert "a memory cap of 1.00 MB is too small" in answer.sentence
    assert call(f"{RUN} --memory 64GB").code == 0


def test_moments_in_one_command(desk: Path, call: Call) -> None:
    answer = call("moments tuned --task data.tsv -o m.safetensors -j 1 --exclude *pooler*")
    assert (answer.code, answer.err) == (0, "")
    first, options, tensors = answer.out.splitlines()
    assert first.startswith("wrote m.safetensors: ")
    assert options == "6 of 6 samples, seed 0, batch 8, data data.tsv"
    assert tensors == "tensors: 20 kept, 2 excluded, 2 head, 17 no moment"
    found = Moments.open("m.safetensors")
    words = found.moment("bert.embeddings.word_embeddings.weight")
    assert words[WORDS.index("[PAD]")] == 0
    assert words[WORDS.index("film")] == pytest.approx(3 / 25)  # of 25 tokens, padding left out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("importance tuned -o s.safetensors", "name it with --task"),
        ("importance tuned --factor magnitude --task data.tsv -o s.safetensors", "needs no data"),
        ("importance tuned --factor magnitude --split test -o s.safetensors", "needs no data"),
        (f"{RUN} --factor fihser", "did you mean 'fisher'"),
        (f"{RUN} --at base", "name it with --base"),
        (f"{RUN} --samples 0", "samples is 0"),
        (f"{RUN} --split test", "no split 'test'; known: all"),
        (f"{RUN} --text-column body", "no column 'body'"),
        (f"{RUN} --max-length 40", "give 2 to 12"),
        (f"{RUN} --tokenizer nowhere", "holds no tokenizer"),
        (f"{RUN} --device quantum", "--device quantum cannot be used"),
        (f"{RUN} --compute-dtype int8", "is not a float type"),
        (f"{RUN} --exclude nothing", "matches no tensor"),
        ("importance tuned --task none.tsv -o s.safetensors", "none.tsv: no such data"),
        ("importance tuned --task digits:none:parity -o s.safetensors", "digits.json cannot be"),
        ("importance none --task data.tsv -o s.safetensors", "none: is not a Hugging Face folder"),
        ("importance tuned --task data.tsv -o tuned", "would touch the input"),
        ("importance tuned --task data.tsv -o no/s.safetensors", "create it first"),
        ("moments tuned --task data.tsv -o m.safetensors --batch 0", "batch is 0"),
        ("moments tuned --task none.tsv -o m.safetensors", "none.tsv: no such data"),
    ],
)
def test_every_mistake_is_one_sentence_and_leaves_nothing(
    desk: Path, call: Call, words: str, sentence: str
) -> None:
    before = sorted(desk.rglob("*"))
    answer = call(words)
    assert answer.code in (1, 2)
    assert sentence in answer.sentence
    assert sorted(desk.rglob("*")) == before


def test_a_bad_row_is_named(desk: Path, call: Call) -> None:
    Path("data.tsv").write_text(TABLE + "2\tgood film\n")
    assert "data.tsv, row 7: the label is '2'" in call(RUN).sentence
    Path("data.tsv").write_text("label\tsentence\ngood\tgood film\nbda\tbad film\n")
    assert "row 3: the label is 'bda'" in call(RUN).sentence
    assert not Path("s.safetensors").exists()


def test_another_models_question_is_a_task(desk: Path, call: Call) -> None:
    """The whole way: extract, merge, score under the tuned model's own head."""
    assert call("extract base tuned -o vec.safetensors -q").code == 0
    assert call("add base vec.safetensors -o again -q").code == 0
    answer = call("evaluate base tuned again --tasks hf:tuned:data.tsv")
    assert answer.code == 0, answer.err
    rows = [line.split("│") for line in answer.out.splitlines() if "│" in line]
    found = {row[1].strip(): row[2].strip() for row in rows if len(row) > 2}
    assert found["again"] == found["tuned"]
    answer = call("importance again --task hf:tuned:data.tsv -o s.safetensors")
    assert answer.code == 0, answer.err
    assert answer.out.splitlines()[1].startswith("3 of 3 samples")  # the validation half
    answer = call("search base tuned --tasks hf:tuned:data.tsv --grid 0,1")
    assert answer.code == 0, answer.err


def test_scores_of_sharded_folders_and_into_folders(desk: Path, call: Call) -> None:
    assert call(f"{RUN} -q").code == 0
    assert call(
        "importance tuned --task data.tsv -o shards -j 1 -q --out-shard-size 4KB"
    ).code == 0  # fmt: skip
    assert len(list(Path("shards").glob("importance-*.safetensors"))) > 1
    whole, parts = Importance.open("s.safetensors"), Importance.open("shards")
    assert whole.infos.keys() == parts.infos.keys()
    for name in whole.infos:
        np.testing.assert_array_equal(whole.scores(name), parts.scores(name))


def test_a_file_without_a_module_says_what_is_missing(desk: Path, call: Call) -> None:
    save_file({"w": np.ones(3, np.float32)}, "plain.safetensors")
    answer = call("importance plain.safetensors --task data.tsv -o s.safetensors")
    assert "plain.safetensors: is not a Hugging Face folder" in answer.sentence


@pytest.mark.parametrize("verb", ["importance", "moments"])
def test_help_names_what_is_taken(call: Call, verb: str) -> None:
    answer = call(f"{verb} --help")
    assert answer.code == 0
    for option in (
        "--task",
        "--samples",
        "--random-seed",
        "--memory",
        "--exclude",
        "--text-column",
    ):
        assert option in answer.out


@pytest.mark.parametrize("option", ["--at base", "--samples 3", "--gradients batch", "--device x"])
def test_magnitude_ignores_no_option(option: str, desk: Path, call: Call) -> None:
    answer = call(f"importance tuned --base base --factor magnitude -o s.safetensors {option}")
    assert answer.code == 2
    assert "the factor magnitude needs no data; leave out" in answer.err
    assert not Path("s.safetensors").exists()
