"""Between two networks: interpolation, merging, loss barriers and their picture."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from weightspace.errors import ShapeError, SpecError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Barrier", "draw_barriers", "interpolate", "loss_barrier", "merge", "reset_batch_norm"]

Weights = Mapping[str, Tensor]


def interpolate(a: Weights, b: Weights, t: float | Tensor) -> dict[str, Tensor]:
    """Weights on the straight line from ``a`` (at 0) to ``b`` (at 1).

    Args:
        a: State dict of the first network; integer tensors (counters) are taken from it.
        b: State dict of the second network.
        t: Position, or several of shape ``(T,)``, which become a leading axis.

    Raises:
        ShapeError: the networks have other tensors or shapes.
    """
    _check_alike([a, b])
    place = torch.as_tensor(t)

    def between(x: Tensor, y: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x.broadcast_to((*place.shape, *x.shape))
        at = place.to(x).reshape(*place.shape, *[1] * x.ndim)
        return (1 - at) * x + at * y

    return {name: between(a[name], b[name]) for name in a}


def merge(networks: Sequence[Weights], coefficients: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Weighted mean of several networks (matched to each other before, as a rule).

    Args:
        networks: State dicts; integer tensors are taken from the first one.
        coefficients: Weight of each network, the same for all by default; they are divided by their sum.

    Raises:
        SpecError: no networks, or other coefficients than networks.
        ShapeError: the networks have other tensors or shapes.
    """
    share = [1.0] * len(networks) if coefficients is None else list(coefficients)
    if not networks or len(share) != len(networks) or sum(share) == 0:
        raise SpecError(f"merge takes one coefficient for each network (got {len(share)} for {len(networks)}), with a "
                        f"sum other than 0 (got {sum(share)}).")  # fmt: skip
    _check_alike(networks)
    return {
        name: sum(c / sum(share) * w[name] for c, w in zip(share, networks, strict=True))
        if first.is_floating_point() else first
        for name, first in networks[0].items()
    }  # fmt: skip # pyright: ignore[reportReturnType]


def _check_alike(networks: Sequence[Weights]) -> None:
    shapes = {name: tuple(t.shape) for name, t in networks[0].items()}
    for k, other in enumerate(networks[1:], 1):
        found = {name: tuple(t.shape) for name, t in other.items()}
        if found != shapes:
            wrong = sorted(n for n in {*shapes, *found} if shapes.get(n) != found.get(n))
            raise ShapeError(
                f"Network {k} differs from the first one in {wrong}. Only networks of one architecture can be mixed."
            )


@dataclass(frozen=True)
class Barrier:
    """Losses along the line between two networks.

    Args:
        t: Positions, of shape ``(T,)``, from 0 to 1.
        losses: Loss at each position, of shape ``(T,)``.
    """

    t: Tensor
    losses: Tensor

    @property
    def excess(self) -> Tensor:
        """Loss above the straight line between the losses of the ends, of shape ``(T,)``."""
        return self.losses - torch.lerp(self.losses[0], self.losses[-1], self.t)

    @property
    def height(self) -> float:
        """The loss barrier, largest excess; 0 for networks that are linearly connected (Frankle et al. 2020)."""
        return float(self.excess.max())

    @property
    def area(self) -> float:
        """Mean excess over the line."""
        return float(torch.trapezoid(self.excess, self.t))

    def __repr__(self) -> str:
        return (
            f"Barrier(height {self.height:.4g}, area {self.area:.4g}, losses of the ends {float(self.losses[0]):.4g} "
            f"and {float(self.losses[-1]):.4g}, {len(self.t)} points)"
        )


def loss_barrier(
    evaluate_loss: Callable[[dict[str, Tensor]], float | Tensor],
    a: Weights,
    b: Weights,
    *,
    points: int = 25,
    prepare: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
) -> Barrier:
    """Losses along the straight line between two networks, the ends included.

    Args:
        evaluate_loss: Loss of a state dict.
        a: State dict of the first network.
        b: State dict of the second network, matched to the first or not.
        points: Number of positions, at least 3; 25 in Git Re-Basin.
        prepare: Applied to every state dict between the ends first, such as :func:`reset_batch_norm`.

    Raises:
        SpecError: fewer than 3 points.
    """
    if points < 3:
        raise SpecError(f"A barrier needs at least 3 points (got {points}): two ends and something between.")
    places = torch.linspace(0, 1, points, dtype=torch.float64)
    losses = []
    for k, t in enumerate(places):
        weights = interpolate(a, b, t)
        if prepare is not None and 0 < k < points - 1:
            weights = prepare(weights)
        losses.append(float(evaluate_loss(weights)))
    return Barrier(places, torch.tensor(losses, dtype=torch.float64))


def reset_batch_norm(module: nn.Module, batches: Iterable[Tensor]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """A function that replaces the batch-norm statistics of weights by those they produce on some data.

    Averaged weights have activations of smaller variance than either end, which statistics averaged with them do not
    know (Jordan et al., ICLR 2023, REPAIR; resetting the statistics is its form for networks with batch norm).

    Args:
        module: A module of the architecture; a copy is used.
        batches: Inputs, kept in a list.
    """
    double, data = copy.deepcopy(module), list(batches)

    def reset(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        double.load_state_dict(weights)
        torch.optim.swa_utils.update_bn(data, double)
        return {name: t.detach().clone() for name, t in double.state_dict().items()}

    return reset


def draw_barriers(barriers: Mapping[str, Barrier], *, title: str | None = None, ylabel: str = "loss") -> Figure:
    """Plot losses along lines between networks (linear mode connectivity); needs matplotlib (the extra ``cli``).

    Args:
        barriers: What to draw, by label.
        title: Heading of the figure.
        ylabel: What the loss is and where it was measured.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    # Okabe-Ito colours: told apart under the common colour-vision deficiencies.
    colours = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
    for k, (label, barrier) in enumerate(barriers.items()):
        axes.plot(
            barrier.t,
            barrier.losses,
            marker=".",
            color=colours[k % len(colours)],
            label=f"{label} (barrier {barrier.height:.3g})",
        )
    axes.set_xlabel("position between the networks")
    axes.set_ylabel(ylabel)
    axes.set_title(title or "Linear mode connectivity")
    figure.legend(loc="outside lower center", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
