"""Accuracy of every metanetwork at one budget of processor time, on INRs of digits.

    python benchmarks/metanet_accuracy.py --cpu-seconds 300 --out runs/metanet_accuracy            # all models, seed 0
    python benchmarks/metanet_accuracy.py --models "operator;dws" --seeds 3 --plain --out runs/metanet_accuracy
    python benchmarks/metanet_accuracy.py --zoo mnist --images t10k-images-idx3-ubyte.gz --cpu-seconds 1200
    python benchmarks/metanet_accuracy.py --table --out runs/metanet_accuracy

Seed ``s`` builds a zoo with seed ``s``, splits it by image with salt ``s`` (per cent of training, validation and test
are in the titles: 72/11/17 for digits, 80/10/10 for MNIST) and trains with seed ``s``. Every run is a folder
``OUT/<zoo>/seed<s>/<model>`` (``<model>-plain`` without augmentation) of one process with one thread; finished runs are
not repeated, those of another budget or split are an error, stopped ones go on. The table is made of all folders,
printed, and written beside this script as ``results/metanet_accuracy.json`` and ``.csv``, where rows stay whose folders
are elsewhere, or fewer here than the seeds they rest on. The epoch is chosen on validation; test is scored once, at
the end, over 16 sign-flipped copies where augmentation is on (one where signs change nothing, or where that would take
as long as training). Rates are those of the papers where they train in this time and twice or half of them where
validation (seed 0) said so.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import platform
import resource
import statistics
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from weightspace.tasks import classify
from weightspace.training import TrainConfig
from weightspace.zoo import Zoo
from weightspace.zoo.build import build
from weightspace.zoo.recipes import DigitsInr
from weightspace.zoo.splits import DEFAULT_FRACTIONS

RESULT = Path(__file__).parent / "results" / "metanet_accuracy.json"
FRACTIONS = {
    "digits": DEFAULT_FRACTIONS,
    "mnist": {"train": 0.8, "val": 0.1, "test": 0.1},
}
"""Expected shares of the images of a zoo for training, validation and test."""
EARLY = 2
"""The epoch after which validation is compared: what models learn from equal data, whatever a step costs."""


@dataclass(frozen=True)
class Entry:
    """A row of the table: a metanetwork with its options and learning rate."""

    model: str
    options: dict[str, Any] = field(default_factory=dict)
    lr: float = 2e-3
    views: int = 16


ENTRIES = {
    "operator": Entry("operator", lr=3e-3),
    "operator, sign": Entry("operator", {"symmetry": "sign"}, lr=3e-3),
    "gmn": Entry("gmn"),
    "dws": Entry("dws"),
    "nfn, 4 x 64": Entry("nfn", {"width": 64, "layers": 4, "head_width": 128, "head_layers": 1}, lr=1e-3),
    "nfn, 4 x 64, batch norm": Entry(
        "nfn",
        {"width": 64, "layers": 4, "norm": "batch", "head_width": 128, "head_layers": 1, "head_dropout": 0.0},
        lr=2e-3,
    ),
    "nft, 4 x 64": Entry("nft", {"width": 64, "layers": 4, "expansion": 2, "frequencies": 64}, lr=1e-3, views=1),
    "unf": Entry("unf", lr=3e-3),
    "neural_graph": Entry("neural_graph", lr=2e-3),
    "neural_graph, frequencies 0.1, no dropout": Entry(
        "neural_graph", {"frequency_scale": 0.1, "dropout": 0.0}, lr=2e-3
    ),
    "neural_graph_transformer": Entry("neural_graph_transformer", lr=1e-3, views=1),
    "scale_gmn, 4 x 64": Entry("scale_gmn", {"width": 64}, lr=1e-3, views=1),
    "scale_gmn, 4 x 64, bidirectional": Entry("scale_gmn", {"width": 64, "bidirectional": True}, lr=1e-3, views=1),
    "deep_sets": Entry("deep_sets"),
    "weight_tokens": Entry("weight_tokens", lr=1e-3),
    "statnn": Entry("statnn"),
    "mlp": Entry("mlp"),
    # the operator metanetwork without some of its parts
    "operator, 1 linear function": Entry("operator", {"heads": 1}, lr=3e-3),
    "operator, 4 functions": Entry("operator", {"heads": 4}, lr=3e-3),
    "operator, 16 functions": Entry("operator", {"heads": 16}, lr=3e-3),
    "operator, forward only": Entry("operator", {"reverse": False}, lr=3e-3),
    "operator, 1 layer": Entry("operator", {"layers": 1}, lr=3e-3),
    "operator, 5 layers": Entry("operator", {"layers": 5}, lr=3e-3),
    "operator, 64 probes": Entry("operator", {"probes": 64}, lr=3e-3),
}
ABLATION = [name for name in ENTRIES if name.startswith("operator, ") and name != "operator, sign"]


def recipe(zoo: str, seed: int, images: Path | None) -> DigitsInr:
    """The zoo of a seed: 7,188 INRs of 8x8 digits, or one INR per image of an IDX file."""
    if zoo == "digits":
        return DigitsInr(seed=seed)
    return DigitsInr(seed=seed, source=str(images), grid=28, copies=1, steps=400, lr=5e-3, steps_per_call=4)


def run_folder(folder: Path, name: str, plain: bool) -> Path:
    """Where a run is kept."""
    return folder / (f"{name}-plain" if plain else name)


def other_run(out: Path, cpu_seconds: float, split: str) -> str | None:
    """Why a folder cannot hold a run of this budget and split: it holds a finished one of another."""
    if not (out / "memory.json").exists():
        return None
    description = json.loads((out / "config.json").read_bytes())
    seconds, found = description["train"]["max_cpu_seconds"], _shares(description.get("fractions", DEFAULT_FRACTIONS))
    if (seconds, found) == (cpu_seconds, split):
        return None
    return (
        f"'{out}' holds a finished run of {seconds:g} CPU seconds and split {found}, not {cpu_seconds:g} and {split}. "
        "Give another --out."
    )


def run(folder: Path, name: str, plain: bool, seed: int, cpu_seconds: float) -> None:
    """One run, in a process of its own."""
    torch.set_num_threads(1)
    entry = ENTRIES[name]
    config = TrainConfig(
        epochs=100_000,
        max_cpu_seconds=cpu_seconds,
        lr=entry.lr,
        seed=seed,
        augment=() if plain else TrainConfig.augment,
    )
    out = run_folder(folder, name, plain)
    if (out / "memory.json").exists():
        return
    classify(
        Zoo.open(folder / "zoo"),
        out,
        model=entry.model,
        model_config=entry.options,
        config=config,
        salt=str(seed),
        fractions=FRACTIONS[folder.parent.name],
        views=1 if plain else entry.views,
        progress=False,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (out / "memory.json").write_text(json.dumps({"peak_bytes": peak}))


def rows(out: Path) -> list[dict[str, Any]]:
    """One row per zoo, model and budget, from the run folders."""
    found: dict[tuple[str, str, str, bool, float], list[dict[str, Any]]] = {}
    for path in sorted(out.glob("*/seed*/*/memory.json")):
        result = json.loads((path.parent / "results.json").read_bytes())
        description = json.loads((path.parent / "config.json").read_bytes())
        config, split = description["train"], _shares(description.get("fractions", DEFAULT_FRACTIONS))
        epochs = json.loads((path.parent / "metrics.json").read_bytes())
        result |= json.loads(path.read_bytes()) | {"to_best": epochs[result["best_epoch"] - 1]["cpu_seconds"]}
        result["early"] = epochs[EARLY - 1]["val_accuracy"] if len(epochs) >= EARLY else None
        name, _, plain = path.parent.name.partition("-plain")
        key = (path.parts[-4], split, name, not plain and bool(config["augment"]), config["max_cpu_seconds"])
        found.setdefault(key, []).append(result)
    table = []
    for (zoo, split, name, augmented, budget), runs in found.items():
        test, early = [r["test"]["accuracy"] for r in runs], [r["early"] for r in runs]
        row = {
            "zoo": zoo,
            "split": split,
            "model": name,
            "augmented": augmented,
            "budget_cpu_seconds": budget,
            "reads": "evaluates the network" if runs[0]["evaluates_network"] else "weights only",
            "seeds": len(runs),
            "parameters": runs[0]["parameters"],
            "test_accuracy": statistics.mean(test),
            "test_spread": statistics.stdev(test) if len(test) > 1 else None,
            "vote_accuracy": statistics.mean(r["test"]["vote_accuracy"] for r in runs),
            "val_accuracy": statistics.mean(r["val"]["accuracy"] for r in runs),
            f"val_accuracy_epoch_{EARLY}": None if None in early else statistics.mean(early),
            "epochs": statistics.mean(r["epochs"] for r in runs),
            "cpu_seconds_to_best": statistics.mean(r["to_best"] for r in runs),
            "peak_mib": statistics.mean(r["peak_bytes"] for r in runs) / 2**20,
        }
        table.append(row)
    return table


def _shares(fractions: Mapping[str, float]) -> str:
    """Per cent of training, validation and test, for titles."""
    return "/".join(f"{100 * fractions[name]:.0f}" for name in DEFAULT_FRACTIONS)


def merged(found: list[dict[str, Any]], known: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows found now, with those known before that rest on more seeds or were not found; best first in every part."""
    table: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in (*known, *found):
        key = tuple(row[name] for name in ("zoo", "split", "model", "augmented", "budget_cpu_seconds"))
        if key not in table or row["seeds"] >= table[key]["seeds"]:
            table[key] = row
    return sorted(table.values(), key=lambda r: (r["zoo"], r["split"], not r["augmented"], -r["test_accuracy"]))


def show(table: list[dict[str, Any]]) -> None:
    """Print a table per zoo, as the documentation has them: with augmentation, without, and the operator's variants."""
    for zoo, split in dict.fromkeys((row["zoo"], row["split"]) for row in table):
        for title, wanted in {
            "augmented": lambda r: r["augmented"] and r["model"] not in ABLATION,
            "without augmentation": lambda r: not r["augmented"] and r["model"] not in ABLATION,
            "variants of the operator metanetwork": lambda r: r["model"] in ABLATION,
        }.items():
            if rows := [row for row in table if (row["zoo"], row["split"]) == (zoo, split) and wanted(row)]:
                print(f"\n**{zoo} {split}, {title}**\n")
                _show(rows)


def _show(rows: list[dict[str, Any]]) -> None:
    print(
        "| metanetwork | parameters | CPU s | seeds | per INR, % | vote, % | validation, % "
        f"| after {EARLY} epochs | epochs | best at | MiB |"
    )
    print("|---" + "|--:" * 10 + "|")
    for r in rows:
        spread = "" if r["test_spread"] is None else f" ± {100 * r['test_spread']:.1f}"
        cells = [r["model"], f"{r['parameters']:,}", f"{r['budget_cpu_seconds']:.0f}", r["seeds"]]
        cells += [f"{100 * r['test_accuracy']:.1f}{spread}", f"{100 * r['vote_accuracy']:.1f}"]
        early = r[f"val_accuracy_epoch_{EARLY}"]
        cells += [f"{100 * r['val_accuracy']:.1f}", "" if early is None else f"{100 * early:.1f}"]
        cells += [f"{r['epochs']:.0f}", f"{r['cpu_seconds_to_best']:.0f}"]
        print(f"| {' | '.join(map(str, cells))} | {r['peak_mib']:.0f} |")


def write(table: list[dict[str, Any]]) -> None:
    """Write the table beside this script."""
    RESULT.parent.mkdir(exist_ok=True)
    machine = {"torch": torch.__version__, "python": platform.python_version(), "processor": platform.machine()}
    content = {"machine": machine, "threads_per_process": 1, "rows": table}
    RESULT.write_text(json.dumps(content, indent=1) + "\n")
    with RESULT.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


def main() -> None:
    """Train what is missing, then make the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", default="digits", choices=["digits", "mnist"])
    parser.add_argument("--images", type=Path, help="IDX file of images beside its labels, for --zoo mnist")
    parser.add_argument("--models", help=f"names with ';' between; default all but {ABLATION}")
    parser.add_argument("--ablation", action="store_true", help="the variants of the operator metanetwork instead")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="without augmentation")
    parser.add_argument("--cpu-seconds", type=float, default=300, help="budget of one run")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/metanet_accuracy"))
    parser.add_argument("--table", action="store_true", help="only make the table from the folders")
    args = parser.parse_args()
    if args.zoo == "mnist" and not args.images and not args.table:
        parser.error("--zoo mnist needs --images")
    names = (
        args.models.split(";")
        if args.models
        else ABLATION
        if args.ablation
        else [name for name in ENTRIES if name not in ABLATION]
    )
    if unknown := sorted(set(names) - set(ENTRIES)):
        parser.error(f"unknown models {unknown}; there are {list(ENTRIES)}")
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    failed = 0
    if not args.table:
        for out in (run_folder(args.out / args.zoo / f"seed{s}", n, args.plain) for s in seeds for n in names):
            if reason := other_run(out, args.cpu_seconds, _shares(FRACTIONS[args.zoo])):
                parser.error(reason)
        context = multiprocessing.get_context("spawn")
        for seed in seeds:
            folder = args.out / args.zoo / f"seed{seed}"
            build(recipe(args.zoo, seed, args.images), folder / "zoo", title=f"{args.zoo} INRs", workers=args.processes)
            with ProcessPoolExecutor(args.processes, mp_context=context, max_tasks_per_child=1) as pool:
                running = {name: pool.submit(run, folder, name, args.plain, seed, args.cpu_seconds) for name in names}
                for name, job in running.items():
                    error = job.exception()
                    failed += error is not None
                    print(f"{args.zoo} seed {seed} {name}: {'done' if error is None else error}", flush=True)
    found = rows(args.out)
    if found:
        table = merged(found, json.loads(RESULT.read_bytes())["rows"] if RESULT.exists() else [])
        write(table)
        show(table)
    elif not failed:
        parser.error(f"'{args.out}' holds no finished run. Leave out --table to make them.")
    if failed:
        sys.exit(f"{failed} runs failed. The same command goes on with them.")


if __name__ == "__main__":
    main()
