"""Where models come from: local paths first, then the hub's own cache, then the hub."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from taskbasis import errors
from taskbasis.errors import FileError, MissingExtraError, UsageError
from taskbasis.io import hub as hub_module
from taskbasis.io.folder import open_tensors
from taskbasis.io.hub import resolve
from taskbasis.io.ids import HubId, cached_id, check_there, parse_id

SHA = "a" * 40
OLDER = "b" * 40
ONE = save({"w": np.ones(2, np.float32)})
TWO = save({"w": np.full(2, 2.0, np.float32)})
MODEL = {
    "model.safetensors": ONE,
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "tokenizer.model": b"pieces",
    "chat_template.jinja": b"{{ x }}",
    "README.md": b"# a card",
}
Cache = Callable[..., Path]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """``cache(repo, commit, files, ref)``: a snapshot laid out as huggingface_hub does, offline."""
    root = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)

    def write(repo: str, commit: str, files: dict[str, bytes], ref: str | None = "main") -> Path:
        home = root / f"models--{repo.replace('/', '--')}"
        snapshot = home / "snapshots" / commit
        (home / "blobs").mkdir(parents=True, exist_ok=True)
        for name, raw in files.items():
            blob = home / "blobs" / hashlib.sha256(raw).hexdigest()
            blob.write_bytes(raw)
            link = snapshot / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
        if ref is not None:
            (home / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
            (home / "refs" / ref).write_text(commit)
        return snapshot

    return write


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for the hub's library fails the test."""

    def refuse(*_: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(hub_module, "library", refuse)


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


# Names


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("owner/name", HubId("owner/name")),
        ("owner/name@v1.0", HubId("owner/name", "v1.0")),
        ("Qwen/Qwen2.5-0.5B", HubId("Qwen/Qwen2.5-0.5B")),
        ("hf://owner/name", HubId("owner/name")),
        ("hf:/owner/name", HubId("owner/name")),  # what pathlib makes of it
        ("hf://models/owner/name", HubId("owner/name")),
        ("hf://owner/name/unet", HubId("owner/name", None, "unet")),
        ("hf://owner/name@main/a/b/", HubId("owner/name", "main", "a/b")),
        ("hf://owner/name@refs/pr/3", HubId("owner/name", "refs/pr/3")),
        ("hf://owner/name@refs/pr/3/unet", HubId("owner/name", "refs/pr/3", "unet")),
        ("hf://owner/name@my%2Fbranch/x", HubId("owner/name", "my/branch", "x")),
        ("hf://owner/name/model.safetensors", HubId("owner/name", None, "model.safetensors")),
    ],
)
def test_ids(text: str, wanted: HubId) -> None:
    assert parse_id(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "gpt2",
        "./owner/name",
        "../name",
        "/owner/name",
        "~/name",
        "a/b/c",
        "out/",
        "",
        "runs/model.safetensors",
        "runs/pytorch_model.bin",
        "recipes/merge.yml",
        "owner/name@",
        "lib/x:task",
        "a b/c",
        "s3://bucket/key",
    ],
)
@pytest.mark.usefixtures("forbidden")
def test_what_can_only_be_local(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_id(text) is None
    if text:
        with pytest.raises(FileError, match="no such file or folder"):
            resolve(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hf://owner", "names no model"),
        ("hf://", "names no model"),
        ("hf:///", "names no model"),
        ("hf://owner/na me", "names no model"),
        ("hf://owner/name/../../other", "names no model"),
        ("hf://datasets/owner/name", "is a dataset of the hub, not a model"),
        ("hf://spaces/owner/name", "is a space of the hub, not a model"),
    ],
)
def test_ids_that_name_no_model(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_id(text)
    assert str(caught.value).startswith(f"{text}: ")
    assert says in str(caught.value)


NAME = st.from_regex(r"[a-zA-Z0-9]([a-zA-Z0-9._-]{0,8}[a-zA-Z0-9])?", fullmatch=True)


REVISION = st.none() | NAME | NAME.map("refs/pr/{}".format) | NAME.map("my/{}%".format)


@given(NAME, NAME, REVISION, st.lists(NAME, max_size=3))
def test_an_id_is_read_as_it_is_printed(
    owner: str, name: str, revision: str | None, folder: list[str]
) -> None:
    if owner in ("datasets", "spaces", "kernels", "buckets", "models"):
        return
    wanted = HubId(f"{owner}/{name}", revision, "/".join(folder))
    assert parse_id(str(wanted)) == wanted


def test_the_id_of_a_path_in_the_cache(cache: Cache) -> None:
    snapshot = cache("my-org/a-b", SHA, MODEL)
    assert cached_id(resolve("hf://my-org/a-b")) == HubId("my-org/a-b", SHA)
    assert cached_id(snapshot / "unet" / "x") == HubId("my-org/a-b", SHA, "unet/x")
    assert cached_id("/models/snapshots/x/y") is None
    assert cached_id("relative") is None


# Local paths


@pytest.mark.usefixtures("forbidden")
def test_a_local_path_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("owner/name", "owner/name@v1", "plain"):
        Path(name).mkdir(parents=True)
        assert resolve(name) == Path(name)
        assert resolve(Path(name)) == Path(name)


@pytest.mark.usefixtures("forbidden")
def test_a_local_path_has_no_revision(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is a local path, which has no revision 'v1'"):
        resolve(tmp_path, "v1")


@pytest.mark.usefixtures("forbidden")
def test_a_misspelt_local_name_asks_no_stranger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Someone may own the name of your folder at the hub."""
    (tmp_path / "models" / "llama").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileError) as caught:
        resolve("models/lama")
    assert str(caught.value) == (
        "models/lama: the folder 'models' is here and holds no such model; correct the name, or "
        "write hf://models/lama for a model of the hub"
    )


@pytest.mark.usefixtures("forbidden")
def test_hints_beside_a_missing_path() -> None:
    with pytest.raises(FileError, match="a model of the hub has an owner: write owner/gpt2"):
        resolve("gpt2")
    with pytest.raises(FileError, match="write hf://owner/name/unet"):
        resolve("owner/name/unet")


def test_two_revisions() -> None:
    with pytest.raises(UsageError, match="two revisions are asked, that and 'v2'"):
        resolve("owner/name@v1", "v2")


def test_the_package_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = errors.importlib.import_module

    def without(name: str) -> Any:
        if name.startswith("huggingface_hub"):
            raise ModuleNotFoundError(name="huggingface_hub")
        return real(name)

    monkeypatch.setattr(errors.importlib, "import_module", without)
    with pytest.raises(MissingExtraError) as caught:
        resolve("owner/name")
    assert str(caught.value) == (
        "owner/name is no local path, and a model of the hub needs the package 'huggingface_hub'; "
        "install it with: pip install 'taskbasis[hub]'"
    )


# The cache, offline


@pytest.mark.parametrize("text", ["owner/name", "hf://owner/name", "owner/name@main"])
def test_a_cached_model(cache: Cache, text: str) -> None:
    snapshot = cache("owner/name", SHA, MODEL)
    assert resolve(text) == snapshot
    store = open_tensors(resolve(text))
    np.testing.assert_array_equal(store["w"].load(), np.ones(2, np.float32))


def test_revisions_of_a_cached_model(cache: Cache) -> None:
    new = cache("owner/name", SHA, MODEL)
    old = cache("owner/name", OLDER, {**MODEL, "model.safetensors": TWO}, "v1")
    assert resolve("owner/name") == new
    assert resolve("owner/name@v1") == old
    assert resolve("owner/name", "v1") == old
    assert resolve("owner/name@v1", "v1") == old
    assert resolve(f"owner/name@{OLDER}") == old
    np.testing.assert_array_equal(open_tensors(old)["w"].load(), np.full(2, 2.0, np.float32))


def test_a_pull_request(cache: Cache) -> None:
    snapshot = cache("owner/name", OLDER, MODEL, "refs/pr/3")
    assert resolve("hf://owner/name@refs/pr/3") == snapshot


def test_a_folder_and_a_file_of_a_cached_model(cache: Cache) -> None:
    files = {**MODEL, "text/model.safetensors": TWO, "text/config.json": b"{}"}
    snapshot = cache("owner/name", SHA, files)
    assert resolve("hf://owner/name/text") == snapshot / "text"
    assert resolve("hf://owner/name/text/model.safetensors") == snapshot / "text/model.safetensors"
    store = open_tensors(resolve("hf://owner/name/text/model.safetensors"))
    np.testing.assert_array_equal(store["w"].load(), np.full(2, 2.0, np.float32))


def test_a_folder_that_is_not_there(cache: Cache) -> None:
    cache("owner/name", SHA, MODEL)
    with pytest.raises(FileError) as caught:
        resolve("hf://owner/name/text/model.safetensors")
    assert str(caught.value).startswith("hf://owner/name/text/model.safetensors: ")


def test_nothing_in_the_cache(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(FileError) as caught:
        resolve("owner/name@v2")
    assert str(caught.value) == (
        f"owner/name@v2: neither a local path nor in the hub's cache {tmp_path / 'hub'}; "
        "HF_HUB_OFFLINE is set: unset HF_HUB_OFFLINE, or fetch it where there is a network: "
        "hf download owner/name --revision v2"
    )
    assert caught.value.exit_code == 1


def test_another_revision_in_the_cache(cache: Cache) -> None:
    cache("owner/name", SHA, MODEL)
    cache("owner/name", OLDER, MODEL, "refs/pr/3")
    with pytest.raises(FileError, match=r"\(which has its revision main, refs/pr/3\)"):
        resolve("owner/name@v2")


def test_a_model_cached_without_its_weights(cache: Cache) -> None:
    snapshot = cache("owner/name", SHA, {"config.json": b"{}"})
    with pytest.raises(FileError) as caught:
        resolve("owner/name")
    assert str(caught.value) == (
        f"owner/name: is in the hub's cache without its weights ({snapshot}), and HF_HUB_OFFLINE "
        "is set; unset HF_HUB_OFFLINE, or fetch it where there is a network: hf download owner/name"
    )
    assert resolve("owner/name", weights=False) == snapshot


def test_torch_files_where_there_is_nothing_else(cache: Cache) -> None:
    snapshot = cache("owner/name", SHA, {"config.json": b"{}", "pytorch_model.bin": b"x"})
    assert resolve("owner/name") == snapshot


def test_the_environment_is_what_counts(cache: Cache, tmp_path: Path) -> None:
    """As people set it: in the environment, before the program starts."""
    snapshot = cache("owner/name", SHA, MODEL)
    code = "from taskbasis.io.hub import resolve; print(resolve('owner/name'))"
    settings = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "HF_HOME": "none"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(snapshot)


# The hub itself


def test_a_model_is_fetched(hub: Any) -> None:
    more = {
        "pytorch_model.bin": b"twice",
        "consolidated.safetensors": b"thrice",
        "original/params.json": b"{}",
        "onnx/model.onnx": b"no",
        "tf_model.h5": b"no",
        "checkpoint-500/model.safetensors": b"no",
        "1_Dense/model.safetensors": TWO,
        "modeling_own.py": b"",
        "LICENSE.txt": b"free",
        "logo.png": b"no",
    }
    hub.add("owner/name", {**MODEL, **more})
    found = resolve("owner/name")
    wanted = {*MODEL, "1_Dense/model.safetensors", "modeling_own.py", "LICENSE.txt"}
    assert names(found) == sorted(wanted)
    assert found.name == SHA
    assert cached_id(found) == HubId("owner/name", SHA)
    np.testing.assert_array_equal(open_tensors(found)["w"].load(), np.ones(2, np.float32))


def test_the_second_time_no_file_is_fetched(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("owner/name", MODEL)
    first = resolve("owner/name")
    hub.requests.clear()
    assert resolve("owner/name") == first
    assert not [request for request in hub.requests if "/resolve/" in request]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert resolve("owner/name") == first
    assert hub.requests == []


def test_torch_files_are_fetched_only_where_there_are_no_others(hub: Any) -> None:
    files = {"config.json": b"{}", "pytorch_model.bin": b"x", "training_args.bin": b"no"}
    hub.add("owner/old", files)
    assert names(resolve("owner/old")) == ["config.json", "pytorch_model.bin"]


def test_the_other_layout_is_fetched_where_it_is_the_only_one(hub: Any) -> None:
    hub.add("owner/raw", {"consolidated.safetensors": ONE, "params.json": b"{}"})
    found = resolve("owner/raw")
    assert names(found) == ["consolidated.safetensors", "params.json"]
    assert list(open_tensors(found)) == ["w"]


def test_an_adapter_is_fetched(hub: Any) -> None:
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": ONE}
    hub.add("owner/lora", files)
    assert names(resolve("owner/lora")) == sorted(files)


def test_a_tokenizer_is_fetched_without_weights(hub: Any) -> None:
    hub.add("owner/name", MODEL)
    found = resolve("owner/name", weights=False)
    assert names(found) == sorted(set(MODEL) - {"model.safetensors"})


def test_one_folder_is_fetched(hub: Any) -> None:
    hub.add("owner/name", {**MODEL, "text/model.safetensors": TWO, "text/config.json": b"{}"})
    found = resolve("hf://owner/name/text")
    assert names(found) == ["config.json", "model.safetensors"]
    assert "model.safetensors" not in names(found.parent / SHA)


def test_a_folder_is_fetched_whatever_it_is_called(hub: Any) -> None:
    files = {"checkpoint-5/model.safetensors": TWO, "checkpoint-5/config.json": b"{}"}
    hub.add("owner/run", {**MODEL, **files})
    found = resolve("hf://owner/run/checkpoint-5")
    assert names(found) == ["config.json", "model.safetensors"]
    np.testing.assert_array_equal(open_tensors(found)["w"].load(), np.full(2, 2.0, np.float32))


def test_a_cache_without_the_card_will_do(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other programs fetch other files; only what is needed must be there."""
    from huggingface_hub import snapshot_download

    hub.add("owner/name", MODEL)
    wanted = [name for name in MODEL if name != "README.md"]
    folder = snapshot_download("owner/name", allow_patterns=wanted)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve("owner/name") == Path(folder)


def test_a_cache_without_the_tokenizer_will_not(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import snapshot_download

    hub.add("owner/name", MODEL)
    snapshot_download("owner/name", allow_patterns=["*.safetensors", "config.json"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileError) as caught:
        resolve("owner/name")
    said = str(caught.value)
    assert said.startswith("owner/name: is in the hub's cache in part only, missing: ")
    assert "tokenizer.json" in said
    assert said.endswith(
        "HF_HUB_OFFLINE is set: unset HF_HUB_OFFLINE, or fetch it where there is a network: "
        "hf download owner/name"
    )


@pytest.mark.parametrize("how", ["gated", "locked"])
def test_a_gated_model(hub: Any, how: str) -> None:
    hub.add("owner/name", MODEL, **{how: True})
    with pytest.raises(FileError) as caught:
        resolve("owner/name")
    assert str(caught.value) == (
        f"owner/name: is gated; accept its terms at {hub.url}/owner/name and log in with: "
        "hf auth login"
    )


def test_no_such_model(hub: Any) -> None:
    with pytest.raises(FileError) as caught:
        resolve("owner/none")
    assert str(caught.value) == (
        f"owner/none: neither a local path nor a model that {hub.url} shows you; correct the name, "
        "or log in with hf auth login if it is private"
    )


def test_no_such_revision(hub: Any) -> None:
    hub.add("owner/name", MODEL)
    with pytest.raises(FileError) as caught:
        resolve("owner/name@v9")
    assert str(caught.value) == (
        "owner/name@v9: owner/name has no such branch, tag or commit; see "
        f"{hub.url}/owner/name/tree/main"
    )


def test_a_name_that_the_hub_does_not_take(hub: Any) -> None:
    with pytest.raises(FileError, match="no local path, and no name that the hub takes"):
        resolve("owner/a--b")
    assert not [request for request in hub.requests if "models" in request]


def test_no_network(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FileError) as caught:
        resolve("owner/name")
    assert str(caught.value) == (
        f"owner/name: neither a local path nor in the hub's cache {constants.HF_HUB_CACHE}; the "
        "hub could not be reached; connect, and try again"
    )


def test_a_network_that_breaks_leaves_what_is_cached(hub: Any) -> None:
    hub.add("owner/name", MODEL)
    first = resolve("owner/name")
    hub.broken = True
    assert resolve("owner/name") == first


def test_an_error_is_one_line() -> None:
    assert hub_module.brief(ValueError("one.\n\n two.\nthree")) == "one: two"
    assert hub_module.brief(ValueError()) == "ValueError"


def test_a_path_where_nothing_stands_is_refused_at_once(
    tmp_path: Path, loaded_by: Callable[[str], set[str]]
) -> None:
    """Before anything heavy is imported; what may mean something else is left alone."""
    for text in ("gpt2", "./missing", "a/b/c", str(tmp_path / "model.safetensors")):
        with pytest.raises(FileError, match="no such file or folder"):
            check_there(text)
    others = ("hf://owner/name", "lib:task", "https://x/y", "model+lora", "a=b")
    for text in ("owner/name", ".", *others):
        check_there(text)
    assert "numpy" not in loaded_by("from taskbasis.io.ids import check_there")
