"""Readout that is the same for architectures of any depth."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from weightspace.layers.mixed.batch_plan import BatchPlan

__all__ = ["SharedReadout"]


class SharedReadout(nn.Module):
    """Mean and maximum over nodes per layer, then over layers: of inputs, of outputs, and of all between.

    The pooled layers between are joined by mean and by maximum, so the length does not depend on the depth; where there
    are none, zeros stand for them.

    Args:
        width: ``C``, channels per node.

    Shape:
        - states: ``(N, C)``; output: ``(networks, out_features)``.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_features = 8 * width
        self.norm = nn.LayerNorm(self.out_features)

    def forward(self, plan: BatchPlan, states: Tensor) -> Tensor:
        """One vector per network."""
        count = len(plan.layer_sizes)
        mean = plan.sum_rows(states, plan.layer, count) / plan.layer_sizes
        pooled = torch.cat([mean, _largest(states.to(mean.dtype), plan.layer, count)], 1)
        means = plan.sum_rows(pooled / plan.pool_sizes, plan.pool, 3 * plan.networks)
        top = _largest(pooled[plan.between], plan.pool[plan.between] // 3, plan.networks)
        return self.norm(torch.cat([means.view(plan.networks, -1), top], 1))


def _largest(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Largest values of each row, zeros where there are none."""
    index = rows[:, None].expand_as(values)
    return values.new_zeros(count, values.shape[1]).scatter_reduce(0, index, values, "amax", include_self=False)
