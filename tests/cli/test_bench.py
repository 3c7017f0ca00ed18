"""taskbasis bench: one table from one command, kept between runs; wrong input in one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from taskbasis.bench import running
from taskbasis.cli import run
from taskbasis.report import Report


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    rng = np.random.default_rng(0)
    for name, words in (("mood", ("good", "bad")), ("size", ("big", "small"))):
        for part, count in (("train", 240), ("test", 40)):
            kinds = rng.integers(0, 2, count)
            lines = [f"{kind}\tthe {words[kind]} one\n" for kind in kinds]
            (folder / f"{name}.{part}.tsv").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small encoder in miniature: the verb has no option for it."""
    from taskbasis.bench import worlds
    from taskbasis.suites.text_model import TextSettings

    small = TextSettings(
        steps=3, batch=8, head_texts=40, hidden=16, layers=1, attention_heads=2, words=30,
        pretrain_steps=2,
    )  # fmt: skip
    prepare = worlds.text.prepare

    def tiny(*args: object) -> object:
        return prepare(*args[:6], small, *args[7:])  # type: ignore[arg-type]

    monkeypatch.setattr(worlds.text, "prepare", tiny)


def command(texts: Path, out: Path, *more: str) -> list[str]:
    return [
        "bench", "text", "--data", str(texts), "-o", str(out), "--seeds", "1", "--samples", "4",
        "--validation", "10", "--test", "20", "-j", "1", *more,
    ]  # fmt: skip


def test_one_command_gives_the_table_and_keeps_it(
    texts: Path, tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    only = ("--only", "average", "--only", "sta weight 0.1, λ 1")
    assert run(command(texts, out, *only)) == 0
    first = capsys.readouterr()
    for expected in ("individual models", "STA weight 0.1, λ 1", "worst", "Split: test"):
        assert expected in first.out
    assert "checkpoints: a small BERT, pre-trained here on the texts" in first.out
    assert "seed 0: fine-tuning for mood (1 of 2)" in first.err
    report = Report.from_json((out / "bench-text.json").read_text(encoding="utf-8"))
    assert len(report.methods) == 4
    assert {r.n for r in report.metric("addition accuracy").rows} == {2}
    assert run(command(texts, out, *only, "-q")) == 0
    again = capsys.readouterr()
    assert again.out == first.out
    assert again.err == ""


def test_stopping_says_what_is_kept(
    texts: Path,
    tmp_path: Path,
    quick: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stopped(*args: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "add", stopped)
    assert run(command(texts, tmp_path / "out", "--only", "average")) == 130
    assert "what was made and measured is kept" in capsys.readouterr().err
    assert (tmp_path / "out" / "models" / "text" / "seed-0" / "models" / "tuned" / "mood").is_dir()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digit"], "there is no suite 'digit'; did you mean 'digits'?"),
        (["text"], "the suite text needs --data"),
        (["digits", "--data", "x"], "leave out --data"),
        (["digits", "--only", "tyes"], "no method of the bench is 'tyes'; did you mean 'ties'?"),
        (["digits", "--test", "5"], "leave out the limits"),
        (["text", "--data", "nowhere"], "nowhere holds no NAME.train.tsv"),
        (["images", "--data", "nowhere"], "nowhere/mnist.npz is missing"),
    ],
)
def test_wrong_input_is_one_sentence(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(["bench", *arguments, "-o", str(out), "--seeds", "1"]) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not out.exists()


def test_help_says_what_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "--help"]) == 0
    text = capsys.readouterr().out
    assert "digits, images, text or clip" in text
    assert "--encoder" in text
