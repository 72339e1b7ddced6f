"""What is minimised, and what counts as better on the validation split."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch.nn.functional as F
from torch import Tensor

__all__ = ["Classification", "Objective", "Regression"]


class Objective(ABC):
    """A loss, the numbers to report, and the order in which models are preferred."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of a batch, a scalar."""

    @abstractmethod
    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Figures of a whole split; every name says what it is."""

    @abstractmethod
    def score(self, figures: dict[str, float]) -> tuple[float, ...]:
        """Figures of the validation split to something comparable; greater is better."""


class Classification(Objective):
    """Cross entropy; more right answers are better, a lower loss decides between equals.

    Args:
        label_smoothing: Share of the target probability spread over all classes, in the loss alone.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Smoothed cross entropy of logits ``(B, classes)`` and labels ``(B,)``, in nats."""
        return F.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Cross entropy in nats and the fraction of right answers."""
        right = (outputs.argmax(dim=1) == targets).double().mean()
        return {"loss": float(F.cross_entropy(outputs, targets)), "accuracy": float(right)}

    def score(self, figures: dict[str, float]) -> tuple[float, ...]:
        """Accuracy first, then loss."""
        return figures["accuracy"], -figures["loss"]


class Regression(Objective):
    """Mean squared error."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error of predictions ``(B, 1)`` or ``(B, d)`` and targets of the same number of values."""
        return F.mse_loss(outputs, targets.reshape(outputs.shape).to(outputs.dtype))

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Mean squared error, and the explained share of the variance about the mean of every target."""
        error = float(self.loss(outputs, targets))
        spread = float(targets.double().reshape(outputs.shape).var(0, correction=0).mean())
        return {"loss": error, "r2": 1 - error / spread if spread > 0 else float("nan")}

    def score(self, figures: dict[str, float]) -> tuple[float, ...]:
        """The lower the error, the better."""
        return (-figures["loss"],)
