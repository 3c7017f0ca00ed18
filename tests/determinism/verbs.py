"""Every verb on one small world: prints the digest of what each wrote, as JSON.

    python verbs.py FOLDER [--workers N] [--shards N] [--memory BYTES] [--only WORD]

Run in a process of its own where a setting can only be given at the start: PYTHONHASHSEED and
the threads of BLAS. All paths are relative, so that they are the same in every folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from taskbasis import (
    Basis,
    Checkpoint,
    Design,
    Engine,
    TaskVector,
    analogy,
    disentangle,
    fit,
    merge,
    method,
    select,
    update,
)
from taskbasis.diagnosis import diagnose
from taskbasis.lora import add_adapters, extract_lora
from taskbasis.methods import registered
from taskbasis.methods.learnt.sta import Sta

SHAPES = {
    "h.0.attn.weight": (160, 144),
    "h.0.norm.weight": (5000,),
    "h.1.attn.weight": (160, 144),
    "h.1.conv.weight": (6, 5, 3, 3),
    "h.1.norm.bias": (17,),
    "scale": (),
}
TASKS = ("a", "b", "c")
CONSTRUCTIONS = ("autoencoder", "pca", "svd", "cluster", "select", "random")


def build(shards: int) -> None:
    """A base and three fine-tunes in the current folder, in so many shards."""
    random = np.random.default_rng(7)
    base = {name: random.standard_normal(shape) for name, shape in SHAPES.items()}
    for task in ("base", *TASKS):
        step = 0.0 if task == "base" else 0.05
        Path(task).mkdir()
        Path(task, "config.json").write_text('{"model_type": "tiny"}')
        tensors = {
            name: np.asarray(value + step * random.standard_normal(value.shape), np.float32)
            for name, value in base.items()
        }
        save(Path(task), {**tensors, "steps": np.array([3], np.int64)}, shards)


def save(folder: Path, tensors: dict[str, Any], shards: int) -> None:
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return
    placed = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors, reverse=True)[number::shards]}
        save_file(part, folder / file, {"format": "pt"})
        placed.update(dict.fromkeys(part, file))
    index = {"metadata": {}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def digest(path: Path) -> str:
    """Of every file of an output, with its name."""
    found = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            found.update(file.name.encode() + b"\0" + file.read_bytes())
    return found.hexdigest()


def methods() -> list[str]:
    """Those that need vectors alone, in numbers that three are."""
    kinds = {name: method(name) for name in registered()}
    return [
        name
        for name, kind in kinds.items()
        if "required" not in (kind.scores, kind.moments)
        and kind.takes[0] <= len(TASKS) <= (kind.takes[1] or len(TASKS))
    ]


def verbs(engine: Engine) -> Iterator[tuple[str, Callable[[Path], Any]]]:
    """What is called, and a function that writes it to a path."""
    base = Checkpoint("base")
    vectors = {task: TaskVector(base, task) for task in TASKS}
    a, b, c = vectors.values()
    yield "extract", lambda out: a.save(out, engine=engine)
    yield (
        "extract bfloat16 shards",
        lambda out: a.save(out, "bfloat16", shard_size=20_000, engine=engine),
    )
    yield "add", lambda out: (base + 0.4 * (a + b + c)).save(out, engine=engine)
    yield (
        "add bfloat16 shards",
        lambda out: (base + a + b).save(out, "bfloat16", shard_size=20_000, engine=engine),
    )
    yield "negate", lambda out: (base - a).save(out, engine=engine)
    yield "analogy", lambda out: (base + analogy([a, b], c)).save(out, engine=engine)
    for name in methods():
        yield (
            f"merge {name}",
            lambda out, name=name: merge(base, list(vectors.values()), method(name)).save(
                out, engine=engine
            ),
        )
    for name in CONSTRUCTIONS:
        yield (
            f"basis fit {name}",
            lambda out, name=name: fit(
                vectors, out.with_suffix(".safetensors"), Design(k=2, method=name), engine=engine
            ),
        )
    yield (
        "basis fit tensor",
        lambda out: fit(
            {"a": a, "b": b},
            out.with_suffix(".safetensors"),
            Design(k=1, granularity="tensor"),
            engine=engine,
        ),
    )
    yield (
        "basis update",
        lambda out: update(Basis.open("basis-fit-tensor.safetensors"), "c", c, out, engine=engine),
    )
    yield (
        "basis recover",
        lambda out: Basis.open("basis-fit-pca.safetensors")["b"].save(out, engine=engine),
    )
    yield "lora extract", lambda out: extract_lora(base, a, out, 4, engine=engine)
    yield "lora extract c", lambda out: extract_lora(base, c, out, energy=0.9, engine=engine)
    yield (
        "lora add",
        lambda out: add_adapters(
            {"a": "lora-extract", "c": "lora-extract-c"}, [1, -0.5], out, rank=3, engine=engine
        ),
    )
    yield (
        "select",
        lambda out: select(
            vectors, out.with_suffix(".safetensors"), Sta(density=0.2), base=base, engine=engine
        ),
    )
    yield "disentangle", lambda out: disentangle(vectors, engine=engine).save(out, engine=engine)
    yield (
        "diagnose",
        lambda out: out.write_text(
            json.dumps(diagnose(vectors, base, dtype="bfloat16", engine=engine).to_json())
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--memory", type=int)
    given = parser.parse_args()
    given.folder.mkdir(parents=True)
    os.chdir(given.folder)
    build(given.shards)
    found = {}
    for name, write in verbs(Engine(given.workers, given.memory)):
        out = Path(name.replace(" ", "-"))
        write(out)
        found[name] = digest(out if out.exists() else out.with_suffix(".safetensors"))
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
