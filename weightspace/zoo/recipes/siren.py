"""SIREN: a multilayer perceptron with sines (Sitzmann et al. 2020), its two initialisation conventions, its inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.errors import SpecError
from weightspace.zoo.architecture import Architecture, register_architecture

__all__ = ["INIT_CONVENTIONS", "Siren", "init_bounds", "pixel_coordinates", "siren_architecture"]

INIT_CONVENTIONS = ("dws", "siren")


class Siren(nn.Module):
    r"""``y = W_L h + b_L + offset`` with hidden layers ``h = sin(omega (W h + b))``.

    Args:
        widths: Sizes of input, hidden layers and output.
        omega: Factor before every sine, radians per unit.
        output_offset: Added to the output, so that pixels in [0, 1] are centred.
        init: ``"siren"`` or ``"dws"``, see :func:`init_bounds`.

    Shape:
        - input: ``(*, widths[0])``; output: ``(*, widths[-1])``.

    Raises:
        SpecError: fewer than two widths, or an unknown convention.

    Example:
        >>> Siren((2, 8, 1))(torch.zeros(5, 2)).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        widths: Sequence[int] = (2, 32, 32, 1),
        omega: float = 30.0,
        output_offset: float = 0.5,
        init: str = "siren",
    ) -> None:
        super().__init__()
        if len(widths) < 2 or min(widths) < 1:
            raise SpecError(f"'widths' of Siren must be at least two positive sizes (got {tuple(widths)}).")
        self.widths, self.omega, self.output_offset, self.init = tuple(widths), omega, output_offset, init
        self.layers = nn.ModuleList(nn.Linear(d_in, d_out) for d_in, d_out in zip(widths[:-1], widths[1:], strict=True))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw all parameters anew, by the convention."""
        bounds = init_bounds(self.widths, self.omega, self.init)
        with torch.no_grad():
            for parameter, bound in zip(self.parameters(), bounds, strict=True):
                parameter.uniform_(-bound, bound, generator=generator)

    def forward(
        self,
        x: Tensor,  # shape: (*, widths[0])
    ) -> Tensor:  # shape: (*, widths[-1])
        """Evaluate at coordinates."""
        for layer in self.layers[:-1]:
            x = torch.sin(self.omega * layer(x))
        return self.layers[-1](x) + self.output_offset

    def extra_repr(self) -> str:
        """Sizes and factors."""
        return f"{'-'.join(map(str, self.widths))}, omega={self.omega}, output_offset={self.output_offset}"


def init_bounds(widths: Sequence[int], omega: float, init: str) -> list[float]:
    """Half widths of the uniform distributions of every weight and bias, in the order of ``named_parameters()``.

    * ``"siren"``: first weights 1 / fan_in, later ones sqrt(6 / fan_in) / omega (Sitzmann et al. 2020, section 3.2);
      biases 1 / sqrt(fan_in), torch's default as in their code. First-layer phases then spread over many periods.
    * ``"dws"``: sqrt(6 / fan_in) / omega for all weights, no first-layer rule; biases zero. The picture then is in the
      weights themselves rather than in small changes of large random features, and metanetworks read it far better.

    Raises:
        SpecError: unknown convention.
    """
    if init not in INIT_CONVENTIONS:
        raise SpecError(f"'init' must be one of {INIT_CONVENTIONS} (got '{init}').")
    bounds = []
    for layer, fan_in in enumerate(widths[:-1]):
        first = init == "siren" and layer == 0
        bounds.append(1 / fan_in if first else math.sqrt(6 / fan_in) / omega)
        bounds.append(1 / math.sqrt(fan_in) if init == "siren" else 0.0)
    return bounds


def pixel_coordinates(grid: int) -> Tensor:  # shape: (grid * grid, 2)
    """Pixel centres of a square raster in [-1, 1]: columns x (to the right) and y (down), rows in reading order.

    Example:
        >>> pixel_coordinates(2).tolist()
        [[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]]
    """
    centres = (torch.arange(grid, dtype=torch.float32) + 0.5) * (2 / grid) - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], 1)


def siren_architecture(widths: Sequence[int], omega: float, output_offset: float) -> Architecture:
    """The record of a SIREN in a zoo; its ``build()`` gives a :class:`Siren`."""
    config: dict[str, Any] = {"widths": list(widths), "omega": omega, "output_offset": output_offset}
    with torch.device("meta"):
        return Architecture.of_module("siren", config, Siren(**config))


register_architecture("siren", Siren)
