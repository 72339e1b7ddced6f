"""How near the operators of message passing come to the limits of one core, forward and backward.

The limits are measured in the same run, in turns with the operators: matrix products, copies, activations. The least
work of an operator (docs/message_passing.md) over the limits gives three times; the largest is the dominating term.
``share`` is that time over the measured one, ``all`` the sum of the three: a core computes one after the other. Best of
the rounds for limits and operators alike, CPU seconds, since other work may share the cores; medians are stored too.

    python benchmarks/roofline.py [--quick] [--markdown]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:  # started by its path: start again as a module, from the root, where benchmarks are found
    os.chdir(Path(__file__).resolve().parent.parent)
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks.roofline", *sys.argv[1:]])

import torch

from benchmarks.engine.environment import environment, lines
from benchmarks.engine.operators import Ceiling, Operator, Work, ceilings, operators

RESULT = Path(__file__).resolve().parent / "results" / "roofline.json"
AIM = 0.5
TERMS = ("products", "activation", "memory")


def timed(call: Callable[[], Any]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def measure(limits: dict[str, Ceiling], subjects: dict[str, Operator], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of all rounds, by name; ``forward``, ``backward`` behind the names of operators."""
    found: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        for name, limit in limits.items():
            seconds = timed(limit.call)
            if number:
                found.setdefault(name, []).append(seconds)
        for name, subject in subjects.items():
            forward = timed(subject.run_forward)
            subject.prepare()
            backward = timed(subject.run_backward)
            if number:
                found.setdefault(f"{name} forward", []).append(forward)
                found.setdefault(f"{name} backward", []).append(backward)
    return found


def terms(work: Work, edges: int, reached: dict[str, float]) -> dict[str, float]:
    """Seconds of every term at the limits; products at that of matrices of few columns."""
    products = max(reached[name] for name in reached if " by " in name)
    numbers = reached["silu, cache"] / 8  # a number is read and written
    rates = dict(zip(TERMS, (products, numbers, reached["copy, memory"]), strict=True))
    amounts = dict(zip(TERMS, (work.flops, work.activations, work.bytes), strict=True))
    return {name: edges * amounts[name] / (1e9 * rates[name]) for name in TERMS}


def evaluate(limits: dict[str, Ceiling], subjects: dict[str, Operator], seconds: dict[str, list[float]]) -> Any:
    """Limits reached, and a row per operator and direction."""
    reached = {name: limit.amount / min(seconds[name]) / 1e9 for name, limit in limits.items()}
    rows = []
    for name, subject in subjects.items():
        for way in ("forward", "backward"):
            work, taken = getattr(subject, way), seconds[f"{name} {way}"]
            at_limits = terms(work, subject.edges, reached)
            dominating = max(at_limits, key=lambda term: at_limits[term])
            rows.append(
                {
                    "operator": name,
                    "way": way,
                    "edges": subject.edges,
                    "flops_per_edge": work.flops,
                    "activations_per_edge": work.activations,
                    "bytes_per_edge": work.bytes,
                    "best_ms": 1e3 * min(taken),
                    "median_ms": 1e3 * statistics.median(taken),
                    "limits_ms": {term: 1e3 * x for term, x in at_limits.items()},
                    "dominating": dominating,
                    "share": at_limits[dominating] / min(taken),
                    "share_of_all": sum(at_limits.values()) / min(taken),
                }
            )
    medians = {name: limit.amount / statistics.median(seconds[name]) / 1e9 for name, limit in limits.items()}
    table = {n: {"best": reached[n], "median": medians[n], "unit": limits[n].unit} for n in limits}
    return {"ceilings": table, "rows": rows}


def report(found: Any) -> None:
    """Print both tables."""
    print("\nlimit                          best   median")
    for name, c in found["ceilings"].items():
        print(f"{name:26}{c['best']:9.1f}{c['median']:9.1f} {c['unit']}")
    print(f"\n{'operator':30}{'way':10}{'FLOP':>7}{'exp':>5}{'byte':>6}{'best ms':>9}{'median':>8}  "
          f"{'dominating':11}{'share':>6}{'all':>6}   per edge; aim {AIM:.0%}")  # fmt: skip
    for r in found["rows"]:
        print(f"{r['operator']:30}{r['way']:10}{r['flops_per_edge']:7,.0f}{r['activations_per_edge']:5.0f}"
              f"{r['bytes_per_edge']:6.0f}{r['best_ms']:9.1f}{r['median_ms']:8.1f}  {r['dominating']:11}"
              f"{r['share']:6.0%}{r['share_of_all']:6.0%}")  # fmt: skip


def markdown(found: Any) -> str:
    """The tables of the documentation."""
    text = ["| limit of one core | best of the rounds |", "|---|--:|"]
    text += [f"| {name} | {c['best']:.0f} {c['unit']} |" for name, c in found["ceilings"].items()]
    text += ["", "| operator | FLOP | exp | bytes | ms f / b | dominating | share f / b | all terms f / b |"]
    text.append("|---|--:|--:|--:|--:|---|--:|--:|")
    for f, b in zip(found["rows"][::2], found["rows"][1::2], strict=True):
        pair = f["dominating"] if f["dominating"] == b["dominating"] else f"{f['dominating']} / {b['dominating']}"
        text.append(
            f"| {f['operator']} | {f['flops_per_edge']:,.0f} / {b['flops_per_edge']:,.0f} "
            f"| {f['activations_per_edge']:.0f} | {f['bytes_per_edge']:,.0f} / {b['bytes_per_edge']:,.0f} "
            f"| {f['best_ms']:.0f} / {b['best_ms']:.0f} | {pair} | {f['share']:.0%} / {b['share']:.0%} "
            f"| {f['share_of_all']:.0%} / {b['share_of_all']:.0%} |"
        )
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="after a first one that does not count")
    parser.add_argument("--quick", action="store_true", help="three rounds")
    parser.add_argument("--markdown", action="store_true", help="print the tables of the guide, measure nothing")
    args = parser.parse_args()
    if args.markdown:
        print(markdown(json.loads(RESULT.read_text())))
        return
    torch.set_num_threads(1)
    described = environment(1)
    print(lines(described))
    limits, subjects = ceilings(), operators()
    found = evaluate(limits, subjects, measure(limits, subjects, 3 if args.quick else args.rounds))
    report(found)
    RESULT.write_text(json.dumps({"environment": described, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
