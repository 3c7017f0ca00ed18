"""Sending a folder to the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from taskbasis.errors import FileError, UsageError
from taskbasis.io.hub import brief, library, offline
from taskbasis.io.ids import parse_id


def files_to_send(folder: str | Path) -> dict[str, int]:
    """The files of a folder that :func:`upload` sends, by their names there, with their bytes.

    Hidden files are not sent, see :func:`hidden_files`; links to files of the folder are, as
    files.

    Raises:
        FileError: there is no folder, or it holds nothing; or a link leads out of it or to a
            folder, or something is no plain file: it would be sent unseen, or left out unseen.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = (
            "is a file; give the folder that it stands in" if folder.exists() else "no such folder"
        )
        raise FileError(f"{folder}: {what}")
    found = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if _hidden(inside):
            continue
        if path.is_symlink():
            _check_link(path, folder)
        if path.is_file():
            found[inside.as_posix()] = path.stat().st_size
        elif not path.is_dir():
            raise FileError(f"{path}: is no plain file, so it cannot be sent; remove it")
    if not found:
        raise FileError(f"{folder}: holds nothing to send")
    return found


def hidden_files(folder: str | Path) -> list[str]:
    """What of a folder is not sent since its name begins with a dot: files, and whole folders."""
    folder = Path(folder)
    names = [path.relative_to(folder) for path in sorted(folder.rglob(".*"))]
    return [name.as_posix() for name in names if not _hidden(name.parent)]


def _hidden(inside: Path) -> bool:
    return any(part.startswith(".") for part in inside.parts)


def _check_link(path: Path, folder: Path) -> None:
    target = Path(os.path.realpath(path))
    if not target.exists():
        raise FileError(f"{path}: is a link to {target}, where nothing is; remove it")
    if not target.is_relative_to(folder.resolve()):
        raise FileError(
            f"{path}: is a link to {target}, outside of the folder, which would be sent unseen; "
            "put a copy in its place if it is meant"
        )
    if target.is_dir():
        raise FileError(
            f"{path}: is a link to the folder {target}, whose files would be left out; put a copy "
            "in its place"
        )


def repo_to_send_to(text: str) -> str:
    """The repository that a text names, as ``owner/name`` or ``hf://owner/name``.

    Raises:
        UsageError: it names none, or a revision or folder with it.
    """
    wanted = parse_id(text)
    if wanted is None or wanted.revision or wanted.folder:
        more = "; a branch is named with --revision" if wanted and wanted.revision else ""
        raise UsageError(f"{text}: is not a repository of the hub; write owner/name{more}")
    return wanted.repo


def upload(
    folder: str | Path, repo: str, *, private: bool = False, revision: str | None = None
) -> str:
    """Send a folder's files to a model repository, made where it does not exist; returns its URL.

    Args:
        folder: what to send, see :func:`files_to_send`.
        repo: ``owner/name``.
        private: whether it must be private; one that exists and is public is refused.
        revision: the branch, made where it does not exist; the main one by default.

    Raises:
        FileError: the network is off, there is no token, or the hub refuses; one sentence.
    """
    names = list(files_to_send(folder))
    hub = library(f"sending {folder} to the hub")
    if offline(hub):
        raise FileError(f"{repo}: nothing can be sent while HF_HUB_OFFLINE is set; unset it")
    if hub.get_token() is None:
        raise FileError(
            f"{repo}: sending needs a token; log in with hf auth login, or set HF_TOKEN"
        )
    api = hub.HfApi()
    try:
        if not _exists(api, repo, private):
            api.create_repo(repo, private=private or None)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            revision=revision,
            allow_patterns=[_literal(name) for name in names],
            commit_message="Upload a model made by taskbasis",
        )
    except FileError:
        raise
    except Exception as error:  # noqa: BLE001 - the network's errors are of several libraries
        raise FileError(f"{repo}: could not be sent: {_refusal(hub, error)}") from None
    return f"{hub.constants.ENDPOINT}/{repo}" + (f"/tree/{revision}" if revision else "")


def _literal(name: str) -> str:
    """A pattern that matches one name only."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _exists(api: Any, repo: str, private: bool) -> bool:
    try:
        found = api.model_info(repo)
    except Exception as error:
        if "RepositoryNotFoundError" not in {kind.__name__ for kind in type(error).__mro__}:
            raise
        return False
    if private and not found.private:
        raise FileError(
            f"{repo}: exists and is public, so --private cannot hold; make it private at the hub, "
            "or name another"
        )
    return True


def _refusal(hub: ModuleType, error: Exception) -> str:
    code = getattr(getattr(error, "response", None), "status_code", None)
    if code in (401, 403):
        return (
            f"{hub.constants.ENDPOINT} does not let this token write there ({code}); log in with "
            "hf auth login, with a token that may write"
        )
    return brief(error)
