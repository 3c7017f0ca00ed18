"""Models of the Hugging Face hub: ids resolve through its own cache, offline included.

    owner/name[@revision]                     a model, unless a local path of that name exists
    hf://owner/name[@revision][/folder]       the same, never a local path; of one folder or file

Everything is fetched by ``huggingface_hub``, so its settings count: ``HF_HUB_CACHE``, ``HF_TOKEN``,
``HF_ENDPOINT``, and ``HF_HUB_OFFLINE`` for no network at all.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from types import ModuleType

from taskbasis.errors import FileError, UsageError, require
from taskbasis.io.ids import HubId, is_url, missing, parse_id
from taskbasis.io.suffixes import SAFETENSORS, TORCH

_BESIDE = ("*.json", "*.jinja", "*.txt", "*.model", "*.spm", "*.tiktoken", "*.py")
"""What models have beside their weights: config, tokenizer, code."""
_TEXTS = ("README.md", "LICENSE*")
"""The card and the licence; a cache without them will do."""
_WEIGHTS = f"*{SAFETENSORS}"
_ELSEWHERE = ("checkpoint-*", "onnx/*", "openvino/*", "coreml/*", ".git*")
"""Other weights in a repository's own folders; read where the folder is named."""
_COPIES = (*_ELSEWHERE, "original/*", "*consolidated*")
"""With those the same weights in another layout; read where a repository has no others."""
_NOT_WEIGHTS = (*_ELSEWHERE, "training_args.bin", "optimizer.bin")


def resolve(path_or_id: str | Path, revision: str | None = None, *, weights: bool = True) -> Path:
    """Where a model stands on this machine; one of the hub is brought into its cache first.

    A local path wins, and is returned as it is. Weights come as safetensors, and as torch files
    only where a repository has nothing else.

    Args:
        path_or_id: a local path, ``owner/name[@revision]`` or
            ``hf://owner/name[@revision][/folder]``.
        revision: a branch, tag or commit, where the id names none.
        weights: whether the weights are wanted; without, the tokenizer and its like are brought.

    Raises:
        FileError: it is neither here nor, as far as can be known, on the hub; one sentence says
            why and what to do.
        UsageError: a revision of a local path, or two revisions.
        MissingExtraError: huggingface_hub is not installed.
    """
    text = str(path_or_id)
    local = Path(path_or_id)
    if not is_url(text) and local.exists():
        if revision is not None:
            raise UsageError(
                f"{text}: is a local path, which has no revision {revision!r}; leave the revision "
                "out, or write hf:// before a model of the hub"
            )
        return local
    wanted = parse_id(text)
    if wanted is None:
        raise missing(text)
    if wanted.revision is not None and revision not in (None, wanted.revision):
        raise UsageError(f"{text}: two revisions are asked, that and {revision!r}; keep one")
    owner = wanted.repo.split("/")[0]
    if not is_url(text) and Path(owner).is_dir():
        raise FileError(
            f"{text}: the folder {owner!r} is here and holds no such model; correct the name, or "
            f"write hf://{text} for a model of the hub"
        )
    wanted = HubId(wanted.repo, wanted.revision or revision, wanted.folder)
    hub = library(f"{text} is no local path, and a model of the hub")
    return _within(_fetch(hub, wanted, weights), wanted)


def _fetch(hub: ModuleType, wanted: HubId, weights: bool) -> Path:
    """The snapshot's folder: with safetensors, or with what else there is where it has none."""
    if PurePosixPath(wanted.folder).suffix in (SAFETENSORS, *TORCH):
        return _snapshot(hub, wanted, [wanted.folder], [])
    inside = f"{wanted.folder}/" if wanted.folder else ""
    beside = [inside + pattern for pattern in _BESIDE]
    first = [*beside, inside + _WEIGHTS] if weights else beside
    found = _with_texts(hub, wanted, first, () if inside else _COPIES)
    if not weights or _holds(found / wanted.folder, (SAFETENSORS,)):
        return found
    everything = [*first, inside + "*.bin"]
    found = _with_texts(hub, wanted, everything, () if inside else _NOT_WEIGHTS)
    if offline(hub) and not _holds(found / wanted.folder, (SAFETENSORS, *TORCH)):
        raise FileError(
            f"{wanted.label}: is in the hub's cache without its weights ({found}), and "
            f"HF_HUB_OFFLINE is set; {_online(wanted)}"
        )
    return found


def _holds(folder: Path, ends: tuple[str, ...]) -> bool:
    return folder.is_dir() and any(path.name.endswith(ends) for path in folder.iterdir())


def _with_texts(hub: ModuleType, wanted: HubId, allow: list[str], ignore: Sequence[str]) -> Path:
    """The snapshot with its card, or without where only that is missing from the cache."""
    try:
        return _snapshot(hub, wanted, [*allow, *_TEXTS], ignore)
    except _IncompleteError:
        return _snapshot(hub, wanted, allow, ignore)


class _IncompleteError(FileError):
    """Only a part of the snapshot is in the cache, and the hub cannot be asked."""


def _snapshot(hub: ModuleType, wanted: HubId, allow: list[str], ignore: Sequence[str]) -> Path:
    off = offline(hub)
    try:
        return Path(
            hub.snapshot_download(
                wanted.repo,
                revision=wanted.revision,
                allow_patterns=allow,
                ignore_patterns=list(ignore),
                local_files_only=off,
            )
        )
    except Exception as error:  # noqa: BLE001 - the network's errors are of several libraries
        raise _explained(hub, error, wanted, off) from None


def library(purpose: str) -> ModuleType:
    """``huggingface_hub``, with its settings.

    Raises:
        MissingExtraError: it is not installed.
    """
    require("huggingface_hub.constants", "hub", purpose)  # the package imports it only when asked
    return require("huggingface_hub", "hub", purpose)


def offline(hub: ModuleType) -> bool:
    """Whether the network is switched off."""
    return bool(hub.constants.HF_HUB_OFFLINE)


def _online(wanted: HubId) -> str:
    revision = f" --revision {wanted.revision}" if wanted.revision else ""
    return (
        "unset HF_HUB_OFFLINE, or fetch it where there is a network: "
        f"hf download {wanted.repo}{revision}"
    )


def _explained(hub: ModuleType, error: Exception, wanted: HubId, off: bool) -> FileError:
    """What went wrong at the hub, and what to do, in one sentence."""
    label, page = wanted.label, f"{hub.constants.ENDPOINT}/{wanted.repo}"
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "GatedRepoError" in kinds:
        return FileError(
            f"{label}: is gated; accept its terms at {page} and log in with: hf auth login"
        )
    if "RevisionNotFoundError" in kinds:
        return FileError(
            f"{label}: {wanted.repo} has no such branch, tag or commit; see {page}/tree/main"
        )
    if "RepositoryNotFoundError" in kinds:
        return FileError(
            f"{label}: neither a local path nor a model that {hub.constants.ENDPOINT} shows you; "
            "correct the name, or log in with hf auth login if it is private"
        )
    if "HFValidationError" in kinds:
        return FileError(f"{label}: no local path, and no name that the hub takes")
    if "IncompleteSnapshotError" in kinds:
        found = re.search(r"\((.*?)\)\. (?:The Hub|Outgoing)", str(error))
        missing = f": {found[1]}" if found else ""
        return _IncompleteError(
            f"{label}: is in the hub's cache in part only, missing{missing}; {_again(wanted, off)}"
        )
    cache = hub.constants.HF_HUB_CACHE
    if "LocalEntryNotFoundError" in kinds:
        return FileError(
            f"{label}: neither a local path nor in the hub's cache {cache}"
            f"{_revisions(Path(cache), wanted)}; {_again(wanted, off)}"
        )
    reason = brief(error)
    return FileError(f"{label}: could not be fetched from {hub.constants.ENDPOINT}: {reason}")


def _again(wanted: HubId, off: bool) -> str:
    if off:
        return f"HF_HUB_OFFLINE is set: {_online(wanted)}"
    return "the hub could not be reached; connect, and try again"


def _revisions(cache: Path, wanted: HubId) -> str:
    """The revisions that the cache knows, where it knows the model at all."""
    refs = cache / f"models--{wanted.repo.replace('/', '--')}" / "refs"
    known = [p.relative_to(refs).as_posix() for p in sorted(refs.rglob("*")) if p.is_file()]
    return f" (which has its revision {', '.join(known)})" if known else ""


def brief(error: Exception) -> str:
    """The first two lines of what an error says, as one; or its name.

    >>> brief(ValueError("404 Client Error.\\n\\nNo such page.\\nMore words."))
    '404 Client Error: No such page'
    """
    lines = [line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()]
    return ": ".join(lines[:2]) or type(error).__name__


def _within(snapshot: Path, wanted: HubId) -> Path:
    path = snapshot / wanted.folder
    if not path.exists():
        raise FileError(f"{wanted}: {wanted.label} has no {wanted.folder!r} that could be read")
    return path
