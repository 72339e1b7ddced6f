"""Training many networks of one architecture at a time, as one matrix ``[B, P]`` with a row per network.

:func:`fit_ensemble_vmap` does it for every module; :class:`weightspace.zoo.siren_ensemble.SirenEnsemble` has a
hand-derived, compiled step for SIRENs. Both share :class:`AdamSchedule` and :func:`adam_update`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from weightspace.errors import ShapeError, SpecError

__all__ = ["AdamSchedule", "EnsembleFit", "adam_update", "fit_ensemble_vmap", "one_thread"]

Column = float | Tensor


@dataclass(frozen=True)
class AdamSchedule:
    """Adam (Kingma & Ba 2015) with a cosine to zero; every rate may differ between members.

    Equal to ``torch.optim.Adam`` (L2 weight decay, no AMSGrad) under ``CosineAnnealingLR(T_max=steps)``.

    Args:
        steps: Number of optimizer steps, > 0.
        lr, beta1, beta2, weight_decay: A number for all members, or a tensor of shape ``(B,)``.
        eps: Added to the root of the second moment.

    Raises:
        SpecError: ``steps`` is not positive.
    """

    steps: int
    lr: Column = 1e-3
    beta1: Column = 0.9
    beta2: Column = 0.999
    weight_decay: Column = 0.0
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise SpecError(f"'steps' of AdamSchedule must be at least 1 (got {self.steps}).")

    def table(
        self,
        members: int,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:  # shape: (steps, 6, B, 1)
        """What :func:`adam_update` needs at every step, worked out in float64.

        Rows of the second axis: step size ``lr_t / (1 - beta1^t)``, ``1 / sqrt(1 - beta2^t)``, ``1 - beta1``,
        ``beta2``, ``1 - beta2`` (its own row: from beta2 in float32 it would be wrong by 1e-5) and weight decay.
        """
        beta1, beta2, lr, decay = (
            torch.as_tensor(value, dtype=torch.float64).expand(members)
            for value in (self.beta1, self.beta2, self.lr, self.weight_decay)
        )
        t = torch.arange(1, self.steps + 1, dtype=torch.float64).unsqueeze(1)
        cosine = (1 + torch.cos(math.pi * (t - 1) / self.steps)) / 2
        rows = [
            lr * cosine / (1 - beta1**t),
            (1 - beta2**t).rsqrt(),
            (1 - beta1).expand(self.steps, -1),
            beta2.expand(self.steps, -1),
            (1 - beta2).expand(self.steps, -1),
            decay.expand(self.steps, -1),
        ]
        return torch.stack(rows, 1).unsqueeze(-1).to(dtype)


@dataclass(frozen=True)
class EnsembleFit:
    """Result of a fit.

    Args:
        weights: Trained rows, of shape ``(N, P)``.
        loss: Loss of each member before its last step, of shape ``(N,)``.
    """

    weights: Tensor
    loss: Tensor


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread meanwhile.

    Small networks gain nothing from more, sums then have one order whatever the machine, and compiled code is keyed by
    the number of threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def adam_update(
    theta: Tensor,  # shape: (B, P)
    moments: tuple[Tensor, Tensor],  # both of shape: (B, P)
    grad: Tensor,  # shape: (B, P)
    columns: Tensor,  # shape: (6, B, 1), one step of AdamSchedule.table
    eps: float,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One Adam step of every member; pure."""
    step_size, root, rest1, beta2, rest2, decay = columns.unbind(0)
    grad = grad + decay * theta
    first = torch.lerp(moments[0], grad, rest1)
    second = moments[1] * beta2 + grad * grad * rest2
    return theta - step_size * first / (second.sqrt() * root + eps), (first, second)


def fit_ensemble_vmap(
    module: nn.Module,
    weights: Tensor,  # shape: (N, P), parameters in the order of named_parameters()
    inputs: Tensor,  # shape: (Q, *), shared by all members
    targets: Tensor,  # shape: (N, *output of the module)
    schedule: AdamSchedule,
    *,
    members: int = 16,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.mse_loss,
) -> EnsembleFit:
    """Fit ``N`` networks, full batch, by ``vmap(grad(functional_call))``: works for every differentiable module.

    Args:
        module: Gives the architecture; its own values are not used.
        weights: Initial parameters, a flat row per network.
        inputs: Given to every network.
        targets: Second argument of ``loss``, one per network.
        schedule: Steps and rates.
        members: Networks trained at a time; 8 to 16 keep the activations of small networks in the cache of a core.
        loss: From output and target of one network to a scalar.

    Raises:
        ShapeError: ``weights`` does not have one column per scalar parameter.
    """
    shapes = {name: p.shape for name, p in module.named_parameters()}
    numel = sum(shape.numel() for shape in shapes.values())
    if weights.ndim != 2 or weights.shape[1] != numel:
        raise ShapeError(
            f"'weights' must have shape (N, {numel}) for {type(module).__name__} (got {tuple(weights.shape)}). "
            "Give a flat row per network, in the order of named_parameters()."
        )

    def member_loss(theta: Tensor, target: Tensor) -> Tensor:
        return loss(functional_call(module, _unflatten(theta, shapes), (inputs,)), target)

    gradient = vmap(grad_and_value(member_loss), randomness="error")
    table = schedule.table(len(weights), weights.dtype)
    fits = []
    for rows in torch.arange(len(weights)).split(members):
        theta = weights[rows]
        moments = torch.zeros_like(theta), torch.zeros_like(theta)
        value = theta.new_zeros(len(theta))
        for step in range(schedule.steps):
            grad, value = gradient(theta, targets[rows])
            theta, moments = adam_update(theta, moments, grad, table[step][:, rows], schedule.eps)
        fits.append((theta.detach(), value.detach()))
    return EnsembleFit(torch.cat([theta for theta, _ in fits]), torch.cat([value for _, value in fits]))


def _unflatten(theta: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    parts = theta.split([shape.numel() for shape in shapes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
