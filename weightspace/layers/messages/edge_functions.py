"""Learned scalar functions of the parameters on an edge."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["EdgeFunctions", "FunctionMatrices", "Parity"]

Parity = Literal["none", "odd", "even"]

_CALIBRATION_SAMPLES = 4096


class FunctionMatrices(NamedTuple):
    """A bank as matrices that act on columns ``[w - mean; 1]``: ``mix [w - mean; 1] + read silu(units [w - mean; 1])``.

    Args:
        units: Shape ``(hidden, K + 1)``.
        mix: Shape ``(functions, K + 1)``.
        read: Shape ``(functions, hidden)``.
    """

    units: Tensor
    mix: Tensor
    read: Tensor


class EdgeFunctions(nn.Module):
    r"""Bank of scalar functions of the ``K`` parameters between two neurons.

    .. math:: \phi_f(w) = m_f \cdot w + r_f \cdot \mathrm{silu}(A w + c) + d_f

    The hidden units :math:`A, c` are shared by all functions of the bank, so that one pass over the edges and one
    matrix product give the functions of every layer, head and direction that reads the block. Odd and even functions
    are made of pairs of units: :math:`r_f \cdot (\mathrm{silu}(A w + c) \mp \mathrm{silu}(-A w + c))`, odd ones
    without :math:`d_f`, even ones without :math:`m_f`.

    Args:
        positions: ``K``, the number of parallel edges (kernel positions) that enter jointly.
        heads: Functions per set.
        sets: Number of sets; each starts with linear heads (one if ``K == 1``, else at most half of them), unless the
            functions are even.
        hidden: Number of hidden units; odd and even functions use half of them, with both signs.
        parity: ``"none"``, ``"odd"``: :math:`\phi(-w) = -\phi(w)`, or ``"even"``: :math:`\phi(-w) = \phi(w)`.

    Shape:
        - input: ``(B, G, O, I, K)``, not yet standardised if ``mean`` and ``std`` are given;
          output: ``sets`` contiguous tensors ``(heads, B, G, O, I)``.

    Notes:
        At the start every function has mean 0 and second moment 1 under independent standard normal parameters.
    """

    def __init__(self, positions: int, heads: int, sets: int, *, hidden: int = 32, parity: Parity = "none") -> None:
        super().__init__()
        self.positions, self.heads, self.sets, self.hidden, self.parity = positions, heads, sets, hidden, parity
        units, functions = hidden if parity == "none" else max(1, hidden // 2), sets * heads
        self.slope = nn.Parameter(torch.empty(units, positions))
        self.shift = nn.Parameter(torch.empty(units))
        self.mix = nn.Parameter(torch.empty(functions, positions)) if parity != "even" else None
        self.read = nn.Parameter(torch.empty(functions, units))
        self.offset = nn.Parameter(torch.empty(functions)) if parity != "odd" else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the functions and bring each to mean 0 and second moment 1 under standard normal parameters."""
        nn.init.uniform_(self.slope, -1.0, 1.0).div_(self.positions**0.5)
        nn.init.uniform_(self.shift, -1.0, 1.0)
        linear = 1 if self.positions == 1 else min(self.positions, max(1, self.heads // 2))
        if self.mix is None:
            linear = 0
        is_linear = torch.arange(self.sets * self.heads).remainder(self.heads) < linear
        if self.mix is not None:
            directions = torch.eye(1) if self.positions == 1 else torch.randn(len(self.mix), self.positions)
            self.mix.copy_(F.normalize(directions, dim=1) * is_linear[:, None])
        self.read.normal_().mul_(~is_linear[:, None])
        if self.offset is not None:
            self.offset.zero_()
        generator = torch.Generator().manual_seed(0)
        samples = torch.randn(self.positions, _CALIBRATION_SAMPLES, generator=generator)
        std, mean = torch.std_mean(self._evaluate(samples.to(self.read), self.matrices()), dim=1)
        self.read.div_(std[:, None])
        if self.offset is not None:
            self.offset.sub_(torch.where(is_linear, 0.0, mean / std))

    def matrices(
        self,
        std: Tensor | None = None,  # shape: ()
    ) -> FunctionMatrices:
        """The bank for parameters whose mean was subtracted; the division by ``std`` is folded in."""
        slope, shift, mix, read, offset = self.slope, self.shift, self.mix, self.read, self.offset
        if self.parity != "none":
            sign = 1.0 if self.parity == "even" else -1.0
            slope, shift = torch.cat([slope, -slope]), torch.cat([shift, shift])
            read = torch.cat([read, sign * read], dim=1)
        mix = slope.new_zeros(len(read), self.positions) if mix is None else mix
        offset = slope.new_zeros(len(read)) if offset is None else offset
        if std is not None:
            slope, mix = slope / std, mix / std
        columns = [torch.cat([matrix, column[:, None]], dim=1) for matrix, column in ((slope, shift), (mix, offset))]
        return FunctionMatrices(columns[0], columns[1], read)

    @staticmethod
    def _evaluate(w: Tensor, matrices: FunctionMatrices) -> Tensor:
        """``(K, E) -> (functions, E)``; constants enter as a row of ones, which saves two passes over the edges."""
        w = torch.cat([w, torch.ones_like(w[:1])])
        units = F.silu(matrices.units @ w)
        linear = matrices.mix @ w
        return linear.addmm_(matrices.read.to(linear), units)  # autocast leaves operations in place alone

    def forward(
        self,
        values: Tensor,  # shape: (B, G, O, I, K)
        mean: Tensor | None = None,  # shape: ()
        std: Tensor | None = None,  # shape: ()
    ) -> tuple[Tensor, ...]:  # one set each, shape: (heads, B, G, O, I)
        """Values of every function on every edge."""
        shape = values.shape[:-1]
        if mean is not None:
            values = values - mean
        flat = values.reshape(-1, self.positions).T
        return self._evaluate(flat, self.matrices(std)).view(self.sets, self.heads, *shape).unbind()

    def extra_repr(self) -> str:
        """Sizes."""
        kind = "" if self.parity == "none" else f", {self.parity}"
        return f"{self.positions} -> {self.sets} x {self.heads}, hidden={self.hidden}{kind}"
