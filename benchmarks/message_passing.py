"""One layer of a graph network, 64 channels, means in both directions: the executors of the engine and PyG's MetaLayer.

Cases: 64 and 512 INRs 2-32-32-1, 16 INRs 2-128-128-1, 64 small CNNs, 64 CNNs of 8 architectures as one batch in two
widths, a ResNet-50 with an edge per weight. Forward without gradient, and "step": forward with the derivatives by
parameters, nodes and edges. Every row is a process of its own; those of a case take turns, medians over the rounds are
reported. CPU milliseconds are the figure to compare, since other work may share the cores (``load``). ``MiB`` is how
far one call raised the resident set, at most over all calls, the first of the process too. All executors have the same
weights; answers and derivatives of all tensors are compared with those of MetaLayer in the same run, relative to the
largest entry (float32, at most 1e-4).

The C library gives large blocks back to the system at once and torch faults them in again page by page; rows marked
``kept`` run with settings that let it keep them. ``--compiled`` adds MetaLayer and the layer under ``torch.compile``,
and the CPU seconds that took, compilers included.

    python benchmarks/message_passing.py [--quick] [--cases inr64 mixed] [--allocators default kept] [--compiled]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # started by its path: start again as a module, from the root, where benchmarks are found
    os.chdir(Path(__file__).resolve().parent.parent)
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks.message_passing", *sys.argv[1:]])

from safetensors.torch import load_file

from benchmarks.engine.environment import environment, lines
from benchmarks.engine.executors import COMPILED, EXECUTORS
from benchmarks.engine.graphs import CASES, CHANNELS, write_resnet
from benchmarks.engine.process import ALLOCATORS, Process

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "message_passing.json"
ACTIONS = ("forward", "step")
TOLERANCE = 1e-4
AIMS = {"blocks": (6.0, 0.25), "fold": (6.0, 0.25), "sparse": (3.0, None)}
"""Times as fast as MetaLayer, and share of its memory."""


class Worker(Process):
    """An executor in a process of its own, and what its calls took."""

    def __init__(self, case: str, executor: str, allocator: str, threads: int, resnet: str) -> None:
        self.executor = executor
        self.calls: dict[str, list[dict[str, float]]] = {action: [] for action in ACTIONS}
        order = {"case": case, "executor": executor, "threads": threads, "resnet": resnet}
        super().__init__(executor, "benchmarks.engine.worker", order, allocator)

    def say(self, **action: Any) -> dict[str, Any]:
        """Let it do something, and wait for what it says."""
        return self.ask(json.dumps(action))

    def round(self) -> None:
        """Both calls once."""
        for action in ACTIONS:
            self.calls[action].append(self.say(call=action))

    def summary(self) -> dict[str, Any]:
        """Medians over the calls but the first."""
        found: dict[str, Any] = {}
        for action, calls in self.calls.items():
            cpu = [1e3 * call["cpu"] for call in calls[1:] or calls]
            found[action] = {
                "cpu_ms": statistics.median(cpu),
                "cpu_ms_range": [min(cpu), max(cpu)],
                "growth_mib": max(call["mib"] for call in calls),
                "rounds": len(cpu),
            }
        return found


def measure(
    case: str, executors: Sequence[str], allocator: str, rounds: int, threads: int, folder: Path
) -> list[dict[str, Any]]:
    """One row per executor of a case."""
    resnet = folder / "resnet50.json"
    if case == "resnet50" and not resnet.exists():
        write_resnet(resnet)
    workers: list[Worker] = []
    try:
        for executor in executors:
            workers.append(Worker(case, executor, allocator, threads, str(resnet)))
        for _ in range(1 + rounds):
            for worker in workers:
                worker.round()
        apart = deviations(workers, case, folder)
        head = {"case": case, "allocator": allocator, "threads": threads, "load": round(os.getloadavg()[0], 1)}
        return [
            {**head, "executor": w.executor, **w.greeting, **w.summary(), "deviation": apart.get(w.executor)}
            for w in workers
        ]
    finally:
        for worker in workers:
            worker.close()


def deviations(workers: list[Worker], case: str, folder: Path) -> dict[str, float]:
    """Largest difference of every executor from the first, over answers and derivatives, relative to the entries."""
    keeps = not CASES[case].reads_weights
    found: dict[str, float] = {}
    references = {}
    for states in {keeps, False}:
        path = folder / "reference.safetensors"
        workers[0].say(states=states, path=str(path))
        references[states] = load_file(path)
    for worker in workers[1:]:
        states = keeps and not worker.executor.startswith("fold")
        path = folder / "answers.safetensors"
        worker.say(states=states, path=str(path))
        own, reference = load_file(path), references[states]
        names = own.keys() & reference.keys()
        assert {"nodes", "d nodes", "d first.weight", "d second.weight"} <= names
        assert not keeps or "d edges" in names
        found[worker.executor] = max(
            float((own[n] - reference[n]).abs().max() / reference[n].abs().max().clamp(min=1e-20)) for n in names
        )
    return found


def report(rows: list[dict[str, Any]]) -> None:
    """Print the rows of a case, and how many times as fast and how large they are beside the first."""
    first = rows[0]
    print(f"\n{CASES[first['case']].title}: {first['nodes']:,} nodes, {first['edges']:,} edges, "
          f"allocator {first['allocator']}, load {first['load']}")  # fmt: skip
    for row in rows:
        line = f"  {EXECUTORS[row['executor']]:34}"
        for action in ACTIONS:
            line += (
                f"{row[action]['cpu_ms']:9.1f} ms{_times(row, first, action):>7}{row[action]['growth_mib']:7.0f} MiB"
            )
        if row["deviation"] is not None:
            line += f"   equal to {row['deviation']:.0e}"
        if row["compile_s"] is not None:
            line += f"   compiled in {row['compile_s']:.0f} s of CPU"
        print(line, flush=True)
    if first["executor"] != "pyg":
        print(f"  {_without_pyg(first['edges'])}")
        return
    for row in rows:
        if row["executor"] in AIMS:
            speed, share = AIMS[row["executor"]]
            reached = (
                first["step"]["cpu_ms"] / row["step"]["cpu_ms"],
                row["step"]["growth_mib"] / first["step"]["growth_mib"],
            )
            aim = f"{speed:.0f} x" + (f", {share:.0%} of the memory" if share else "")
            print(f"  step, {EXECUTORS[row['executor']]}: aim {aim}; reached {reached[0]:.1f} x, {reached[1]:.0%}")


def _times(row: dict[str, Any], first: dict[str, Any], action: str) -> str:
    return "" if row is first else f"{first[action]['cpu_ms'] / row[action]['cpu_ms']:.1f}x"


def _without_pyg(edges: int) -> str:
    """Why MetaLayer is not measured; 16 GB is what it may take."""
    least = 4 * edges * (2 * CHANNELS + 1 + 2 * CHANNELS) / 1e9
    return f"MetaLayer: not run; both ends of {edges:,} edges and their concatenation alone take {least:.0f} GB."


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of the documentation."""
    text = [
        "| graphs | executor | forward, ms | step, ms | step, ms, pages kept | growth of a step, MiB |",
        "|---|---|--:|--:|--:|--:|",
    ]
    by_key = {(r["case"], r["executor"], r["allocator"]): r for r in rows}
    for (case, executor, allocator), row in by_key.items():
        if allocator != "default":
            continue
        first, kept = by_key[(case, CASES[case].executors[0], "default")], by_key.get((case, executor, "kept"))
        compared = first["executor"] == "pyg" and row is not first
        cells = [_cell(row, first, action, compared) for action in ACTIONS]
        cells.append(_cell(kept, by_key[(case, first["executor"], "kept")], "step", compared) if kept else "")
        title = CASES[case].title if executor == CASES[case].executors[0] else ""
        text.append(f"| {title} | {EXECUTORS[executor]} | {' | '.join(cells)} | {row['step']['growth_mib']:,.0f} |")
    return "\n".join(text)


def _cell(row: dict[str, Any], first: dict[str, Any], action: str, compared: bool) -> str:
    times = f" ({first[action]['cpu_ms'] / row[action]['cpu_ms']:.1f} x)" if compared else ""
    return f"{row[action]['cpu_ms']:,.0f}{times}"


def store(rows: list[dict[str, Any]], threads: int) -> list[dict[str, Any]]:
    """Put rows into the file of results, instead of those of the same case under the same conditions; all rows."""
    keys = ("case", "allocator", "threads")
    kept = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    new = {tuple(row[k] for k in keys) for row in rows}
    order = list(CASES)
    found = [row for row in kept if tuple(row[k] for k in keys) not in new] + rows
    found.sort(key=lambda row: (order.index(row["case"]), row["allocator"]))
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"environment": environment(threads), "rows": found}, indent=1) + "\n")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--allocators", nargs="+", default=["default", "kept"], choices=list(ALLOCATORS))
    parser.add_argument("--rounds", type=int, default=5, help="calls after the first one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compiled", action="store_true", help="the executors under torch.compile too; needs g++")
    parser.add_argument("--quick", action="store_true", help="two rounds, the default allocator only")
    parser.add_argument("--markdown", action="store_true", help="print the table of the documentation, measure nothing")
    args = parser.parse_args()
    if args.markdown:
        print(markdown(json.loads(RESULT.read_text())["rows"]))
        return
    if args.quick:
        args.rounds, args.allocators = 2, ["default"]
    began = time.time()
    print(lines(environment(args.threads)))
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        for case in args.cases:
            for allocator in args.allocators if case != "resnet50" else args.allocators[:1]:
                rounds = args.rounds if case != "resnet50" else 1
                executors = CASES[case].executors
                if args.compiled and executors[0] == "pyg":
                    executors += COMPILED
                rows = measure(case, executors, allocator, rounds, args.threads, Path(folder))
                report(rows)
                store(rows, args.threads)
                wrong += [r for r in rows if r["deviation"] is not None and not r["deviation"] <= TOLERANCE]
    print(f"\n{time.time() - began:.0f} s")
    if wrong:
        sys.exit(f"Not equal: {[(r['case'], r['executor'], r['deviation']) for r in wrong]}")


if __name__ == "__main__":
    main()
