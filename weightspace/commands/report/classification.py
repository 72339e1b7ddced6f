"""The report of classification runs on one zoo: its figures as PNG files, and the page that shows them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from weightspace.commands.report.figures import confusion_matrix, embedding_map, gallery, learning_curves
from weightspace.commands.report.inr_gallery import inr_pictures
from weightspace.commands.report.page import Number, Page, Picture, Table, write_page
from weightspace.commands.report.runs import Run, project, read_run
from weightspace.commands.report.style import house_style, save
from weightspace.graphs import draw
from weightspace.tasks import readable, trace_zoo
from weightspace.zoo import Zoo

__all__ = ["RESULTS_HEADER", "results_rows", "write_report"]

RESULTS_HEADER = ("model", "test, per network", "test, by vote", "validation", "parameters", "epochs", "seconds")


def results_rows(runs: Sequence[Run]) -> list[list[str]]:
    """One line per run under :data:`RESULTS_HEADER`."""
    return [
        [
            run.name + (" (evaluates the network)" if run.results["evaluates_network"] else ""),
            f"{run.results['test']['accuracy']:.1%}",
            f"{run.results['test']['vote_accuracy']:.1%}",
            f"{run.results['val']['accuracy']:.1%}",
            f"{run.results['parameters']:,}",
            f"{run.results['epochs']}",
            f"{run.results['seconds']:.0f}",
        ]
        for run in runs
    ]


def write_report(
    zoo: Zoo,
    runs: Mapping[str, Path],
    out: Path,
    *,
    date: str,
    seconds: Mapping[str, float] | None = None,
    commands: Sequence[str] = (),
) -> Path:
    """Write ``figures/*.png`` and ``index.html`` into ``out``.

    Args:
        zoo: The zoo all runs read.
        runs: Folders that :func:`weightspace.tasks.classify` wrote, by the name to show.
        out: Folder of the report.
        date: Day of the run, as text.
        seconds: Wall time of the parts of the whole, for a second table.
        commands: Command lines that make the page again.

    Raises:
        CheckpointError: a run has not ended.
    """
    zoo = readable(zoo)
    read = [read_run(name, folder) for name, folder in runs.items()]
    best = max(read, key=lambda run: run.results["val"]["accuracy"])
    with house_style():
        pictures = _pictures(zoo, read, best, out / "figures")
    test = best.results["test"]
    numbers = [
        Number(f"of {test['networks']:,} unseen networks read right by {best.name}", f"{test['accuracy']:.1%}"),
        Number(f"of {test['items']:,} unseen images, by vote over their networks", f"{test['vote_accuracy']:.1%}"),
    ]
    if "psnr" in zoo.rows.column_names:
        numbers.append(Number("mean PSNR of the networks' pictures", f"{zoo.column('psnr').mean():.1f} dB"))
    scalars = zoo.architectures[0].numel
    page = Page(
        title=f"What {len(zoo):,} networks drew, read from their weights",
        lead=(
            f"Each network of the zoo “{zoo.manifest.title or zoo.path.name}” has {scalars:,} weights. A metanetwork "
            "reads them and names the class. Splits go by image: no image of the test split was seen in training."
        ),
        numbers=numbers,
        tables=_tables(read, best, seconds or {}),
        pictures=pictures,
        commands=commands,
        date=date,
    )
    return write_page(page, out / "index.html")


def _tables(runs: Sequence[Run], best: Run, seconds: Mapping[str, float]) -> list[Table]:
    networks = best.results["test"]["networks"]
    chance = np.bincount(best.labels).max() / len(best.labels)
    sampling = 100 * np.sqrt(best.accuracy * (1 - best.accuracy) / networks)
    note = (
        f"One run each, scored once on {networks:,} networks of the test split; the epoch is chosen on validation. "
        f"Sampling alone moves these figures by about {sampling:.1f} points or more. Always naming the most frequent "
        f"class scores {chance:.1%}. Seconds of wall time, training and validation."
    )
    tables = [Table("Accuracy", RESULTS_HEADER, results_rows(runs), note)]
    if seconds:
        rows = [[name, f"{value:.0f}"] for name, value in seconds.items()]
        tables.append(
            Table("Where the time went", ("part", "seconds"), rows, "Wall time of the run that wrote this page.")
        )
    return tables


def _pictures(zoo: Zoo, runs: Sequence[Run], best: Run, folder: Path) -> list[Picture]:
    pictures, names = [], [str(c) for c in range(len(best.results["test"]["confusion"]))]
    if zoo.manifest.recipe.get("name") == "digits-inr":
        shown = inr_pictures(zoo.select(model_id=best.networks))
        figure = gallery(shown.originals, shown.rendered, shown.fine, shown.psnr, [str(c) for c in shown.labels])
        caption = (
            "An image of the test split per class; the picture its network draws on the same pixels, with its PSNR; "
            "the same network asked for eight times as many pixels per side. Between the pixels it was fitted to, a "
            "network is free."
        )
        pictures.append(
            Picture("Images and the networks that store them", caption, save(figure, folder / "gallery.png"))
        )
    figure = embedding_map(
        project(best.embedding, seed=0), best.labels, best.predicted, names, f"Test networks as {best.name} sees them"
    )
    caption = (
        "One point per test network: the readout of the metanetwork before its last layers, brought to two "
        "dimensions by t-SNE. Colour and digit give the true class, crosses were read wrongly. Distances between "
        "groups mean little."
    )
    pictures.append(Picture("Map of the zoo", caption, save(figure, folder / "embedding.png")))
    counts = np.array(best.results["test"]["confusion"])
    figure = confusion_matrix(counts, names, f"{best.name}, {counts.sum():,} test networks")
    caption = "Test networks of each true class (row) by the class they were read as (column)."
    pictures.append(Picture("What is taken for what", caption, save(figure, folder / "confusion.png")))
    figure = learning_curves({run.name: run.history for run in runs})
    caption = "Accuracy per network while training. The epoch that is kept (dot) is chosen on validation only."
    pictures.append(Picture("Learning curves", caption, save(figure, folder / "curves.png")))
    item = zoo[0]
    graph = trace_zoo(zoo).parameter_graph(item.weights)
    figure = draw(graph, title=f"{item.row['model_id']}: {graph.num_nodes:,} nodes, {graph.num_edges:,} parameters")
    caption = (
        "One network of the zoo as a graph: neurons are nodes, every weight is an edge, biases come from their own "
        "nodes. Colour is the sign of a weight; strong lines are large weights, each layer on its own scale."
    )
    pictures.append(Picture("One network as a parameter graph", caption, save(figure, folder / "graph.png")))
    return pictures
