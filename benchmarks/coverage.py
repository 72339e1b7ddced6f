"""Which modules are traced, and is what is found about them true and complete?

    python benchmarks/coverage.py                          # everything without a row yet
    python benchmarks/coverage.py --only transformers/t5   # these again (prefixes)
    python benchmarks/coverage.py --docs                   # write docs/coverage.md from the rows

Every model is traced in a process of its own with a limit of time and memory, so that one that does not end does not
end the table. A row is written as soon as it is known; a second run goes on where the first was stopped.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

if not __package__:  # started by its path: start again as a module, from the root, where tests and benchmarks are found
    os.chdir(Path(__file__).resolve().parent.parent)
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks.coverage", *sys.argv[1:]])

import torch
from torch import nn
from tqdm import tqdm

from benchmarks.coverage_page import page
from benchmarks.coverage_row import measure, subjects
from benchmarks.families.subject import Subject
from weightspace.graphs import trace

ROOT = Path(__file__).resolve().parent.parent
RESULT = Path(__file__).parent / "results" / "coverage.json"
DOCS = ROOT / "docs" / "coverage.md"
KINDS = ("nn", "hand-made", "transformers", "timm", "diffusers")
FORK = multiprocessing.get_context("fork")  # the libraries are imported once


class Attempt:
    """One model in a process of its own."""

    def __init__(self, name: str, build: Callable[[], Subject], args: argparse.Namespace) -> None:
        self.name, self.deadline = name, time.monotonic() + 10 * args.seconds
        self.answer, theirs = FORK.Pipe(duplex=False)
        self.process = FORK.Process(target=_answer, args=(theirs, name, build, args.seconds, args.memory))
        self.process.start()
        theirs.close()

    def row(self) -> dict[str, Any]:
        """What it found, or how it ended."""
        try:
            result = self.answer.recv() if self.answer.poll(0) else None
        except EOFError:
            result = None
        if result is None:
            self.process.kill()
            self.process.join()
            reason = f"stopped: no answer within the limits (exit code {self.process.exitcode})"
            result = {"name": self.name, "status": "refused", "reason": reason}
        self.process.join()
        return result


def _answer(pipe: Connection, name: str, build: Callable[[], Subject], seconds: float, gigabytes: float) -> None:
    """The other side: trace one model and send its row."""
    pipe.send(measure(name, build, seconds, gigabytes))


def attempt_all(chosen: dict[str, Callable[[], Subject]], rows: dict[str, Any], args: argparse.Namespace) -> None:
    """Trace all of these, a few at a time, writing after each."""
    tqdm.monitor_interval = 0  # no thread: this process is forked
    trace(nn.Linear(2, 2), torch.zeros(1, 2))  # the exporter imports half of torch the first time
    left, running = list(chosen), list[Attempt]()
    with tqdm(total=len(left)) as bar:
        while left or running:
            while left and len(running) < args.workers:
                name = left.pop(0)
                running.append(Attempt(name, chosen[name], args))
            wait([a.answer for a in running], timeout=max(0.0, min(a.deadline for a in running) - time.monotonic()))
            over = [a for a in running if a.answer.poll(0) or a.deadline < time.monotonic()]
            running = [a for a in running if a not in over]
            for attempt in over:
                rows[attempt.name] = attempt.row()
                save(rows, args.out)
                bar.set_postfix_str(f"{attempt.name} {rows[attempt.name]['status']}")
                bar.update()


def save(rows: dict[str, Any], path: Path) -> None:
    """Write all rows, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(dict(sorted(rows.items())), indent=1) + "\n")
    part.replace(path)


def summary(rows: dict[str, Any]) -> list[tuple[str, dict[str, int]]]:
    """Counts per kind, in the order of the table."""
    kinds = {kind: [r for r in rows.values() if r["name"].startswith(f"{kind}/")] for kind in KINDS}
    return [
        (
            kind,
            {
                "models": len(some),
                "traced": sum(r["status"] == "traced" for r in some),
                "failed": sum(r["status"] == "wrong" for r in some),
                "derived": sum("expected" in r for r in some),
                "equal": sum(bool(r.get("equal")) for r in some),
                "exact": sum(r.get("graph") == "exact" for r in some),
            },
        )
        for kind, some in kinds.items()
        if some
    ]


def obstacles(rows: dict[str, Any]) -> str:
    """What stops models, most frequent first."""
    reasons: dict[str, list[str]] = collections.defaultdict(list)
    for r in rows.values():
        if r["status"] != "traced":
            reasons[f"{r['status']}: {r['reason']}"].append(r["name"])
        elif r["graph"] != "exact":
            reasons[f"graph: {r['graph']}"].append(r["name"])
        if r.get("equal") is False:
            key = f"order differs: found {r['log_order']:.3f}, by hand {r['expected']:.3f}"
            reasons[key].append(r["name"])
    ordered = sorted(reasons.items(), key=lambda item: (item[0].startswith("graph"), -len(item[1])))
    return "\n".join(f"- {len(who)}x {reason}\n    {' '.join(who)}" for reason, who in ordered)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=None, help="prefixes of kind/name; these are measured again")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=KINDS)
    parser.add_argument("--again", action="store_true", help="measure rows that are there as well")
    parser.add_argument("--unsolved", action="store_true", help="measure rows again that were not traced completely")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=300, help="limit of processor time for one model")
    parser.add_argument("--memory", type=float, default=12, help="limit of address space for one model, GiB")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--docs", action="store_true", help="only write the page from the rows")
    parser.add_argument("--obstacles", action="store_true", help="only print what stops models")
    args = parser.parse_args()
    rows = json.loads(args.out.read_text()) if args.out.exists() else {}
    if not (args.docs or args.obstacles):
        torch.set_num_threads(1)
        known = {f"{kind}/{name}": build for kind in args.kinds for name, build in subjects(kind).items()}
        attempt_all({n: known[n] for n in chosen(list(known), rows, args)}, rows, args)
    if args.docs:
        DOCS.write_text(page(rows, summary(rows)))
    if args.obstacles:
        print(obstacles(rows))
    for kind, counts in summary(rows):
        print(kind, counts)
    if any(r["status"] == "wrong" for r in rows.values()):
        sys.exit("Some models were traced wrongly.")


def chosen(known: list[str], rows: dict[str, Any], args: argparse.Namespace) -> list[str]:
    """Names to trace now."""
    if args.only is not None:
        return [n for n in known if n.startswith(tuple(args.only))]
    if args.again:
        return known
    return [n for n in known if n not in rows or (args.unsolved and not complete(rows[n]))]


def complete(result: dict[str, Any]) -> bool:
    """Whether nothing is left to wish for in a row."""
    return result["status"] == "traced" and result.get("equal") is not False and result["graph"] == "exact"


if __name__ == "__main__":
    main()
