r"""The fast trainer of SIRENs: forward, hand-derived backward and Adam in one compiled graph.

For hidden layers :math:`h_k = \sin(\omega (W_k h_{k-1} + b_k))` and a linear output :math:`y`, with loss
:math:`\mathrm{mean}((y + o - t)^2)`:

.. math:: \delta_L = 2 (y + o - t) / n, \quad \partial W_k = \delta_k h_{k-1}^T, \quad
          \delta_{k-1} = W_k^T \delta_k \cdot \omega \cos(\omega z_{k-1})

Activations are feature-first ``(B, width, Q)``, so that every product is one batched matrix product; the coordinates
get no gradient; sine and cosine share their range reduction. The plain twin is
:func:`weightspace.zoo.ensemble.fit_ensemble_vmap`.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from weightspace.errors import PerformanceWarning, ShapeError, SpecError
from weightspace.zoo.ensemble import AdamSchedule, EnsembleFit, adam_update

__all__ = ["SirenEnsemble", "siren_loss_and_gradient"]

_log = logging.getLogger(__name__)

# sin(r/2) / r and cos(r/2) as polynomials in r^2 on |r| <= pi: least squares on 400 Chebyshev nodes, in float64.
# Errors 9e-12 and 8e-13, below float32 rounding.
_SINE = (
    0.49999999999145983,
    -0.020833333270992325,
    0.0002604165929010622,
    -1.5500672615345605e-06,
    5.376026479424573e-09,
    -1.166451668764131e-11,
)
_COSINE = (
    0.9999999999992474,
    -0.12499999999252417,
    0.0026041666545401996,
    -2.1701381509569058e-05,
    9.687906047416171e-08,
    -2.687954237601782e-10,
    4.860158522397402e-13,
)
_TURN = 6.28125  # 2 pi in two parts; the first has 8 bits, so that whole multiples of it up to 2^16 are exact
_TURN_REST = 2 * math.pi - _TURN

# Contraction to fused multiply-adds is what the polynomials live on. Probing every vector instruction set with its own
# compilation doubles the time of the first compile; if a compiler lacks the set of the processor, we run uncompiled.
_INDUCTOR = {"cpp.enable_floating_point_contract_flag": "fast", "cpp.vec_isa_ok": True, "size_asserts": False}

_MOST_SHAPES = 256


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    value = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + coefficient
    return value


def _sine_cosine(angle: Tensor) -> tuple[Tensor, Tensor]:
    """Sine and cosine of radians: one fused loop if compiled in float32, torch's own otherwise."""
    if torch.compiler.is_compiling() and angle.dtype == torch.float32:
        return _fused_sine_cosine(angle)
    return torch.sin(angle), torch.cos(angle)


def _fused_sine_cosine(angle: Tensor) -> tuple[Tensor, Tensor]:
    """By one range reduction and half angles; absolute error below 1e-6 up to hundreds of radians."""
    turns = torch.round(angle * (1 / (2 * math.pi)))
    rest = (angle - turns * _TURN) - turns * _TURN_REST  # Cody-Waite
    square = rest * rest
    half_sine = _polynomial(_SINE, square) * rest
    half_cosine = _polynomial(_COSINE, square)
    return 2 * half_sine * half_cosine, 1 - 2 * half_sine * half_sine


def siren_loss_and_gradient(
    theta: Tensor,  # shape: (B, P): layers.0.weight, layers.0.bias, layers.1.weight, ... row-major
    coordinates: Tensor,  # shape: (widths[0], Q)
    targets: Tensor,  # shape: (B, widths[-1], Q)
    widths: Sequence[int],
    omega: float,
    output_offset: float,
) -> tuple[Tensor, Tensor]:  # shapes: (B,), (B, P)
    """Mean squared error of every member and its gradient, by the formulas at the head of this module."""
    sizes = [n for d_in, d_out in zip(widths[:-1], widths[1:], strict=True) for n in (d_out * d_in, d_out)]
    parts = theta.split(sizes, 1)
    weights = [parts[2 * k].view(-1, widths[k + 1], widths[k]) for k in range(len(widths) - 1)]
    biases = [part.unsqueeze(2) for part in parts[1::2]]

    activations, slopes = [], []
    hidden = coordinates
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        if activations:
            linear = torch.bmm(weight, hidden) + bias
        else:  # two or three coordinates: a sum of products that fuses with the sine
            linear = sum(weight[:, :, j : j + 1] * coordinates[j] for j in range(widths[0])) + bias
        hidden, cosine = _sine_cosine(omega * linear)
        activations.append(hidden)
        slopes.append(omega * cosine)
    residual = torch.bmm(weights[-1], hidden) + biases[-1] + output_offset - targets

    delta = residual * (2 / targets[0].numel())
    gradients: list[Tensor] = []
    for k in range(len(weights) - 1, 0, -1):
        gradients = [torch.bmm(delta, activations[k - 1].transpose(1, 2)).flatten(1), delta.sum(2), *gradients]
        back = weights[k].transpose(1, 2)
        delta = (back * delta if widths[k + 1] == 1 else torch.bmm(back, delta)) * slopes[k - 1]
    # As plain sums, which fuse with the line above: the last delta never goes to memory.
    first = torch.stack([(delta * coordinates[j]).sum(2) for j in range(widths[0])], 2).flatten(1)
    return residual.square().mean((1, 2)), torch.cat([first, delta.sum(2), *gradients], 1)


class SirenEnsemble:
    """Fits SIRENs of one shape to images, ``members`` at a time, full batch, with Adam.

    Args:
        widths: Sizes of input, hidden layers and output; at least one hidden layer.
        coordinates: Inputs shared by all members, of shape ``(Q, widths[0])``.
        omega: Factor before every sine, radians per unit.
        output_offset: Added to the output.
        members: Networks per batch (fixed; the last batch is padded). 8 to 16 stay in the cache of one core.
        steps_per_call: Optimizer steps in one compiled graph. Four run 25 to 45 % faster than one on 8x8 pixels, 10 to
            20 % on 28x28, and take three times as long to compile.
        compiled: Run the step uncompiled if false; same numbers to rounding, slower.

    Raises:
        SpecError: a size is not positive, or there is no hidden layer.
        ShapeError: ``coordinates`` do not fit ``widths``.

    Notes:
        The result of a network depends on neither its place in a batch nor its companions, bit for bit. The first
        compilation takes 10 to 20 s and is kept on disk by torch; other processes then load it in 2 to 3 s.
    """

    def __init__(
        self,
        widths: Sequence[int],
        coordinates: Tensor,  # shape: (Q, widths[0])
        *,
        omega: float = 30.0,
        output_offset: float = 0.5,
        members: int = 16,
        steps_per_call: int = 1,
        compiled: bool = True,
    ) -> None:
        if len(widths) < 3 or min(widths) < 1 or members < 1 or steps_per_call < 1:
            raise SpecError(
                "SirenEnsemble needs an input, a hidden and an output width, and at least one member and step per call "
                f"(got widths={tuple(widths)}, members={members}, steps_per_call={steps_per_call})."
            )
        if coordinates.ndim != 2 or coordinates.shape[1] != widths[0]:
            raise ShapeError(
                f"'coordinates' must have shape (Q, {widths[0]}) (got {tuple(coordinates.shape)}). "
                "Give one row per point, as many columns as widths[0]."
            )
        self.widths, self.members, self.steps_per_call = tuple(widths), members, steps_per_call
        self._coordinates = coordinates.t().contiguous()
        self._omega, self._offset = omega, output_offset
        self._run = self._compile() if compiled else self._steps

    @property
    def numel(self) -> int:
        """Scalar parameters of one network."""
        return sum(d_out * (d_in + 1) for d_in, d_out in zip(self.widths[:-1], self.widths[1:], strict=True))

    def fit(
        self,
        weights: Tensor,  # shape: (N, P)
        targets: Tensor,  # shape: (N, widths[-1], Q)
        schedule: AdamSchedule,
    ) -> EnsembleFit:
        """Fit row ``n`` to ``targets[n]``; arguments are left alone.

        Raises:
            ShapeError: ``weights`` or ``targets`` do not fit the ensemble.
            SpecError: ``schedule.steps`` is not a multiple of ``steps_per_call``.
        """
        expected = (len(weights), self.numel), (len(weights), self.widths[-1], self._coordinates.shape[1])
        if (tuple(weights.shape), tuple(targets.shape)) != expected:
            raise ShapeError(
                f"'weights' and 'targets' must have shapes {expected[0]} and {expected[1]} "
                f"(got {tuple(weights.shape)} and {tuple(targets.shape)})."
            )
        if schedule.steps % self.steps_per_call:
            raise SpecError(
                f"'steps' must be a multiple of steps_per_call={self.steps_per_call} (got {schedule.steps})."
            )
        table = schedule.table(len(weights), weights.dtype)
        fits = []
        for rows in torch.arange(len(weights)).split(self.members):
            filled = torch.cat([rows, rows[-1:].expand(self.members - len(rows))])
            theta, loss = self._fit_batch(weights[filled], targets[filled], table[:, :, filled], schedule.eps)
            fits.append((theta[: len(rows)], loss[: len(rows)]))
        return EnsembleFit(torch.cat([theta for theta, _ in fits]), torch.cat([loss for _, loss in fits]))

    def _fit_batch(self, theta: Tensor, targets: Tensor, table: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """All steps of one full batch, ``steps_per_call`` at a time."""
        first, second, loss = torch.zeros_like(theta), torch.zeros_like(theta), theta.new_zeros(len(theta))
        with torch.no_grad():
            for columns in table.split(self.steps_per_call):
                theta, first, second, loss = self._run(theta, first, second, targets, columns, eps)
        return theta, loss

    def _steps(
        self,
        theta: Tensor,  # shape: (B, P), as are first and second
        first: Tensor,
        second: Tensor,
        targets: Tensor,  # shape: (B, widths[-1], Q)
        columns: Tensor,  # shape: (steps_per_call, 6, B, 1)
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The function that is compiled: a few optimizer steps, unrolled."""
        loss = theta[:, 0]
        for step in range(self.steps_per_call):
            loss, grad = siren_loss_and_gradient(
                theta, self._coordinates, targets, self.widths, self._omega, self._offset
            )
            theta, (first, second) = adam_update(theta, (first, second), grad, columns[step], eps)
        return theta, first, second, loss

    def _compile(self) -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]:
        """The compiled step, or the plain one with a warning where it does not compile."""
        theta = self._coordinates.new_zeros(self.members, self.numel)
        targets = theta.new_zeros(self.members, self.widths[-1], self._coordinates.shape[1])
        columns = AdamSchedule(self.steps_per_call).table(self.members, theta.dtype)
        compiled = torch.compile(self._steps, fullgraph=True, dynamic=False, options=dict(_INDUCTOR))
        start = time.perf_counter()
        try:
            # All ensembles share one code object, and the default limit of eight shapes is per code object. What torch
            # deprecates inside its own compiler is nothing that a user could act on.
            with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=_MOST_SHAPES), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compiled(theta, theta.clone(), theta.clone(), targets, columns, AdamSchedule.eps)
        except Exception as error:  # torch has no common class for what can fail down to the C++ compiler
            reason = next(iter(str(error).splitlines()), "")[:200]
            warnings.warn(
                f"The step of SIREN {self.widths} runs uncompiled, and slower ({type(error).__name__}: {reason}). "
                "Install a C++ compiler (g++ or clang), or pass compiled=False if slow is good enough.",
                PerformanceWarning,
                stacklevel=3,
            )
            return self._steps
        _log.info("compiled the step of SIREN %s in %.1f s", self.widths, time.perf_counter() - start)
        return compiled
