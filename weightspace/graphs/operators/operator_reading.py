"""Reads the operator graph off an exported program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.export.graph_signature import InputKind
from torch.fx import Node

from weightspace.graphs.execution import ProgramRunner
from weightspace.graphs.operators.operation import Operation, OwnedTensor
from weightspace.graphs.operators.operator_data import TENSOR_ROLES
from weightspace.graphs.operators.operator_graph import OperatorGraph
from weightspace.graphs.operators.operator_types import MOVEMENT, PARAMETER_SLOTS, operation_type

__all__ = ["read_operations"]

_ROLES = {
    **{"running_mean": "norm_mean", "running_var": "norm_variance", "v": "direction", "g": "magnitude"},
    **dict.fromkeys(("w_ih", "w_hh"), "weight"),
    **dict.fromkeys(("b_ih", "b_hh", "bias", "biases"), "bias"),
}
_NORMS = ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm")
# Axes of a weight by the type of its operation; the kernel axes follow.
_AXES = {"transposed_conv": ("in", "out"), "embedding": ("in", "out"), "bilinear": ("out", "in", "in")}

# Arguments that belong to the architecture, by type; those that are sizes of activations are none of them.
_SETTINGS = {
    **dict.fromkeys(
        ("conv", "grouped_conv", "depthwise_conv", "transposed_conv"),
        ("stride", "padding", "dilation", "groups", "output_padding"),
    ),
    **dict.fromkeys(("max_pool", "avg_pool"), ("kernel_size", "stride", "padding", "dilation", "ceil_mode")),
    **dict.fromkeys(("shift", "scale"), ("other", "alpha")),
    **dict.fromkeys(
        ("softmax", "log_softmax", "mean", "total", "extremum", "variance", "concat", "glu", "cumulative"), ("dim",)
    ),
    "power": ("exponent", "self"),
    "group_norm": ("num_groups",),
    "attention": ("is_causal", "enable_gqa"),
    "gelu": ("approximate",),
    "clamp": ("min", "max"),
    "leaky_relu": ("negative_slope",),
    **dict.fromkeys(("elu", "celu"), ("alpha", "scale", "input_scale")),
    **dict.fromkeys(("hardshrink", "softshrink"), ("lambd",)),
    "softplus": ("beta", "threshold"),
    "threshold": ("threshold", "value"),
    "hardtanh": ("min_val", "max_val"),
    "pad": ("pad", "padding", "mode", "value"),
    "norm_over": ("ord", "dim"),
    "sort": ("k", "dim", "descending"),
    "lstm": ("num_layers", "bidirectional"),
    "gru": ("num_layers", "bidirectional"),
    "rnn": ("num_layers", "bidirectional"),
}


@dataclass(frozen=True)
class _Raw:
    """A parameter or buffer of the state dict, perhaps with its axes in another order.

    ``order`` says which axis of the stored tensor stands where; ``None`` after a reshape.
    """

    name: str
    shape: tuple[int, ...]
    is_buffer: bool
    order: tuple[int, ...] | None


# What stands for a value of the program: an operation, a raw tensor, or None (it depends on neither data nor weights).
_Flow = int | _Raw | None


def read_operations(
    runner: ProgramRunner, aliases: Mapping[str, str], weights: Mapping[str, Tensor], movement: bool
) -> OperatorGraph:
    """Operator graph of an exported program; see :meth:`weightspace.graphs.Trace.operator_graph`.

    Args:
        runner: Holds the program.
        aliases: First name of every tied parameter, by its other names.
        weights: Parameters and persistent buffers by first name; only names and shapes count.
        movement: Keep operations that only move data.
    """
    return _Reader(runner, aliases, weights, movement).graph()


class _Reader:
    def __init__(
        self, runner: ProgramRunner, aliases: Mapping[str, str], weights: Mapping[str, Tensor], movement: bool
    ) -> None:
        self._runner, self._movement = runner, movement
        self._operations: list[Operation] = []
        self._flow: dict[Node, _Flow] = {}
        self._modules: dict[str, str] = {}
        self._as_data: dict[str, int] = {}
        self._tensors: dict[str, _Raw] = {}
        for node, spec in runner.placeholders():
            name = aliases.get(str(spec.target), str(spec.target))
            if spec.kind is InputKind.USER_INPUT:
                is_tensor = isinstance(node.meta.get("val"), Tensor)  # options such as use_cache are no data
                read = Operation(node.name, "input", "placeholder", (), (), (), _shape(node))
                self._flow[node] = self._add(read) if is_tensor else None
            elif name in weights:
                shape = tuple(weights[name].shape)
                is_buffer = spec.kind is InputKind.BUFFER
                self._flow[node] = self._tensors.setdefault(name, _Raw(name, shape, is_buffer, (*range(len(shape)),)))
            else:
                self._flow[node] = None

    def graph(self) -> OperatorGraph:
        for node in self._runner.calls():
            self._flow[node] = self._read(node)
        for k, node in enumerate(x for x in self._runner.user_outputs() if isinstance(x, Node)):
            source = self._source(self._flow.get(node), ())
            if source is not None:
                name = "output" if k == 0 else f"output:{k}"
                self._add(Operation(name, "output", "output", (), (source,), (), _shape(node)))
        return self._pruned()

    # -- one node of the program -----------------------------------------------------------------------------------

    def _read(self, node: Node) -> _Flow:
        arguments = _arguments(node)
        operands = [(slot, x) for slot, value in arguments.items() for x in _nodes(value)]
        flows = [(slot, self._flow.get(x)) for slot, x in operands]
        if all(flow is None for _, flow in flows):
            return None
        name = _operator(node)
        shapes = {slot: _shape(v) if isinstance(v, Node) else v for slot, v in arguments.items()}
        # A sum with a constant tensor is a shift, as one with a number: nothing is joined.
        varying = [_shape(x) for (_, x), (_, flow) in zip(operands, flows, strict=True) if flow is not None]
        kind = operation_type(name, shapes, varying)
        if kind in MOVEMENT:
            carried = next(flow for _, flow in (reversed(flows) if name == "copy" else flows) if flow is not None)
            if isinstance(carried, _Raw):
                return replace(carried, order=_moved(carried.order, name, arguments))
            if not self._movement or name == "getitem":
                return carried
        scopes = self._scopes(node)
        kind, slots = _owned_slots(kind, flows)
        mine = []
        for n, (slot, flow) in enumerate(flows):
            if isinstance(flow, _Raw) and slot in slots:
                axes = _einsum_axes(arguments["equation"], n) if name == "einsum" else None
                mine.append(_owned(flow, slot, kind, axes))
        owned = tuple(sorted(mine, key=lambda t: TENSOR_ROLES.index(t.role)))
        inputs = [self._source(f, scopes) for slot, f in flows if not (isinstance(f, _Raw) and slot in slots)]
        read = tuple(x for x in inputs if x is not None)
        title = self._unique(_title(scopes[-1] if scopes else "", kind, owned))
        return self._add(Operation(title, kind, name, scopes, read, owned, _shape(node), _settings(kind, arguments)))

    def _source(self, flow: _Flow, scopes: tuple[str, ...]) -> int | None:
        """The operation that stands for a value; a raw tensor read as data gets one of its own."""
        if not isinstance(flow, _Raw):
            return flow
        if flow.name not in self._as_data:
            kind = "buffer" if flow.is_buffer else "parameter"
            tensor = OwnedTensor(flow.name, flow.shape, "data", ("",) * len(flow.shape), flow.is_buffer)
            self._as_data[flow.name] = self._add(
                Operation(self._unique(flow.name), kind, "placeholder", scopes, (), (tensor,), flow.shape)
            )
        return self._as_data[flow.name]

    def _add(self, operation: Operation) -> int:
        self._operations.append(operation)
        return len(self._operations) - 1

    def _unique(self, name: str) -> str:
        taken = {o.name for o in self._operations}
        k = 1
        while (unique := name if k == 1 else f"{name}:{k - 1}") in taken:
            k += 1
        return unique

    def _scopes(self, node: Node) -> tuple[str, ...]:
        """Module calls around a node, without the outermost module."""
        scopes = []
        for key, (path, kind) in (node.meta.get("nn_module_stack") or {}).items():
            call = key.rpartition("@")[2] if "@" in key else ""
            if path:
                self._modules[path] = str(getattr(kind, "__name__", kind)).rpartition(".")[2]
                scopes.append(f"{path}@{call}" if call else path)
        return tuple(scopes)

    def _pruned(self) -> OperatorGraph:
        """Leave out what no output depends on; inputs stay."""
        alive = [o.type in ("input", "output") for o in self._operations]
        for k in reversed(range(len(alive))):
            if alive[k]:
                for u in self._operations[k].inputs:
                    alive[u] = True
        place = {k: i for i, k in enumerate(k for k, keep in enumerate(alive) if keep)}
        alive_ones = [self._operations[k] for k in place]
        kept = tuple(replace(o, inputs=tuple(place[u] for u in o.inputs)) for o in alive_ones)
        used = {t.name for o in kept for t in o.tensors}
        unused = tuple(
            OwnedTensor(t.name, t.shape, "data", ("",) * len(t.shape), t.is_buffer)
            for t in self._tensors.values()
            if t.name not in used
        )
        return OperatorGraph(kept, unused, tuple(sorted(self._modules.items())))


def _title(scope: str, kind: str, owned: Sequence[OwnedTensor]) -> str:
    """The module that holds the tensors of an operation, or else its type in the module it happens in."""
    path = scope.partition("@")[0]
    holder = owned[0].name.rpartition(".")[0] if owned else ""
    if holder and holder.startswith(path):  # elsewhere are tied weights: those belong to their first user
        return scope if holder == path else holder
    return scope if owned and scope else f"{scope}.{kind}".lstrip(".")


# -- arguments ---------------------------------------------------------------------------------------------------------


def _operator(node: Node) -> str:
    packet = getattr(node.target, "overloadpacket", node.target)
    return str(getattr(packet, "__name__", packet)).rpartition(".")[2]


def _arguments(node: Node) -> dict[str, Any]:
    """All arguments of a call by name, defaults filled in."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {str(k): value for k, value in enumerate(node.args)} | dict(node.kwargs)
    names = [a.name for a in schema.arguments]
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    return {a.name: given.get(a.name, a.default_value) for a in schema.arguments}


def _nodes(value: Any) -> Iterator[Node]:
    if isinstance(value, Node):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _nodes(item)


def _shape(node: Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    if isinstance(value, (list, tuple)):
        value = next((x for x in value if isinstance(x, Tensor)), None)
    return tuple(int(n) for n in value.shape) if isinstance(value, Tensor) else ()


def _settings(kind: str, arguments: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    found = []
    for name in _SETTINGS.get(kind, ()):
        value = arguments.get(name)
        if isinstance(value, (list, tuple)):
            value = tuple(value)
        if value is not None and not any(True for _ in _nodes(value)):
            found.append((name, value if isinstance(value, (bool, int, float, str, tuple)) else str(value)))
    return tuple(found)


def _moved(order: tuple[int, ...] | None, name: str, arguments: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Order of the axes of a tensor after an operation that moves data."""
    if order is None or name in ("clone", "alias", "detach", "contiguous", "_to_copy", "to", "type_as"):
        return order
    dims = list(range(len(order)))
    if name == "t":
        dims = dims[::-1]
    elif name in ("transpose", "swapaxes"):
        a, b = arguments["dim0"], arguments["dim1"]
        dims[a], dims[b] = dims[b], dims[a]
    elif name == "permute":
        dims = [d % len(order) for d in arguments["dims"]]
    else:
        return None
    return tuple(order[d] for d in dims)


# -- tensors of an operation -------------------------------------------------------------------------------------------


def _owned_slots(kind: str, flows: Sequence[tuple[str, _Flow]]) -> tuple[str, frozenset[str]]:
    """Which arguments are tensors of the operation itself; a product with a raw matrix is a linear layer."""
    raw = [slot for slot, flow in flows if isinstance(flow, _Raw)]
    if kind == "matmul" and raw and len(raw) < len(flows):
        slots = {slot for slot, _ in flows}
        has_addend = bool(slots & {"mat", "mat1", "batch1"})  # addmm and its like add ``self`` to the product
        factors = {slot for slot, flow in flows if slot != "self" or not (has_addend or _is_vector(flow))}
        if any(slot in raw for slot in factors):
            return "linear", frozenset(raw)
    return kind, PARAMETER_SLOTS.get(kind, frozenset())


def _is_vector(flow: _Flow) -> bool:
    return isinstance(flow, _Raw) and len(flow.shape) < 2


def _einsum_axes(equation: str, number: int) -> tuple[str, ...]:
    """What the axes of one matrix among the operands are; empty where it is no plain matrix product."""
    operands, _, out = equation.replace(" ", "").partition("->")
    letters = operands.split(",")
    axes = tuple("out" if c in out else "in" for c in letters[number])
    elsewhere = "".join(x for n, x in enumerate(letters) if n != number)
    fits = all((c in elsewhere) == (meaning == "in") for c, meaning in zip(letters[number], axes, strict=True))
    return axes if fits and sorted(axes) == ["in", "out"] and "." not in equation else ("",) * len(letters[number])


def _owned(raw: _Raw, slot: str, kind: str, axes: tuple[str, ...] | None = None) -> OwnedTensor:
    """A tensor with what it is to its operation; its axes as they are stored (``axes``: as they are read)."""
    rank = len(raw.shape)
    is_vector = rank < 2
    if kind in _NORMS:
        role = {"weight": "norm_scale", "bias": "norm_shift"}.get(slot) or _ROLES[slot]
    elif slot in ("params", "weights") or (kind == "linear" and slot not in ("weight", "bias")):
        role = "bias" if is_vector else "weight"
    else:
        role = _ROLES.get(slot, "weight")
    used = axes or (("out",) if is_vector else _weight_axes(kind, slot, rank))
    meanings = [""] * rank
    if raw.order is not None and len(used) == rank == len(raw.order):
        for stored, meaning in zip(raw.order, used, strict=True):
            meanings[stored] = meaning
    return OwnedTensor(raw.name, raw.shape, role, tuple(meanings), raw.is_buffer)


def _weight_axes(kind: str, slot: str, rank: int) -> tuple[str, ...]:
    if kind == "linear" and slot in ("mat2", "other"):
        first: tuple[str, ...] = ("in", "out")  # x @ W
    else:
        first = _AXES.get(kind, ("out", "in"))
    return (*first, *("kernel" for _ in range(rank - len(first))))[:rank]
