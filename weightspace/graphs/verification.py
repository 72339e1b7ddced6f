"""Checks in float64 that a weight space tells the truth about a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from weightspace.graphs.neuron_permutation import NeuronPermutation

__all__ = ["Symmetry", "Verification", "verify_symmetry"]


class Symmetry(Protocol):
    """What is checked: a group with names for its parts, acting on weights. A ``WeightSpace`` is one."""

    @property
    def groups(self) -> Mapping[str, Any]:
        """The parts, by name."""
        ...

    def random_permutation(self, generator: torch.Generator) -> NeuronPermutation:
        """A random element."""
        ...

    def restricted(self, group: str, g: NeuronPermutation) -> NeuronPermutation:
        """What an element does to one part."""
        ...

    def permute(self, weights: Mapping[str, Tensor], g: NeuronPermutation) -> dict[str, Tensor]:
        """The action."""
        ...


@dataclass(frozen=True)
class Verification:
    """Result of a check.

    Args:
        deviation: Largest relative change of an output over all trials.
        moved: Weights that changed place in the least-moving trial; a test that moves nothing proves nothing.
        trials: Number of random group elements.
        tolerance: Largest deviation that passes.
        broken: Groups that change the function when only they are permuted.
    """

    deviation: float
    moved: int
    trials: int
    tolerance: float
    broken: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the function did not change."""
        return self.deviation <= self.tolerance

    def __bool__(self) -> bool:
        return self.ok

    def __repr__(self) -> str:
        if self.ok and not self.moved:
            return f"Verification(nothing to check: {self.trials} random group elements moved no weight)"
        verdict = "passed" if self.ok else f"FAILED, broken by {', '.join(self.broken) or 'combinations of groups'}"
        return (
            f"Verification({verdict}: largest relative deviation {self.deviation:.1e} over {self.trials} random group "
            f"elements, at least {self.moved:,} weights moved)"
        )


def verify_symmetry(
    space: Symmetry,
    evaluate: Callable[..., Any],
    weights: Mapping[str, Tensor],
    inputs: Sequence[Any],
    *,
    trials: int = 3,
    seed: int = 0,
    tolerance: float = 1e-9,
) -> Verification:
    """Compare ``evaluate(weights, *inputs)`` before and after random group elements, in float64.

    Args:
        space: The claim.
        evaluate: A pure function of weights and inputs.
        weights: Shapes and kinds of the weights; random values are used, since zeros and ones hide errors.
        inputs: Example inputs; floating-point ones are replaced by random values.
        trials: Number of group elements.
        seed: Of everything random.
        tolerance: Largest relative deviation that passes.
    """
    generator = torch.Generator().manual_seed(seed)
    randomised = {name: _random_like(name, w, generator) for name, w in weights.items()}
    leaves, spec = pytree.tree_flatten(list(inputs))
    inputs = pytree.tree_unflatten([_random_input(x, generator) for x in leaves], spec)
    with torch.no_grad():
        reference = pytree.tree_leaves(evaluate(randomised, *inputs))

        def deviation(weights: Mapping[str, Tensor]) -> float:
            return _deviation(reference, pytree.tree_leaves(evaluate(weights, *inputs)))

        elements = [_element(space, generator) for _ in range(trials)]
        worst, moved = 0.0, min(1, trials) * sum(w.numel() for w in randomised.values())
        for g in elements:
            permuted = space.permute(randomised, g)
            worst = max(worst, deviation(permuted))
            moved = min(moved, _moved(randomised, permuted))
        broken: list[str] = []
        if worst > tolerance:
            for name in space.groups:
                if any(deviation(space.permute(randomised, space.restricted(name, g))) > tolerance for g in elements):
                    broken.append(name)
    return Verification(worst, moved, trials, tolerance, tuple(broken))


def _element(space: Symmetry, generator: torch.Generator, tries: int = 20) -> NeuronPermutation:
    """A random element that is not the identity, unless the group is trivial."""
    g = space.random_permutation(generator)
    for _ in range(tries):
        if g.moved:
            break
        g = space.random_permutation(generator)
    return g


def _random_like(name: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    if name.rsplit(".", 1)[-1] == "running_var":
        return noise.abs_().add_(0.5)
    fan_in = max(tensor.numel() // max(tensor.shape[0], 1), 1) if tensor.ndim > 1 else 1
    return noise.div_(fan_in**0.5)


def _random_input(x: Any, generator: torch.Generator) -> Any:
    if isinstance(x, Tensor) and x.is_floating_point():
        return torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return x


def _deviation(reference: Sequence[Any], other: Sequence[Any]) -> float:
    worst = 0.0
    for a, b in zip(reference, other, strict=True):
        if isinstance(a, Tensor) and a.numel():
            scale = a.abs().max().clamp_min(1e-30)
            worst = max(worst, float(((a - b).abs().max() / scale).nan_to_num(float("inf"))))
    return worst


def _moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> int:
    return sum(int((before[name] != after[name]).sum()) for name in before)
