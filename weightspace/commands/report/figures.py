"""The figures of a report: each a function of plain arrays that returns a matplotlib figure.

Figures are built on :class:`matplotlib.figure.Figure`, never through pyplot, so that a report leaves no open windows
and no settings behind.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from weightspace.commands.report.style import CATEGORIES, INK

__all__ = ["History", "confusion_matrix", "embedding_map", "gallery", "learning_curves"]


@dataclass(frozen=True)
class History:
    """What one training run recorded, one entry an epoch.

    Args:
        train_accuracy, val_accuracy: Fractions in [0, 1] per INR.
        seconds: Wall time since the start of training.
        best_epoch: The one that is kept, counted from 1.
    """

    train_accuracy: NDArray[np.floating]
    val_accuracy: NDArray[np.floating]
    seconds: NDArray[np.floating]
    best_epoch: int


def gallery(
    originals: NDArray[np.floating] | None,  # shape: (N, H, W), values in [0, 1]
    rendered: NDArray[np.floating],  # shape: (N, H, W)
    fine: NDArray[np.floating],  # shape: (N, h, w)
    psnr: NDArray[np.floating],  # shape: (N,), decibel
    titles: Sequence[str],
) -> Figure:
    """Images (where given) beside what their INRs draw: on the pixels they were fitted to, and on a finer grid."""
    rows = [("INR", rendered), ("INR", fine)]
    if originals is not None:
        rows.insert(0, ("image", originals))
    figure = Figure(figsize=(1.05 * len(rendered) + 0.9, 1.3 * len(rows) + 0.2))
    axes = figure.subplots(len(rows), len(rendered), squeeze=False)
    for row, (name, images) in enumerate(rows):
        label = f"{name}\n{images.shape[1]}x{images.shape[2]}"
        axes[row, 0].set_ylabel(label, rotation=0, ha="right", va="center", labelpad=8)
        for column, image in enumerate(images):
            _show_image(axes[row, column], image)
    for column, (title, decibel) in enumerate(zip(titles, psnr, strict=True)):
        axes[0, column].set_title(title, loc="center", fontsize=10)
        axes[-2, column].set_xlabel(f"{decibel:.1f} dB", fontsize=9)
    return figure


def _show_image(axes: Axes, image: NDArray[np.floating]) -> None:
    axes.imshow(image, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def learning_curves(histories: Mapping[str, History]) -> Figure:
    """Accuracy by epoch (training dashed, validation solid), and validation accuracy by second of training."""
    figure = Figure(figsize=(11, 4))
    by_epoch, by_second = figure.subplots(1, 2, sharey=True)
    for (name, history), colour in zip(histories.items(), CATEGORIES, strict=False):
        epochs = np.arange(1, len(history.val_accuracy) + 1)
        by_epoch.plot(epochs, history.train_accuracy, color=colour, linestyle=(0, (3, 2)), linewidth=1.1)
        by_epoch.plot(epochs, history.val_accuracy, color=colour)
        by_second.plot(history.seconds, history.val_accuracy, color=colour, label=name)
        best = history.best_epoch - 1
        by_second.plot(history.seconds[best], history.val_accuracy[best], "o", color=colour)
    by_epoch.plot([], [], color=INK, label="validation")
    by_epoch.plot([], [], color=INK, linestyle=(0, (3, 2)), linewidth=1.1, label="training")
    by_epoch.set(xlabel="epoch", ylabel="accuracy per INR", ylim=(0, 1.02), title="By epoch")
    by_second.set(xlabel="seconds of training, one thread", title="Validation, by time (dot: the epoch kept)")
    by_epoch.yaxis.set_major_formatter(PercentFormatter(1.0))
    by_epoch.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside right center")
    return figure


def confusion_matrix(
    counts: NDArray[np.integer],  # shape: (classes, classes), row = true class
    names: Sequence[str],
    title: str,
) -> Figure:
    """How often items of each class (row) are read as each class (column); shade = share of the row."""
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(5.8, 5.2))
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0.0, vmax=1.0)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if share[row, column] > 0.55 else INK
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=9)
    ticks = range(len(names))
    axes.set(xticks=ticks, yticks=ticks, xticklabels=names, yticklabels=names)
    axes.set(xlabel="predicted class", ylabel="true class", title=title)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.85, format=PercentFormatter(1.0), label="share of the true class")
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return figure


def embedding_map(
    points: NDArray[np.floating],  # shape: (N, 2)
    labels: NDArray[np.integer],  # shape: (N,), class index
    predicted: NDArray[np.integer],  # shape: (N,), class index
    names: Sequence[str],
    title: str,
) -> Figure:
    """One mark per network, coloured by its true class; crosses are the ones that were read wrongly."""
    figure = Figure(figsize=(6.6, 6.0))
    axes = figure.subplots()
    wrong = labels != predicted
    for index in range(len(names)):
        colour, mine = CATEGORIES[index % len(CATEGORIES)], labels == index
        axes.scatter(*points[mine & ~wrong].T, s=12, color=colour, alpha=0.75, linewidths=0)
        axes.scatter(*points[mine & wrong].T, s=26, color=colour, marker="x", linewidths=1.4)
    # Names last, above every point, where the class is densest; colour is never the only way to tell a class.
    for index, name in enumerate(names):
        mine = points[labels == index]
        if len(mine):
            x, y = np.median(mine, axis=0)
            text = axes.text(x, y, name, ha="center", va="center", fontsize=15, weight="bold")
            text.set_path_effects([patheffects.withStroke(linewidth=3.5, foreground="white")])
    axes.scatter([], [], s=26, color=INK, marker="x", label=f"read wrongly ({int(wrong.sum())} of {len(labels)})")
    axes.set(xticks=[], yticks=[], title=title, xlabel="t-SNE axis 1", ylabel="t-SNE axis 2")
    axes.grid(visible=False)
    axes.legend(loc="best", fontsize=9, frameon=True, framealpha=0.9, edgecolor="none")
    return figure
