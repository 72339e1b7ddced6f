"""A step of the metanetworks for mixed architectures by the number of architectures in a batch.

    python benchmarks/mixed_batches.py [--rounds 7] [--markdown]

64 small MLPs of 1, 8 or 64 architectures, and the 24 architectures of the recipe ``mixed-classifiers`` (MLPs, CNNs,
ResNets, transformers) with one network each: CPU time of a forward and of a whole step with the derivatives by all
parameters, one thread, medians of rounds in turns. ``group by group`` reads every architecture by itself, ``equal
blocks`` joins only blocks of one size, ``filled up`` is the default. The answers of all three are compared first.
Writes ``results/mixed_batches.json``.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightspace.graphs import BlockLayout, trace
from weightspace.metanets import SharedGraphMetanetwork, SharedMetanet, SharedOperatorNet
from weightspace.metanets.mixed import Group
from weightspace.zoo.recipes import MixedClassifiers

RESULTS = Path(__file__).parent / "results" / "mixed_batches.json"
NETWORKS = 64
Executor = Callable[[SharedMetanet, list[Group]], Tensor]


def by_group(net: SharedMetanet, groups: list[Group]) -> Tensor:
    return torch.cat([net([group]) for group in groups])


def with_padding(padding: int) -> Executor:
    def run(net: SharedMetanet, groups: list[Group]) -> Tensor:
        net.padding = padding
        return net(groups)

    return run


EXECUTORS: dict[str, Executor] = {
    "group by group": by_group,
    "equal blocks": with_padding(0),
    "filled up": with_padding(SharedMetanet.padding),
}


def networks(layout: BlockLayout, count: int) -> Group:
    return layout, {name: 0.1 * torch.randn(count, *shape) for name, shape in layout.shapes}


def mlps(architectures: int) -> list[Group]:
    layouts = [BlockLayout.mlp([2, 24 + n % 17, 24 + 7 * n % 19, 1], activation="sin") for n in range(architectures)]
    return [networks(layout, NETWORKS // architectures) for layout in layouts]


def classifiers() -> list[Group]:
    layouts = [trace(a.build(), torch.zeros(2, 1, 8, 8)).layout() for a in MixedClassifiers().architectures]
    return [networks(layout, 1) for layout in layouts]


def measure(net: SharedMetanet, batches: dict[str, list[Group]], rounds: int) -> list[dict[str, Any]]:
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for number in range(rounds + 1):
        for case, groups in batches.items():
            for name, run in EXECUTORS.items():
                net.zero_grad()
                start = time.process_time()
                answer = run(net, groups)
                forward = time.process_time() - start
                answer.square().mean().backward()
                if number:
                    found.setdefault((case, name), []).append((forward, time.process_time() - start))
    return [
        {"net": type(net).__name__, "batch": case, "executor": name}
        | dict(zip(("forward_s", "step_s"), map(statistics.median, zip(*times, strict=True)), strict=True))
        for (case, name), times in found.items()
    ]


@torch.no_grad()
def check(net: SharedMetanet, batches: dict[str, list[Group]]) -> None:
    net.eval()
    for groups in batches.values():
        answers = [run(net, groups) for run in EXECUTORS.values()]
        for answer in answers[1:]:
            torch.testing.assert_close(answer, answers[0], rtol=1e-3, atol=1e-4)
    net.train()


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = ["| metanetwork | batch | executor | forward, ms | step, ms |", "|---|---|---|--:|--:|"]
    shown: tuple[str, ...] = ()
    for row in rows:
        key = row["net"], row["batch"]
        name = f"`{row['net']}`" if key[:1] != shown[:1] else ""
        batch = row["batch"] if key != shown else ""
        ms = " | ".join(f"{1e3 * row[k]:,.0f}" for k in ("forward_s", "step_s"))
        lines.append(f"| {name} | {batch} | {row['executor']} | {ms} |")
        shown = key
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--markdown", action="store_true", help="only print the table of the last run")
    args = parser.parse_args()
    if not args.markdown:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        batches = {f"{NETWORKS} MLPs of {n} architecture{'s' * (n > 1)}": mlps(n) for n in (1, 8, 64)}
        batches["24 classifiers of 24 architectures"] = classifiers()
        rows = []
        for model in (SharedOperatorNet, SharedGraphMetanetwork):
            net = model([layout for groups in batches.values() for layout, _ in groups], 10)
            check(net, batches)
            rows += measure(net, batches, args.rounds)
        machine = {"torch": torch.__version__, "python": platform.python_version(), "processor": platform.machine()}
        RESULTS.write_text(json.dumps({"machine": machine, "threads": 1, "rows": rows}, indent=1) + "\n")
    print(markdown(json.loads(RESULTS.read_bytes())["rows"]))


if __name__ == "__main__":
    main()
