r"""One representative of all weights that differ by scales, signs, sine phases and the order of neurons.

Free factors are decided in the order of the program, so that what precedes a neuron is settled when its turn comes:
the scale makes the norm of what comes in 1, the sign makes the bias positive (where it is zero or missing: the sum of
cubes of the incoming weights), the phase brings the bias of a sine into :math:`[0, \pi / (2 g)]`. Then neurons are
sorted. No choice is continuous everywhere: at the boundary (a bias of zero, two equal keys) near-by weights have
representatives far apart, which no canonical form can avoid.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from weightspace.errors import ShapeError
from weightspace.graphs.labels.pool import IntArray
from weightspace.graphs.symmetries.deciding_entries import deciding_entries, in_order
from weightspace.graphs.symmetries.neuron_order import NeuronOrder, Ordered
from weightspace.graphs.symmetries.neuron_symmetry import Factor
from weightspace.graphs.symmetries.scaling import KINDS, FactorMap, Scaling, SinePhase, check_kinds, sign_of

__all__ = ["Canonicaliser"]

Batch = dict[str, Tensor]


class Canonicaliser:
    """Canonical form of the weights of one architecture.

    Two sets of weights that differ by a group element have the same form, as long as nothing ties: neurons whose keys
    agree stay in the order they came in, factors of neurons without incoming weights stay as they are. Groups of kind
    ``generic`` are not sorted, and rotations of query and key dimensions (of linear neurons in general) are only fixed
    up to scale and sign.

    Args:
        space: Weight space of the architecture.
        kinds: What to settle.

    Raises:
        SpecError: a kind is unknown.
    """

    def __init__(self, space: Ordered, kinds: Sequence[str] = KINDS) -> None:
        check_kinds(kinds)
        self._shapes = {p.name: p.shape for p in space.parameters}
        scaling = space.scaling
        self._scales = _Scales(scaling, self._shapes) if "scale" in kinds else None
        self._signs = _Signs(scaling, self._shapes, kinds) if {"sign", "phase"} & set(kinds) else None
        self._order = NeuronOrder(space) if "permutation" in kinds else None

    def __call__(self, weights: Mapping[str, Tensor], batch_dims: int = 0) -> Batch:
        """Weights in canonical form; gradients flow, names that the weight space does not know pass.

        Raises:
            ShapeError: a parameter or buffer is missing or has another shape.
        """
        for name, shape in self._shapes.items():
            got = tuple(weights[name].shape[batch_dims:]) if name in weights else None
            if got != shape:
                raise ShapeError(
                    f"'{name}' must have shape {shape} behind {batch_dims} batch axes (got {got}). Pass all parameters "
                    "and floating-point buffers of a network of this architecture."
                )
        lead = {n: weights[n].shape[:batch_dims] for n in self._shapes}
        batch = {n: weights[n].reshape(-1, *shape) for n, shape in self._shapes.items()}
        for step in (self._scales, self._signs, self._order):
            if step is not None:
                batch = step(batch)
        return {**weights, **{n: w.reshape(*lead[n], *self._shapes[n]) for n, w in batch.items()}}


class _Scales:
    """Makes the norm of every neuron's deciding entries 1."""

    def __init__(self, scaling: Scaling, shapes: Mapping[str, Sequence[int]]) -> None:
        self._map, self._offsets, self._shapes = scaling.scales, scaling.offsets, shapes
        self._entries = deciding_entries(self._map, shapes)
        self._runs = in_order(self._entries, ())

    def __call__(self, weights: Batch) -> Batch:
        if not self._runs:
            return weights
        free = _like(weights, self._map.count)
        for run, _ in self._runs:
            factors = self._map.evaluate(free).exp()
            total = torch.zeros_like(free)
            for e in self._entries:
                if np.isin(e.variables, run).any():
                    value = _scaled(self._map, e.name, weights[e.name], factors, self._shapes)
                    total = total + e.total(value.square(), run, self._map.count)
            known = total > 0
            free = free - 0.5 * torch.where(known, total, 1.0).log() * known
        factors = self._map.evaluate(free).exp()
        moved = dict(weights)
        for name in self._map.terms:
            offset = self._offsets.get(name, 0.0)
            moved[name] = _scaled(self._map, name, weights[name] + offset, factors, self._shapes) - offset
        return moved


class _Signs:
    """Decides signs and half periods."""

    def __init__(self, scaling: Scaling, shapes: Mapping[str, Sequence[int]], kinds: Collection[str]) -> None:
        self._scaling, self._map, self._shapes = scaling, scaling.signs, shapes
        self._entries = deciding_entries(self._map, shapes)
        self._phases = sorted((_PhaseStep(scaling, p, kinds) for p in scaling.phases), key=lambda s: s.level)
        decided = {v for s in self._phases for v in (*s.inputs.tolist(), *s.outputs.tolist()) if v >= 0}
        levels = [s.level for s in self._phases]
        self._runs = in_order(self._entries, decided, levels) if "sign" in kinds else []

    def __call__(self, weights: Batch) -> Batch:
        free, done = _like(weights, self._map.count), 0
        shifts: Batch = {}
        for run, passed in [*self._runs, ([], len(self._phases))]:
            for step in self._phases[done:passed]:
                free, shifts[step.phase.name] = self._settle(step, weights, free)
            done = max(done, passed)
            if run:
                free = free + (self._decide(run, weights, free) < 0)
        factors = sign_of(self._map.evaluate(free))
        moved = {n: _scaled(self._map, n, w, factors, self._shapes) for n, w in weights.items()}
        return {n: w + shifts[n] if n in shifts else w for n, w in moved.items()}

    def _decide(self, run: Sequence[int], weights: Batch, free: Tensor, skip: str = "") -> Tensor:
        """A number per variable that changes sign with it: the first that is not zero."""
        factors = sign_of(self._map.evaluate(free))
        decision = torch.zeros_like(free)
        for e in self._entries:
            if e.name != skip and np.isin(e.variables, run).any():
                value = _scaled(self._map, e.name, weights[e.name], factors, self._shapes)
                total = e.total(value.pow(3), run, self._map.count)
                decision = torch.where(decision == 0, total, decision)
        return decision

    def _settle(self, step: _PhaseStep, weights: Batch, free: Tensor) -> tuple[Tensor, Tensor]:
        """Half periods, and where the neurons are free to be negated also that; the signs and the shift of the bias."""
        phase, half = step.phase, math.pi / step.phase.gain
        factors = sign_of(self._map.evaluate(free))
        bias = _scaled(self._map, phase.name, weights[phase.name], factors, self._shapes).flatten(1)
        count = bias / half
        free_out = torch.from_numpy(step.outputs >= 0).to(bias.device)
        parity = self._scaling.parity(phase, free).flatten(1)
        turns = parity
        if step.shifts:
            turns = torch.where(free_out, count.round(), 2 * ((count - parity) / 2).round() + parity)
        rest = count - turns  # in half periods
        negate = torch.zeros_like(rest, dtype=torch.bool)
        reflect = torch.from_numpy(step.reflected).to(bias.device)
        if (step.inputs >= 0).any():
            cubes = self._decide(step.inputs[step.inputs >= 0].tolist(), weights, free, skip=phase.name)
            inputs = torch.from_numpy(step.inputs).to(bias.device)
            tie = rest.abs() < 64 * torch.finfo(rest.dtype).eps * count.abs().clamp_min(1)
            below = torch.where(tie, cubes[:, inputs.clamp_min(0)], rest) < 0
            negate = torch.where(reflect, rest.abs() > 0.5, below) & (inputs >= 0)
            free = free.index_add(1, inputs[inputs >= 0], negate[:, inputs >= 0].to(free.dtype))
        # b -> b - turns, or negated -b + turns, one more half period towards zero where that reflects
        turns = torch.where(negate, turns + torch.where(reflect, rest.sign(), 0.0), -turns)
        wanted = turns + (0 if phase.even else self._input_parity(phase, free))
        free = free.index_copy(
            1, torch.from_numpy(step.outputs[step.outputs >= 0]).to(bias.device), wanted[:, free_out].remainder(2)
        )
        return free, (turns * half).reshape(-1, *self._shapes[phase.name])

    def _input_parity(self, phase: SinePhase, free: Tensor) -> Tensor:
        values, shape = self._map.evaluate(free), self._shapes[phase.name]
        total = free.new_zeros(len(free), *shape)
        for dims, index in self._map.terms.get(phase.name, ()):
            total = total + Factor(dims, values[:, torch.from_numpy(index).to(free.device)]).over(shape)
        return total.flatten(1)


class _PhaseStep:
    """One sine: which of its signs are its own to decide, and when."""

    def __init__(self, scaling: Scaling, phase: SinePhase, kinds: Collection[str]) -> None:
        self.phase = phase
        self.shifts = "phase" in kinds
        signs = scaling.signs
        self.outputs: IntArray = phase.free.reshape(-1)
        terms = signs.terms.get(phase.name, ())
        before = [signs.latest[index].max(initial=-1) for _, index in terms]
        tied = phase.free < 0
        self.level = int(max([*before, signs.latest[phase.out[tied]].max(initial=-1)], default=-1))
        own = np.full(phase.out.shape, -1, np.int64)
        if "sign" in kinds and len(terms) == 1 and terms[0][0] == tuple(range(phase.out.ndim)):
            own = signs.own[terms[0][1]]
            _, where, counts = np.unique(own, return_inverse=True, return_counts=True)
            own = np.where(counts[where.reshape(-1)].reshape(own.shape) == 1, own, -1)
        carried = [
            any(v == a for v, _ in signs.expressions[out])
            for a, out in zip(own.reshape(-1).tolist(), phase.out.reshape(-1).tolist(), strict=True)
        ]
        # Where the sign behind a sine stays, a negated input asks for an odd number of half periods.
        self.reflected = (self.outputs < 0) & ~np.array(carried, bool) & (not phase.even)
        self.inputs: IntArray = np.where(self.reflected & (not self.shifts), -1, own.reshape(-1))


def _like(weights: Batch, count: int) -> Tensor:
    first = next(iter(weights.values()))
    return first.new_zeros(len(first), count)


def _scaled(
    factors: FactorMap, name: str, weight: Tensor, values: Tensor, shapes: Mapping[str, Sequence[int]]
) -> Tensor:
    """A parameter of shape ``(B, *shape)`` times its factors; ``values`` has one column per expression."""
    for dims, index in factors.terms.get(name, ()):
        weight = weight * Factor(dims, values[:, torch.from_numpy(index).to(values.device)]).over(shapes[name])
    return weight
