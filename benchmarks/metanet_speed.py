"""Speed and memory of every metanetwork, next to the public code of the same kind.

Batches of 64 INRs 2-32-32-1 (case A; ``--batches 64 512`` for more), of 64 small CNNs (case B), of 64 CNNs of 8
architectures ("mixed"), and one ResNet-50; forward without gradient, and forward with backward to all parameters
("step"), dropout off, no data loading. Every model runs in a fresh process of its own; those of a pair take turns, and
medians over the rounds are reported. CPU seconds are the figure to compare, since other work may share the cores.
``MiB`` is the growth of the resident set during one call; the first call of a process counts too. Graphs of peers are
built outside the timed part where their own data loaders do it. A model whose first call took longer than ``--budget``
seconds of CPU is not called again. No model may take more than ``--limit`` GiB: a larger batch that would by what 64
networks took is not tried, and a call that does ends there; both are rows that say so. Rows called *compiled* go
through ``torch.compile``, whose own time is not counted. Of a step of our others, seconds by kind of operation are kept
too, from calls under the profiler: ``--markdown limits`` says how fast it would be if products were all.

The large blocks of PyTorch's default allocator go back to the system at once and are faulted in again page by page;
``--allocators kept`` lets the C library keep them. Rows of earlier runs stay in the file until they are measured again;
``--resume`` leaves out what the file has. ``--main`` takes one variant of every public code, and what stands beside it.

    python benchmarks/metanet_speed.py [--peers FOLDER] [--only dws nft] [--cases A] [--allocators kept] [--threads 2]

``FOLDER`` holds clones of DWSNets, nfn, universal_neural_functional, neural-graphs and scalegmn, and a virtual
environment ``venv`` with einops, hydra-core, random-fourier-features-pytorch, jax and flax.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
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

from benchmarks.engine.process import ALLOCATORS, Process
from benchmarks.peers.case import CASES
from benchmarks.peers.pairs import Pair, Row, pairs
from benchmarks.peers.table import by_allocator, in_pairs, limits

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "metanet_speed.json"
NETWORKS = 64
ACTIONS = ("forward", "step")
KEYS = ("case", "networks", "size", "of", "model", "allocator", "threads")
"""Rows that have these in common replace each other."""


class Worker(Process):
    """A model in a process of its own, and what its calls took.

    Args:
        row: The model.
        head: Conditions, as its row in the file has them.
        cannot: Actions that are not tried, and why.
        args: Options of the script.
    """

    def __init__(self, row: Row, head: dict[str, Any], cannot: dict[str, str], args: argparse.Namespace) -> None:
        self.row, self.cannot = row, cannot
        self.calls: dict[str, list[dict[str, float]]] = {a: [] for a in args.actions if a not in cannot}
        order = {key: head[key] for key in ("case", "networks", "threads")}
        order |= {"maker": row.maker, "options": row.options, "compiled": row.compiled}
        order |= {"peers": args.peers, "limit": int(args.limit * 2**30)}
        flags = {"XLA_FLAGS": f"--xla_cpu_multi_thread_eigen={'false' if args.threads == 1 else 'true'}"}
        super().__init__(row.name, "benchmarks.peers.worker", order, head["allocator"], flags)

    def call(self) -> float:
        """Run all actions once; CPU seconds of all."""
        for action in [a for a in self.calls if a not in self.cannot]:
            reply = self.ask(action)
            if "outgrown" in reply:
                self.cannot[action] = f"needs more than {reply['outgrown'] / 2**30:.0f} GiB"
            else:
                self.calls[action].append(reply)
        return sum(calls[-1]["cpu"] for calls in self.calls.values() if calls)

    def summary(self) -> dict[str, Any]:
        """Medians over the calls but the first, or the first where it is the only one; of ours, parts of a step too."""
        found: dict[str, Any] = {"parameters": int(self.greeting["parameters"])}
        for action, calls in self.calls.items():
            if action in self.cannot:
                continue
            timed = calls[1:] or calls
            found[action] = {
                "cpu_s": statistics.median(call["cpu"] for call in timed),
                "cpu_s_range": [min(call["cpu"] for call in timed), max(call["cpu"] for call in timed)],
                "wall_s": statistics.median(call["wall"] for call in timed),
                "growth_mib": max(call["mib"] for call in calls),
                "rounds": len(timed),
                "first_call_counted": len(calls) == 1,
            }
        if "step" in found and self.row.maker == "ours" and not self.row.compiled:
            found["step_parts_s"] = self.ask("parts")
        return found


def too_large(head: dict[str, Any], model: str, known: list[dict[str, Any]], limit: float) -> dict[str, str]:
    """Actions that would take more than the limit (GiB), by what a smaller batch took under the same conditions."""
    same = [key for key in KEYS if key not in ("networks", "model")]
    found = {}
    for row in known:
        if row["model"] == model and all(row[key] == head[key] for key in same) and row["networks"] < head["networks"]:
            times = head["networks"] / row["networks"]
            for action in ACTIONS:
                gib = row.get(action, {"growth_mib": 0})["growth_mib"] / 1024 * times
                if gib > limit:
                    found[action] = f"needs about {gib:.0f} GiB, {times:.0f} times that of {row['networks']}"
    return found


@contextmanager
def workers(
    pair: Pair, head: dict[str, Any], known: list[dict[str, Any]], args: argparse.Namespace
) -> Iterator[tuple[list[Worker], dict[str, dict[str, str]]]]:
    """The processes of a pair, and what is not run with the reasons; a peer that stops is reported and left out."""
    running: list[Worker] = []
    left_out = {name: dict.fromkeys(args.actions, reason) for name, reason in pair.cannot}
    try:
        for row in (*pair.ours, *(pair.peers if args.peers else ())):
            cannot = too_large(head, row.name, known, args.limit)
            if all(action in cannot for action in args.actions):
                left_out[row.name] = cannot
                continue
            try:
                running.append(Worker(row, head, cannot, args))
            except RuntimeError as error:
                print(error, file=sys.stderr)
        yield running, left_out
    finally:
        for worker in running:
            worker.close()


def measure(
    pair: Pair, head: dict[str, Any], known: list[dict[str, Any]], args: argparse.Namespace
) -> list[dict[str, Any]]:
    """One row per model of the pair."""
    with workers(pair, head, known, args) as (running, left_out):
        left = {id(worker): args.budget - worker.call() for worker in running}
        for _ in range(args.rounds):
            for worker in running:
                if left[id(worker)] > 0:
                    left[id(worker)] -= worker.call()
        head = {**head, "measured": datetime.now().isoformat(timespec="minutes"), "load": round(os.getloadavg()[0], 1)}
        rows = [
            {**head, "model": w.row.name, "options": w.row.options, **w.summary(), "cannot": w.cannot} for w in running
        ]
        return rows + [{**head, "model": name, "cannot": cannot} for name, cannot in left_out.items()]


def report(rows: list[dict[str, Any]]) -> None:
    """Print the rows of a pair, ours first, and how many times as much the others take."""
    first = rows[0]
    for row in rows:
        line = f"{row['case']:9}{row['networks']:4} {row['allocator']:8}{row['size']:10}{row['model']:34}"
        for action in ACTIONS:
            if now := row.get(action):
                own = first.get(action)
                times = f"{now['cpu_s'] / own['cpu_s']:6.1f}x" if own and row is not first else " " * 7
                line += f"{1e3 * now['cpu_s']:11.1f} ms{times}{now['growth_mib']:9.0f} MiB{now['rounds']:4} x"
            elif action in row["cannot"]:
                line += f"  {action}: {row['cannot'][action]}"
        print(line, flush=True)


def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """What rows are told apart by."""
    return tuple(row[key] for key in KEYS)


def rows_in(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of results, none where there is no file."""
    return json.loads(path.read_text())["rows"] if path.exists() else []


def store(rows: list[dict[str, Any]], path: Path) -> None:
    """Put rows into the file of results, instead of those of the same model under the same conditions."""
    new = {key_of(row) for row in rows}
    kept = [row for row in rows_in(path) if key_of(row) not in new]
    environment = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(environment | {"rows": kept + rows}, indent=1) + "\n")


def is_there(pair: Pair, head: dict[str, Any], args: argparse.Namespace) -> bool:
    """Whether the file of results has all rows of a pair, with all actions."""
    models = {row.name for row in (*pair.ours, *(pair.peers if args.peers else ()))} | {name for name, _ in pair.cannot}
    known = {key_of(row): row for row in rows_in(args.out)}
    rows = [known.get(key_of({**head, "model": model})) for model in models]
    return all(row and all(a in row or a in row["cannot"] for a in args.actions) for row in rows)


def batches_of(case: str, wanted: list[int]) -> list[int]:
    """Numbers of networks a case is measured with, small ones first."""
    fixed = CASES[case].batch
    return sorted(wanted) if fixed is None else [fixed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="folder with the public code")
    parser.add_argument("--only", nargs="+", help="names of our metanetworks")
    parser.add_argument("--main", action="store_true", help="one variant of every public code, and ours beside it")
    parser.add_argument("--cases", nargs="+", default=["A", "B"], choices=list(CASES))
    parser.add_argument("--batches", nargs="+", type=int, default=[NETWORKS], help="numbers of networks of case A")
    parser.add_argument("--sizes", nargs="+", default=["published", "equal"], choices=["published", "equal"])
    parser.add_argument("--actions", nargs="+", default=list(ACTIONS), choices=ACTIONS)
    parser.add_argument("--allocators", nargs="+", default=["default"], choices=list(ALLOCATORS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="calls after the first one")
    parser.add_argument("--budget", type=float, default=5.0, help="CPU seconds after which a model is not called again")
    parser.add_argument("--limit", type=float, default=16.0, help="GiB a model may take")
    parser.add_argument("--out", type=Path, default=RESULT, help="file of results")
    parser.add_argument("--resume", action="store_true", help="leave out what the file of results has")
    tables = {"allocators": by_allocator, "pairs": in_pairs, "limits": limits}
    parser.add_argument("--markdown", choices=list(tables), help="print a table of the file, measure nothing")
    args = parser.parse_args()
    if args.markdown:
        print(tables[args.markdown](rows_in(args.out), args.threads))
        return
    began = time.time()
    for allocator in args.allocators:
        for pair in (pair.main if args.main else pair for pair in pairs()):
            wanted = pair.ours and (not args.only or pair.names & set(args.only))
            if not wanted or pair.case not in args.cases or pair.size not in args.sizes:
                continue
            for networks in batches_of(pair.case, args.batches):
                head = {"case": pair.case, "networks": networks, "size": pair.size, "of": pair.ours[0].name}
                head |= {"allocator": allocator, "threads": args.threads}
                if args.resume and is_there(pair, head, args):
                    continue
                rows = measure(pair, head, rows_in(args.out), args)
                if rows:
                    report(rows)
                    store(rows, args.out)
    print(f"{time.time() - began:.0f} s")


if __name__ == "__main__":
    main()
