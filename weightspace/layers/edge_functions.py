"""Learned scalar functions of the parameters on an edge."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["EdgeFunctions"]

_CALIBRATION_SAMPLES = 4096


class EdgeFunctions(nn.Module):
    r"""Bank of scalar functions of the ``K`` parameters between two neurons.

    .. math:: \phi_f(w) = m_f \cdot w + r_f \cdot \mathrm{silu}(A w + c) + d_f

    The hidden units :math:`A, c` are shared by all functions of the bank, so that one pass over the edges and one
    matrix product give the functions of every layer, head and direction that reads the block.

    Args:
        positions: ``K``, the number of parallel edges (kernel positions) that enter jointly.
        heads: Functions per set.
        sets: Number of sets; each starts with linear heads (one if ``K == 1``, else at most half of them).
        hidden: Number of hidden units.

    Shape:
        - input: ``(B, G, O, I, K)``; output: ``sets`` contiguous tensors ``(heads, B, G, O, I)``.

    Notes:
        At the start every function has mean 0 and second moment 1 under independent standard normal parameters.
    """

    def __init__(self, positions: int, heads: int, sets: int, *, hidden: int = 32) -> None:
        super().__init__()
        self.positions, self.heads, self.sets, self.hidden = positions, heads, sets, hidden
        self.slope = nn.Parameter(torch.empty(hidden, positions))
        self.shift = nn.Parameter(torch.empty(hidden))
        self.mix = nn.Parameter(torch.empty(sets * heads, positions))
        self.read = nn.Parameter(torch.empty(sets * heads, hidden))
        self.offset = nn.Parameter(torch.empty(sets * heads))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the functions and bring each to mean 0 and second moment 1 under standard normal parameters."""
        nn.init.uniform_(self.slope, -1.0, 1.0).div_(self.positions**0.5)
        nn.init.uniform_(self.shift, -1.0, 1.0)
        linear = 1 if self.positions == 1 else min(self.positions, max(1, self.heads // 2))
        is_linear = torch.arange(self.sets * self.heads).remainder(self.heads) < linear
        directions = torch.eye(1) if self.positions == 1 else torch.randn(len(self.mix), self.positions)
        self.mix.copy_(F.normalize(directions, dim=1) * is_linear[:, None])
        self.read.normal_().mul_(~is_linear[:, None])
        self.offset.zero_()
        generator = torch.Generator().manual_seed(0)
        samples = torch.randn(self.positions, _CALIBRATION_SAMPLES, generator=generator)
        std, mean = torch.std_mean(self._evaluate(samples.to(self.mix)), dim=1)
        self.read.div_(std[:, None])
        self.offset.sub_(torch.where(is_linear, 0.0, mean / std))

    def _evaluate(self, w: Tensor) -> Tensor:
        """``(K, E) -> (functions, E)``; constants enter as a row of ones, which saves two passes over the edges."""
        w = torch.cat([w, torch.ones_like(w[:1])])
        units = F.silu(torch.cat([self.slope, self.shift[:, None]], dim=1) @ w)
        return (torch.cat([self.mix, self.offset[:, None]], dim=1) @ w).addmm_(self.read, units)

    def forward(
        self,
        values: Tensor,  # shape: (B, G, O, I, K)
    ) -> tuple[Tensor, ...]:  # one set each, shape: (heads, B, G, O, I)
        """Values of every function on every edge."""
        flat = values.reshape(-1, self.positions).T
        return self._evaluate(flat).view(self.sets, self.heads, *values.shape[:-1]).unbind()

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{self.positions} -> {self.sets} x {self.heads}, hidden={self.hidden}"
