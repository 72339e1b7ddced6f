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
        width = states.shape[1]
        layers = states.new_zeros(len(plan.layer_sizes), width)
        mean = layers.index_add(0, plan.layer, states) / plan.layer_sizes
        most = layers.scatter_reduce(0, plan.layer[:, None].expand_as(states), states, "amax", include_self=False)
        pooled = torch.cat([mean, most], 1)
        means = states.new_zeros(3 * plan.networks, 2 * width).index_add(0, plan.pool, pooled / plan.pool_sizes)
        between = pooled[plan.between]
        network = (plan.pool[plan.between] // 3)[:, None].expand_as(between)
        top = states.new_zeros(plan.networks, 2 * width)
        top = top.scatter_reduce(0, network, between, "amax", include_self=False)
        return self.norm(torch.cat([means.view(plan.networks, -1), top], 1))
