"""Types of node layers and edge blocks: what blocks of different architectures have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from weightspace.graphs.block_layout import BlockLayout, EdgeBlock, NodeLayer

__all__ = ["RelationTypes", "node_type", "relation_type", "stateless_layers"]

_SENDERS = ("bias", "norm")


def stateless_layers(layout: BlockLayout) -> frozenset[str]:
    """Bias and norm nodes that only send parameters: their edges are features of the nodes they reach."""
    candidates = {layer.name for layer in layout.layers if layer.kind in _SENDERS}
    for block in layout.blocks:
        candidates.discard(block.target)
        if block.view is None or block.inputs > 1:
            candidates.discard(block.source)
    return frozenset(candidates)


def node_type(layout: BlockLayout, layer: NodeLayer) -> str:
    """Kind, activation, and the roles in which parameter-free edges (residuals apart) leave the layer.

    A role that leads to a further such edge has a plus: queries and keys of written-out attention are ``left+`` and
    ``right+`` (their products are summed to scores), values are ``right``.
    """
    leaving = {layer.name: _links(layout, layer.name)}
    roles = sorted({b.role + "+" * bool(_links(layout, b.target)) for b in leaving[layer.name]})
    return ":".join((layer.kind, layer.activation, *roles))


def relation_type(layout: BlockLayout, block: EdgeBlock) -> str:
    """Role, types of both ends, number of coordinates of parallel edges, and ``each`` for one edge per node.

    The kinds ``input`` and ``output`` of an end mark first and last layers. Of several biases or norm parameters of one
    layer and type the later ones are numbered: both biases of a GRU enter its last gate differently.
    """
    source, target = (node_type(layout, layout.layer(end)) for end in (block.source, block.target))
    each = " each" if block.out == block.inputs == 1 and block.groups > 1 else ""
    number = 0
    if layout.layer(block.source).kind in _SENDERS:
        here = [b for b in layout.blocks if b.target == block.target and b.role == block.role]
        alike = [b for b in here if node_type(layout, layout.layer(b.source)) == source]
        number = next(n for n, b in enumerate(alike) if b is block)
    return f"{block.role} {source}->{target} {len(block.offsets[0])}{each}" + f" #{number}" * (number > 0)


def _links(layout: BlockLayout, source: str) -> list[EdgeBlock]:
    return [b for b in layout.blocks if b.source == source and b.view is None and b.role != "residual"]


@dataclass(frozen=True)
class RelationTypes:
    """A numbered vocabulary of types; number 0 stands for every type that is not in it.

    Args:
        nodes: Types of node layers (:func:`node_type`).
        relations: Types of edge blocks (:func:`relation_type`).

    Example:
        >>> types = RelationTypes.of([BlockLayout.mlp([2, 8, 8, 1])])
        >>> types.nodes
        ('hidden:relu', 'input:identity', 'output:identity')
        >>> types.relation("weight hidden:relu->hidden:relu 0"), types.relation("gate x->y 0")
        (3, 0)
    """

    nodes: tuple[str, ...]
    relations: tuple[str, ...]

    @classmethod
    def of(cls, layouts: Iterable[BlockLayout]) -> RelationTypes:
        """All types that occur in these architectures."""
        nodes, relations = set(), set()
        for layout in layouts:
            silent = stateless_layers(layout)
            nodes |= {node_type(layout, layer) for layer in layout.layers if layer.name not in silent}
            relations |= {relation_type(layout, block) for block in layout.blocks}
        return cls(tuple(sorted(nodes)), tuple(sorted(relations)))

    def node(self, key: str) -> int:
        """Number of a type of node layer."""
        return self.nodes.index(key) + 1 if key in self.nodes else 0

    def relation(self, key: str) -> int:
        """Number of a type of edge block."""
        return self.relations.index(key) + 1 if key in self.relations else 0

    def to_json(self) -> dict[str, Any]:
        """A JSON-able form."""
        return {name: list(keys) for name, keys in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RelationTypes:
        """Read what :meth:`to_json` wrote."""
        return cls(tuple(data["nodes"]), tuple(data["relations"]))
