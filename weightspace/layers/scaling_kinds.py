"""Which factor the neurons of every layer may be multiplied by, read off a layout."""

from __future__ import annotations

import re
from typing import Literal, get_args

from weightspace.errors import SpecError
from weightspace.graphs.block_layout import BlockLayout, EdgeBlock, NodeLayer

__all__ = ["Kind", "Symmetry", "scaling_kinds"]

Kind = Literal["scale", "sign", "permutation"]
"""Factors of the neurons of a layer: any positive number, 1 or -1, or 1 alone (the neurons only change places)."""

Symmetry = Literal["auto", "scale", "sign", "permutation"]
"""How the kind of the hidden layers is found: by their activations, or given."""

_LINEAR = {"identity", "scale", "mean", "sum", "avg_pool"}
_HOMOGENEOUS = _LINEAR | {"relu", "relu_", "leaky_relu", "leaky_relu_", "rrelu", "abs", "max_pool", "amax", "amin"}
_ODD = _LINEAR | {"tanh", "tanh_", "sin", "sin_", "erf", "asin", "atan", "sinh", "asinh"}
_CARRYING = ("residual", "link")
"""Parameter-free edges along which a factor travels unchanged: sums, and gathering with constant weights."""


def scaling_kinds(layout: BlockLayout, symmetry: Symmetry = "auto") -> dict[str, Kind]:
    """Kind of the factor of every node layer.

    ``"scale"`` behind positively homogeneous functions (ReLU and its relatives, pooling), ``"sign"`` behind odd ones
    (tanh, sine), for hidden layers that only weights and biases, sums and gathering touch; layers that sums join have
    one kind. All else is held at factor 1: inputs and outputs, other activations, layers with a norm (a learned slope
    counts as one), with products, attention or gates, with weights that are computed from parameters, and for positive
    factors those between a weight and its transpose. So the factors here are among the true ones but for functions
    of a neuron that the layout does not name. A linear neuron may have any factor but 0; it follows the layers it is
    added to, else it counts as ``"scale"``.

    Args:
        layout: The architecture.
        symmetry: ``"auto"``, or the kind to take in place of what the activations say.

    Returns:
        The kind by name of the node layer.

    Raises:
        SpecError: ``symmetry`` is none of :data:`Symmetry`.

    Example:
        >>> scaling_kinds(BlockLayout.mlp([2, 8, 8, 1], activation="sin"))["layers.1"]
        'sign'
    """
    if symmetry not in get_args(Symmetry):
        raise SpecError(f"'symmetry' must be one of {list(get_args(Symmetry))} (got '{symmetry}').")
    written = {block.target for block in layout.blocks}  # others were taken up behind an operation without edges
    allowed = {x.name: _allowed(x, symmetry) - {*x.held_factors} if x.name in written else set() for x in layout.layers}
    for block in layout.blocks:
        if not _carries(block):
            allowed[block.source], allowed[block.target] = set(), set()
    changed = True
    while changed:  # a sum has one factor: what its operands and its result have in common
        changed = False
        for block in layout.blocks:
            common = allowed[block.source] & allowed[block.target]
            if block.view is None and not allowed[block.source] == allowed[block.target] == common:
                allowed[block.source], allowed[block.target], changed = common, common, True
    return {name: _first(kinds) for name, kinds in allowed.items()}


def _first(kinds: set[Kind]) -> Kind:
    if "scale" in kinds:
        return "scale"
    return "sign" if "sign" in kinds else "permutation"


def _allowed(layer: NodeLayer, symmetry: Symmetry) -> set[Kind]:
    if layer.kind != "hidden" or symmetry == "permutation":
        return set()
    if symmetry != "auto":
        return {symmetry}
    chain = set(re.split(r"[+|]", layer.activation))
    kinds: set[Kind] = set()
    if chain <= _HOMOGENEOUS:
        kinds.add("scale")
    if chain <= _ODD:
        kinds.add("sign")
    return kinds


def _carries(block: EdgeBlock) -> bool:
    return block.role in _CARRYING if block.view is None else block.role in ("weight", "bias")
