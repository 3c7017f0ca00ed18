"""Files on other machines: read by ranges alone, and checked as local ones are."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.numpy import save

from taskbasis import errors
from taskbasis.digest import fingerprint, store_digests
from taskbasis.engine import Engine
from taskbasis.errors import (
    FileError,
    HeaderError,
    MissingExtraError,
    TaskbasisError,
    UsageError,
)
from taskbasis.io.folder import open_tensors
from taskbasis.io.remote import RemoteBlob, Url, is_url, open_anywhere, open_remote, side_files
from taskbasis.io.storing import AS_IT_IS
from taskbasis.saving import Edit, save_model
from taskbasis.vectors import TaskVector

TENSORS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.bias": np.arange(4, dtype=np.float16),
    "c.steps": np.array([7], np.int64),
    "d.none": np.empty((0, 3), np.float32),
}
RAW = save(TENSORS)
INDEX = "model.safetensors.index.json"


class Counting(MemoryFileSystem):  # type: ignore[misc]
    """Files in memory that notes every range that is read, and refuses to be read whole."""

    protocol = "counting"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    ranges: ClassVar[list[tuple[str, int, int]]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("counting://")))

    def cat_file(self, path: str, start: Any = None, end: Any = None, **more: Any) -> bytes:
        assert start is not None, f"{path} was read whole"
        assert end is not None, f"{path} was read whole"
        self.ranges.append((path.rpartition("/")[2], start, end))
        return bytes(super().cat_file(path, start, end, **more))

    def get_file(self, *_: Any, **__: Any) -> None:
        raise AssertionError("downloaded")

    def _open(self, *arguments: Any, **more: Any) -> Any:
        mode = arguments[1] if len(arguments) > 1 else more.get("mode", "rb")
        assert "r" not in mode, "opened to be read whole"
        return super()._open(*arguments, **more)


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """``put(folder, files)``: files behind ``counting://``; returns the folder's URL."""
    fsspec.register_implementation("counting", Counting, clobber=True)
    Counting.store.clear()
    Counting.pseudo_dirs[:] = [""]
    Counting.ranges.clear()
    system = fsspec.filesystem("counting")

    def write(folder: str, files: dict[str, bytes]) -> str:
        for name, raw in files.items():
            system.pipe_file(f"/{folder}/{name}", raw)
        return f"counting://{folder}"

    yield write
    Counting.store.clear()


def sharded(shards: int = 2, **weight_map: str) -> dict[str, bytes]:
    files = [f"model-{n + 1:05d}-of-{shards:05d}.safetensors" for n in range(shards)]
    places = {name: files[at % shards] for at, name in enumerate(sorted(TENSORS))}
    made = {
        file: save(
            {n: TENSORS[n] for n, place in places.items() if place == file}, {"format": "pt"}
        )
        for file in files
    }
    made[INDEX] = json.dumps({"weight_map": {**places, **weight_map}}).encode()
    return made


def assert_holds(store: Any) -> None:
    assert list(store) == sorted(TENSORS)
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(store[name].load(), array, strict=True)


def refused(url: str, error: type[TaskbasisError], says: str) -> None:
    with pytest.raises(error) as caught:
        open_remote(url)
    assert url in str(caught.value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


# What is a URL, and what it is called


@pytest.mark.parametrize(
    "text", ["s3://b/k", "gs://b", "https://h/x.safetensors", "memory://x", "s3:/b/k", "file:///x"]
)
def test_urls(text: str) -> None:
    assert is_url(text)
    assert is_url(Path(text))


@pytest.mark.parametrize(
    "text", ["a/b", "/a:/b", "lib:task", "math=s3x", "hf://o/n", "hf:/o/n", "c:/x", "", "./s3:/x"]
)
def test_what_is_no_url(text: str) -> None:
    assert not is_url(text)


@pytest.mark.parametrize("text", ["s3://bucket/a/b", "https://host/x", "file:///tmp/x"])
def test_a_url_is_a_path_that_prints_as_a_url(text: str) -> None:
    url = Url(text)
    assert str(url) == text
    assert str(url / "model.safetensors") == f"{text}/model.safetensors"
    assert (url / "x").name == "x"
    assert url == Url(text)
    assert not url.exists()
    assert not url.is_dir()


def test_no_secrets_in_what_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes and messages outlive a signed URL."""
    asked: list[str] = []

    def to_fs(text: str) -> Any:
        asked.append(text)
        raise OSError("down")

    monkeypatch.setattr(fsspec.core, "url_to_fs", to_fs)
    with pytest.raises(FileError) as caught:
        open_remote("https://me:word@host/x.safetensors?X-Amz-Signature=secret")
    assert str(caught.value) == "https://host/x.safetensors: cannot be read: down"
    assert asked == ["https://me:word@host/x.safetensors?X-Amz-Signature=secret"]


# Reading


def test_a_file(put: Callable[..., str]) -> None:
    url = put("m", {"any.safetensors": save(TENSORS, {"format": "pt"})})
    store = open_remote(f"{url}/any.safetensors")
    assert_holds(store)
    assert store.metadata == {"format": "pt"}
    assert str(store.path) == "counting://m/any.safetensors"
    assert [str(file) for file in store.files] == ["counting://m/any.safetensors"]
    assert store["b.bias"].where == "tensor 'b.bias' of counting://m/any.safetensors"


@pytest.mark.parametrize("name", ["model.safetensors", "other.safetensors"])
def test_a_folder_of_one_file(put: Callable[..., str], name: str) -> None:
    url = put("m", {name: save(TENSORS), "config.json": b"{}"})
    store = open_remote(url)
    assert_holds(store)
    assert str(store.path) == url
    assert [str(file) for file in store.files] == [f"{url}/{name}"]


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_shards(put: Callable[..., str], shards: int) -> None:
    url = put("m", sharded(shards))
    store = open_remote(url + "/")
    assert_holds(store)
    assert len(store.files) == shards


def test_as_pathlib_writes_it(put: Callable[..., str]) -> None:
    url = put("m", {"model.safetensors": save(TENSORS)})
    assert_holds(open_remote(Path(url)))
    assert_holds(open_remote(open_remote(url).path))


def test_the_standard_name_wins(put: Callable[..., str]) -> None:
    files = {"model.safetensors": save(TENSORS), "extra.safetensors": save({"x": np.ones(1)})}
    assert_holds(open_remote(put("m", files)))


def test_two_opens_are_one_base(put: Callable[..., str]) -> None:
    url = put("m", sharded(2))
    assert open_remote(url).files == open_remote(url).files


def test_local_files_as_urls(write_folder: Callable[..., Path]) -> None:
    folder = write_folder("m", TENSORS, 2)
    store = open_remote(f"file://{folder}")
    assert_holds(store)
    assert str(store.path) == f"file://{folder}"
    engine = Engine(workers=2)
    assert fingerprint(store_digests(store, engine)) == fingerprint(
        store_digests(open_tensors(folder), engine)
    )


def test_nothing_is_read_but_what_is_asked(put: Callable[..., str]) -> None:
    """A model of a megabyte, of which a few hundred bytes are wanted."""
    big = {"a": np.zeros(1 << 18, np.float32), "b": np.arange(1000, dtype=np.float32)}
    url = put("m", {"model.safetensors": save(big)})
    store = open_remote(url)
    header = sum(end - start for _, start, end in Counting.ranges)
    assert header < 300
    assert len(Counting.ranges) == 2
    Counting.ranges.clear()
    out = np.empty(10, np.uint32)
    store["b"].read(500, 510, out)
    np.testing.assert_array_equal(out.view(np.float32), np.arange(500, 510, dtype=np.float32))
    ((_, start, end),) = Counting.ranges
    assert end - start == 40
    Counting.ranges.clear()
    store["b"].read(5, 5, out)
    assert Counting.ranges == []


def test_an_index_costs_its_own_bytes_and_the_headers(put: Callable[..., str]) -> None:
    files = sharded(2)
    open_remote(put("m", files))
    asked = [name for name, _, _ in Counting.ranges]
    shards = sorted(set(files) - {INDEX})
    assert asked == [INDEX, shards[0], shards[0], shards[1], shards[1]]


def test_many_threads(put: Callable[..., str]) -> None:
    values = np.arange(1 << 14, dtype=np.float32)
    info = open_remote(put("m", {"model.safetensors": save({"a": values})}))["a"]

    def piece(start: int) -> np.ndarray[Any, Any]:
        out = np.empty(64, np.uint32)
        info.read(start, start + 64, out)
        return out.view(np.float32)

    with ThreadPoolExecutor(8) as pool:
        found = np.concatenate(list(pool.map(piece, range(0, len(values), 64))))
    np.testing.assert_array_equal(found, values)


def test_a_remote_model_is_edited_as_a_local_one_is(
    put: Callable[..., str], write_folder: Callable[..., Path], tmp_path: Path
) -> None:
    base = {name: array for name, array in TENSORS.items() if array.size}
    tuned = {n: a + a.dtype.type(1) if a.dtype.kind == "f" else a for n, a in base.items()}
    here = write_folder("base", base)
    there = open_remote(put("base", {"model.safetensors": save(base, {"format": "pt"})}))
    vector = TaskVector(here, write_folder("tuned", tuned))
    vector.save(tmp_path / "vector.safetensors")
    combination = TaskVector.open(tmp_path / "vector.safetensors").combination
    made = []
    for number, store in enumerate((open_tensors(here), there)):
        edit = Edit(store, (combination,), method_of())
        out = tmp_path / f"out{number}"
        save_model(edit, out, AS_IT_IS, engine=Engine(workers=2))
        made.append((out / "model.safetensors").read_bytes())
    assert made[0] == made[1]
    recipe = json.loads((tmp_path / "out1" / "taskbasis_recipe.json").read_text())
    assert recipe["base"] == "counting://base"


def method_of() -> Any:
    from taskbasis.methods import method

    return method("ties", density=0.5)


def test_side_files(put: Callable[..., str]) -> None:
    side = {"config.json": b"{}", "tokenizer.json": b"[]", "merges.txt": b"", "README.md": b"x"}
    weights = {**sharded(2), "pytorch_model.bin": b"no", ".hidden": b"no", "sub/config.json": b"no"}
    assert dict(side_files(put("m", {**side, **weights}))) == side


# Refusals


def test_nothing_there(put: Callable[..., str]) -> None:
    url = put("m", {"model.safetensors": save(TENSORS)})
    refused(f"{url}/none.safetensors", FileError, "no such file or folder")
    refused("counting://none", FileError, "no such file or folder")


def test_a_folder_without_weights(put: Callable[..., str]) -> None:
    url = put("m", {"config.json": b"{}", "pytorch_model.bin": b""})
    refused(url, FileError, "holds no model.safetensors and no *.safetensors.index.json; found: ")
    refused(url, FileError, "config.json, pytorch_model.bin")


def test_which_of_two_files(put: Callable[..., str]) -> None:
    files = {"one.safetensors": save(TENSORS), "two.safetensors": save(TENSORS)}
    refused(put("m", files), FileError, "name the file that is meant")


def test_an_adapter(put: Callable[..., str]) -> None:
    url = put("m", {"adapter_config.json": b"{}", "adapter_model.safetensors": save(TENSORS)})
    refused(url, FileError, "is a PEFT adapter, which is not read remotely; download it first")


def test_a_stale_index(put: Callable[..., str]) -> None:
    files = {**sharded(2), "model.safetensors": save(TENSORS)}
    refused(put("m", files), FileError, "one of them is stale")


def test_two_indexes(put: Callable[..., str]) -> None:
    files = sharded(2)
    refused(put("m", {**files, "x.safetensors.index.json": files[INDEX]}), FileError, "2 indexes")


def test_an_index_that_contradicts_its_shards(put: Callable[..., str]) -> None:
    one = "model-00001-of-00002.safetensors"
    lacking = sharded(2, **{"x.weight": one})
    refused(put("m", lacking), HeaderError, f"the index places 'x.weight' in {one}, which lacks it")
    moved = sharded(2)
    content = json.loads(moved[INDEX])
    del content["weight_map"]["a.weight"]
    moved[INDEX] = json.dumps(content).encode()
    refused(put("n", moved), HeaderError, "holds 1 tensors that the index does not place there")


def test_a_missing_shard(put: Callable[..., str]) -> None:
    files = sharded(2)
    gone = "model-00002-of-00002.safetensors"
    del files[gone]
    url = put("m", files)
    with pytest.raises(FileError) as caught:
        open_remote(url)
    assert str(caught.value) == f"{url}/{gone}: no such file or folder"


@pytest.mark.parametrize("shard", ["../x.safetensors", "a\\b.safetensors", "x.bin", "\n"])
def test_an_index_that_leads_elsewhere(put: Callable[..., str], shard: str) -> None:
    url = put("m", {INDEX: json.dumps({"weight_map": {"a": shard}}).encode()})
    refused(url, HeaderError, f"names the file {shard!r}, which is not read")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        (b"[]", "has no weight_map"),
        (b"{}", "has no weight_map"),
        (b'{"weight_map": {"a": 1}}', "must map tensor names to file names"),
    ],
)
def test_damaged_indexes(put: Callable[..., str], content: bytes, says: str) -> None:
    refused(put("m", {INDEX: content}), HeaderError, says)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"1234", "4 bytes are too few"),
        (RAW[:100], "it is truncated, or no safetensors file"),
        (b"\xff" * 64, "it is truncated, or no safetensors file"),
        (RAW[:-1], "truncated"),
        (RAW + b"x", "longer than its header says"),
        (RAW.replace(b'"F32"', b'"F99"'), "unknown dtype 'F99'"),
        (
            save({"a": np.ones(2)}).replace(b"[2]", b"[3]"),
            "needs 24 bytes, but its offsets span 16",
        ),
        ((8).to_bytes(8, "little") + b'{"a": 1 ' + b"x", "the header says of"),
    ],
    ids=["empty", "cut", "noise", "short", "long", "dtype", "span", "json"],
)
def test_damaged_files(put: Callable[..., str], raw: bytes, says: str) -> None:
    url = put("m", {"x.safetensors": raw})
    refused(f"{url}/x.safetensors", HeaderError, says)


def test_a_server_that_ignores_ranges() -> None:
    class Whole:
        def cat_file(self, path: str, start: int, end: int) -> bytes:
            return bytes(100)

    with pytest.raises(FileError) as caught:
        RemoteBlob(Whole(), "x", "https://h/x").read(10, 8)
    assert str(caught.value) == (
        "https://h/x: 100 bytes came where 8 were asked from 10; it was changed, or its server "
        "serves no ranges: download it first"
    )


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError("403"), "may not be read with the credentials of this machine"),
        (FileNotFoundError("x"), "no such file or folder"),
        (RuntimeError("slow down.\nsecond line"), "cannot be read: slow down: second line"),
        (RuntimeError(), "cannot be read: RuntimeError"),
    ],
)
def test_errors_of_a_server(error: Exception, says: str) -> None:
    class Failing:
        def cat_file(self, *_: Any, **__: Any) -> bytes:
            raise error

        def size(self, _: str) -> int:
            raise error

    blob = RemoteBlob(Failing(), "x", "s3://b/x")
    for ask in (blob.size, lambda: blob.read(0, 1)):
        with pytest.raises(FileError) as caught:
            ask()
        assert str(caught.value) == f"s3://b/x: {says}"


def test_a_server_that_does_not_say_the_size() -> None:
    class Silent:
        def size(self, _: str) -> None:
            return None

    with pytest.raises(FileError, match="does not say its size; download it first"):
        RemoteBlob(Silent(), "x", "https://h/x").size()


def test_no_file_system_of_that_name() -> None:
    with pytest.raises(UsageError) as caught:
        open_remote("s33://bucket/x")
    assert str(caught.value) == (
        "s33://bucket/x: no file system is called 's33'; known are abfs, file, gs, https, s3 and "
        "others of fsspec"
    )


def test_what_a_protocol_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    def to_fs(_: str) -> Any:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", to_fs)
    with pytest.raises(MissingExtraError) as caught:
        open_remote("s3://bucket/x")
    assert str(caught.value) == "reading s3://bucket/x: Install s3fs to access S3"


def test_the_package_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str) -> Any:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(errors.importlib, "import_module", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'taskbasis\[remote\]'"):
        open_remote("s3://bucket/x")


def test_a_folder_takes_no_query() -> None:
    with pytest.raises(UsageError, match=r"^https://h/x: a folder's URL takes no query"):
        open_remote("https://h/x?secret=1")


def test_what_is_no_url_is_refused() -> None:
    with pytest.raises(UsageError, match="is not a URL such as s3://bucket/model"):
        open_remote("a/b")


# Wherever it is


def test_wherever_it_is(
    put: Callable[..., str], write_folder: Callable[..., Path], hub: Any
) -> None:
    hub.add("owner/name", {"model.safetensors": RAW})
    places = [write_folder("m", TENSORS), put("m", {"model.safetensors": RAW}), "owner/name"]
    for place in places:
        assert_holds(open_anywhere(place))
    assert_holds(open_anywhere("owner/name", "main"))
    with pytest.raises(UsageError, match="is a URL, which has no revision 'v1'; leave it out"):
        open_anywhere(places[1], "v1")
    with pytest.raises(UsageError, match="is a local path, which has no revision 'v1'"):
        open_anywhere(places[0], "v1")
    with pytest.raises(FileError, match=r"^\./none: no such file or folder$"):
        open_anywhere("./none")


def test_a_local_folder_that_looks_like_a_url(
    write_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_folder("s3:/m", TENSORS)
    monkeypatch.chdir(tmp_path)
    assert_holds(open_anywhere("s3:/m"))


# A real server


class _Files(BaseHTTPRequestHandler):
    """Serves a folder by ranges, as every store does; what was sent is counted."""

    protocol_version = "HTTP/1.1"
    files: ClassVar[dict[str, bytes]] = {}
    sent: ClassVar[list[int]] = []

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        raw = self.files.get(self.path.partition("?")[0])
        asked = self.headers.get("Range")
        code, part = (404, b"") if raw is None else (200, raw)
        if raw is not None and asked:
            first, last = asked.removeprefix("bytes=").split("-")
            code, part = 206, raw[int(first) : int(last) + 1]
        self.send_response(code)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "GET":
            self.sent.append(len(part))
            self.wfile.write(part)

    do_HEAD = do_GET  # noqa: N815 - the name that http.server calls


@pytest.mark.filterwarnings("default")  # what aiohttp says of its own sockets
def test_over_http() -> None:
    pytest.importorskip("aiohttp")
    big = {"a": np.zeros(1 << 18, np.float32), "b": np.arange(10, dtype=np.float32)}
    _Files.files = {"/m/model.safetensors": save(big), "/m/config.json": b"{}"}
    _Files.sent.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Files)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/m"
        for place in (url, f"{url}/model.safetensors", f"{url}/model.safetensors?signature=1"):
            store = open_remote(place)
            np.testing.assert_array_equal(store["b"].load(), big["b"])
        assert sum(_Files.sent) < 2000
        assert dict(side_files(url)) == {"config.json": b"{}"}
        refused(f"{url}/none.safetensors", FileError, "no such file or folder")
        refused(f"{url}/none", FileError, "holds no model.safetensors")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
