"""Work that no code can leave out: matrix products of a step of every metanetwork, next to the public code of its kind.

Counted, not timed, with the pairs of ``metanet_speed.py``: floating-point operations of all matrix products of forward
and backward, those that backward computes again included, on batches of 64 networks. Where ours and the public code
need the same products, neither can be faster than they are; at the speed of large ones (``roofline.py``) they are a
floor of the time.

    python benchmarks/metanet_products.py --peers FOLDER [--only dws nfn] [--cases A]

``FOLDER`` is that of ``metanet_speed.py``; public code in JAX is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

if not __package__:  # started by its path: start again as a module, from the root, where benchmarks are found
    os.chdir(Path(__file__).resolve().parent.parent)
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks.metanet_products", *sys.argv[1:]])

import torch
from tqdm import tqdm

from benchmarks.engine.process import Process
from benchmarks.peers.pairs import Pair, Row, pairs

RESULT = Path(__file__).parent / "results" / "metanet_products.json"
NETWORKS = 64


def gflop(pair: Pair, row: Row, peers: str | None) -> float:
    """Products of a step on 64 networks, in a process of its own: packages of public code have the same names."""
    order = {"case": pair.case, "networks": NETWORKS, "threads": 1, "limit": 16 << 30, "peers": peers}
    order |= {"maker": row.maker, "options": row.options}
    process = Process(row.name, "benchmarks.peers.worker", order)
    try:
        return process.ask("products")["flop"] / 1e9
    finally:
        process.close()


def measure(pair: Pair, peers: str | None) -> list[dict[str, Any]]:
    """A row per model of ours, with the public code that stands beside it."""
    theirs = [(row.name, gflop(pair, row, peers)) for row in pair.peers if peers and row.maker != "unf"]
    found = []
    for n, row in enumerate(pair.ours):
        line = {"case": pair.case, "size": pair.size, "model": row.name, "gflop": gflop(pair, row, peers)}
        if theirs:
            name, count = theirs[min(n, len(theirs) - 1)]
            line |= {"public": name, "public_gflop": count}
        found.append(line)
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for the documentation."""
    text = ["| networks | sizes | metanetwork | GFLOP | public code | GFLOP |", "|---|---|---|--:|---|--:|"]
    for row in rows:
        public = f"{row['public']} | {row['public_gflop']:.1f}" if "public" in row else " | "
        text.append(f"| {row['case']} | {row['size']} | {row['model']} | {row['gflop']:.1f} | {public} |")
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="folder with the public code")
    parser.add_argument("--only", nargs="+", help="names of our metanetworks")
    parser.add_argument("--cases", nargs="+", default=["A", "B"], choices=["A", "B"])
    parser.add_argument("--out", type=Path, default=RESULT, help="file of results")
    args = parser.parse_args()
    chosen = [p for p in pairs() if p.case in args.cases and (not args.only or p.names & set(args.only))]
    rows = [row for pair in tqdm(chosen, unit="pair") for row in measure(pair, args.peers)]
    rows.sort(key=lambda row: (row["case"], row["size"] != "published", row["model"]))
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps({"torch": torch.__version__, "networks": NETWORKS, "rows": rows}, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
