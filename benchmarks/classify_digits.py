"""Accuracy of metanetworks on digit INRs, mean and spread over seeds.

    python benchmarks/classify_digits.py --seeds 3 --init dws --models operator,gmn,mlp,statnn --out runs/classify
    python benchmarks/classify_digits.py --init siren --models operator --probes 64 --out runs/classify
    python benchmarks/classify_digits.py --table --out runs/classify

Seed ``s`` builds a zoo of its own with seed ``s``, splits it with salt ``s`` and trains with seed ``s``. Every run is a
folder ``OUT/<init>/seed<s>/<model>``; runs that are there are not repeated, stopped ones go on. Then a table is made of
all folders, printed, and written beside this script as ``results/classify_digits.json`` and ``.csv``; ``--table`` makes
the table alone. Seconds are of one thread per process and include whatever else the machine was doing; CPU seconds do
not. Test splits were scored once per run; the epoch was chosen on validation.
"""

import argparse
import csv
import json
import platform
import statistics
from pathlib import Path
from typing import Any

import torch

from weightspace.tasks import compare, digits_job
from weightspace.zoo.build import build
from weightspace.zoo.recipes import DigitsInr

RESULTS = Path(__file__).parent / "results"
COLUMNS = ["init", "model", "reads", "seeds", "parameters", "test_accuracy", "test_spread", "vote_accuracy"]
COLUMNS += ["vote_spread", "val_accuracy", "epochs", "seconds", "cpu_seconds"]


def run_seed(out: Path, seed: int, init: str, models: list[str], args: argparse.Namespace) -> None:
    folder = out / init / f"seed{seed}"
    zoo = build(DigitsInr(seed=seed, init=init), folder / "zoo", title=f"Digit SIRENs, {init} initialisation")
    print(f"{init}, seed {seed}: {len(zoo):,} INRs, mean PSNR {zoo.column('psnr').mean():.1f} dB")
    (folder / "zoo.psnr.json").write_text(json.dumps({"mean": float(zoo.column("psnr").mean())}))
    groups = [models[i :: args.processes] for i in range(min(args.processes, len(models)))]
    jobs = [
        [
            digits_job(m, seed=seed, init=init, probes=args.probes if m == "operator" else 0, epochs=args.epochs)
            for m in g
        ]
        for g in groups
    ]
    for name, result in compare(folder / "zoo", folder, jobs).items():
        print(f"  {name}: {result.test}, {result.cpu_seconds:.0f} CPU s")


def table(out: Path) -> list[dict[str, Any]]:
    """One row per initialisation and model, from the run folders."""
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in sorted(out.glob("*/seed*/*/results.json")):
        runs.setdefault((path.parts[-4], path.parts[-2]), []).append(json.loads(path.read_bytes()))
    rows = []
    for (init, model), results in runs.items():
        accuracy = [r["test"]["accuracy"] for r in results]
        voted = [r["test"]["vote_accuracy"] for r in results]
        row = {
            "init": init,
            "model": model,
            "reads": "evaluates the network" if results[0]["evaluates_network"] else "weights only",
            "seeds": len(results),
            "parameters": results[0]["parameters"],
            "test_accuracy": statistics.mean(accuracy),
            "test_spread": statistics.stdev(accuracy) if len(accuracy) > 1 else None,
            "vote_accuracy": statistics.mean(voted),
            "vote_spread": statistics.stdev(voted) if len(voted) > 1 else None,
            "val_accuracy": statistics.mean(r["val"]["accuracy"] for r in results),
            "epochs": statistics.mean(r["epochs"] for r in results),
            "seconds": statistics.mean(r["seconds"] for r in results),
            "cpu_seconds": statistics.mean(r["cpu_seconds"] for r in results),
        }
        rows.append(row)
    return sorted(rows, key=lambda r: (r["init"], -r["test_accuracy"]))


def show(rows: list[dict[str, Any]]) -> None:
    def share(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    print("\n| init | model | reads | seeds | parameters | test per INR % | +- | vote % | +- | epochs | s | CPU s |")
    print("|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for r in rows:
        cells = [r["init"], r["model"], r["reads"], r["seeds"], f"{r['parameters']:,}"]
        cells += [share(r[c]) for c in ("test_accuracy", "test_spread", "vote_accuracy", "vote_spread")]
        cells += [f"{r['epochs']:.0f}", f"{r['seconds']:.0f}", f"{r['cpu_seconds']:.0f}"]
        print(f"| {' | '.join(map(str, cells))} |")


def write(rows: list[dict[str, Any]]) -> None:
    RESULTS.mkdir(exist_ok=True)
    machine = {"torch": torch.__version__, "python": platform.python_version(), "processor": platform.machine()}
    content = {"machine": machine, "threads_per_process": 1, "rows": rows}
    (RESULTS / "classify_digits.json").write_text(json.dumps(content, indent=1) + "\n")
    with (RESULTS / "classify_digits.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from --first-seed on")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--init", default="dws", choices=["dws", "siren"])
    parser.add_argument("--models", default="operator,gmn,mlp,statnn")
    parser.add_argument("--probes", type=int, default=0, help="let operator evaluate the INRs on so many inputs")
    parser.add_argument("--epochs", type=int, default=None, help="instead of the preset of each model")
    parser.add_argument("--processes", type=int, default=2, help="models trained at the same time, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/classify_digits"))
    parser.add_argument("--table", action="store_true", help="only make the table from the folders")
    args = parser.parse_args()
    if not args.table:
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            run_seed(args.out, seed, args.init, args.models.split(","), args)
    rows = table(args.out)
    if not rows:
        parser.error(f"'{args.out}' holds no finished run. Leave out --table to make them.")
    write(rows)
    show(rows)


if __name__ == "__main__":
    main()
