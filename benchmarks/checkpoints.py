#!/usr/bin/env python3
"""Makes a Llama-shaped bf16 checkpoint and fine-tunes of it, to measure on.

    python benchmarks/checkpoints.py 1b WORK --tuned 8

writes ``WORK/1b/base`` and ``WORK/1b/tuned-1`` ... ``tuned-8``: ordinary Hugging Face folders
(``config.json``, safetensors shards, index; no tokenizer). A fine-tune is the base plus small noise
on every tensor, rounded to bf16. What already stands there is kept.

The numbers are cheap on purpose. One pool of normal numbers (SFC64, float32) is drawn once; every
block of every tensor is a window of that pool at its own random offset and with its own random
sign, both seeded by (seed, fine-tune, block). So the result depends neither on the number of
threads nor on their order, the noise of two fine-tunes is uncorrelated at equal positions, and it
must not be used for anything that looks for structure across positions.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

BLOCK = 1 << 20  # elements made at once by one thread
POOL = 1 << 22  # normal numbers drawn once and reused
BF16 = 2  # bytes
MATRIX_STD, NORM_MEAN, NORM_STD, TUNED_STD = 0.02, 0.4, 0.1, 1e-3


@dataclass(frozen=True)
class Size:
    """The shape of a Llama-like model and how large its shards may be."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    shard_bytes: int

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes in the order of the model."""
        kv = self.hidden // self.heads * self.kv_heads
        square, mlp = (self.hidden, self.hidden), (self.intermediate, self.hidden)
        yield "model.embed_tokens.weight", (self.vocab, self.hidden)
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            yield prefix + "self_attn.q_proj.weight", square
            yield prefix + "self_attn.k_proj.weight", (kv, self.hidden)
            yield prefix + "self_attn.v_proj.weight", (kv, self.hidden)
            yield prefix + "self_attn.o_proj.weight", square
            yield prefix + "mlp.gate_proj.weight", mlp
            yield prefix + "mlp.up_proj.weight", mlp
            yield prefix + "mlp.down_proj.weight", mlp[::-1]
            yield prefix + "input_layernorm.weight", (self.hidden,)
            yield prefix + "post_attention_layernorm.weight", (self.hidden,)
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (self.vocab, self.hidden)

    def config(self) -> dict[str, object]:
        """What ``config.json`` says."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initializer_range": MATRIX_STD,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": 2048,
            "model_type": "llama",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": self.vocab,
        }

    def bytes(self) -> int:
        """The size of all tensors of one checkpoint."""
        return sum(BF16 * math.prod(shape) for _, shape in self.tensors())


SIZES = {
    "tiny": Size(128, 4, 352, 8, 2, 2000, 800_000),
    "30m": Size(512, 6, 1376, 8, 8, 12000, 800_000_000),
    "125m": Size(768, 12, 2048, 12, 12, 32000, 800_000_000),
    "1b": Size(2048, 22, 5632, 32, 4, 32000, 800_000_000),
}


@dataclass(frozen=True)
class Shard:
    """One safetensors file: its header is known before a number is made."""

    name: str
    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    note: str

    @cached_property
    def header(self) -> bytes:
        """Length, JSON padded to eight bytes: everything before the numbers."""
        fields: dict[str, object] = {"__metadata__": {"format": "pt", "made": self.note}}
        start = 0
        for name, shape in self.tensors:
            end = start + BF16 * math.prod(shape)
            fields[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
            start = end
        text = json.dumps(fields, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def blocks(self) -> Iterator[tuple[str, int, int]]:
        """Of every tensor, block by block: its name, the byte after the header, how many."""
        start = 0
        for name, shape in self.tensors:
            count = math.prod(shape)
            for first in range(0, count, BLOCK):
                yield name, start + BF16 * first, min(BLOCK, count - first)
            start += BF16 * count


def shards(size: Size, note: str) -> list[Shard]:
    """Deals the tensors out in the order of the model; a shard keeps its own sorted by name."""
    groups: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    filled = 0
    for name, shape in size.tensors():
        nbytes = BF16 * math.prod(shape)
        if groups[-1] and filled + nbytes > size.shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append((name, shape))
        filled += nbytes
    names = [f"model-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1)]
    if len(groups) == 1:
        names = ["model.safetensors"]
    return [
        Shard(name, tuple(sorted(group)), note) for name, group in zip(names, groups, strict=True)
    ]


def index(parts: list[Shard]) -> dict[str, object]:
    """What ``model.safetensors.index.json`` says."""
    sizes = [BF16 * math.prod(shape) for part in parts for _, shape in part.tensors]
    weight_map = {name: part.name for part in parts for name, _ in part.tensors}
    return {
        "metadata": {"total_size": sum(sizes)},
        "weight_map": dict(sorted(weight_map.items())),
    }


class _Scratch(threading.local):
    """Each thread's own buffers, reused for every block."""

    def __init__(self) -> None:
        self.numbers = np.empty(BLOCK, np.float32)
        self.noise = np.empty(BLOCK, np.float32)
        self.stored = np.empty(BLOCK, ml_dtypes.bfloat16)


class Maker:
    """Makes the checkpoints of one size and seed under one folder.

    Args:
        work: the folder that gets one subfolder per size.
        size: a key of :data:`SIZES`.
        seed: another seed makes other numbers.
    """

    def __init__(self, work: Path, size: str, seed: int = 0) -> None:
        self.folder = work / size
        self._what, self._size, self._seed = size, SIZES[size], seed
        self._scratch = _Scratch()
        generator = np.random.Generator(np.random.SFC64(seed))
        self._pool: Floats = generator.standard_normal(POOL, dtype=np.float32)

    def base(self) -> Path:
        """The base model's folder, made when it does not stand there already."""
        folder = self.folder / "base"
        parts = shards(self._size, f"{self._what}, seed {self._seed}, base")
        if not _stands(folder, parts):
            self._write(folder, parts, 0, self._fill_base)
        return folder

    def tuned(self, number: int) -> Path:
        """The folder of fine-tune ``number`` (from 1), made when it does not stand there."""
        folder = self.folder / f"tuned-{number}"
        parts = shards(self._size, f"{self._what}, seed {self._seed}, fine-tune {number}")
        if not _stands(folder, parts):
            self._write(folder, parts, number, self._fill_tuned(self.base()))
        return folder

    def _noise(self, key: tuple[int, ...], count: int) -> Floats:
        """A window of the pool with a random sign, in this thread's buffer."""
        generator = np.random.Generator(np.random.SFC64((self._seed, *key)))
        first = int(generator.integers(POOL - count))
        sign = np.float32(generator.choice((-1.0, 1.0)))
        noise = self._scratch.noise[:count]
        np.multiply(self._pool[first : first + count], sign, out=noise)
        return noise

    def _fill_base(self, part: Shard, start: int, name: str, noise: Floats) -> Floats:
        del part, start
        numbers = self._scratch.numbers[: len(noise)]
        norm = name.endswith("norm.weight")
        np.multiply(noise, np.float32(NORM_STD if norm else MATRIX_STD), out=numbers)
        if norm:
            np.add(numbers, np.float32(NORM_MEAN), out=numbers)
        return numbers

    def _fill_tuned(self, base: Path) -> Callable[[Shard, int, str, Floats], Floats]:
        headers = {path.name: _header_bytes(path) for path in base.glob("*.safetensors")}

        def fill(part: Shard, start: int, name: str, noise: Floats) -> Floats:
            del name
            stored = self._scratch.stored[: len(noise)]
            with (base / part.name).open("rb") as file:
                os.preadv(file.fileno(), [stored.view(np.uint8).data], headers[part.name] + start)
            numbers = self._scratch.numbers[: len(noise)]
            np.copyto(numbers, stored, casting="unsafe")
            np.multiply(noise, np.float32(TUNED_STD), out=noise)
            np.add(numbers, noise, out=numbers)
            return numbers

        return fill

    def _write(
        self,
        folder: Path,
        parts: list[Shard],
        number: int,
        fill: Callable[[Shard, int, str, Floats], Floats],
    ) -> None:
        """Writes beside the folder, block by block on all cores, and renames at the end."""
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        serial = itertools.count()
        for part in parts:
            self._write_shard(partial / part.name, part, number, fill, serial)
        _write_json(partial / "config.json", self._size.config())
        if len(parts) > 1:
            _write_json(partial / "model.safetensors.index.json", index(parts))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)

    def _write_shard(
        self,
        path: Path,
        part: Shard,
        number: int,
        fill: Callable[[Shard, int, str, Floats], Floats],
        serial: Iterator[int],
    ) -> None:
        with path.open("wb") as file, ThreadPoolExecutor(_cores()) as threads:
            file.write(part.header)
            file.flush()

            def make(block: tuple[tuple[str, int, int], int]) -> None:
                (name, start, count), place = block
                stored = self._scratch.stored[:count]
                numbers = fill(part, start, name, self._noise((number, place), count))
                np.copyto(stored, numbers, casting="unsafe")
                os.pwrite(file.fileno(), stored.view(np.uint8).data, len(part.header) + start)

            for _ in threads.map(make, zip(part.blocks(), serial, strict=False)):
                pass


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _header_bytes(path: Path) -> int:
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _stands(folder: Path, parts: list[Shard]) -> bool:
    """Whether the folder holds exactly these shards: the same headers and lengths."""
    if not (folder / "config.json").exists():
        return False
    return all(_same_file(folder / part.name, part) for part in parts)


def _same_file(path: Path, part: Shard) -> bool:
    data = sum(BF16 * math.prod(shape) for _, shape in part.tensors)
    if not path.exists() or path.stat().st_size != len(part.header) + data:
        return False
    with path.open("rb") as file:
        return file.read(len(part.header)) == part.header


def main(arguments: list[str] | None = None) -> None:
    """Makes the base and its fine-tunes, saying what it made."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("work", type=Path)
    parser.add_argument("--tuned", type=int, default=2, help="how many fine-tunes (default 2)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    maker = Maker(options.work, options.size, options.seed)
    print(maker.base())
    for number in range(1, options.tuned + 1):
        print(maker.tuned(number))


if __name__ == "__main__":
    main()
