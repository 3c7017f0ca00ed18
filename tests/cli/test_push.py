"""taskbasis push: what would be sent, and what is refused before anything is."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import click
import pytest

from taskbasis import cli
from taskbasis.cli.push import push
from taskbasis.io import upload as upload_module


@pytest.fixture(autouse=True)
def verb(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verb under its name, whether or not the table of verbs has it."""
    monkeypatch.setitem(cli.VERBS, "push", "Send a model to the Hugging Face hub.")
    assert isinstance(push, click.Command)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What would have been sent."""
    calls: list[tuple[Any, ...]] = []

    def upload(folder: str, repo: str, *, private: bool, revision: str | None) -> str:
        calls.append((folder, repo, private, revision))
        return f"https://hub/{repo}"

    monkeypatch.setattr(upload_module, "upload", upload)
    return calls


def write_card(desk: Path) -> None:
    (desk / "base" / "README.md").write_text("# base\n")


def test_a_dry_run(call: Any, desk: Path, sent: list[Any]) -> None:
    write_card(desk)
    answer = call("push base me/merged --dry-run")
    assert (answer.code, answer.err) == (0, "")
    lines = answer.out.splitlines()
    assert [line.split()[-1] for line in lines[:-1]] == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert lines[-1].startswith("3 files, ")
    assert lines[-1].endswith(" would be sent to me/merged")
    assert sent == []


def test_a_dry_run_names_what_is_not_sent(call: Any, desk: Path, sent: list[Any]) -> None:
    write_card(desk)
    (desk / "base" / ".cache").mkdir()
    (desk / "base" / ".cache" / "x").write_text("x")
    lines = call("push base me/merged --dry-run").out.splitlines()
    assert lines[3:] == ["  not sent  .cache (hidden)", lines[-1]]
    assert lines[-1].startswith("3 files, ")


def test_a_link_out_of_the_folder_is_refused(call: Any, desk: Path, sent: list[Any]) -> None:
    (desk / "base" / "notes.txt").symlink_to(desk / "a" / "config.json")
    for dry in ("", " --dry-run"):
        answer = call("push base me/merged" + dry)
        assert answer.code == 1
        assert answer.sentence == (
            f"base/notes.txt: is a link to {desk}/a/config.json, outside of the folder, which "
            "would be sent unseen; put a copy in its place if it is meant"
        )
    assert sent == []


def test_a_dry_run_to_a_private_branch(call: Any, desk: Path, sent: list[Any]) -> None:
    write_card(desk)
    answer = call("push base hf://me/merged --dry-run --private --revision v2")
    assert answer.out.splitlines()[-1].endswith(" would be sent to me/merged@v2 (private)")
    assert sent == []


def test_sending(call: Any, desk: Path, sent: list[Any]) -> None:
    write_card(desk)
    answer = call("push base me/merged --private --revision v2")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == "sent to https://hub/me/merged\n"
    assert sent == [("base", "me/merged", True, "v2")]


def test_no_card(call: Any, desk: Path, sent: list[Any]) -> None:
    answer = call("push base me/merged")
    assert answer.code == 0
    assert answer.err == ("warning: base has no README.md; the hub will show no card of it\n")
    assert sent


def test_paths_of_this_machine(call: Any, desk: Path, sent: list[Any]) -> None:
    made = call(f"add {desk}/base {desk}/a -o out -q")
    assert made.code == 0
    (desk / "out" / "README.md").write_text("# made\n")
    answer = call("push out me/merged --dry-run")
    assert answer.err == (
        f"warning: its recipe names paths of this machine, such as {desk}/base; they will be seen "
        "there\n"
    )
    assert call("add base a -o out2 -q").code == 0
    (desk / "out2" / "README.md").write_text("# made\n")
    assert call("push out2 me/merged --dry-run").err == ""


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ("push none me/merged", 1, "none: no such folder"),
        (
            "push base/config.json me/merged",
            1,
            "base/config.json: is a file; give the folder that it stands in",
        ),
        ("push base merged", 2, "merged: is not a repository of the hub; write owner/name"),
        (
            "push base me/merged@v1",
            2,
            "me/merged@v1: is not a repository of the hub; write owner/name; a branch is named "
            "with --revision",
        ),
    ],
)
@pytest.mark.parametrize("dry", ["", " --dry-run"])
def test_refusals(
    call: Any, desk: Path, sent: list[Any], words: str, code: int, sentence: str, dry: str
) -> None:
    answer = call(words + dry)
    assert (answer.code, answer.sentence) == (code, sentence)
    assert sent == []


def test_what_could_not_be_opened_is_not_sent(call: Any, desk: Path, sent: list[Any]) -> None:
    file = desk / "base" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    answer = call("push base me/merged")
    assert answer.code == 1
    assert "truncated" in answer.sentence
    (desk / "notes").mkdir()
    (desk / "notes" / "x.txt").write_text("x")
    assert "holds no weights" in call("push notes me/merged").sentence
    assert sent == []


def test_an_adapter_is_checked_as_one(call: Any, desk: Path, sent: list[Any]) -> None:
    (desk / "a" / "adapter_config.json").write_text("{}")
    answer = call("push a me/merged")
    assert answer.code == 1
    assert "adapter" in answer.sentence
    assert sent == []


def test_offline(call: Any, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    write_card(desk)
    answer = call("push base me/merged")
    assert answer.code == 1
    assert answer.sentence == (
        "me/merged: nothing can be sent while HF_HUB_OFFLINE is set; unset it"
    )


def test_without_a_token(call: Any, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(desk / "none"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    write_card(desk)
    assert call("push base me/merged").sentence == (
        "me/merged: sending needs a token; log in with hf auth login, or set HF_TOKEN"
    )


def test_help(call: Any) -> None:
    said = call("push --help").out
    for word in ("FOLDER", "REPO_ID", "--private", "--revision", "--dry-run"):
        assert word in said
