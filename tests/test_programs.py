"""docs/programs.md: its examples run, in their order, on tiny models made on the spot."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "programs.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
WORDS = ["[UNK]", "[EOS]", "sky", "is", "blue", "green", "the"]

MY_TASKS = """
import numpy as np
from taskbasis import Checkpoint, Task

def close(name):
    target = {n: i.load() for n, i in Checkpoint(name).store.items()}
    def score(model, split):
        away = sum(float(((model[n] - target[n]) ** 2).sum()) for n in target)
        return 1 / (1 + away)
    return Task(name, score)

tasks = [close("math"), close("code")]
"""

COLOURS = """
task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: colours.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: [blue, green]
doc_to_target: gold
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base``, ``math`` and ``code``, a module of tasks, and one task of the harness."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    from taskbasis.learn.skeleton import quiet

    folder = tmp_path_factory.mktemp("programs")
    config = transformers.GPT2Config(
        vocab_size=len(WORDS), n_positions=16, n_embd=8, n_layer=1, n_head=2,
        bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    plain = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: n for n, w in enumerate(WORDS)}, unk_token="[UNK]")
    )
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config)
        for name in ("base", "math", "code"):
            model.save_pretrained(folder / name)
            transformers.PreTrainedTokenizerFast(
                tokenizer_object=plain, unk_token="[UNK]", eos_token="[EOS]"
            ).save_pretrained(folder / name)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.02 * torch.randn(parameter.shape))
    (folder / "my_tasks.py").write_text(MY_TASKS)
    (folder / "colours.yaml").write_text(COLOURS)
    lines = [json.dumps({"q": "the sky is", "gold": n % 2}) for n in range(8)]
    (folder / "colours.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.filterwarnings("default")  # those of other packages are their own affair
def test_the_examples_run(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from taskbasis.learn.skeleton import quiet

    monkeypatch.chdir(world)
    monkeypatch.syspath_prepend(world)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(world / "cache"))
    names: dict[str, Any] = {}
    ran = 0
    for block in BLOCKS:
        if "harness" in block and importlib.util.find_spec("lm_eval") is None:
            continue  # scripts/harness runs it
        if "tune_addition" in block and importlib.util.find_spec("optuna") is None:
            names |= _vectors()
            continue
        with quiet():
            exec(compile(block, str(PAGE), "exec"), names)
        ran += 1
    assert ran >= 2
    said = capsys.readouterr().out
    assert re.search(r"\d+ tensors moved, 0\.\d% of the update lost to rounding", said)
    merged = names["merged"]
    assert merged["lm_head.weight"].data_ptr() == merged["transformer.wte.weight"].data_ptr()
    if "found" in names:
        found = names["found"]
        assert found.score == max(trial.objective for trial in found.trials)
        assert str(found.coefficients) in said
    if "colours" in names:
        assert "{'colours': " in said


def _vectors() -> dict[str, Any]:
    """What the example before the last would have left."""
    from taskbasis import Checkpoint, TaskVector

    base = Checkpoint("base")
    return {"base": base, "vectors": {"math": TaskVector(base, "math")}}
