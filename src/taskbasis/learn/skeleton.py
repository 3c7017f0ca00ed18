"""A transformers module whose parameters are known by their names in the file.

The names in ``model.safetensors`` are not always those of the live module (transformers 5 renames
while it loads, tied weights have two, old files have others). So the module is first made from
tensors that hold their own number, each of one number's size whatever its shape, and the numbers
that its parameters then hold say which is which. The weights are read into it after that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskbasis.difference import same_bytes
from taskbasis.errors import FileError, MismatchError, UsageError, nearest, require
from taskbasis.io.dtypes import DType
from taskbasis.io.folder import open_tensors
from taskbasis.io.tensors import TensorStore
from taskbasis.learn.runtime import EXTRA, torch_for
from taskbasis.learn.weights import as_torch
from taskbasis.sidefiles import read_config

PURPOSE = "a Hugging Face model"
"""Who asks, when an optional package is missing."""

_MOST = 1 << 24
"""Whole numbers below this are exact in float32."""


@dataclass(frozen=True, eq=False)
class Skeleton:
    """A module with the weights of its folder, in eval mode.

    Attributes:
        folder: where it comes from.
        store: the tensors of the folder's file.
        module: what transformers made of it.
        config: its configuration, which the module looks at.
        names: the name in the file of every parameter; tied ones once.
        buffers: the names in the file of float buffers that it holds.
    """

    folder: Path
    store: TensorStore
    module: Any
    config: Any
    names: Mapping[str, str]
    buffers: tuple[str, ...]


@contextmanager
def quiet() -> Iterator[Any]:
    """Transformers without progress bars and advice on the error stream."""
    transformers = require("transformers", EXTRA, PURPOSE)
    logs = require("transformers.utils.logging", EXTRA, PURPOSE)
    bars, level = logs.is_progress_bar_enabled(), logs.get_verbosity()
    try:
        logs.disable_progress_bar()
        logs.set_verbosity(logs.CRITICAL)
        yield transformers
    finally:
        logs.set_verbosity(level)
        if bars:
            logs.enable_progress_bar()


def load_config(folder: Path) -> Any:
    """The configuration of a folder, without asking the hub.

    Raises:
        FileError: there is none, it is damaged, or it wants code of its own to be run.
    """
    content, path = read_config(folder), folder / "config.json"
    if content is None:
        raise FileError(f"{folder}: is not a Hugging Face folder: it has no config.json")
    kind = content.get("model_type")
    if not isinstance(kind, str):
        raise FileError(f"{path}: does not say its model_type")
    with quiet() as transformers:
        known = transformers.CONFIG_MAPPING
        if kind not in known:
            raise UsageError(
                f"{path}: transformers {transformers.__version__} does not know the model type "
                f"{kind!r}; {nearest(kind, known.keys())}. Code from model folders is never run"
            )
        if "quantization_config" in content:
            raise UsageError(f"{folder}: is quantised; gradients need the float model it was")
        try:
            return known[kind].from_pretrained(folder, local_files_only=True)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise FileError(f"{path}: transformers cannot use it: {error}") from None


def load(folder: str | Path, loader: str, dtype: str | None = None, **more: Any) -> Skeleton:
    """The model of a folder, by a class of transformers.

    Args:
        folder: a Hugging Face folder.
        loader: the class, such as ``BertForSequenceClassification``.
        dtype: computes in it; by default as stored, but float16 as float32, since small gradients
            vanish in it.
        **more: passed to the class.

    Raises:
        FileError: the folder is not one. MismatchError: the file's tensors are not the module's.
    """
    torch = torch_for(PURPOSE)
    folder = Path(folder)
    config, store = load_config(folder), open_tensors(folder)
    floats = {name: info for name, info in store.items() if info.dtype.mergeable}
    numbered = {
        name: torch.full((), float(number) if name in floats else 0).expand(info.shape)
        for number, (name, info) in enumerate(store.items(), start=1)
    }
    for name in store.keys() - floats.keys():
        numbered[name] = numbered[name].long()
    assert len(store) < _MOST
    with quiet() as transformers, torch.random.fork_rng(devices=[]):
        if not hasattr(transformers, loader):
            raise UsageError(
                f"{folder}: transformers {transformers.__version__} has no {loader}; code from "
                "model folders is never run"
            )
        more["dtype" if _release(transformers) >= (4, 56) else "torch_dtype"] = torch.float32
        module, found = getattr(transformers, loader).from_pretrained(
            None,
            config=config,
            state_dict=numbered,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **more,
        )
    _check(folder, loader, found)
    names, buffers = _read_numbers(module, store)
    _refuse_untied(folder, module, store, names)
    kind = getattr(torch, dtype or _computed_in(floats.values()))
    places = dict(module.named_parameters()) | dict(module.named_buffers())
    for name, stored in (names | buffers).items():
        places[name].data = as_torch(store[stored]).to(kind)
    module.eval().requires_grad_(False)
    return Skeleton(folder, store, module, module.config, names, tuple(sorted(buffers.values())))


def _release(package: Any) -> tuple[int, int]:
    """The first two numbers of a package's version."""
    first, second = package.__version__.split(".")[:2]
    return int(first), int(second)


def _check(folder: Path, loader: str, found: Mapping[str, Any]) -> None:
    lost = sorted(found["missing_keys"])
    if lost:
        raise MismatchError(
            f"{folder}: the file lacks {len(lost)} tensors of a {loader}, e.g. {lost[0]!r}; they "
            "would be random. Train the model for the task first"
        )
    for name, have, want in sorted(found["mismatched_keys"]):
        raise MismatchError(
            f"{folder}: {name!r} has shape {list(have)} in the file, but its config.json asks for "
            f"{list(want)}"
        )


def _refuse_untied(folder: Path, module: Any, store: TensorStore, names: Mapping[str, str]) -> None:
    """Refuse a file that holds one tied weight under two names: it would be looked at as two.

    Raises:
        UsageError: naming both.
    """
    ends = (module.get_input_embeddings, module.get_output_embeddings)
    weights = [getattr(end(), "weight", None) for end in ends] if _tied(module.config) else []
    if len(weights) < 2 or weights[1] is None or weights[0] is weights[1]:
        return
    known = {id(parameter): names[name] for name, parameter in module.named_parameters()}
    one, two = (store[known[id(weight)]] for weight in weights)
    if one.dtype == two.dtype and same_bytes(one, two):
        raise UsageError(
            f"{folder}: holds its tied embeddings twice, as {one.name!r} and {two.name!r}; save it "
            "again with transformers, as safetensors, which stores them once"
        )


def _tied(config: Any) -> bool:
    return bool(getattr(config, "tie_word_embeddings", False))


def _read_numbers(module: Any, store: TensorStore) -> tuple[dict[str, str], dict[str, str]]:
    """The name in the file of every parameter, and of every float buffer that the file holds."""
    order = ["", *store]
    names = {}
    for name, parameter in module.named_parameters():
        number = _number(parameter.data)
        stored = order[number] if 0 < number < len(order) else ""
        if not stored or store[stored].shape != tuple(parameter.shape):
            raise MismatchError(
                f"{store.path}: transformers makes the parameter {name!r} from parts of the file; "
                "such models (mixtures of experts, fused projections) cannot be scored yet"
            )
        names[name] = stored
    buffers = {}
    for name, buffer in module.named_buffers():
        if name in module.state_dict() and buffer.is_floating_point():
            stored = order[_number(buffer)]
            buffers[name] = stored
    return names, buffers


def _number(tensor: Any) -> int:
    """The number that a tensor holds; 0 when its two ends differ, or there is none."""
    if tensor.numel() == 0:
        return 0
    first, last = (tensor[(end,) * tensor.ndim] for end in (0, -1))
    return int(first) if bool(first == last) else 0


def _computed_in(infos: Any) -> str:
    """The dtype that most of the weights are stored in; float32 for float16."""
    sizes: dict[DType, int] = {}
    for info in infos:
        sizes[info.dtype] = sizes.get(info.dtype, 0) + info.size
    most = max(sizes, key=lambda dtype: sizes[dtype]).name
    return "float32" if most == "float16" else most
