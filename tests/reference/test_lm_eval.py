"""Tasks of the real lm-evaluation-harness: local data, a tiny model, splits that stay apart.

The harness is not part of the development extra; scripts/harness runs these in an environment of
their own.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taskbasis import Checkpoint, TaskVector
from taskbasis.cli import run
from taskbasis.errors import FileError, UsageError, ValueProblem
from taskbasis.evaluate import evaluate, load_tasks, report_choice, search_addition
from taskbasis.learn.harness import Harness, harness_task

REASON = "lm_eval is not installed here; scripts/harness runs these"
pytest.importorskip("lm_eval", reason=REASON)
torch = pytest.importorskip("torch")
tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("default")  # the harness's own are its own affair

WORDS = ["[UNK]", "[EOS]", "sky", "is", "blue", "green", "grass", "the", "?"]
DOCS = [{"q": ("the sky is", "the grass is")[n % 2], "gold": n % 2} for n in range(20)]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def model_folder(folder: Path, seed: int, favour: str | None = None) -> Path:
    """A tiny GPT-2 whose head, where asked, prefers one word whatever came before."""
    torch.manual_seed(seed)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=len(WORDS), n_positions=32, n_embd=16, n_layer=1, n_head=2,
            bos_token_id=1, eos_token_id=1, tie_word_embeddings=False,
        )
    )  # fmt: skip
    if favour is not None:
        with torch.no_grad():
            model.transformer.ln_f.bias.fill_(1.0)
            model.lm_head.weight[WORDS.index(favour)] += 1.0
    model.save_pretrained(folder)
    plain = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: n for n, w in enumerate(WORDS)}, unk_token="[UNK]")
    )
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="[UNK]", eos_token="[EOS]", bos_token="[EOS]"
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """``config(name, docs)``: a task defined on the spot, with a local file of documents."""

    def make(name: str = "colours", docs: Any = DOCS, **more: Any) -> dict[str, Any]:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
        return {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(path)}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{q}}",
            "doc_to_choice": ["blue", "green"],
            "doc_to_target": "gold",
            "metric_list": [metric("acc")],
            **more,
        }

    return make


def metric(name: str, aggregation: str = "mean", higher: bool = True) -> dict[str, Any]:
    return {"metric": name, "aggregation": aggregation, "higher_is_better": higher}


def tensors(folder: Path) -> dict[str, Any]:
    return {name: info.load() for name, info in Checkpoint(folder).store.items()}


def test_scores_are_the_harness_s_own(tmp_path: Path, config: Any) -> None:
    """Half of the answers are blue: a model that always says so is right where they are."""
    folder = model_folder(tmp_path / "base", 0)
    task = harness_task(folder, config())
    assert task.name == "colours"
    order = np.random.default_rng(0).permutation(len(DOCS))
    parts = {"validation": order[:10], "test": order[10:]}
    for word, gold in (("blue", 0), ("green", 1)):
        model = tensors(model_folder(tmp_path / word, 0, favour=word))
        for split, documents in parts.items():
            right = float(np.mean([DOCS[n]["gold"] == gold for n in documents]))
            assert task.score(model, split) == pytest.approx(right), (word, split)  # type: ignore[arg-type]


def test_it_is_what_simple_evaluate_gives(tmp_path: Path, config: Any) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    folder = model_folder(tmp_path / "base", 5)
    choices = {"doc_to_choice": ["blue", "green", "sky is blue"]}
    how = Harness(metric="acc_norm", share=0.3, limit=5, seed=2)
    metrics = [metric("acc"), metric("acc_norm")]
    task = harness_task(folder, config(metric_list=metrics, **choices), how=how)
    order = np.random.default_rng(2).permutation(len(DOCS))
    module = transformers.GPT2LMHeadModel.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for split, documents in (("validation", order[:6][:5]), ("test", order[6:][:5])):
        found = lm_eval.simple_evaluate(
            model=HFLM(pretrained=module, tokenizer=tokenizer, batch_size=8),
            tasks=[config(metric_list=metrics, **choices)],
            samples={"colours": sorted(map(int, documents))},
            task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,
        )
        assert task.score(tensors(folder), split) == found["results"]["colours"]["acc_norm,none"]


def test_a_search_chooses_on_one_half_and_reports_the_other(tmp_path: Path, config: Any) -> None:
    base = model_folder(tmp_path / "base", 0, favour="green")
    tuned = model_folder(tmp_path / "blue", 0, favour="blue")
    only = [{"q": "the sky is", "gold": 0}] * 8
    task = harness_task(base, config(docs=only), name="blue")
    vector, start = TaskVector(base, tuned), Checkpoint(base)

    def build(scale: float) -> Any:
        return (start + scale * vector).tensors()

    choice = search_addition(build, [task], {"blue": 1.0}, [0.0, 0.25, 0.75, 1.0])
    assert choice.scale == 0.75
    assert report_choice(choice, build, [task]) == {"blue": 1.0}


def test_scoring_repeats_and_leaves_the_world_as_it_was(
    tmp_path: Path, config: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = model_folder(tmp_path / "base", 3)
    task, model = harness_task(folder, config()), tensors(folder)
    other = tensors(model_folder(tmp_path / "other", 0, favour="blue"))
    capfd.readouterr()
    random.seed(4)
    np.random.seed(4)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    first = task.score(model, "test")
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    task.score(other, "test")
    assert task.score(model, "test") == first
    assert capfd.readouterr().err == ""


def test_two_tasks_are_two_splits(tmp_path: Path, config: Any) -> None:
    folder = model_folder(tmp_path / "base", 0, favour="blue")
    blue, green = ([{"q": "the sky is", "gold": gold}] * 4 for gold in (0, 1))
    task = harness_task(folder, config("chosen", blue), config("reported", green))
    model = tensors(folder)
    assert (task.score(model, "validation"), task.score(model, "test")) == (1.0, 0.0)
    same = config("chosen", blue)
    with pytest.raises(UsageError, match="'chosen' and 'again' score the same documents"):
        harness_task(folder, same, {**same, "task": "again"})


def test_few_shot_examples_do_not_come_from_the_other_split(tmp_path: Path, config: Any) -> None:
    folder = model_folder(tmp_path / "base", 0)
    shots = {"fewshot_split": "test", "num_fewshot": 2}
    with pytest.raises(UsageError, match="so validation would see test; use fewshot=0"):
        harness_task(folder, config(**shots))
    with pytest.raises(UsageError, match="so validation would see test"):
        harness_task(folder, config(fewshot_split="test"), how=Harness(fewshot=1))
    harness_task(folder, config(**shots), how=Harness(fewshot=0))
    one = config("one")
    files = {
        "data_files": {**one["dataset_kwargs"]["data_files"], "dev": str(tmp_path / "d.jsonl")}
    }
    (tmp_path / "d.jsonl").write_text((tmp_path / "one.jsonl").read_text())
    chosen = {**one, **shots, "test_split": "dev", "dataset_kwargs": files}
    reported = {**one, "task": "two", "dataset_kwargs": files}
    with pytest.raises(UsageError, match="'one' takes its few-shot examples from the documents th"):
        harness_task(folder, chosen, reported)
    harness_task(folder, chosen, reported, how=Harness(fewshot=0))
    harness_task(folder, reported, chosen)  # test may see what was chosen by


def test_it_is_found_by_a_text_and_on_the_command_line(
    tmp_path: Path, config: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    model_folder(tmp_path / "base", 0, favour="green")
    model_folder(tmp_path / "blue", 0, favour="blue")
    path = tmp_path / "sky.yaml"
    path.write_text(yaml.safe_dump(config("sky", [{"q": "the sky is", "gold": 0}] * 6)))
    (task,) = load_tasks(f"lm_eval:base:{path}")
    assert task.name == "sky"
    assert evaluate(tensors(tmp_path / "blue"), [task], "test") == {"sky": 1.0}
    words = ["search", "base", "sky=blue", "--tasks", f"lm_eval:base:{path}", "--grid", "0,1"]
    assert run(words) == 0
    assert "scale 1, chosen on validation (objective 1.0000)" in capsys.readouterr().out


def test_metrics_that_are_better_when_lower_are_refused(tmp_path: Path, config: Any) -> None:
    folder = model_folder(tmp_path / "base", 0)
    metrics = [metric("brier_score", "brier_score", False), metric("acc")]
    model = tensors(folder)
    for name, sentence in (
        ("brier_score", "'brier_score' of 'colours' is better when lower; use one of"),
        ("acd", "'colours' has no metric 'acd'; did you mean 'acc'"),
    ):
        task = harness_task(folder, config(metric_list=metrics), how=Harness(metric=name))
        with pytest.raises(UsageError, match=sentence):
            task.score(model, "test")
    task = harness_task(folder, config(metric_list=metrics))  # the first that is better higher
    assert 0 <= task.score(model, "test") <= 1


def test_what_cannot_be_asked_is_a_sentence(tmp_path: Path, config: Any) -> None:
    folder = model_folder(tmp_path / "base", 0)
    lost = {**config("lost"), "dataset_kwargs": {"data_files": "no.json"}}
    for call, error, sentence in [
        (lambda: load_tasks("lm_eval:base"), UsageError, "names no task; write lm_eval:"),
        (lambda: harness_task("nowhere", config()), FileError, "nowhere: no such model folder"),
        (lambda: harness_task(folder, config(docs=DOCS[:1])), UsageError, "too few for two"),
        (lambda: harness_task(folder, lost), FileError, "task 'lost' cannot be loaded"),
    ]:
        with pytest.raises(error, match=sentence):
            call()
    task = harness_task(folder, config())
    broken = {name: np.full_like(value, math.nan) for name, value in tensors(folder).items()}
    with pytest.raises(ValueProblem, match="scored nan"):
        evaluate(broken, [task], "test")


def test_names_of_the_harness_are_known(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "base", 0)
    with pytest.raises(
        UsageError, match=r"lm_eval has no task 'arc_esay'; did you mean 'arc_easy'"
    ):
        harness_task(folder, "arc_esay")
