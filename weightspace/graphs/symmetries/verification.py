"""Checks in float64 that a weight space tells the truth about a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from weightspace.graphs.symmetries.neuron_permutation import NeuronPermutation
from weightspace.graphs.symmetries.neuron_symmetry import NeuronSymmetry

__all__ = ["Symmetry", "Verification", "verify_symmetry"]


class Symmetry(Protocol):
    """What is checked: a group with names for its parts, acting on weights. A ``WeightSpace`` is one."""

    @property
    def groups(self) -> Mapping[str, Any]:
        """The parts, by name."""
        ...

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of symmetry there are."""
        ...

    def random_symmetry(self, generator: torch.Generator, kinds: Sequence[str]) -> NeuronSymmetry:
        """A random element of these kinds."""
        ...

    def restricted(self, group: str, g: NeuronPermutation) -> NeuronPermutation:
        """What a permutation does to one part."""
        ...

    def apply(self, weights: Mapping[str, Tensor], g: NeuronPermutation | NeuronSymmetry) -> dict[str, Tensor]:
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
        kinds: Kinds of symmetry that were tried, all at once.
        broken_kinds: Those that change the function on their own.
    """

    deviation: float
    moved: int
    trials: int
    tolerance: float
    broken: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ("permutation",)
    broken_kinds: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the function did not change."""
        return self.deviation <= self.tolerance

    def __bool__(self) -> bool:
        return self.ok

    def __repr__(self) -> str:
        if self.ok and not self.moved:
            return f"Verification(nothing to check: {self.trials} random group elements moved no weight)"
        culprits = [*self.broken, *(k for k in self.broken_kinds if k != "permutation")]
        verdict = "passed" if self.ok else f"FAILED, broken by {', '.join(culprits) or 'combinations of groups'}"
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
    kinds: Sequence[str] | None = None,
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
        kinds: Kinds of symmetry to try, all that ``space`` has by default.
    """
    kinds = space.kinds if kinds is None else tuple(kinds)
    generator = torch.Generator().manual_seed(seed)
    randomised = {name: _random_like(name, w, generator) for name, w in weights.items()}
    leaves, spec = pytree.tree_flatten(list(inputs))
    inputs = pytree.tree_unflatten([_random_input(x, generator) for x in leaves], spec)
    with torch.no_grad():
        reference = pytree.tree_leaves(evaluate(randomised, *inputs))

        def deviation(weights: Mapping[str, Tensor]) -> float:
            return _deviation(reference, pytree.tree_leaves(evaluate(weights, *inputs)))

        def breaks(g: NeuronPermutation | NeuronSymmetry) -> bool:
            return deviation(space.apply(randomised, g)) > tolerance

        elements = [_element(space, generator, kinds) for _ in range(trials)]
        worst, moved = 0.0, min(1, trials) * sum(w.numel() for w in randomised.values())
        for g in elements:
            changed = space.apply(randomised, g)
            worst = max(worst, deviation(changed))
            moved = min(moved, _moved(randomised, changed))
        broken: list[str] = []
        broken_kinds: list[str] = []
        if worst > tolerance:
            for name in space.groups if "permutation" in kinds else ():
                if any(breaks(space.restricted(name, g.permutation)) for g in elements):
                    broken.append(name)
            broken_kinds = [k for k in kinds if any(breaks(_element(space, generator, [k])) for _ in range(trials))]
    return Verification(worst, moved, trials, tolerance, tuple(broken), tuple(kinds), tuple(broken_kinds))


def _element(space: Symmetry, generator: torch.Generator, kinds: Sequence[str], tries: int = 20) -> NeuronSymmetry:
    """A random element that is not the identity, unless the group is trivial."""
    g = space.random_symmetry(generator, kinds)
    for _ in range(tries):
        if g.moved:
            break
        g = space.random_symmetry(generator, kinds)
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
