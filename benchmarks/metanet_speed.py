"""Speed and memory of every metanetwork, next to the public code of the same kind.

Batches of 64 INRs 2-32-32-1 (case A) and of 64 small CNNs (case B); forward without gradient, and forward with
backward to all parameters ("step"), dropout off, no data loading. Every model runs in a fresh process of its own; those
of a pair take turns, and medians over the rounds are reported. CPU seconds are the figure to compare, since other work
may share the cores. ``MiB`` is the growth of the resident set during one call; the first call of a process counts too.
Graphs of peers are built outside the timed part where their own data loaders do it. A model whose first call took
longer than ``--budget`` seconds of CPU is not called again.

The large blocks of PyTorch's default allocator go back to the system at once and are faulted in again page by page;
``--allocator kept`` lets the C library keep them. Rows of earlier runs stay in the file until they are measured again.

    python benchmarks/metanet_speed.py [--peers FOLDER] [--only dws nft] [--cases A] [--allocator kept] [--threads 2]

``FOLDER`` holds clones of DWSNets, nfn, universal_neural_functional, neural-graphs and scalegmn, and a virtual
environment ``venv`` with einops, hydra-core, random-fourier-features-pytorch, jax and flax.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

if not __package__:  # started by its path: start again as a module, from the root, where benchmarks are found
    os.chdir(Path(__file__).resolve().parent.parent)
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks.metanet_speed", *sys.argv[1:]])

import torch

from benchmarks.peers.pairs import Pair, Row, pairs

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "metanet_speed.json"
NETWORKS = 64
ALLOCATORS = {
    "default": {},
    "kept": {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
        "MALLOC_TOP_PAD_": str(256 << 20),
    },
}
ACTIONS = ("forward", "step")


class Worker:
    """A model in a process of its own, and what its calls took."""

    def __init__(self, row: Row, case: str, args: argparse.Namespace) -> None:
        self.row = row
        self.calls: dict[str, list[dict[str, float]]] = {action: [] for action in ACTIONS}
        order = {"case": case, "maker": row.maker, "options": row.options, "networks": NETWORKS}
        order |= {"threads": args.threads, "peers": args.peers}
        threads = {f"{name}_NUM_THREADS": str(args.threads) for name in ("OMP", "MKL", "OPENBLAS")}
        flags = {"XLA_FLAGS": f"--xla_cpu_multi_thread_eigen={'false' if args.threads == 1 else 'true'}"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peers.worker", json.dumps(order)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, **threads, **flags, **ALLOCATORS[args.allocator]},
        )  # fmt: skip
        self.parameters = int(self._reply()["parameters"])

    def _reply(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            assert self.process.stderr is not None
            raise RuntimeError(f"'{self.row.name}' stopped:\n{self.process.stderr.read()[-2000:]}")
        return json.loads(line)

    def call(self) -> float:
        """Run both actions once; CPU seconds of both."""
        assert self.process.stdin is not None
        for action in ACTIONS:
            self.process.stdin.write(action + "\n")
            self.process.stdin.flush()
            self.calls[action].append(self._reply())
        return sum(self.calls[action][-1]["cpu"] for action in ACTIONS)

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()

    def summary(self) -> dict[str, Any]:
        """Medians over the calls but the first, or the first where it is the only one."""
        found: dict[str, Any] = {"parameters": self.parameters}
        for action, calls in self.calls.items():
            timed = calls[1:] or calls
            found[action] = {
                "cpu_s": statistics.median(call["cpu"] for call in timed),
                "cpu_s_range": [min(call["cpu"] for call in timed), max(call["cpu"] for call in timed)],
                "wall_s": statistics.median(call["wall"] for call in timed),
                "growth_mib": max(call["mib"] for call in calls),
                "rounds": len(timed),
                "first_call_counted": len(calls) == 1,
            }
        return found


@contextmanager
def workers(pair: Pair, args: argparse.Namespace) -> Iterator[list[Worker]]:
    """The processes of a pair; a peer that does not run is reported and left out."""
    running: list[Worker] = []
    try:
        for row in (*pair.ours, *(pair.peers if args.peers else ())):
            try:
                running.append(Worker(row, pair.case, args))
            except RuntimeError as error:
                print(error, file=sys.stderr)
        yield running
    finally:
        for worker in running:
            worker.close()


def measure(pair: Pair, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per model of the pair."""
    with workers(pair, args) as running:
        left = {id(worker): args.budget - worker.call() for worker in running}
        for _ in range(args.rounds):
            for worker in running:
                if left[id(worker)] > 0:
                    left[id(worker)] -= worker.call()
        head = {"case": pair.case, "size": pair.size, "of": pair.ours[0].name, "allocator": args.allocator}
        head |= {"threads": args.threads, "measured": datetime.now().isoformat(timespec="minutes")}
        head |= {"load": round(os.getloadavg()[0], 1)}
        return [
            {**head, "model": worker.row.name, "options": worker.row.options, **worker.summary()} for worker in running
        ]


def report(rows: list[dict[str, Any]]) -> None:
    """Print the rows of a pair, ours first, and how many times as much the others take."""
    first = rows[0]
    for row in rows:
        line = f"{row['case']} {row['size']:10}{row['model']:34}{row['parameters']:12,}"
        for action in ACTIONS:
            now, own = row[action], first[action]
            times = f"{now['cpu_s'] / own['cpu_s']:6.1f}x" if row is not first else " " * 7
            line += f"{1e3 * now['cpu_s']:11.1f} ms{times}{now['growth_mib']:9.0f} MiB"
        print(f"{line}{row['step']['rounds']:4} rounds", flush=True)


def store(rows: list[dict[str, Any]]) -> None:
    """Put rows into the file of results, instead of those of the same model under the same conditions."""
    keys = ("case", "size", "of", "model", "allocator", "threads")
    kept = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    new = {tuple(row[k] for k in keys) for row in rows}
    kept = [row for row in kept if tuple(row[k] for k in keys) not in new]
    environment = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "networks": NETWORKS,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(environment | {"rows": kept + rows}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="folder with the public code")
    parser.add_argument("--only", nargs="+", help="names of our metanetworks")
    parser.add_argument("--cases", nargs="+", default=["A", "B"], choices=["A", "B"])
    parser.add_argument("--sizes", nargs="+", default=["published", "equal"], choices=["published", "equal"])
    parser.add_argument("--allocator", default="default", choices=list(ALLOCATORS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="calls after the first one")
    parser.add_argument("--budget", type=float, default=5.0, help="CPU seconds after which a model is not called again")
    args = parser.parse_args()
    began = time.time()
    for pair in pairs():
        wanted = not args.only or pair.names & set(args.only)
        if wanted and pair.case in args.cases and pair.size in args.sizes:
            rows = measure(pair, args)
            if rows:
                report(rows)
                store(rows)
    print(f"{time.time() - began:.0f} s")


if __name__ == "__main__":
    main()
