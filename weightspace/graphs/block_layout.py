"""The block form of a parameter graph: node layers joined by dense blocks of parameters.

A parameter graph has one edge per scalar parameter. Nearly all of them come in rectangles (every neuron of one layer
to every neuron of the next), so the graph is kept as *blocks*: which view of which parameter joins which two node
layers. Message passing on a batch of one architecture runs on these rectangles without reading an index; the
per-scalar edge list of :class:`weightspace.graphs.ParameterGraph` is expanded from them on request.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from weightspace.errors import ShapeError, SpecError
from weightspace.graphs.parameter_view import ParameterView

__all__ = ["KINDS", "ROLES", "BlockLayout", "EdgeBlock", "NodeLayer"]

KINDS = ("input", "hidden", "output", "bias", "norm", "position", "constant", "parameter")
"""Kinds of node layers; docs/parameter_graph.md says what each is."""

ROLES = (
    "weight", "bias", "norm_scale", "norm_shift", "norm_mean", "norm_variance", "parameter", "residual", "product",
    "left", "right", "query", "key", "score", "value", "link", "gate", "state", "statistics", "same", "shared",
)  # fmt: skip
"""Roles of edge blocks; docs/parameter_graph.md says what each is."""

Nodes = tuple[int, ...] | range


@dataclass(frozen=True)
class NodeLayer:
    """A set of nodes that one operation writes.

    Args:
        name: Unique name: the module path of the operation (``layers.0``), ``input``, or the name of the parameter
            for a bias or norm node.
        size: Number of nodes.
        kind: One of :data:`KINDS`. Nodes of kind input, output and position keep their identity under every
            symmetry; bias, norm, constant and parameter layers have size 1.
        activation: Pointwise function behind these neurons (``"sin"``, ``"relu"``, ...), ``"identity"`` if none;
            ``"+"`` joins a chain, ``"|"`` stands between functions of different readers, ``"mixed"`` says that their
            gains differ.
        gain: Constant the neurons are multiplied by before the activation (``omega_0`` of a SIREN), radians per unit
            for sines.
        index: Class of every node of a hidden or position layer, where there are several: no symmetry exchanges nodes
            of different classes (queries and keys of a fused projection, say).
        held_factors: Factors (``"scale"``, ``"sign"``) of the nodes that are no symmetry, although their function may
            allow them: a weight around them is computed from parameters, or also read transposed. Follows from the
            architecture, so layouts that differ in nothing else are equal.
    """

    name: str
    size: int
    kind: str
    activation: str = "identity"
    gain: float = 1.0
    index: tuple[int, ...] | None = None
    held_factors: tuple[str, ...] = field(default=(), compare=False)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able form, without an absent index and held factors."""
        optional = {"index": None, "held_factors": ()}
        return {k: v for k, v in asdict(self).items() if k not in optional or v != optional[k]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> NodeLayer:
        """Read what :meth:`to_json` wrote."""
        index = data.get("index")
        tuples = {"index": None if index is None else tuple(index), "held_factors": tuple(data.get("held_factors", ()))}
        return cls(**{**data, **tuples})


@dataclass(frozen=True)
class EdgeBlock:
    """A rectangle of parallel edges between two node layers.

    The view has shape ``(groups, out, inputs, positions)``: edge ``[g, o, i, p]`` runs from source node ``(g, i)`` to
    target node ``(g, o)``. Dense layers have one group; a depthwise convolution has a group per channel. Positions are
    parallel edges told apart by ``offsets`` (kernel positions, places of a flattened map).

    Args:
        name: Unique name; the parameter's own name where the parameter is one block.
        role: ``"weight"``, ``"bias"``, ``"norm_scale"``, ``"norm_shift"``, ``"norm_mean"``, ``"norm_variance"`` or
            ``"parameter"`` for parameters; ``"residual"``, ``"link"``, ``"product"``, ``"shared"`` and others for
            parameter-free edges (docs/parameter_graph.md lists them).
        source, target: Names of node layers.
        view: Where the values come from; ``None`` for parameter-free edges (value 1).
        groups, out, inputs, positions: Shape of the rectangle.
        source_nodes, target_nodes: Node of each ``(g, i)`` and ``(g, o)`` inside its layer, row-major (a range where
            they are one); ``None`` means all nodes of the layer in order.
        offsets: ``positions`` tuples, the coordinates of each position; empty tuples where there is only one.
    """

    name: str
    role: str
    source: str
    target: str
    view: ParameterView | None
    groups: int
    out: int
    inputs: int
    positions: int
    source_nodes: Nodes | None = None
    target_nodes: Nodes | None = None
    offsets: tuple[tuple[int, ...], ...] = ((),)

    def __post_init__(self) -> None:
        for end in ("source_nodes", "target_nodes"):
            nodes = getattr(self, end)
            if isinstance(nodes, tuple) and nodes and nodes == tuple(range(nodes[0], nodes[0] + len(nodes))):
                object.__setattr__(self, end, range(nodes[0], nodes[0] + len(nodes)))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(groups, out, inputs, positions)``."""
        return self.groups, self.out, self.inputs, self.positions

    @property
    def numel(self) -> int:
        """Number of edges."""
        return self.groups * self.out * self.inputs * self.positions


@dataclass(frozen=True)
class BlockLayout:
    """Node layers and edge blocks of one architecture; data-free, hashable, JSON round trip.

    Args:
        layers: Node layers in the order the forward pass writes them; node ids count through them.
        blocks: Edge blocks in forward order. Every scalar of ``shapes`` is in exactly one of them.
        shapes: Name and shape of every tensor of the state dict, in its order.
        aliases: Further names of tied tensors, each with the first one.

    Example:
        >>> layout = BlockLayout.mlp([2, 8, 1])
        >>> layout
        BlockLayout(13 nodes in 5 layers, 33 edges in 4 blocks)
    """

    layers: tuple[NodeLayer, ...]
    blocks: tuple[EdgeBlock, ...]
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = field(default=())
    aliases: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        names = [layer.name for layer in self.layers]
        if len(set(names)) < len(names):
            raise SpecError(f"Node layers must have different names (got {names}).")
        for block in self.blocks:
            for end in (block.source, block.target):
                if end not in names:
                    raise SpecError(f"Block '{block.name}' joins node layer '{end}', which is not among {names}.")
            if block.view is not None and block.view.shape != block.shape:
                raise SpecError(f"Block '{block.name}' has shape {block.shape}, its view has {block.view.shape}.")

    @cached_property
    def _index(self) -> dict[str, int]:
        return {layer.name: i for i, layer in enumerate(self.layers)}

    @cached_property
    def starts(self) -> dict[str, int]:
        """First node id of every layer."""
        starts, total = {}, 0
        for layer in self.layers:
            starts[layer.name] = total
            total += layer.size
        return starts

    @property
    def num_nodes(self) -> int:
        """Number of nodes of all layers."""
        return sum(layer.size for layer in self.layers)

    @property
    def num_edges(self) -> int:
        """Number of edges, parameter-free ones included."""
        return sum(block.numel for block in self.blocks)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the whole description; two networks with the same one can share a batch and a checkpoint."""
        plain = [{k: v for k, v in x.to_json().items() if k != "held_factors"} for x in self.layers]
        data = {**self.to_json(), "layers": plain}
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]

    def layer(self, name: str) -> NodeLayer:
        """The node layer of that name."""
        return self.layers[self._index[name]]

    def split(
        self,
        weights: Mapping[str, Tensor],  # each of shape: (*batch, *parameter shape)
        batch_dims: int = 1,
    ) -> list[Tensor | None]:
        """Values of every block, each of shape ``(*batch, groups, out, inputs, positions)``, in block order.

        ``None`` stands for a parameter-free block.

        Raises:
            ShapeError: a tensor is missing or has another shape.
        """
        missing = [name for name, _ in self.shapes if name not in weights]
        if missing:
            raise ShapeError(
                f"The state dict lacks {missing} (it has {list(weights)}). Was it saved from another architecture?"
            )
        return [b.view and b.view.apply(weights[b.view.parameter], batch_dims) for b in self.blocks]

    def join(self, values: Sequence[Tensor | None], batch_dims: int = 1) -> dict[str, Tensor]:
        """Exact inverse of :meth:`split`: block values back to a state dict."""
        flat: dict[str, Tensor] = {}
        for block, value in zip(self.blocks, values, strict=True):
            if block.view is None or value is None:
                continue
            name, batch = block.view.parameter, value.shape[:batch_dims]
            if all(step[0] == "reshape" for step in block.view.steps):  # the whole parameter in its own order
                flat[name] = value.reshape(*batch, -1)
                continue
            if name not in flat:
                numel = int(torch.Size(block.view.parameter_shape).numel())
                flat[name] = value.new_empty(*batch, numel)
            index = block.view.entries().reshape(-1).to(value.device)
            flat[name] = flat[name].index_copy(-1, index, value.reshape(*batch, -1))
        if len(flat) < len(self.shapes):  # tensors without any entry are in no block
            like = next((v for v in values if v is not None), torch.empty((0,) * batch_dims))
            flat |= {n: like.new_empty(*like.shape[:batch_dims], 0) for n, _ in self.shapes if n not in flat}
        joined = {name: flat[name].reshape((*flat[name].shape[:-1], *shape)) for name, shape in self.shapes}
        return {**joined, **{name: joined[first] for name, first in self.aliases}}

    def to_json(self) -> dict[str, Any]:
        """A JSON-able form; :meth:`from_json` inverts it."""

        def block(b: EdgeBlock) -> dict[str, Any]:
            nodes = {k: v and list(v) for k, v in vars(b).items() if k in ("source_nodes", "target_nodes")}
            return {**vars(b), **nodes, "view": b.view and b.view.to_json()}

        blocks = [block(b) for b in self.blocks]
        return {
            "layers": [layer.to_json() for layer in self.layers],
            "blocks": blocks,
            "shapes": [[name, list(shape)] for name, shape in self.shapes],
            **({"aliases": [list(pair) for pair in self.aliases]} if self.aliases else {}),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> BlockLayout:
        """Read what :meth:`to_json` wrote."""

        def block(b: dict[str, Any]) -> EdgeBlock:
            nodes = {k: b[k] and tuple(b[k]) for k in ("source_nodes", "target_nodes")}
            view = b["view"] and ParameterView.from_json(b["view"])
            return EdgeBlock(**{**b, **nodes, "view": view, "offsets": tuple(map(tuple, b["offsets"]))})

        shapes = tuple((name, tuple(shape)) for name, shape in data["shapes"])
        aliases = tuple((name, first) for name, first in data.get("aliases", ()))
        layers = tuple(NodeLayer.from_json(x) for x in data["layers"])
        return cls(layers, tuple(map(block, data["blocks"])), shapes, aliases)

    @classmethod
    def mlp(
        cls, widths: Sequence[int], *, activation: str = "relu", gain: float = 1.0, prefix: str = "layers"
    ) -> BlockLayout:
        """Layout of a plain MLP whose linear layers are ``{prefix}.0``, ``{prefix}.1``, ...; what tracing it gives."""
        layers, blocks, shapes = [NodeLayer("input", widths[0], "input")], [], []
        for m, (d_in, d_out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            name, last = f"{prefix}.{m}", m == len(widths) - 2
            source = layers[-1].name if m == 0 else f"{prefix}.{m - 1}"
            layer = NodeLayer(name, d_out, "output") if last else NodeLayer(name, d_out, "hidden", activation, gain)
            layers += [layer, NodeLayer(f"{name}.bias", 1, "bias")]
            weight = ParameterView(f"{name}.weight", (d_out, d_in)).reshape(1, d_out, d_in, 1)
            bias = ParameterView(f"{name}.bias", (d_out,)).reshape(1, d_out, 1, 1)
            blocks += [
                EdgeBlock(weight.parameter, "weight", source, name, weight, 1, d_out, d_in, 1),
                EdgeBlock(bias.parameter, "bias", bias.parameter, name, bias, 1, d_out, 1, 1),
            ]
            shapes += [(v.parameter, v.parameter_shape) for v in (weight, bias)]
        return cls(tuple(layers), tuple(blocks), tuple(shapes))

    def __repr__(self) -> str:
        return (
            f"BlockLayout({self.num_nodes} nodes in {len(self.layers)} layers, "
            f"{self.num_edges} edges in {len(self.blocks)} blocks)"
        )
