"""Activation matching: the group element under which two networks respond most alike to the same inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from weightspace.errors import SpecError
from weightspace.graphs.block_layout import BlockLayout, EdgeBlock
from weightspace.graphs.labels.parameter_labels import ParameterLabels
from weightspace.graphs.labels.pool import IntArray
from weightspace.graphs.labels.values import Component
from weightspace.graphs.matching.coordinate_descent import CoordinateDescent, Settings
from weightspace.graphs.matching.paired_blocks import outer_axes
from weightspace.graphs.matching.weight_matching import Match, block_axes, branches_of, match_of
from weightspace.graphs.parameter_blocks import Block
from weightspace.graphs.parameter_view import ParameterView
from weightspace.graphs.trace import Trace
from weightspace.graphs.weight_space import WeightSpace

__all__ = ["match_activations"]


@dataclass
class _Correlations:
    """Running sums of the responses of one layer in two networks."""

    size: int
    count: int = 0
    sums: Tensor = field(init=False)  # shape: (2, n)
    squares: Tensor = field(init=False)  # shape: (2, n)
    products: Tensor = field(init=False)  # shape: (n, n)

    def __post_init__(self) -> None:
        self.sums, self.squares = (torch.zeros(2, self.size, dtype=torch.float64) for _ in range(2))
        self.products = torch.zeros(self.size, self.size, dtype=torch.float64)

    def add(self, a: Tensor, b: Tensor) -> None:
        """Responses of shape ``(samples, n)``."""
        both = torch.stack([a, b]).double()
        self.count += both.shape[1]
        self.sums += both.sum(1)
        self.squares += both.square().sum(1)
        self.products += both[0].T @ both[1]

    def matrix(self, centre: bool) -> Tensor:
        """Correlation of neuron i of ``a`` with neuron j of ``b``, or their mean product; shape ``(n, n)``."""
        products = self.products / self.count
        if not centre:
            return products
        mean = self.sums / self.count
        # Neurons that never change (dead ones) correlate with nothing.
        scale = (self.squares / self.count - mean.square()).clamp_min(0).sqrt()
        inverse = torch.where(scale > 1e-12, 1 / scale.clamp_min(1e-12), torch.zeros_like(scale))
        return (products - mean[0][:, None] * mean[1]) * inverse[0][:, None] * inverse[1]


def match_activations(
    trace: Trace,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    batches: Iterable[Tensor | tuple[Tensor, ...]],
    *,
    centre: bool = True,
) -> Match:
    """Find the neuron permutation under which neurons of ``b`` correlate most with those of ``a`` in their place.

    Activation matching of Git Re-Basin (Ainsworth et al. 2023, section 3.1; Li et al. 2015): one assignment for each
    neuron group, summed over the layers that carry it, nested groups as a whole. The correlations are accumulated,
    so memory does not grow with the data. Groups of no node layer are held.

    Args:
        trace: The traced architecture; node layers come from its layout, responses are pre-activations.
        a: State dict of the first network.
        b: State dict of the second network.
        batches: Inputs, each batch of the traced shapes; a tuple where the module takes several.
        centre: Compare by correlation; otherwise by inner products, as in the least-squares form of the paper.

    Returns:
        The match; its two ``inner_products`` are the summed correlations before and after.

    Raises:
        SpecError: there are no batches, or no layer whose neurons belong to a permutable group.
        UnsupportedModuleError: the module has no parameter graph.
    """
    space = trace.weight_space()
    branches = branches_of(space)
    movable = {name for branch in branches for name in branch.shapes()}
    placed = _layer_blocks(space, trace.layout(), movable)
    gathered: dict[str, _Correlations] = {}
    with torch.no_grad():
        for batch in batches:
            inputs = batch if isinstance(batch, tuple) else (batch,)
            left, right = (trace.node_values(weights, *inputs) for weights in (a, b))
            for layer, (blocks, dims) in placed.items():
                if layer in left:
                    size = blocks[0].view.parameter_shape[1]
                    x, y = (values[layer].movedim(values[layer].ndim - dims, -1) for values in (left, right))
                    if x.shape[-1] == size:
                        sums = gathered.setdefault(layer, _Correlations(size))
                        sums.add(x.reshape(-1, size), y.reshape(-1, size))
    if not gathered:
        raise SpecError(
            f"There is nothing to compare: {len(placed)} node layers belong to permutable groups, and none of them "
            "got a value. Pass at least one batch of inputs."
        )
    costs: dict[tuple[str, ...], Tensor] = {}
    for layer, sums in gathered.items():
        for block in placed[layer][0]:
            found = _path_costs(space, block, sums.matrix(centre), movable)
            if found is not None:
                path, cost = found
                costs[path] = costs[path] + cost if path in costs else cost
    descent = CoordinateDescent(branches, [], costs, 1, Settings(torch.float64), torch.device("cpu"))
    before = descent.objective()
    descent.informed_start()
    history = torch.stack([before, descent.objective()])
    return match_of(space, descent.sources, history, torch.ones(1, dtype=torch.bool))


def _path_costs(
    space: WeightSpace, block: Block, products: Tensor, movable: Collection[str]
) -> tuple[tuple[str, ...], Tensor] | None:
    """Costs of the groups along the neurons of a layer, of shape ``(1, n, n, m, m, ...)``, with their path."""
    axes = block_axes(space, block, movable)
    if axes is None:
        return None
    order = block.view.apply(torch.arange(block.view.parameter_shape[1])[None]).reshape(-1)
    sizes = block.view.shape[1:]
    chain = sorted((k for k, axis in enumerate(axes) if axis.group), key=lambda k: len(outer_axes(axes, k)))
    if any(outer_axes(axes, k) != chain[:depth] for depth, k in enumerate(chain)):
        return None  # a product of unrelated groups is no sum over single assignments
    spread = products[order][:, order].reshape(*sizes, *sizes)
    for k in reversed([k for k in range(len(sizes)) if k + 1 not in chain]):
        spread = spread.diagonal(dim1=k, dim2=k + spread.ndim // 2).sum(-1)
    places = [sorted(chain).index(k) for k in chain]
    pairs = [x for k in places for x in (k, k + len(places))]
    return tuple(axes[k].group or "" for k in chain), spread.permute(*pairs).unsqueeze(0)


def _layer_blocks(
    space: WeightSpace, layout: BlockLayout, movable: Collection[str]
) -> dict[str, tuple[list[Block], int]]:
    """For each node layer its neurons as blocks of shape ``(1, *groups)``, and how many axes from the end they are."""
    known = {p.name: p for p in space.parameters}
    labels: dict[str, IntArray] = {}
    from_end: dict[str, int] = {}
    for edge in layout.blocks:
        if edge.view is None or len(edge.view.parameter_shape) < 2 or edge.view.parameter not in known:
            continue
        found = _target_labels(known[edge.view.parameter], edge)
        if found is not None:
            size = layout.layer(edge.target).size
            nodes = np.arange(size) if edge.target_nodes is None else np.array(edge.target_nodes)
            array = labels.setdefault(edge.target, np.full(size, -1, np.int64))
            array[nodes] = found
            from_end[edge.target] = len(edge.view.parameter_shape) - 1  # channels stand before the kernel's axes
    placed = {}
    for layer, array in labels.items():
        if (array >= 0).all():
            shape = (1, len(array))
            blocks = space._blocks_of(ParameterLabels(layer, shape, shape, (Component((1,), array),)))
            if any(set(block.axes) & set(movable) for block in blocks):
                placed[layer] = (blocks, from_end[layer])
    return placed


def _target_labels(p: ParameterLabels, edge: EdgeBlock) -> IntArray | None:
    """Label of every target neuron of an edge block, in order; ``None`` where no axis of the parameter writes them."""
    view: ParameterView | None = edge.view
    if view is None or edge.groups * edge.out < 2:
        return None
    entries = view.entries().reshape(edge.groups * edge.out, -1).numpy()
    places = np.unravel_index(entries, p.view_shape)
    for component in p.components:
        labels = component.labels[tuple(places[d] for d in component.dims)]
        if (labels == labels[:, :1]).all() and len(np.unique(labels[:, 0])) == len(labels):
            return labels[:, 0]
    return None
