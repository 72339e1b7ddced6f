"""Parameters that belong to types: one default for all, and a difference from it for every type."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.layers.mixed.shared_plan import COORDINATE_FEATURES

__all__ = ["Bank", "SharedFunctions", "TypedLinear"]

_CALIBRATION_SAMPLES = 4096


class Bank(nn.Module):
    """A tensor for every type: a default, plus a difference that starts at zero and is learned type by type.

    Type 0 is the default alone. It takes part in every type, so it is trained by all, and it is what networks with
    types outside the vocabulary are read with.

    Args:
        types: Number of types besides 0.
        default: First value of the default.
    """

    def __init__(self, types: int, default: Tensor) -> None:
        super().__init__()
        self.default = nn.Parameter(default)
        self.difference = nn.Parameter(torch.zeros(types, *default.shape))

    def forward(self) -> Sequence[Tensor]:
        """The tensor of every type, 0 first."""
        return [self.default, *(self.default + self.difference).unbind()]


class TypedLinear(nn.Module):
    """A linear map for every type.

    Args:
        types: Number of types besides 0.
        in_features, out_features: Sizes.
        std: Deviation of the first entries; ``in_features ** -0.5`` by default.
    """

    def __init__(self, types: int, in_features: int, out_features: int, std: float | None = None) -> None:
        super().__init__()
        self.weight = Bank(types, torch.randn(out_features, in_features) * (std or in_features**-0.5))
        self.bias = Bank(types, torch.zeros(out_features))

    def forward(self) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of every type, for ``torch.nn.functional.linear``."""
        return list(zip(self.weight(), self.bias(), strict=True))


class SharedFunctions(nn.Module):
    r"""Scalar functions of parameters, a bank of them for every type, that also see where a parallel edge stands.

    .. math:: \phi_f(w) = K^{-1/2} \sum_p (m_f + M_f q_p)\, w_p + r_f \cdot \mathrm{silu}(a w_p + c + C q_p) + d_f

    with coordinates :math:`q_p` of the ``K`` parallel edges, none where ``K = 1``: one set of parameters for linear
    maps and kernels of every size. Started at mean 0 and second moment 1 under standard normal parameters.

    Args:
        types: Number of types besides 0.
        functions: Number of functions.
        hidden: Hidden units, shared by all functions of a type.
        linear: Of every ``linear`` functions the first starts as a multiple of the parameter.
    """

    def __init__(self, types: int, functions: int, hidden: int, linear: int) -> None:
        super().__init__()
        slope, shift = torch.empty(2, hidden).uniform_(-1, 1).mul(2)
        is_linear = torch.arange(functions).remainder(linear) == 0
        read = torch.randn(functions, hidden) * ~is_linear[:, None]
        samples = torch.randn(_CALIBRATION_SAMPLES, generator=torch.Generator().manual_seed(0))
        std, mean = torch.std_mean(read @ F.silu(slope[:, None] * samples + shift[:, None]), dim=1)
        scale = torch.where(is_linear, 1.0, std)
        self.slope, self.shift = Bank(types, slope), Bank(types, shift)
        self.shift_by_place = Bank(types, torch.randn(hidden, COORDINATE_FEATURES) * COORDINATE_FEATURES**-0.5)
        self.mix = Bank(types, is_linear.float())
        self.mix_by_place = Bank(
            types, torch.randn(functions, COORDINATE_FEATURES) * COORDINATE_FEATURES**-0.5 * is_linear[:, None]
        )
        self.read = Bank(types, read / scale[:, None])
        self.offset = Bank(types, -mean / scale * ~is_linear)

    def forward(self) -> list[tuple[Tensor, ...]]:
        """Parameters of every type, for :meth:`apply_to`."""
        banks = (self.slope, self.shift, self.shift_by_place, self.mix, self.mix_by_place, self.read, self.offset)
        return list(zip(*(bank() for bank in banks), strict=True))

    @staticmethod
    def apply_to(
        parameters: tuple[Tensor, ...],
        values: Tensor,  # shape: (*, K)
        places: Tensor | None,  # shape: (K, COORDINATE_FEATURES)
        *,
        joined: bool = True,
    ) -> Tensor:  # shape: (functions, *), or (functions, *, K) if not joined
        """Values of all functions on every edge; parallel edges are summed if ``joined``."""
        slope, shift, shift_by_place, mix, mix_by_place, read, offset = parameters
        count = values.shape[-1]
        w = values.reshape(-1, count)
        if places is None:
            units = F.silu(torch.outer(slope, w[:, 0]).add_(shift[:, None]))
            functions = torch.addmm(torch.outer(mix, w[:, 0]).add_(offset[:, None]), read, units)
            return functions.view(-1, *(values.shape[:-1] if joined else values.shape))
        shifts = shift[:, None] + shift_by_place @ places.T
        mixes = mix[:, None] + mix_by_place @ places.T
        units = F.silu((slope[:, None, None] * w).add_(shifts[:, None, :]))
        if joined:
            summed = torch.addmm(mixes @ w.T, read, units.sum(-1))
            return (summed * count**-0.5 + (offset * count**0.5)[:, None]).view(-1, *values.shape[:-1])
        apart = torch.addmm((mixes[:, None, :] * w).flatten(1).add_(offset[:, None]), read, units.flatten(1))
        return apart.view(-1, *values.shape)
