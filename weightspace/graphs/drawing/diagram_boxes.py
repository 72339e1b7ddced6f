"""Which operations share a box in a diagram, which boxes a module holds, and what is written on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from weightspace.graphs.operators.operation import Operation
from weightspace.graphs.operators.operator_types import ACTIVATIONS

__all__ = ["Box", "Leaf", "nest", "operation_leaf"]

_NORMS = {"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "local_response_norm"}
# Written into the box of the operation before, if that one feeds nothing else.
_FOLLOWERS = {*_NORMS, *ACTIVATIONS, "shift", "scale", "power", "softmax", "log_softmax"}
_FAMILIES = {
    "io": {"input", "output"},
    "weights": {
        *("linear", "conv", "grouped_conv", "depthwise_conv", "transposed_conv", "embedding", "bilinear"),
        *("lstm", "gru", "rnn", "weight_norm"),
    },
    "norm": _NORMS,
    "mixing": {"attention", "matmul", "softmax", "log_softmax", "fft"},
    "join": {"sum", "difference", "product", "quotient", "where", "concat", "maximum", "minimum"},
    "pool": {"max_pool", "avg_pool", "global_pool", "upsample", "mean", "total", "extremum", "pad"},
    "data": {"parameter", "buffer", "constant"},
}
_MAX_LINES = 6


@dataclass(frozen=True)
class Box:
    """A rectangle: operations that follow each other, or a module that holds other boxes.

    Args:
        name: Unique in its diagram.
        lines: Text, the first line its heading.
        family: ``"weights"``, ``"norm"``, ``"join"``, ... for operations; ``"module"``, or ``"pointwise"`` for a module
            without weights inside.
        members: Indices of the operations (or node layers) in it, those of inner boxes included.
        children: Inner boxes.
        repeat: How many equal modules in a row it stands for.
    """

    name: str
    lines: tuple[str, ...]
    family: str
    members: tuple[int, ...]
    children: tuple[Box, ...] = ()
    repeat: int = 1


@dataclass(frozen=True)
class Leaf:
    """One operation (or node layer) before boxes are made.

    Args:
        heading: Its name if it deserves one.
        text: What it is.
        family: Colour.
        scopes: Module calls around it, outermost first.
        follows: May stand in the box of the operation before.
        is_data: A parameter that stands in the box of its reader.
    """

    heading: str
    text: str
    family: str
    scopes: tuple[str, ...] = ()
    follows: bool = False
    is_data: bool = False


def operation_leaf(o: Operation) -> Leaf:
    """An operation, described in a few words."""
    family = next((name for name, types in _FAMILIES.items() if o.type in types), "pointwise")
    heading = o.name if o.tensors or family == "io" else ""
    return Leaf(heading, _description(o), family, o.scopes, o.type in _FOLLOWERS, o.type in ("parameter", "buffer"))


def _description(o: Operation) -> str:
    """Type with sizes: ``"conv 3×3/2 64→128"``."""
    word, settings = o.type.replace("_", " "), dict(o.settings)
    weight = next((t for t in o.tensors if t.role == "weight"), None)
    if o.type in ("input", "output"):
        return "×".join(map(str, o.output_shape)) or "number"
    if weight is not None and {"out", "in"} <= set(weight.axes):
        sizes = dict(zip(weight.axes, weight.shape, strict=True))
        kernel = "×".join(str(n) for axis, n in zip(weight.axes, weight.shape, strict=True) if axis == "kernel")
        stride = max(settings.get("stride", (1,)))
        into = sizes["in"] * (settings.get("groups", 1) if "conv" in o.type else 1)
        return f"{word} {kernel}{f'/{stride}' if stride > 1 else ''} {into}→{sizes['out']}".replace("  ", " ")
    if o.tensors:
        return f"{word} {'×'.join(map(str, o.tensors[0].shape))}".strip()
    number = settings.get("other", settings.get("exponent"))
    return f"{word} {number:.4g}" if isinstance(number, (int, float)) else word


# -- from operations to nested boxes ---------------------------------------------------------------------------------


def nest(leaves: Sequence[Leaf], edges: Sequence[tuple[int, int]], classes: Mapping[str, str]) -> Box:
    """The outermost box of a network.

    Args:
        leaves: Operations in topological order.
        edges: Data flow between them.
        classes: Class names of modules by path.
    """
    runs = _runs(leaves, edges)
    return _Nesting(leaves, classes).module("", _group([(run, leaves[run[0]].scopes) for run in runs], 0), "")


def _runs(leaves: Sequence[Leaf], edges: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Members that share a box: an operation, the data only it reads, and what only follows it."""
    readers: list[list[int]] = [[] for _ in leaves]
    sources: list[list[int]] = [[] for _ in leaves]
    for u, v in edges:
        readers[u].append(v)
        sources[v].append(u)
    homes = _homes(leaves)
    private = [x.is_data and len(r) == 1 and leaves[r[0]].family != "io" for x, r in zip(leaves, readers, strict=True)]
    run_of: dict[int, list[int]] = {}
    for k, leaf in enumerate(leaves):
        if private[k]:
            continue
        data = [u for u in sources[k] if private[u]]
        flow = [u for u in sources[k] if not private[u]]
        run: list[int] = []
        if (leaf.follows or data) and len(flow) == 1 and readers[flow[0]] == [k] and homes[flow[0]] == homes[k]:
            before = run_of[flow[0]]
            if leaves[before[0]].family not in ("io", "data", "join") and len(before) < _MAX_LINES:
                run = before
        run += [k, *data]
        run_of[k] = run
    return list({id(run): run for run in run_of.values()}.values())


def _homes(leaves: Sequence[Leaf]) -> list[tuple[str, ...]]:
    """Scopes of every operation without those it has for itself."""
    count = Counter(x.scopes[:n] for x in leaves for n in range(len(x.scopes) + 1))
    return [x.scopes[: max(n for n in range(len(x.scopes) + 1) if n == 0 or count[x.scopes[:n]] > 1)] for x in leaves]


def _group(runs: Sequence[tuple[list[int], tuple[str, ...]]], depth: int) -> list:
    """Nest runs by their scopes, as (scope, content) or (None, run); a module with one box inside is that box."""
    content: list = []
    inner: dict[str, list] = {}
    for run, scopes in runs:
        if len(scopes) == depth:
            content.append((None, run))
            continue
        if scopes[depth] not in inner:
            inner[scopes[depth]] = []
            content.append((scopes[depth], inner[scopes[depth]]))
        inner[scopes[depth]].append((run, scopes))
    result: list = []
    for scope, part in content:
        grouped = part if scope is None else _group(part, depth + 1)
        result.append((None, part) if scope is None else grouped[0] if len(grouped) == 1 else (scope, grouped))
    return result


class _Nesting:
    """Makes boxes of grouped runs and keeps their names apart."""

    def __init__(self, leaves: Sequence[Leaf], classes: Mapping[str, str]) -> None:
        self._leaves, self._classes = leaves, classes
        self._taken: Counter[str] = Counter()

    def module(self, scope: str, content: list, outer: str) -> Box:
        path = scope.partition("@")[0]
        inner = tuple(
            self._leaf(part, path) if name is None else self.module(name, part, path) for name, part in content
        )
        members = tuple(m for box in inner for m in box.members)
        is_plain = {self._leaves[m].family for m in members} <= {"pointwise", "join", "data", "pool"}
        closed = scope and is_plain and not any(box.children for box in inner)
        lines = (_inside(scope, outer), *([self._classes[path]] if path in self._classes else []))
        return Box(self._unique(scope), lines, "pointwise" if closed else "module", members, inner)

    def _leaf(self, run: Sequence[int], path: str) -> Box:
        leaves = [self._leaves[m] for m in run]
        heading = next((leaf.heading for leaf in leaves if leaf.heading), "")
        lines = (*([_inside(heading, path)] if heading else []), *(leaf.text for leaf in leaves))
        name = heading or f"{path}.{leaves[0].text}".lstrip(".")
        return Box(self._unique(name), lines, leaves[0].family, tuple(run))

    def _unique(self, name: str) -> str:
        count = self._taken[name]
        self._taken[name] += 1
        return f"{name}:{count}" if count else name


def _inside(name: str, path: str) -> str:
    """A name as it is called inside a module."""
    return name.removeprefix(f"{path}.") if path else name
