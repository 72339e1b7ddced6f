r"""Functions of features that are multiplied by a factor with their neuron (Kalogeropoulos et al. 2024, ScaleGMN).

Every vector that belongs to neuron i is multiplied by one unknown factor q_i, which is positive ("scale"), 1 or -1
("sign"), or known to be 1 ("permutation"); vectors of an edge from j to i by q_i / q_j. Layers here are invariant or
equivariant under those factors, exactly: nothing is added to a norm, and a vector of zeros stays one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.layers.scaling_kinds import Kind

__all__ = ["RescaleEq", "ScaleEq", "ScaleInv", "inverse_length", "reciprocal"]


def reciprocal(length: Tensor) -> Tensor:
    """1 / length, and 0 where the length is 0 or too small to have a reciprocal."""
    alive = length >= torch.finfo(length.dtype).tiny
    length = torch.where(alive, length, 1.0)
    size = length.detach()
    # The derivative 1 / length^2 overflows where 1 / length is a number; so it is taken of a ratio that is 1.
    return torch.where(alive, 1 / size, 0.0) / (length / size)


def inverse_length(
    x: Tensor,  # shape: (..., C)
) -> Tensor:  # shape: (..., 1)
    """1 over the root mean square; 1 for a vector of zeros, which no factor changes."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(max=torch.finfo(x.dtype).max)
    return x.shape[-1] ** 0.5 * reciprocal(torch.where(length > 0, length, 1.0))


def _units(kind: Kind, projected: Tensor, x: Tensor, shift: Tensor) -> Tensor:
    """Hidden units that no factor of ``x`` changes, from its linear image; bounded, so that products do not blow up."""
    if kind == "scale":
        return F.silu(torch.addcmul(shift, projected, inverse_length(x)))
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    bound = torch.rsqrt(1 + length.square() / x.shape[-1])
    return F.silu(torch.addcmul(shift, projected.abs() if kind == "sign" else projected, bound))


def _init(weight: Tensor) -> None:
    nn.init.normal_(weight, std=weight.shape[1] ** -0.5)


class ScaleInv(nn.Module):
    r"""Invariant function of one vector with an unknown factor.

    .. math:: W_2\, \mathrm{silu}(W_1 x / \lVert x \rVert + c) + b
        \quad\text{or}\quad W_2\, \mathrm{silu}(\lvert W_1 x \rvert / \sqrt{1 + \lVert x \rVert^2} + c) + b

    for positive factors (lengths as root mean squares) and for signs; the same without absolute values for factors
    known to be 1. ScaleGMN (Kalogeropoulos et al. 2024), section 5. The sign variant has even hidden units where the
    paper sums a network over both signs (which is a sum of even functions of projections too), in one pass. Lengths
    under the root bound what the layer norm of the paper's MLPs bounds: without, states square in every round.

    Args:
        kind: Of the factor.
        in_features, out_features, hidden: Sizes.

    Shape:
        - input: ``(..., in_features)``; output: ``(..., out_features)``.
    """

    def __init__(self, kind: Kind, in_features: int, out_features: int, hidden: int) -> None:
        super().__init__()
        self.kind: Kind = kind
        self.first = nn.Parameter(torch.empty(hidden, in_features))
        self.shift = nn.Parameter(torch.zeros(hidden))
        self.second = nn.Linear(hidden, out_features)
        _init(self.first)

    def forward(self, x: Tensor) -> Tensor:
        """Values that do not change with the factor."""
        return self.second(_units(self.kind, F.linear(x, self.first), x, self.shift))

    def extra_repr(self) -> str:
        """Kind and sizes."""
        return f"{self.kind}, {self.first.shape[1]} -> {self.second.out_features}"


class ScaleEq(nn.Module):
    r"""Equivariant function of one vector with an unknown factor: :math:`\Gamma x \odot \mathrm{ScaleInv}(x)`.

    ScaleGMN (Kalogeropoulos et al. 2024), section 5; :math:`\Gamma` has no bias. Both first linear maps are one matrix
    product. For factors known to be 1 an MLP takes its place, as the paper does on input and output neurons. The
    invariant gate starts near 1.

    Args:
        kind: Of the factor.
        in_features, out_features: Sizes; ``out_features`` hidden units.

    Shape:
        - input: ``(..., in_features)``; output: ``(..., out_features)``.
    """

    def __init__(self, kind: Kind, in_features: int, out_features: int) -> None:
        super().__init__()
        self.kind: Kind = kind
        self.gated = kind != "permutation"
        self.first = nn.Parameter(torch.empty((1 + self.gated) * out_features, in_features))
        self.shift = nn.Parameter(torch.zeros(out_features))
        self.second = nn.Linear(out_features, out_features)
        _init(self.first)
        if self.gated:
            nn.init.ones_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Values that are multiplied by the factor of ``x``."""
        projected = F.linear(x, self.first)
        if not self.gated:
            return self.second(_units(self.kind, projected, x, self.shift))
        linear, inner = projected.chunk(2, dim=-1)
        return linear * self.second(_units(self.kind, inner, x, self.shift))

    def extra_repr(self) -> str:
        """Kind and sizes."""
        return f"{self.kind}, {self.first.shape[1]} -> {self.second.out_features}"


class RescaleEq(nn.Module):
    r"""Product :math:`\Gamma_x x_j \odot \Gamma_e e_{ij}` of a neuron and an edge: factors multiply to :math:`q_i`.

    ScaleGMN (Kalogeropoulos et al. 2024), section 5. The neuron is mapped once, not once per edge.

    Args:
        width: Channels of both.
        carry: Further linear images of the edge to return, from the same pass over the edges.

    Shape:
        - neurons: broadcastable to ``(..., C)``; edges ``(..., C)``; output: product ``(..., C)`` and, with ``carry``,
          the further image ``(..., C)``.
    """

    def __init__(self, width: int, *, carry: bool) -> None:
        super().__init__()
        self.node = nn.Linear(width, width, bias=False)
        self.edge = nn.Parameter(torch.empty((1 + carry) * width, width))
        self.carry = carry
        _init(self.node.weight)
        _init(self.edge)

    def forward(self, mapped: Tensor, edges: Tensor) -> tuple[Tensor, Tensor | None]:
        """The product with neurons already mapped by ``self.node``."""
        images = F.linear(edges, self.edge)
        if not self.carry:
            return images * mapped, None
        image, carried = images.chunk(2, dim=-1)
        return image * mapped, carried
