"""Sending a folder to the hub: to a hub in miniature, by the real library."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants

from taskbasis.errors import FileError, UsageError
from taskbasis.io.hub import resolve
from taskbasis.io.upload import files_to_send, hidden_files, repo_to_send_to, upload

TENSORS = {"w": np.ones(3, np.float32)}


@pytest.fixture
def model(write_folder: Callable[..., Path]) -> Path:
    folder = write_folder("m", TENSORS, **{"config.json": "{}", "README.md": "# card"})
    (folder / "1_Dense").mkdir()
    (folder / "1_Dense" / "config.json").write_text("[1]")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "secret.json").write_text("no")
    (folder / ".token").write_text("no")
    (folder / "odd[1]*.txt").write_text("odd")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_to_send(folder)}


def test_what_is_sent(model: Path) -> None:
    sizes = files_to_send(model)
    assert list(sizes) == [
        "1_Dense/config.json",
        "README.md",
        "config.json",
        "model.safetensors",
        "odd[1]*.txt",
    ]
    assert sizes["config.json"] == 2


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("none", "no such folder"),
        ("m/config.json", "is a file; give the folder that it stands in"),
        ("m/.cache/..", ""),
        ("empty", "holds nothing to send"),
    ],
)
def test_what_cannot_be_sent(tmp_path: Path, model: Path, name: str, says: str) -> None:
    (tmp_path / "empty" / ".git").mkdir(parents=True)
    (tmp_path / "empty" / ".git" / "config").write_text("")
    if not says:
        assert files_to_send(tmp_path / name)
        return
    with pytest.raises(FileError) as caught:
        files_to_send(tmp_path / name)
    assert str(caught.value) == f"{tmp_path / name}: {says}"


@pytest.mark.parametrize("text", ["me/merged", "hf://me/merged", "hf://models/me/merged"])
def test_where_to(text: str) -> None:
    assert repo_to_send_to(text) == "me/merged"


@pytest.mark.parametrize("text", ["merged", "./me/merged", "hf://me/merged/sub", "a/b/c"])
def test_where_not_to(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        repo_to_send_to(text)
    assert str(caught.value) == f"{text}: is not a repository of the hub; write owner/name"


def test_a_branch_is_an_option() -> None:
    with pytest.raises(UsageError, match="write owner/name; a branch is named with --revision"):
        repo_to_send_to("me/merged@v1")


def test_a_new_repository(hub: Any, model: Path) -> None:
    assert upload(model, "me/merged") == f"{hub.url}/me/merged"
    assert hub.repos["me/merged"].received == {"main": content(model)}
    assert not hub.repos["me/merged"].private


def test_a_private_one(hub: Any, model: Path) -> None:
    upload(model, "me/merged", private=True)
    assert hub.repos["me/merged"].private


def test_one_that_exists(hub: Any, model: Path) -> None:
    hub.add("me/merged", {"old.txt": b"stays"}, private=True)
    upload(model, "me/merged", private=True)
    assert "POST /api/repos/create" not in hub.requests
    assert hub.repos["me/merged"].received == {"main": content(model)}


def test_a_branch(hub: Any, model: Path) -> None:
    for _ in range(2):  # made, then found
        url = upload(model, "me/merged", revision="v2")
        assert url == f"{hub.url}/me/merged/tree/v2"
    assert hub.repos["me/merged"].received == {"v2": content(model)}


def test_what_is_public_is_not_private(hub: Any, model: Path) -> None:
    """The library would upload there and say nothing."""
    repo = hub.add("me/merged", {})
    with pytest.raises(FileError) as caught:
        upload(model, "me/merged", private=True)
    assert str(caught.value) == (
        "me/merged: exists and is public, so --private cannot hold; make it private at the hub, or "
        "name another"
    )
    assert repo.received == {}


def test_what_was_sent_comes_back(hub: Any, model: Path) -> None:
    upload(model, "me/merged")
    hub.add("me/again", hub.repos["me/merged"].received["main"])
    found = resolve("me/again")
    assert (found / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


def test_offline(hub: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileError) as caught:
        upload(model, "me/merged")
    said = "me/merged: nothing can be sent while HF_HUB_OFFLINE is set; unset it"
    assert str(caught.value) == said
    assert hub.requests == []


def test_without_a_token(
    hub: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(FileError) as caught:
        upload(model, "me/merged")
    said = "me/merged: sending needs a token; log in with hf auth login, or set HF_TOKEN"
    assert str(caught.value) == said
    assert hub.requests == []


@pytest.mark.parametrize("exists", [True, False])
def test_a_token_that_may_not_write(hub: Any, model: Path, exists: bool) -> None:
    hub.may_write = False
    if exists:
        hub.add("me/merged", {})
    with pytest.raises(FileError) as caught:
        upload(model, "me/merged")
    assert str(caught.value) == (
        f"me/merged: could not be sent: {hub.url} does not let this token write there (403); log "
        "in with hf auth login, with a token that may write"
    )


def test_no_network(hub: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FileError, match=r"^me/merged: could not be sent: ") as caught:
        upload(model, "me/merged")
    assert "\n" not in str(caught.value)


def test_links_inside_are_sent_as_files(model: Path) -> None:
    (model / "again.json").symlink_to("config.json")
    (model / ".secret.json").symlink_to("/etc/passwd")  # hidden: neither sent nor looked at
    found = files_to_send(model)
    assert found["again.json"] == found["config.json"]
    assert ".secret.json" not in found


def test_what_would_be_sent_or_left_out_unseen_is_refused(model: Path) -> None:
    outside = model.parent / "outside"
    outside.mkdir()
    (outside / "key.txt").write_text("secret")
    for name, target, sentence in (
        ("a.txt", "../outside/key.txt", "a.txt: is a link to .*key.txt, outside of the folder, wh"),
        ("b", str(outside), "b: is a link to .*outside, outside of the folder"),
        ("c.txt", "nowhere.txt", "c.txt: is a link to .*nowhere.txt, where nothing is; remove it"),
        ("d", "1_Dense", "d: is a link to the folder .*1_Dense, whose files would be left out"),
        ("e.txt", "e.txt", "e.txt: is a link to "),
    ):
        (model / name).symlink_to(target)
        for send in (files_to_send, lambda folder: upload(folder, "me/merged")):
            with pytest.raises(FileError, match=sentence):
                send(model)
        (model / name).unlink()
    os.mkfifo(model / "1_Dense" / "pipe")
    with pytest.raises(FileError, match="pipe: is no plain file, so it cannot be sent; remove it"):
        files_to_send(model)


def test_a_folder_that_is_a_link_itself(model: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(model)
    (model / "again.json").symlink_to("config.json")
    assert files_to_send(tmp_path / "link") == files_to_send(model)


def test_what_is_hidden_is_known(model: Path) -> None:
    (model / "1_Dense" / ".cache").write_text("")
    assert hidden_files(model) == [".cache", ".token", "1_Dense/.cache"]
    assert not set(hidden_files(model)) & set(files_to_send(model))
