"""Checks for layers, metanetworks and augmentations, ours and yours.

Each raises ``AssertionError`` with the figure that failed, and refuses to pass for the wrong reason: a group element
that moves nothing, or a function that answers the same to everything, is a failure too. Use float64 weights.

An *action* moves weights along a symmetry: a function of a batched state dict and a ``torch.Generator`` whose result
depends on the generator's state and on shapes alone, so that the same state gives the same group element. The
augmentations of :mod:`weightspace.zoo` that preserve the function are actions; :func:`permutation_action` makes one
from a weight space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from weightspace.graphs import WeightSpace

__all__ = [
    "Action",
    "assert_equivariant",
    "assert_function_preserved",
    "assert_invariant",
    "assert_pure",
    "permutation_action",
]

Weights = Mapping[str, Tensor]
Action = Callable[[dict[str, Tensor], torch.Generator], dict[str, Tensor]]


def permutation_action(space: WeightSpace, batch_dims: int = 1) -> Action:
    """The action of random neuron permutations, one for all networks of a batch."""

    def act(weights: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        return space.permute(weights, space.random_permutation(generator), batch_dims=batch_dims)

    return act


def assert_invariant(
    function: Callable[[dict[str, Tensor]], Any],
    weights: Weights,
    action: Action,
    *,
    trials: int = 3,
    tolerance: float = 1e-10,
) -> None:
    """Check f(g w) = f(w) for random g.

    Args:
        function: From a batched state dict to tensors.
        weights: Where to check; no two neurons alike.
        action: Draws g and applies it.
        trials: Number of g.
        tolerance: Largest difference, relative to the largest output.

    Raises:
        AssertionError: the answer changes, g moves nothing, or f is constant.
    """
    given = dict(weights)
    before = function(given)
    _assert_not_constant(function, given, before)
    for seed in range(trials):
        moved = action(given, torch.Generator().manual_seed(seed))
        _assert_moved(given, moved, seed)
        _assert_near(function(moved), before, tolerance, f"Not invariant, group element {seed}")


def assert_equivariant(
    function: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    weights: Weights,
    action: Action,
    *,
    trials: int = 3,
    tolerance: float = 1e-10,
) -> None:
    """Check f(g w) = g f(w) for random g; ``function`` returns a state dict of the same shapes.

    Args: as for :func:`assert_invariant`.

    Raises:
        AssertionError: the two differ, g moves nothing, or f is constant.
    """
    given = dict(weights)
    before = function(given)
    _assert_not_constant(function, given, before)
    for seed in range(trials):
        moved = action(given, torch.Generator().manual_seed(seed))
        _assert_moved(given, moved, seed)
        wanted = action(before, torch.Generator().manual_seed(seed))
        _assert_near(function(moved), wanted, tolerance, f"Not equivariant, group element {seed}")


def assert_function_preserved(
    evaluate: Callable[..., Any],
    before: Weights,
    after: Weights,
    *inputs: Tensor,
    tolerance: float = 1e-10,
) -> None:
    """Check that two batches of networks compute the same although their weights differ.

    Args:
        evaluate: ``(state dict of one network, *inputs)`` to tensors, e.g. ``Trace.evaluate``.
        before: Batched state dict.
        after: Another of the same shapes.
        inputs: The same for all networks.
        tolerance: Largest difference, relative to the largest output.

    Raises:
        AssertionError: the outputs differ, or the weights do not.
    """
    _assert_moved(before, after, 0)
    outputs = [torch.vmap(lambda one: evaluate(one, *inputs))(dict(weights)) for weights in (before, after)]
    _assert_near(outputs[1], outputs[0], tolerance, "The function changed")


def assert_pure(function: Callable[..., Any], *arguments: Any) -> None:
    """Check that a call writes to none of its tensors and that a second call gives the same bits.

    Raises:
        AssertionError: it does not.
    """
    kept = [x.clone() if isinstance(x, Tensor) else x for x in pytree.tree_leaves(arguments)]
    first, second = function(*arguments), function(*arguments)
    for i, (now, then) in enumerate(zip(pytree.tree_leaves(arguments), kept, strict=True)):
        if isinstance(now, Tensor) and not _same(now, then):
            raise AssertionError(f"The call wrote to tensor {i} of its arguments, shape {tuple(now.shape)}.")
    for i, (a, b) in enumerate(zip(pytree.tree_leaves(first), pytree.tree_leaves(second), strict=True)):
        if isinstance(a, Tensor) and not _same(a, b):
            raise AssertionError(f"A second call gives another result {i}: they differ by {_gap([a], [b]):.1e}.")


def _assert_moved(before: Weights, after: Weights, seed: int) -> None:
    if all(_same(before[name], after[name]) for name in before):
        raise AssertionError(f"Group element {seed} moved no weight, so the check would prove nothing.")


def _assert_not_constant(function: Callable[[dict[str, Tensor]], Any], weights: Weights, before: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    other = {
        name: w + torch.randn(w.shape, generator=generator, dtype=w.dtype).to(w.device) if w.is_floating_point() else w
        for name, w in weights.items()  # counters stay
    }
    leaves, others = pytree.tree_leaves(before), pytree.tree_leaves(function(other))
    if all(_same(a, b) for a, b in zip(leaves, others, strict=True)):
        raise AssertionError("The function answers the same to quite different weights, so the check proves nothing.")


def _assert_near(got: Any, wanted: Any, tolerance: float, what: str) -> None:
    mine, theirs = pytree.tree_leaves(got), pytree.tree_leaves(wanted)
    shapes = [[tuple(t.shape) for t in tensors] for tensors in (mine, theirs)]
    if shapes[0] != shapes[1]:
        raise AssertionError(f"{what}: shapes {shapes[0]} instead of {shapes[1]}.")
    gap = _gap(mine, theirs)
    if not gap <= tolerance:  # also true for NaN
        raise AssertionError(f"{what}: the largest relative difference is {gap:.1e}, allowed are {tolerance:.0e}.")


def _gap(got: list[Tensor], wanted: list[Tensor]) -> float:
    """Largest difference, relative to the largest wanted number."""
    scale = max((float(t.detach().abs().max()) for t in wanted if t.numel()), default=0.0)
    gaps = [float((a - b).detach().abs().max()) for a, b in zip(got, wanted, strict=True) if a.numel()]
    return torch.tensor([0.0, *gaps]).max().item() / max(scale, 1e-300)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(torch.equal(a.nan_to_num(), b.nan_to_num()))
