"""What people call models: local paths, and ids of the Hugging Face hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote

from taskbasis.errors import FileError, UsageError
from taskbasis.io.suffixes import WEIGHT_SUFFIXES

_SCHEME = re.compile(r"hf:/{1,2}")  # pathlib makes one slash of two
_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
_PLAIN = re.compile(rf"(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>[^/\s]+))?")
_REFS = r"refs/(?:pr|convert)/[^/\s]+"
_FULL = re.compile(
    rf"(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>{_REFS}|[^/\s]+))?"
    r"(?:/(?P<folder>.*))?"
)
_KINDS = {
    "datasets": "a dataset",
    "spaces": "a space",
    "kernels": "a kernel",
    "buckets": "a bucket",
}
_FILE_ENDS = (*WEIGHT_SUFFIXES, ".json", ".yml", ".yaml", ".txt", ".md")


@dataclass(frozen=True)
class HubId:
    """A model of the hub, at a revision; or one folder or file of it.

    >>> str(HubId("owner/name", "v1", "unet"))
    'hf://owner/name@v1/unet'
    """

    repo: str
    revision: str | None = None
    folder: str = ""

    @property
    def label(self) -> str:
        """The repository and its revision, as messages call it."""
        return self.repo + (f"@{self.revision}" if self.revision else "")

    def __str__(self) -> str:
        named = self.revision or ""
        revision = named if re.fullmatch(_REFS, named) else quote(named, safe="")
        at = f"@{revision}" if revision else ""
        return f"hf://{self.repo}{at}" + (f"/{self.folder}" if self.folder else "")


def parse_id(text: str) -> HubId | None:
    """The model of the hub that a text names; None where it can only mean a local path.

    A local path is what has no slash or more than one, starts with ``.`` or ``~`` or ``/``, or
    ends like a file.

    Raises:
        UsageError: it starts with ``hf://`` and names no model.

    >>> parse_id("mistralai/Mistral-7B-v0.1@main")
    HubId(repo='mistralai/Mistral-7B-v0.1', revision='main', folder='')
    >>> parse_id("./mistralai/Mistral-7B"), parse_id("out/model.safetensors"), parse_id("gpt2")
    (None, None, None)
    """
    scheme = _SCHEME.match(text)
    if scheme is None:
        plain = None if text.endswith(_FILE_ENDS) else _PLAIN.fullmatch(text)
        return HubId(plain["repo"], plain["revision"]) if plain else None
    rest = text[scheme.end() :]
    kind, _, below = rest.partition("/")
    if kind in _KINDS:
        raise UsageError(f"{text}: is {_KINDS[kind]} of the hub, not a model")
    found = _FULL.fullmatch(below if kind == "models" and "/" in below else rest)
    parts = PurePosixPath(found["folder"] or "").parts if found else ()
    if found is None or ".." in parts:
        raise UsageError(f"{text}: names no model; write hf://owner/name[@revision][/folder]")
    revision = unquote(found["revision"]) if found["revision"] else None
    return HubId(found["repo"], revision, "/".join(parts))


def is_url(text: str) -> bool:
    """Whether it starts with ``hf://``, as pathlib writes that, too."""
    return _SCHEME.match(text) is not None


def check_there(text: str) -> None:
    """Refuse what can only mean a local path, where nothing stands.

    What may also be a URL, a task of a library, a model with an adapter or NAME=PATH is left to who
    opens it.

    Raises:
        FileError: the message says what a model of the hub is called, where it may be meant.
    """
    if not re.search("[:+=]", text) and not Path(text).exists() and parse_id(text) is None:
        raise missing(text)


def missing(text: str) -> FileError:
    """The error of a path where nothing stands."""
    return FileError(f"{text}: no such file or folder{_hint(text)}")


def _hint(text: str) -> str:
    if re.fullmatch(_NAME, text) and not text.endswith(_FILE_ENDS):
        return f"; a model of the hub has an owner: write owner/{text}"
    if text.count("/") > 1 and _PLAIN.fullmatch("/".join(text.split("/")[:2])):
        return f"; for a folder of a model of the hub, write hf://{text}"
    return ""


def cached_id(path: str | Path) -> HubId | None:
    """Which model of the hub a path of its cache is, at which commit; None for other paths.

    >>> print(cached_id("/hub/models--owner--name/snapshots/0123abcd/unet"))
    hf://owner/name@0123abcd/unet
    """
    parts = Path(path).parts
    for at, part in enumerate(parts[:-2]):
        if part.startswith("models--") and parts[at + 1] == "snapshots":
            repo = part.removeprefix("models--").replace("--", "/", 1)
            return HubId(repo, parts[at + 2], "/".join(parts[at + 3 :]))
    return None
