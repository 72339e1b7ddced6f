"""Reading back what classification runs wrote, as plain arrays for figures and tables."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from weightspace.commands.report.figures import History
from weightspace.errors import CheckpointError

__all__ = ["Run", "project", "read_run"]

_FEWEST_FOR_TSNE = 10


@dataclass(frozen=True)
class Run:
    """A finished run of :func:`weightspace.tasks.classify`.

    Args:
        name: What tables and legends call it.
        results: Content of ``results.json``.
        history: Figures per epoch.
        networks: Names of the networks of the test split, their ``model_id``, shape ``(N,)``.
        labels, predicted: Their classes, shape ``(N,)``.
        embedding: Readout of the metanetwork for each of them, shape ``(N, D)``.
    """

    name: str
    results: dict[str, Any]
    history: History
    networks: NDArray[np.str_]
    labels: NDArray[np.integer]
    predicted: NDArray[np.integer]
    embedding: NDArray[np.floating]

    @property
    def accuracy(self) -> float:
        """Fraction of test networks told right."""
        return self.results["test"]["accuracy"]


def read_run(name: str, folder: Path) -> Run:
    """Read a run.

    Raises:
        CheckpointError: a file is missing or damaged; the run has not ended.
    """
    try:
        results = json.loads((folder / "results.json").read_bytes())
        epochs = json.loads((folder / "metrics.json").read_bytes())
        # Without threads: those of Arrow can abort the process when it exits.
        table = pq.ParquetFile(folder / "predictions.parquet", pre_buffer=False).read(use_threads=False)
        # From memory: of a damaged file numpy leaves the handle open.
        with np.load(io.BytesIO((folder / "embedding.npz").read_bytes()), allow_pickle=False) as stored:
            embedding = stored["embedding"]
        columns = {key: np.array([row[key] for row in epochs]) for key in ("train_accuracy", "val_accuracy", "seconds")}
        history = History(**columns, best_epoch=results["best_epoch"])
        networks, labels, predicted = (table[key].to_numpy() for key in ("model_id", "label", "predicted"))
    except (OSError, EOFError, BadZipFile, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"'{folder}' is not the folder of a finished run ({type(error).__name__}: {error}). Run the training "
            "again; it goes on where it stopped."
        ) from error
    return Run(name, results, history, networks, labels, predicted, embedding)


def project(
    embedding: NDArray[np.floating],  # shape: (N, D)
    seed: int,
) -> NDArray[np.floating]:  # shape: (N, 2)
    """Two coordinates per row by t-SNE of the leading principal components; the same seed gives the same map.

    Of fewer than ten rows the first two standardised columns are taken.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import StandardScaler

    count, width = embedding.shape
    scaled = StandardScaler().fit_transform(embedding)
    if count < _FEWEST_FOR_TSNE:
        return np.pad(scaled[:, :2], ((0, 0), (0, max(0, 2 - width))))
    reduced = PCA(min(32, width, count), random_state=seed).fit_transform(scaled)
    perplexity = min(30.0, (count - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="random" if width < 2 else "pca", random_state=seed).fit_transform(
        reduced
    )
