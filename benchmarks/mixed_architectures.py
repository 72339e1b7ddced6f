"""Predicting the test accuracy of classifiers of mixed architectures from their weights, error by family.

    python benchmarks/mixed_architectures.py --out runs/mixed_architectures --seeds 3
    python benchmarks/mixed_architectures.py --out runs/mixed_architectures --table

Builds the zoo ``mixed-classifiers`` (24 architectures of four families: MLP, CNN, ResNet, transformer; 160 networks of
each, half an hour of one core), trains one metanetwork of each kind on the training networks of all architectures
together for the same processor time, and scores the test networks. Runs that are there are not repeated, those of
another budget are an error, stopped ones go on. The baseline is gradient boosting on statistics
of the weight and bias tensors (after Unterthiner et al. 2020, who read one architecture): seven statistics of first,
last and, by mean and extremes, of all weight and bias tensors, with family, numbers of tensors and of parameters.
Epochs are chosen on validation; test networks are scored once per run. The table is made of all folders, printed, and
written as ``results/mixed_architectures.json``, where rows stay whose folders are elsewhere, or fewer here than the
seeds they rest on; of a zoo of another size it is printed only. ``--table`` trains and builds nothing.
"""

import argparse
import json
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau
from sklearn.ensemble import HistGradientBoostingRegressor

from weightspace.errors import ZooFormatError
from weightspace.graphs import BlockLayout, trace
from weightspace.metanets import (
    MixedReader,
    SharedGraphMetanetwork,
    SharedGraphMetanetworkConfig,
    SharedMetanet,
    SharedOperatorNet,
    SharedOperatorNetConfig,
)
from weightspace.training import LabelledWeights, MixedWeights, Regression, TrainConfig, fit, predict
from weightspace.zoo import Zoo
from weightspace.zoo.build import build
from weightspace.zoo.recipes import MixedClassifiers

RESULTS = Path(__file__).parent / "results" / "mixed_architectures.json"
TARGET = "test_accuracy"
FAMILIES = ("mlp", "cnn", "resnet", "vit")
MODELS = ("operator", "operator-network", "gmn", "gmn-network", "statnn")
PARTS = ("all", *FAMILIES)
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


def read(zoo: Zoo, split: str, salt: str) -> list[LabelledWeights]:
    """Networks of one split, architecture by architecture."""
    part = zoo.select(status="ok").split(split, salt=salt)
    groups = []
    for architecture in zoo.architectures:
        rows = part.select(arch=architecture.hash)
        groups.append(LabelledWeights(rows.weights(), torch.tensor(rows.column(TARGET).astype(np.float32))))
    return groups


def make(model: str, layouts: list[BlockLayout]) -> SharedMetanet:
    name, _, mode = model.partition("-")
    normalisation = "network" if mode else "relation"
    if name == "operator":
        return SharedOperatorNet(layouts, 1, SharedOperatorNetConfig(normalisation=normalisation))
    return SharedGraphMetanetwork(layouts, 1, SharedGraphMetanetworkConfig(normalisation=normalisation))


def statistics_of(group: LabelledWeights, family: int) -> np.ndarray:
    """Features of the baseline, one row per network."""
    tensors: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    for value in group.weights.values():
        flat = value.flatten(1)
        columns = [flat.mean(1), flat.var(1, correction=0), *torch.quantile(flat, torch.tensor(QUANTILES), dim=1)]
        tensors[value.ndim > 2].append(torch.stack(columns, 1))
    parts = []
    for rows in tensors.values():
        stack = torch.stack(rows)
        parts += [stack[0], stack[-1], stack.mean(0), stack.amax(0), stack.amin(0)]
    size = sum(value[0].numel() for value in group.weights.values())
    constants = torch.tensor([float(family), float(len(group.weights)), float(size)]).expand(len(group), -1)
    return torch.cat([*parts, constants], 1).numpy()


def scores(answers: np.ndarray, targets: np.ndarray, kinds: np.ndarray) -> dict[str, dict[str, float]]:
    """Figures of all test networks and of every family."""
    result = {}
    for name in ("all", *FAMILIES):
        pick = np.ones(len(kinds), bool) if name == "all" else kinds == FAMILIES.index(name)
        x, y = answers[pick], targets[pick]
        result[name] = {
            "networks": int(pick.sum()),
            "r2": 1 - float(((x - y) ** 2).mean() / y.var()),
            "kendall_tau": float(np.asarray(kendalltau(x, y))[0]),
            "mae": float(np.abs(x - y).mean()),
        }
    return result


def run(model: str, seed: int, splits: dict[str, list[LabelledWeights]], kinds: list[int], args: Any) -> None:
    folder = args.out / f"seed{seed}" / model
    path = folder / "results.json"
    if path.exists():
        budget = json.loads(path.read_bytes()).get("budget_cpu_seconds")
        if budget not in (None, args.cpu_seconds):
            raise SystemExit(f"'{folder}' holds a run of {budget:g} CPU seconds. Give another --out.")
        return
    folder.mkdir(parents=True, exist_ok=True)
    of_row = np.concatenate([[k] * len(g) for k, g in zip(kinds, splits["test"], strict=True)])
    record: dict[str, Any] = {"model": model, "seed": seed}
    if model == "statnn":
        table = {
            s: (
                np.concatenate([statistics_of(g, k) for g, k in zip(groups, kinds, strict=True)]),
                torch.cat([g.targets for g in groups]).numpy(),
            )
            for s, groups in splits.items()
        }
        options = [(rate, rounds) for rate in (0.03, 0.1) for rounds in (50, 100, 200, 400)]
        fits = [
            HistGradientBoostingRegressor(learning_rate=a, max_iter=n, random_state=seed).fit(*table["train"])
            for a, n in options
        ]
        best = min(fits, key=lambda f: float(((f.predict(table["val"][0]) - table["val"][1]) ** 2).mean()))
        answers, targets = best.predict(table["test"][0]), table["test"][1]
        record |= {"parameters": None, "epochs": None, "seconds": None, "cpu_seconds": None}
    else:
        data = {name: MixedWeights(groups) for name, groups in splits.items()}
        torch.manual_seed(seed)
        net = make(model, args.layouts)
        reader = MixedReader(net, args.layouts)
        reader.fit_normalisation(data["train"].sample(len(data["train"])))
        config = TrainConfig(
            epochs=100_000, max_cpu_seconds=args.cpu_seconds, batch_size=32, average=0.98, augment=(), seed=seed
        )
        result = fit(
            reader, data["train"], data["val"], config, folder, objective=Regression(), record=net.to_json(),
            progress=False,
        )  # fmt: skip
        out, wanted = predict(reader, data["test"])
        answers, targets = out[:, 0].numpy(), wanted.numpy()
        parameters = sum(p.numel() for p in net.parameters())
        record |= {"parameters": parameters, "epochs": len(result.epochs), "best_epoch": result.best_epoch}
        record |= {"seconds": result.seconds, "cpu_seconds": result.cpu_seconds}
        record["budget_cpu_seconds"] = args.cpu_seconds
    record["test"] = scores(answers, targets, of_row)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(model, seed, {k: {n: round(f, 3) for n, f in v.items()} for k, v in record["test"].items()}, flush=True)


def _cell(row: dict[str, Any], part: str) -> str:
    """R2 with its spread over seeds, Kendall's tau and mean absolute error."""
    r2, tau, mae = (row[f"{part}_{figure}"] for figure in ("r2", "kendall_tau", "mae"))
    spread = "" if r2["spread"] is None else f" ± {r2['spread']:.2f}"
    return f"{r2['mean']:.2f}{spread} / {tau['mean']:.2f} / {mae['mean']:.3f}"


def rows(out: Path) -> list[dict[str, Any]]:
    """Means and spreads over the seeds, a row per model and budget, from the run folders."""
    runs: dict[tuple[str, float | None], list[dict[str, Any]]] = {}
    for path in sorted(p for p in out.glob("seed*/*/results.json") if p.parent.name in MODELS):
        result = json.loads(path.read_bytes())
        runs.setdefault((path.parent.name, result.get("budget_cpu_seconds")), []).append(result)
    table = []
    for (model, budget), results in runs.items():
        row: dict[str, Any] = {"model": model, "budget_cpu_seconds": budget, "seeds": len(results)}
        row["parameters"] = results[0]["parameters"]
        for figure in ("epochs", "cpu_seconds"):
            row[figure] = None if results[0][figure] is None else statistics.mean(r[figure] for r in results)
        for family in PARTS:
            for figure in ("r2", "kendall_tau", "mae"):
                values = [r["test"][family][figure] for r in results]
                spread = statistics.stdev(values) if len(values) > 1 else None
                row[f"{family}_{figure}"] = {"mean": statistics.mean(values), "spread": spread, "seeds": values}
        table.append(row)
    return table


def merged(found: list[dict[str, Any]], known: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows found now, with those known before that rest on more seeds or were not found."""
    table: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in (*known, *found):
        key = (row["model"], row["budget_cpu_seconds"])
        if key not in table or row["seeds"] >= table[key]["seeds"]:
            table[key] = row
    return sorted(table.values(), key=lambda row: (-(row["budget_cpu_seconds"] or 0), MODELS.index(row["model"])))


def show(table: list[dict[str, Any]]) -> None:
    """Print the table."""
    print("| model | CPU s | seeds | parameters | epochs | " + " | ".join(PARTS) + " |")
    print("|---|--:|--:|--:|--:|" + "---|" * len(PARTS))
    for row in table:
        budget, size, epochs = (
            "" if row[name] is None else f"{row[name]:,.0f}" for name in ("budget_cpu_seconds", "parameters", "epochs")
        )
        cells = [row["model"], budget, str(row["seeds"]), size, epochs, *(_cell(row, part) for part in PARTS)]
        print("|", " | ".join(cells), "|")


def report(found: list[dict[str, Any]], described: dict[str, Any]) -> None:
    """Print the rows with those known before, and write them; of another zoo than the written ones, print alone."""
    written = json.loads(RESULTS.read_bytes()) if RESULTS.exists() else {"zoo": described, "rows": []}
    if written["zoo"]["networks"] != described["networks"]:
        show(merged(found, []))
        print(f"Not written: {RESULTS.name} is of {written['zoo']['networks']} networks, not {described['networks']}.")
        return
    table = merged(found, written["rows"])
    show(table)
    machine = {"torch": torch.__version__, "python": platform.python_version(), "processor": platform.machine()}
    content = {"machine": machine, "threads": 1, "zoo": described, "rows": table}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


def describe(zoo: Zoo) -> dict[str, Any]:
    """Sizes, and the target by family."""
    families = zoo.column("family")
    described: dict[str, Any] = {"networks": len(zoo), "architectures": len(zoo.architectures)}
    for family in FAMILIES:
        accuracy = zoo.column(TARGET)[families == family]
        described[family] = {"mean": float(accuracy.mean()), "deviation": float(accuracy.std())}
    return described


def train(zoo: Zoo, models: Sequence[str], args: argparse.Namespace) -> None:
    """The runs that are missing."""
    args.layouts = [trace(a.build(), torch.zeros(2, 1, 8, 8)).layout() for a in zoo.architectures]
    kinds = [FAMILIES.index(a.kind.removeprefix("digits-")) for a in zoo.architectures]
    for seed in range(args.seeds):
        splits = {name: read(zoo, name, str(seed)) for name in ("train", "val", "test")}
        for model in models:
            run(model, seed, splits, kinds, args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/mixed_architectures"))
    parser.add_argument("--seeds", type=int, default=1, help="training seeds; seed s splits the networks with salt s")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--cpu-seconds", type=float, default=300, help="budget of one run")
    parser.add_argument("--units", type=int, default=4, help="units of 40 networks of every architecture")
    parser.add_argument("--table", action="store_true", help="only make the table from the folders")
    args = parser.parse_args()
    torch.set_num_threads(1)
    models = args.models.split(",")
    if unknown := sorted(set(models) - set(MODELS)):
        parser.error(f"unknown models {unknown}; there are {list(MODELS)}")
    if not args.table:
        recipe = MixedClassifiers(units_per_architecture=args.units)
        train(build(recipe, args.out / "zoo", workers=1, progress=False), models, args)
    found = rows(args.out)
    if not found:
        parser.error(f"'{args.out}' holds no finished run. Leave out --table to make them.")
    try:
        described = describe(Zoo.open(args.out / "zoo"))
    except ZooFormatError as error:
        parser.error(str(error))
    report(found, described)


if __name__ == "__main__":
    main()
