"""Readout that is the same for architectures of any depth."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from weightspace.layers.mixed.shared_plan import SharedPlan

__all__ = ["SharedReadout"]

_ENDS = ("input", "output")


class SharedReadout(nn.Module):
    """Mean and maximum over nodes per layer, then over layers: of inputs, of outputs, and of all between.

    The pooled layers between are joined by mean and by maximum, so the length does not depend on the depth; where there
    are none, zeros stand for them.

    Args:
        width: ``C``, channels per node.

    Shape:
        - states: ``(B, N, C)``; output: ``(B, out_features)``.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_features = 8 * width
        self.norm = nn.LayerNorm(self.out_features)

    def forward(self, plan: SharedPlan, states: Tensor) -> Tensor:
        """One vector per network."""
        pooled: dict[str, list[Tensor]] = {"input": [], "output": [], "between": []}
        for node in plan.nodes:
            x = states[:, node.part]
            where = node.kind if node.kind in _ENDS else "between"
            pooled[where].append(torch.cat([x.mean(1), x.amax(1)], 1))
        nothing = states.new_zeros(len(states), 2 * states.shape[2])
        mean = {name: torch.stack(rows).mean(0) if rows else nothing for name, rows in pooled.items()}
        most = torch.stack(pooled["between"]).amax(0) if pooled["between"] else nothing
        return self.norm(torch.cat([*mean.values(), most], 1))
