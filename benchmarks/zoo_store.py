"""Write, scan and draw random batches from a zoo, against one ``.pt`` file per network.

Networks are INRs of the shape 2-32-32-1 (1,185 scalars). A batch is a state dict with a leading axis of 128, a
scan reads every network once. Both stores are warm in the page cache and are measured in turns within one run. CPU time
is the figure to compare, since other work may share the cores; wall time is printed beside it.

    python benchmarks/zoo_store.py [--count 20000] [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

from weightspace.zoo import Architecture, Zoo

BATCH, UNIT = 128, 1024
SHAPES = {"layers.0.weight": (32, 2), "layers.0.bias": (32,), "layers.1.weight": (32, 32), "layers.1.bias": (32,)}
SHAPES |= {"layers.2.weight": (1, 32), "layers.2.bias": (1,)}


def measure(action: Callable[[], object]) -> dict[str, float]:
    """CPU and wall seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


def draw(count: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(count, *shape, generator=generator) for name, shape in SHAPES.items()}


def write_files(folder: Path, weights: dict[str, Tensor]) -> None:
    folder.mkdir()
    for i in range(len(weights["layers.0.bias"])):
        torch.save({name: value[i].clone() for name, value in weights.items()}, folder / f"{i:06d}.pt")


def read_files(folder: Path, numbers: list[int]) -> dict[str, Tensor]:
    nets = [torch.load(folder / f"{i:06d}.pt", weights_only=True) for i in numbers]
    return {name: torch.stack([net[name] for net in nets]) for name in SHAPES}


def write_zoo(folder: Path, weights: dict[str, Tensor]) -> None:
    zoo = Zoo.create(folder, recipe={}, forward={})
    architecture = Architecture("inr", {}, {name: (shape, "float32") for name, shape in SHAPES.items()})
    fields = {"step": 0, "seed": 0, "init_id": "0", "label": 0}
    count = len(weights["layers.0.bias"])
    for start in range(0, count, UNIT):
        numbers = range(start, min(start + UNIT, count))
        rows = [{"model_id": str(i), "run_id": str(i), "split_key": str(i), **fields} for i in numbers]
        part = {name: value[start : start + UNIT] for name, value in weights.items()}
        zoo.append(f"u{start:06d}", architecture, part, rows)


def size_on_disk(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))


def run(folder: Path, count: int, repeats: int) -> dict[str, dict[str, dict[str, float]]]:
    """Seconds per network: ``{task: {variant: {cpu, wall}}}``, medians."""
    weights = draw(count, 0)
    tasks = {"write": {"files": [measure(lambda: write_files(folder / "files", weights))]}}
    tasks["write"]["zoo"] = [measure(lambda: write_zoo(folder / "zoo", weights))]
    units = {"write": count, "scan": count, "random batches": 20 * BATCH}
    generator = torch.Generator().manual_seed(1)
    zoos = {"zoo": Zoo.open(folder / "zoo"), "zoo, checks off": Zoo.open(folder / "zoo", check=False)}
    batch = torch.randint(count, (BATCH,), generator=generator).tolist()
    reference = read_files(folder / "files", batch)
    for name, zoo in zoos.items():
        if not all(torch.equal(value, reference[key]) for key, value in zoo.weights(batch).items()):
            raise SystemExit(f"{name} gives other weights than the files.")
    for _ in range(repeats):
        batches = torch.randint(count, (20, BATCH), generator=generator).tolist()
        for task, work in (("scan", [list(range(count))]), ("random batches", batches)):
            results = tasks.setdefault(task, {})
            readers = {"files": lambda numbers: read_files(folder / "files", numbers)}
            readers |= {name: zoo.weights for name, zoo in zoos.items()}
            for name, read in readers.items():
                results.setdefault(name, []).append(measure(lambda r=read, w=work: [r(numbers) for numbers in w]))
        for name, zoo in zoos.items():
            loader = zoo.loader(BATCH, shuffle=True)
            for task in ("epoch of the loader, first", "epoch of the loader, next"):
                tasks.setdefault(task, {}).setdefault(name, []).append(measure(lambda r=loader: list(r)))
    return {
        task: {
            name: {key: statistics.median(s[key] for s in samples) / units.get(task, count) for key in ("cpu", "wall")}
            for name, samples in variants.items()
        }
        for task, variants in tasks.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="networks")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each reading task, taken in turns")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "zoo_store.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    try:
        tasks = run(folder, args.count, args.repeats)
        disk = {name: size_on_disk(folder / name) for name in ("files", "zoo")}
    finally:
        shutil.rmtree(folder)
    environment = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
    print(f"{args.count:,} networks of 1,185 scalars, one thread, median of {args.repeats} (write: 1), {environment}")
    print(f"{'task':<28}{'store':<18}{'networks/CPU s':>15}{'networks/s':>13}{'vs files':>10}")
    for task, variants in tasks.items():
        reference = tasks["random batches" if task.startswith("epoch") else task]["files"]["cpu"]
        for name, seconds in variants.items():
            seconds["speedup"] = reference / seconds["cpu"]
            rates = f"{1 / seconds['cpu']:>15,.0f}{1 / seconds['wall']:>13,.0f}"
            print(f"{task:<28}{name:<18}{rates}{seconds['speedup']:>9.1f}x")
    print(f"bytes on disk: zoo {disk['zoo']:,}, files {disk['files']:,} ({disk['zoo'] / disk['files']:.2f}x)")
    args.out.parent.mkdir(exist_ok=True)
    sizes = {"count": args.count, "repeats": args.repeats, "batch": BATCH, "unit": UNIT, "scalars": 1185}
    result = {"date": date.today().isoformat(), "environment": environment, "sizes": sizes}
    result |= {"seconds_per_network": tasks, "bytes_on_disk": disk}
    args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
