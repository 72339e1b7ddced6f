"""How well labels of networks are told: per network, by vote over the networks of one item, per class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Scores", "score_classes", "vote"]


@dataclass(frozen=True)
class Scores:
    """Figures of one split.

    Args:
        accuracy: Fraction of networks whose label is told right.
        vote_accuracy: Fraction of items (images) told right by the summed log-probabilities of their networks.
        networks, items: How many of each.
        per_class: Accuracy per network of every class; NaN where the split has none of it.
        confusion: ``confusion[i][j]`` networks of class ``i`` taken for class ``j``.
    """

    accuracy: float
    vote_accuracy: float
    networks: int
    items: int
    per_class: list[float]
    confusion: list[list[int]]

    def to_json(self) -> dict[str, Any]:
        """A JSON-able form: the fields; NaN becomes null."""
        return {**asdict(self), "per_class": [None if np.isnan(a) else a for a in self.per_class]}

    def __repr__(self) -> str:
        return (
            f"Scores({self.accuracy:.1%} of {self.networks} networks, {self.vote_accuracy:.1%} of {self.items} items "
            "by vote)"
        )


def vote(
    log_probabilities: Tensor,  # shape: (N, classes)
    keys: Sequence[str] | np.ndarray,
) -> tuple[np.ndarray, Tensor]:
    """Different keys in order of first use, and the summed log-probabilities of each; shape ``(items, classes)``."""
    _, first, inverse = np.unique(np.asarray(keys), return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    item = torch.from_numpy(rank[inverse])
    summed = log_probabilities.new_zeros(len(first), log_probabilities.shape[1]).index_add_(0, item, log_probabilities)
    return np.asarray(keys)[np.sort(first)], summed


def score_classes(
    log_probabilities: Tensor,  # shape: (N, classes)
    labels: Tensor,  # shape: (N,)
    keys: Sequence[str] | np.ndarray,
) -> Scores:
    """Compare predictions with labels; networks with one key are of one item and have its label."""
    classes = log_probabilities.shape[1]
    predicted = log_probabilities.argmax(dim=1)
    confusion = torch.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
    names, summed = vote(log_probabilities.double(), keys)
    label_of = dict(zip(map(str, keys), labels.tolist(), strict=True))
    wanted = torch.tensor([label_of[str(name)] for name in names])
    return Scores(
        accuracy=float((predicted == labels).double().mean()),
        vote_accuracy=float((summed.argmax(dim=1) == wanted).double().mean()),
        networks=len(labels),
        items=len(names),
        per_class=(confusion.diagonal() / confusion.sum(dim=1)).tolist(),
        confusion=confusion.tolist(),
    )
