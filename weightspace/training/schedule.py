"""Learning rate and running average over the course of a run."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["ParameterAverage", "learning_rate_factor"]

_LONGEST_WARMUP = 0.1
"""Share of the budget."""


def learning_rate_factor(step: int, progress: float, warmup_steps: int) -> float:
    """Linear warm-up times cosine to zero, as a factor on the peak learning rate.

    Args:
        step: Steps taken so far.
        progress: Share of the budget (epochs, wall or processor time) that is used, in [0, 1].
        warmup_steps: Length of the warm-up; it ends with a tenth of the budget where that comes first, so that a run of
            few steps is not all warm-up.
    """
    warmup = min(1.0, max((step + 1) / (warmup_steps + 1), progress / _LONGEST_WARMUP))
    return warmup * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


class ParameterAverage:
    """Exponential running average of the parameters of a module.

    The decay of step t is ``min(decay, (1 + t) / (10 + t))``, so that the first values do not weigh on the average.

    Args:
        module: Its parameters are averaged; they are not touched.
        decay: In [0, 1); 0 follows the parameters.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values: dict[str, Tensor] = {n: p.detach().clone() for n, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take in the parameters after step number ``step`` (counted from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in module.named_parameters():
            self.values[name].lerp_(parameter, 1 - decay)
