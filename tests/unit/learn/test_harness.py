"""What is said of lm-evaluation-harness without it; tests/reference/test_lm_eval.py has it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from taskbasis.errors import FileError, MissingExtraError, UsageError
from taskbasis.evaluate import load_tasks
from taskbasis.learn.harness import Harness, _metric, harness_task

FOUND = {
    "results": {
        "t": {"alias": "t", "acc,none": 0.5, "acc_stderr,none": 0.1, "acc_norm,strict": 0.25,
              "loss,none": 3.0, "note,none": "text"},
    },
    "higher_is_better": {"t": {"acc": True, "acc_norm": True, "loss": False}},
}  # fmt: skip


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm_eval is installed")
def test_a_sentence_says_what_to_install(tmp_path: Path) -> None:
    sentence = r"a task of lm-evaluation-harness needs the package 'lm_eval'.*taskbasis\[harness\]"
    with pytest.raises(MissingExtraError, match=sentence):
        harness_task(tmp_path, "arc_easy")
    with pytest.raises(MissingExtraError, match=sentence):
        load_tasks(f"lm_eval:{tmp_path}:arc_easy")


def test_what_has_no_folder_or_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="nowhere: no such model folder; write lm_eval:"):
        harness_task("nowhere", "arc_easy")
    for text in ("lm_eval:folder", "lm_eval::task", "lm_eval:folder:"):
        with pytest.raises(UsageError, match="names no task"):
            load_tasks(text)


def test_options_that_mean_nothing_are_refused() -> None:
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(UsageError, match="leaves one split empty"):
            Harness(share=share)
    with pytest.raises(UsageError, match="a limit of 0 asks nothing"):
        Harness(limit=0)
    with pytest.raises(UsageError, match="a batch of -1 asks nothing"):
        Harness(batch=-1)
    with pytest.raises(UsageError, match="-1 few-shot examples"):
        Harness(fewshot=-1)


def test_a_metric_is_found_by_its_name_with_or_without_its_filter() -> None:
    assert _metric(FOUND, "t", None) == 0.5
    assert _metric(FOUND, "t", "acc") == _metric(FOUND, "t", "acc,none") == 0.5
    assert _metric(FOUND, "t", "acc_norm") == 0.25
    with pytest.raises(UsageError, match="'loss' of 't' is better when lower; use one of"):
        _metric(FOUND, "t", "loss")
    with pytest.raises(UsageError, match="'t' has no metric 'acc_nrom'; did you mean 'acc_norm'"):
        _metric(FOUND, "t", "acc_nrom")
    only = {"results": {"t": {"loss,none": 3.0}}, "higher_is_better": {"t": {"loss": False}}}
    with pytest.raises(UsageError, match="no metric that is better when higher"):
        _metric(only, "t", None)
