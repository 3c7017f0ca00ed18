#!/usr/bin/env python3
"""What a GPU brings: sums, inner products and a resident basis, with and without --device.

    python benchmarks/device.py --work WORK [--size tiny|30m|125m|1b] [--device cuda] [--runs 5]

Makes the checkpoints of ``checkpoints.py`` (kept in ``--work``), measures how fast page-locked
memory is copied to the device and back, runs every job in this process without and with the device
in turn, one uncounted run each first, and writes ``benchmarks/results/device-NAME.json``. What both
make is compared: weights byte for byte, inner products to seven digits.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from checkpoints import SIZES, Maker
from importance import digest
from measure import Spread, warm
from report import machine, spread

COPIED = 256 << 20  # bytes of which the rate of copying is measured
TUNED = 8


class Job(NamedTuple):
    """What an engine does, and how many checkpoints are read and written."""

    run: Callable[[Any], Any]
    read: int
    written: int


def jobs(base: Path, tuned: Sequence[Path], out: Path) -> dict[str, Job]:
    """The jobs by name; what they write goes to ``out``."""
    from taskbasis import Checkpoint, TaskVector
    from taskbasis.library.basis import inner_products

    start = Checkpoint(base)
    vectors = [TaskVector(start, path) for path in tuned]

    def merge(count: int) -> Callable[[Any], Any]:
        model = start + sum((0.5 * vector for vector in vectors[1:count]), 0.5 * vectors[0])
        return lambda engine: model.save(out, replace=True, engine=engine)

    def gram(engine: Any) -> Any:
        return np.sum(list(inner_products(vectors, engine).values()), axis=0)

    sums = {f"linear_{n}": Job(merge(n), n + 1, 1) for n in (2, len(vectors))}
    return {**sums, f"gram_{len(vectors)}": Job(gram, len(vectors) + 1, 0)}


def in_turn(job: Job, engines: Mapping[str, Any], out: Path, runs: int) -> dict[str, Any]:
    """Seconds of each engine, in turn, and whether all made the same."""
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    made: list[Any] = []
    for number in range(runs + 1):
        for name, engine in engines.items():
            shutil.rmtree(out, ignore_errors=True)
            began = time.perf_counter()
            result = job.run(engine)
            took = time.perf_counter() - began
            if number:
                seconds[name].append(took)
            else:
                files = sorted(out.glob("*.safetensors"))
                made.append([digest(file) for file in files] if job.written else result)
    times = {name: asdict(Spread.of(found)) for name, found in seconds.items()}
    return {"seconds": times, "same": all(same(made[0], other) for other in made)}


def same(ours: Any, theirs: Any) -> bool:
    """Whether both made the same: digests alike, or matrices to seven digits of their norms."""
    if isinstance(ours, list):
        return bool(ours == theirs)
    norms = np.sqrt(np.diag(ours))
    return bool(np.all(np.abs(ours - theirs) <= 5e-7 * np.outer(norms, norms)))


def copying(torch: Any, place: Any, tries: int = 5) -> dict[str, float]:
    """Bytes per second from page-locked memory to the device, and back; medians."""
    here = torch.zeros(COPIED, dtype=torch.uint8, pin_memory=place.type == "cuda")
    there, rates = torch.zeros(COPIED, dtype=torch.uint8, device=place), {}
    for name, (target, source) in {"to": (there, here), "from": (here, there)}.items():
        copy = lambda t=target, s=source: t.copy_(s, non_blocking=True)  # noqa: E731
        found = [timed(torch, place, copy) for _ in range(tries)]
        rates[name] = COPIED / Spread.of(found).median
    return rates


def timed(torch: Any, place: Any, action: Callable[[], Any]) -> float:
    """Seconds until the device has done it."""
    wait = torch.cuda.synchronize if place.type == "cuda" else lambda place: None
    wait(place)
    began = time.perf_counter()
    action()
    wait(place)
    return time.perf_counter() - began


def live(torch: Any, base: Path, place: Any) -> Any:
    """A module that holds the base's tensors under their names."""
    from taskbasis import Checkpoint

    root = torch.nn.Module()
    for name, info in Checkpoint(base).store.infos.items():
        *path, last = name.split(".")
        parent = root
        for part in path:
            if part not in parent._modules:
                parent.add_module(part, torch.nn.Module())
            parent = parent._modules[part]
        words = torch.from_numpy(info.load().view(np.uint8).reshape(-1))
        value = words.view(getattr(torch, info.dtype.name)).reshape(info.shape).to(place)
        parent.register_parameter(last, torch.nn.Parameter(value, requires_grad=False))
    return root


def recover(torch: Any, base: Path, tuned: Sequence[Path], place: Any, runs: int) -> dict[str, Any]:
    """Seconds to put a task of a basis of half as many atoms into a live module on the device."""
    from taskbasis import Basis, Design, TaskVector, fit
    from taskbasis.live import Resident

    library = base.parent / "device-basis.safetensors"
    if not library.exists():
        vectors = {path.name: TaskVector(base, path) for path in tuned}
        fit(vectors, library, Design(k=len(tuned) // 2), dtype="bfloat16")
    found = Basis.open(library)
    with Resident({name: found[name] for name in found.names}, live(torch, base, place)) as tasks:
        tasks.put(tasks.names[0])
        turn = [tasks.names[n % len(tasks.names)] for n in range(max(runs, 2))]
        seconds = [timed(torch, place, lambda name=name: tasks.put(name)) for name in turn]
        return {"seconds": asdict(Spread.of(seconds)), "kept_bytes": tasks.nbytes}


def main(arguments: Sequence[str] | None = None) -> int:
    """Make, measure, compare, store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--size", choices=tuple(SIZES), default="1b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--workers", type=int, help="threads; all cores when left out")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    import torch

    from taskbasis.engine import Engine, available_workers

    facts, workers = machine(), options.workers or available_workers()
    engines = {"none": Engine(workers), options.device: Engine(workers, device=options.device)}
    place = torch.zeros(1, device=options.device).device
    title = torch.cuda.get_device_name(place) if place.type == "cuda" else facts["cpu"]
    maker, out = Maker(options.work, options.size), options.work / "device-out"
    base, tuned = maker.base(), [maker.tuned(n) for n in range(1, TUNED + 1)]
    warm([file for folder in (base, *tuned) for file in folder.glob("*.safetensors")])
    rates, whole = copying(torch, place), SIZES[options.size].bytes()
    found: dict[str, Any] = {}
    for name, job in jobs(base, tuned, out).items():
        made = in_turn(job, engines, out, options.runs)
        floor = whole * (job.read / rates["to"] + job.written / rates["from"])
        found[name] = {**made, "copying_seconds": floor}
        times = {who: spread(Spread(**each)) for who, each in made["seconds"].items()}
        print(f"{name}: seconds {times}; copying alone {floor:.2f}; same: {made['same']}")
    shutil.rmtree(out, ignore_errors=True)
    for where in dict.fromkeys((torch.device("cpu"), place)):
        made = found[f"recover on {where}"] = recover(torch, base, tuned, where, options.runs)
        print(f"recover on {where}: {1e3 * made['seconds']['median']:.2f} ms")
    about = {"device": title, "torch": torch.__version__, "size": options.size, "workers": workers}
    stored = {**about, "machine": facts, "bytes_per_second": rates, "jobs": found}
    options.results.mkdir(parents=True, exist_ok=True)
    label = re.sub(r"[^a-z0-9]+", "-", f"{title} {options.size}".lower()).strip("-")
    path = options.results / f"device-{label}.json"
    path.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
    print(f"copied {rates['to'] / 1e9:.1f} GB/s there, {rates['from'] / 1e9:.1f} GB/s back")
    print(f"wrote {path}")
    return 0 if all(made.get("same", True) for made in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
