"""What is fuzzed: every reader of what strangers wrote, and what has to hold of any input.

A target takes bytes. Either it is refused with an error of taskbasis's own family, or it opens, and
then it is what it says: it reads whole, and written again it opens as the same. Anything else is a
crash: another error, a wrong answer, a hang, memory without bound.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from taskbasis.errors import TaskbasisError
from taskbasis.io.adapter import open_adapter
from taskbasis.io.dtypes import F32, F64
from taskbasis.io.folder import open_tensors
from taskbasis.io.safetensors import make_header
from taskbasis.io.tensors import TensorStore
from taskbasis.library import Basis
from taskbasis.library.file import record
from taskbasis.recipes import parse_recipe
from taskbasis.recipes.writing import to_yaml
from taskbasis.scores import Importance
from taskbasis.vectors import TaskVector

SUITE = Path(__file__).parent / "corpus"
MOST_READ = 1 << 20
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DIGEST = "0" * 32


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        check: is given the bytes and an empty folder to lay them out in; raises where they are
            neither refused nor right.
        seeds: honest inputs, which must be opened.
        words: what a dictionary of the fuzzer holds.
    """

    check: Callable[[bytes, Path], object]
    seeds: tuple[bytes, ...]
    words: tuple[str, ...] = ()


def run(target: Target, data: bytes, folder: Path) -> bool:
    """Whether the bytes were opened; False where they were refused as they should be."""
    try:
        target.check(data, folder)
    except TaskbasisError as error:
        text = str(error)
        assert text, "an error that says nothing"
        assert len(text) < 100_000, "an error of megabytes"
        return False
    return True


def _weights(path: Path, header: bytes, data: bytes) -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def _whole(store: TensorStore) -> bytes:
    """All bytes of a store, in the order in which they stand in the file."""
    infos = sorted(store.values(), key=lambda info: info.offset)
    return b"".join(
        np.ascontiguousarray(info.load()).tobytes() for info in infos if info.nbytes < MOST_READ
    )


def _again(store: TensorStore, folder: Path) -> None:
    """A store written anew opens as the same."""
    infos = sorted(store.values(), key=lambda info: (info.offset, info.name))
    header, _ = make_header(((i.name, i.dtype, i.shape) for i in infos), store.metadata)
    path = folder / "again.safetensors"
    path.write_bytes(header + _whole(store))
    second = open_tensors(path)
    assert dict(second.infos) == dict(store.infos)
    assert dict(second.metadata) == dict(store.metadata)
    assert _whole(second) == _whole(store)


SIXTEEN = bytes(range(16))


def check_header(data: bytes, folder: Path) -> None:
    """A header before 16 bytes of data; or, where it starts with ``!``, a whole file."""
    path = folder / WEIGHTS
    if data[:1] == b"!":
        path.write_bytes(data[1:])
    else:
        _weights(path, data, SIXTEEN)
    store = open_tensors(path)
    raw = path.read_bytes()
    assert raw.endswith(_whole(store))
    entries = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    assert entries.pop("__metadata__", {}) == store.metadata
    assert {n: (e["dtype"], tuple(e["shape"])) for n, e in entries.items()} == {
        n: (i.dtype.code, i.shape) for n, i in store.items()
    }
    _again(store, folder)


def check_index(data: bytes, folder: Path) -> None:
    """An index beside two shards of two tensors each."""
    for number in (1, 2):
        tensors = {f"{name}{number}": np.ones(2, np.float32) * number for name in "ab"}
        (folder / f"{number}.safetensors").write_bytes(save(tensors))
    (folder / INDEX).write_bytes(data)
    store = open_tensors(folder)
    assert set(store) == set(json.loads(data)["weight_map"]) <= {"a1", "a2", "b1", "b2"}
    assert all((info.load() == int(name[1])).all() for name, info in store.items())


def _recorded(data: bytes, folder: Path, arrays: Mapping[str, Any]) -> Path:
    """A file of these tensors with ``data`` as its record."""
    path = folder / "x.safetensors"
    path.write_bytes(save(dict(arrays), {"taskbasis": data.decode("utf-8", "replace")}))
    return path


BINDING = {"name": "base", "fingerprint": DIGEST, "digests": {"w": DIGEST, "v": DIGEST}}
BASIS_ARRAYS = {
    "basis.encoder": np.ones((2, 2, 1)),
    "basis.decoder": np.ones((2, 1, 2)),
    "basis.addition": np.ones((2, 1)),
    "basis.gram": np.ones((2, 2, 2)),
    "basis.error": np.ones((2, 2)),
    "atom.0:w": np.ones((2, 3), np.float32),
    "atom.0:v": np.ones(3, np.float32),
}
BASIS_RECORD = {
    "kind": "basis",
    "version": 1,
    "names": ["a", "b"],
    "shapes": {"w": [2, 3], "v": [3]},
    "groups": [
        {"name": "one", "tensors": ["w"], "atoms": 1, "mean_atom": False},
        {"name": "two", "tensors": ["v"], "atoms": 1, "mean_atom": False},
    ],
    "options": {"method": "svd", "granularity": "tensor", "seed": 0},
    "dtype": "F32",
    "base": BINDING,
}


def check_basis(data: bytes, folder: Path) -> None:
    """A record of a basis beside two atoms."""
    found = Basis.open(_recorded(data, folder, BASIS_ARRAYS))
    assert len(found.names) == len(found.errors) == len(found.norms) == 2
    assert found.cosines.shape == (2, 2)
    for name in found.names:
        assert found[name].combination.terms
    contents = found.contents
    twin = Basis.open(_recorded(record(contents)["taskbasis"].encode(), folder, BASIS_ARRAYS))
    assert record(twin.contents) == record(contents)


VECTOR_RECORD = {
    "kind": "task_vector",
    "version": 1,
    "base": BINDING,
    "tuned": {**BINDING, "name": "tuned"},
    "dtype": "float32",
    "made": [],
    "excluded": ["u"],
}
SCORES_RECORD = {
    "kind": "importance",
    "version": 1,
    "base": None,
    "model": BINDING,
    "options": {"transposed": []},
    "rules": {"left": ["u"]},
}


def check_record(data: bytes, folder: Path) -> None:
    """A record of a task vector, or of scores."""
    arrays = {"w": np.ones((2, 3), np.float32), "importance.scales": np.ones(1)}
    path = _recorded(data, folder, arrays)
    try:
        scores = Importance.open(path)
    except TaskbasisError:
        vector = TaskVector.open(path)
        assert vector.combination.leaves[0].base.fingerprint is not None
    else:
        assert scores.learnt.numbers == {"w": 1.0}


CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "base"}
FACTORS = {
    "base_model.model.layers.0.q.lora_A.weight": np.ones((2, 3), np.float32),
    "base_model.model.layers.0.q.lora_B.weight": np.ones((4, 2), np.float32),
}


def check_adapter_config(data: bytes, folder: Path) -> None:
    """A config beside two factors of rank 2."""
    (folder / "adapter_config.json").write_bytes(data)
    (folder / "adapter_model.safetensors").write_bytes(save(dict(FACTORS)))
    _check_adapter(folder)


def check_adapter_weights(data: bytes, folder: Path) -> None:
    """A header of factors beside a config of rank 2."""
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    _weights(folder / "adapter_model.safetensors", data, ADAPTER_DATA)
    _check_adapter(folder)


def _check_adapter(folder: Path) -> None:
    found = open_adapter(folder)
    assert found.infos
    for info in found.infos.values():
        assert info.dtype == F32
        if info.nbytes < MOST_READ:
            assert info.load().shape == info.shape


def check_recipe(data: bytes, folder: Path) -> None:
    """A recipe, in UTF-8."""
    del folder
    found = parse_recipe(data.decode("utf-8", "replace"))
    twin = parse_recipe(to_yaml(found))
    assert to_yaml(twin) == to_yaml(found)


def _header_of(tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> bytes:
    raw = save(dict(tensors), dict(metadata or {}) or None)
    return raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]]


def _data_of(tensors: Mapping[str, Any]) -> bytes:
    raw = save(dict(tensors))
    return raw[8 + struct.unpack("<Q", raw[:8])[0] :]


ADAPTER_DATA = _data_of(FACTORS)
HEADERS = (
    _header_of({"w": np.ones((2, 2), np.float32)}, {"format": "pt", "x": "y"}),
    _header_of({"w": np.ones(3, np.float32), "n": np.empty((0, 5)), "f": np.ones(4, np.bool_)}),
    _header_of({"w": np.ones(8, np.float16)}),
    make_header([("a", F64, ()), ("b", F64, (1, 1))], {})[0][8:],
)
RECIPES = (
    "merge_method: linear\nmodels:\n- model: a\n  parameters: {weight: 0.5}\n- model: b@main\n"
    "  parameters: {weight: [0, 1]}\ndtype: float32\n",
    "merge_method: ties\nbase_model: o/base\nmodels:\n- model: o/a+o/lora\n  parameters:\n"
    "    density:\n    - {filter: mlp, value: [0.1, 0.9]}\n    - value: 0.5\n    weight: 1\n"
    "- {model: o/b, parameters: {density: 0.2, weight: 1}}\nparameters: {normalize: true}\n"
    "tokenizer: {source: union}\n",
    "slices:\n- sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]\n"
    "merge_method: slerp\nbase_model: a\nparameters: {t: &t [0, 0.5, 1]}\nout_dtype: bfloat16\n",
    "name: one\nmerge_method: passthrough\nmodels: [{model: a}]\n---\nmerge_method: slerp\n"
    "base_model: one\nmodels: [{model: b}]\nparameters: {t: 0.3}\nchat_template: auto\n",
    "merge_method: linear\nmodules:\n  text:\n    models: [{model: a}, {model: b}]\n"
    "parameters: {<<: {weight: 1}}\n",
)


def _json(*values: object) -> tuple[bytes, ...]:
    return tuple(json.dumps(value).encode() for value in values)


_HEADER_WORDS = (
    *('"dtype":', '"shape":', '"data_offsets":', '"__metadata__":', '"F32"', '"BF16"', '"U8"'),
    *("[0,16]", "[2,2]", "[-1]", "[1e9]", "[9223372036854775808,0]", "true", "null", "NaN"),
)
_RECIPE_WORDS = (
    *("merge_method:", "models:", "- model:", "slices:", "sources:", "layer_range:", "modules:"),
    *("parameters:", "base_model:", "filter:", "value:", "tokenizer:", "source:", "tokens:"),
    *("ties", "slerp", "dare_ties", "linear", "passthrough", "&a", "*a", "<<:", "!!python/name:"),
    *("---", "...", "? ", "|", ">", "{", "}", "[", "]", ".inf", "0x1", "1_0", "2001-01-01"),
)
TARGETS: dict[str, Target] = {
    "header": Target(
        check_header,
        (*HEADERS, b"!" + save({"w": np.ones(3, np.float32)})),
        _HEADER_WORDS,
    ),
    "index": Target(
        check_index,
        _json(
            {"weight_map": {f"{n}{k}": f"{k}.safetensors" for n in "ab" for k in (1, 2)}},
            {
                "metadata": {"total_size": 32, "x": "y"},
                "weight_map": {f"{n}{k}": f"./{k}.safetensors" for n in "ab" for k in (1, 2)},
            },
        ),
        (
            '"weight_map":',
            '"metadata":',
            '"../',
            '"/etc/passwd"',
            '"a1":',
            "1.safetensors",
            "\\u0000",
        ),
    ),
    "basis": Target(
        check_basis,
        _json(BASIS_RECORD, {**BASIS_RECORD, "options": {}}),
        ('"atoms":', '"names":', '"tensors":', '"groups":', '"dtype":', "null", "1e999", "-1"),
    ),
    "record": Target(
        check_record,
        _json(VECTOR_RECORD, SCORES_RECORD, {**VECTOR_RECORD, "tuned": None}),
        ('"kind":', '"importance"', '"excluded":', '"digests":', "null", "true", "{}", "[]"),
    ),
    "adapter-config": Target(
        check_adapter_config,
        _json(
            CONFIG,
            {**CONFIG, "use_rslora": True, "rank_pattern": {"q": 2}, "alpha_pattern": {".*q": 8.5}},
            {**CONFIG, "fan_in_fan_out": True, "target_modules": ["q"], "bias": "none"},
        ),
        (
            '"r":',
            '"alpha_pattern":',
            '"rank_pattern":',
            "(a+)+",
            "\\\\d{9}",
            "1e30",
            "[^",
            "|",
            "?",
        ),
    ),
    "adapter-weights": Target(
        check_adapter_weights,
        (_header_of(FACTORS),),
        (*_HEADER_WORDS, "lora_A.weight", "lora_embedding_B", "base_model.model.", ".base_layer."),
    ),
    "recipe": Target(check_recipe, tuple(text.encode() for text in RECIPES), _RECIPE_WORDS),
}
