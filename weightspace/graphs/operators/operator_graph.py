"""Operator graphs: the architecture of a network without its values; operations are nodes, data flow is edges."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import networkx as nx
import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import shortest_path

from weightspace.errors import SpecError
from weightspace.graphs.operators.operation import Operation, OwnedTensor
from weightspace.graphs.operators.operator_data import OperatorData, operator_data
from weightspace.graphs.operators.operator_types import OPERATION_TYPES, PARAMETER_SLOTS

__all__ = ["OperatorGraph"]


@dataclass(frozen=True)
class OperatorGraph:
    """Directed acyclic graph of the operations of a traced module; data-free, hashable, JSON round trip.

    Operations stand in topological order: each one reads only earlier ones. Graph hypernetworks (Zhang et al. 2019,
    arXiv:1810.05749; Knyazev et al. 2021, arXiv:2110.13100) read this form. Got from
    :meth:`weightspace.graphs.Trace.operator_graph`.

    Args:
        operations: The nodes.
        unused: Parameters and buffers that no output depends on.
        modules: Path and class name of the modules the operations happen in.

    Example:
        >>> import torch
        >>> from weightspace.graphs import trace
        >>> mlp = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> graph = trace(mlp, torch.zeros(4, 2)).operator_graph()
        >>> graph
        OperatorGraph(5 operations, 4 edges, 4 tensors, depth 4)
        >>> print(*(operation.type for operation in graph.operations))
        input linear relu linear output
    """

    operations: tuple[Operation, ...]
    unused: tuple[OwnedTensor, ...] = ()
    modules: tuple[tuple[str, str], ...] = field(default=())

    def __post_init__(self) -> None:
        names = Counter(o.name for o in self.operations)
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise SpecError(f"Operations must have different names (got {twice} more than once).")
        for k, operation in enumerate(self.operations):
            if operation.type not in OPERATION_TYPES:
                raise SpecError(
                    f"Type of operation '{operation.name}' must be one of OPERATION_TYPES (got '{operation.type}')."
                )
            if not all(0 <= source < k for source in operation.inputs):
                raise SpecError(
                    f"Operation {k}, '{operation.name}', must read earlier operations only (got {operation.inputs})."
                )

    # -- structure -----------------------------------------------------------------------------------------------

    @cached_property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """Data flow as pairs (source, target), each once, by target and operand."""
        return tuple((u, v) for v, o in enumerate(self.operations) for u in dict.fromkeys(o.inputs))

    @cached_property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter that the outputs depend on, by name; buffers are left out."""
        return {t.name: t.shape for o in self.operations for t in o.tensors if not t.is_buffer}

    def owners(self, name: str) -> list[Operation]:
        """Operations that use this parameter or buffer; more than one where weights are shared."""
        return [o for o in self.operations if any(t.name == name for t in o.tensors)]

    @cached_property
    def levels(self) -> tuple[int, ...]:
        """Length of the longest path to every operation from one that reads nothing."""
        levels: list[int] = []
        for o in self.operations:
            levels.append(max((levels[u] + 1 for u in o.inputs), default=0))
        return tuple(levels)

    @property
    def depth(self) -> int:
        """Number of edges of the longest path."""
        return max(self.levels, default=0)

    def distances(self, max_length: int | None = None) -> np.ndarray:
        """Lengths of shortest paths along the data flow.

        Args:
            max_length: Longer ones count as none.

        Returns:
            int32, shape ``(N, N)``; row = source, 0 on the diagonal, -1 where there is no path.
        """
        count = len(self.operations)
        ends = np.array(self.edges, dtype=np.int64).reshape(-1, 2)
        adjacency = csr_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count))
        result = np.full((count, count), -1, np.int32)
        for start in range(0, count, 1024):  # a strip at a time: the float64 form of the whole is twice as large
            rows = np.arange(start, min(start + 1024, count))
            lengths = shortest_path(adjacency, unweighted=True, indices=rows) if count else np.zeros((0, 0))
            known = np.isfinite(lengths) & (lengths <= (max_length or np.inf))
            result[rows] = np.where(known, np.where(known, lengths, 0), -1).astype(np.int32)
        return result

    def virtual_edges(self, max_length: int = 50) -> list[tuple[int, int, int]]:
        """Pairs that data flow joins over other operations, with the length of the shortest path.

        GHN-2 (Knyazev et al. 2021, equation 5) lets them carry messages divided by that length, up to 50.

        Args:
            max_length: Longest path that counts.

        Returns:
            Source, target and length, ``1 < length <= max_length``, by source and target.
        """
        distances = self.distances(max_length)
        sources, targets = np.nonzero(distances > 1)
        return list(zip(sources.tolist(), targets.tolist(), distances[sources, targets].tolist(), strict=True))

    def contracted(self, types: Collection[str]) -> OperatorGraph:
        """The graph without operations of some types: what reads them reads what they read.

        Operations that own tensors stay, and so do inputs and outputs.

        Args:
            types: Of the operations to leave out, for example :data:`weightspace.graphs.ACTIVATIONS`.

        Raises:
            SpecError: a type is not in the vocabulary.
        """
        unknown = sorted(set(types) - set(OPERATION_TYPES))
        if unknown:
            raise SpecError(f"'types' must be among OPERATION_TYPES (got {unknown}).")
        held = {"input", "output"}
        drop = [o.type in types and o.type not in held and not o.tensors for o in self.operations]
        sources: list[tuple[int, ...]] = []
        kept: list[Operation] = []
        for o, leave_out in zip(self.operations, drop, strict=True):
            inputs = tuple(s for u in o.inputs for s in sources[u])
            if leave_out:
                sources.append(tuple(dict.fromkeys(inputs)))
            else:
                sources.append((len(kept),))
                kept.append(replace(o, inputs=inputs))
        return replace(self, operations=tuple(kept))

    # -- other forms ---------------------------------------------------------------------------------------------

    def to_networkx(self, max_length: int | None = None) -> nx.DiGraph:
        """Nodes are the names of the operations, with all their fields as attributes (``inputs`` as names).

        Edges have ``operands``, which operands of the target the source is, and ``length`` 1.

        Args:
            max_length: Also the virtual edges up to this length, with ``length`` > 1 and no operands.
        """
        names = [o.name for o in self.operations]
        result = nx.DiGraph()
        for index, o in enumerate(self.operations):
            attributes = {k: v for k, v in vars(o).items() if k not in ("name", "inputs")}
            result.add_node(
                o.name, index=index, module=o.module, inputs=tuple(names[u] for u in o.inputs), **attributes
            )
        for u, v in self.edges:
            operands = tuple(k for k, source in enumerate(self.operations[v].inputs) if source == u)
            result.add_edge(names[u], names[v], operands=operands, length=1)
        for u, v, length in self.virtual_edges(max_length) if max_length else []:
            result.add_edge(names[u], names[v], operands=(), length=length)
        return result

    def to_data(self, max_length: int | None = None) -> OperatorData:
        """PyG form with integer type ids; see :class:`OperatorData`.

        Args:
            max_length: Also the virtual edges up to this length.
        """
        virtual = self.virtual_edges(max_length) if max_length else []
        return operator_data(self.operations, [*((u, v, 1) for u, v in self.edges), *virtual], self.levels)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able form; :meth:`from_json` inverts it."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> OperatorGraph:
        """Read what :meth:`to_json` wrote."""

        def tensor(t: Mapping[str, Any]) -> OwnedTensor:
            return OwnedTensor(**{**t, "shape": tuple(t["shape"]), "axes": tuple(t["axes"])})

        def operation(o: Mapping[str, Any]) -> Operation:
            plain = {k: tuple(o[k]) for k in ("scopes", "inputs", "output_shape")}
            tensors = tuple(map(tensor, o["tensors"]))
            return Operation(**{**o, **plain, "tensors": tensors, "settings": _tuples(o["settings"])})

        modules = tuple((path, kind) for path, kind in data["modules"])
        return cls(tuple(map(operation, data["operations"])), tuple(map(tensor, data["unused"])), modules)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the architecture: equal for networks of the same operations on tensors of the same shapes.

        Types, operators, settings, shapes and roles of tensors, which of them are shared, and the data flow count;
        names, module paths, the order of independent operations and the size of the example input do not. What the
        graph does not hold (slices and other movement, constant tensors) does not count either.
        """
        forward: list[str] = []
        for o in self.operations:
            operator = "" if o.type in _ONE_FUNCTION else o.operator.rstrip("_")
            own = [o.type, operator, o.settings, [(t.shape, t.role, t.axes, t.is_buffer) for t in o.tensors]]
            forward.append(_digest(own, [forward[u] for u in o.inputs]))
        readers: list[list[tuple[str, int]]] = [[] for _ in self.operations]
        both = list(forward)
        for v in reversed(range(len(self.operations))):
            both[v] = _digest(forward[v], sorted(readers[v]))
            for k, u in enumerate(self.operations[v].inputs):
                readers[u].append((both[v], k))
        users: dict[str, list[tuple[str, int]]] = {}
        for h, o in zip(both, self.operations, strict=True):
            for k, t in enumerate(o.tensors):
                users.setdefault(t.name, []).append((h, k))
        shared = sorted(sorted(where) for where in users.values() if len(where) > 1)
        return _digest(sorted(both), shared)[:16]

    def __len__(self) -> int:
        return len(self.operations)

    def __repr__(self) -> str:
        tensors = {t.name for o in self.operations for t in o.tensors}
        return (
            f"OperatorGraph({len(self.operations)} operations, {len(self.edges)} edges, {len(tensors)} tensors, "
            f"depth {self.depth})"
        )


_ONE_FUNCTION = {*PARAMETER_SLOTS, "attention"} - {"rnn"}
"""Types whose operators compute the same, if their tensors and settings are."""


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
