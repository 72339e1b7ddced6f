"""The automorphisms of a parameter graph are the symmetries of the module.

Elements of the group map the graph of some weights onto that of the moved weights (refinement with values as colours
is discrete, so equal colours mean isomorphic). The other way round, automorphisms of the graph without values are
counted by holding one node after the other: the product of the class sizes bounds their number from above, the order
of the group from below, and the two are equal.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.architectures.zoo import ARCHITECTURES
from weightspace.graphs import BlockLayout, ParameterGraph, Trace, trace

Edges = list[tuple[int, int, tuple[Any, ...]]]

# Pieces, generated weights, ties, loops, places, groups, pads, learned inputs, experts, gates: one of each.
SMALL = (
    "maxout", "generated_weights", "tied_autoencoder", "recurrent", "lenet", "grouped", "group_norm", "channel_shuffle",
    "padded_shortcut", "perceiver", "stacked_experts", "gru_language_model",
)  # fmt: skip


class Attention(nn.Module):
    """Two heads of width 3 with grouped keys, values of width 2, and rotary positions if asked for."""

    def __init__(self, rotary: bool = False, kv_heads: int = 2) -> None:
        super().__init__()
        width = 4 if rotary else 3
        self.q, self.k = nn.Linear(3, 2 * width), nn.Linear(3, kv_heads * width)
        self.v, self.o = nn.Linear(3, kv_heads * 2), nn.Linear(4, 2)
        self.rotary = rotary

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)

    def _turned(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        angle = torch.arange(1.0, x.shape[2] + 1)[:, None] * torch.tensor([1.0, 0.1])
        cos, sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)
        return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin

    def forward(self, x: Tensor) -> Tensor:
        kv_heads = self.v.out_features // 2
        q, k, v = self._split(self.q(x), 2), self._split(self.k(x), kv_heads), self._split(self.v(x), kv_heads)
        if self.rotary:
            q, k = self._turned(q), self._turned(k)
        k, v = (t.repeat_interleave(2 // kv_heads, 1) for t in (k, v))
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.o(out.transpose(1, 2).flatten(2))


class Computed(nn.Module):
    """A weight-standardised layer with a gain, read behind a scalar temperature and a shared slope."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.g, self.t = (
            nn.Parameter(torch.ones(4, 3)),
            nn.Parameter(torch.ones(4, 1)),
            nn.Parameter(torch.ones(())),
        )
        self.slope, self.out = nn.PReLU(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.g * (self.w - self.w.mean(1, keepdim=True))
        return self.out(self.slope(self.t * nn.functional.linear(x, weight)))


class TwoSided(nn.Module):
    """A tensor with three axes that may all move, a padded stream and a learned token."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 2), nn.Linear(3, 3), nn.Linear(3, 6)
        self.core, self.token, self.out = (
            nn.Parameter(torch.ones(2, 3, 4)),
            nn.Parameter(torch.ones(1, 1, 6)),
            nn.Linear(6, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        mixed = torch.einsum("bti,btj,ijk->btk", self.a(x), self.b(x), self.core)
        stream = torch.relu(nn.functional.pad(mixed, (0, 2)) + self.c(x))
        return self.out(torch.cat([self.token.expand(x.shape[0], 1, 6), stream], 1))


class Copies(nn.Module):
    """Columns that read copies of one input, and of one neuron."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x.repeat_interleave(2, 1))).repeat(1, 2))


class Meeting(nn.Module):
    """Layers that meet in one operator."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def biased_attention(m: Any, x: Tensor) -> Tensor:
    """Two heads whose scores have a bias for each pair of positions, made from their difference."""
    q, k, v = (part(x).unflatten(2, (2, -1)).transpose(1, 2) for part in (m.q, m.k, m.v))
    pair = m.p(torch.relu(m.a(x[:, :, None] - x[:, None]))).permute(0, 3, 1, 2)
    out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=pair)
    return m.out(out.transpose(1, 2).flatten(2))


def made_kernel(m: Any, x: Tensor) -> Tensor:
    """A convolution by a kernel and a bias that other layers make of the mean image."""
    seen = torch.relu(m.a(x.mean((0, 2, 3))))
    kernel, bias = m.kernel(seen).view(3, 4, 1, 1), m.bias(seen)
    return m.out(torch.relu(nn.functional.conv2d(torch.relu(m.stem(x)), kernel, bias)))


def made_grouped_kernel(m: Any, x: Tensor) -> Tensor:
    kernel = m.kernel(torch.relu(m.a(x.mean((0, 2, 3))))).view(6, 2, 1, 1)
    return m.out(torch.relu(nn.functional.conv2d(torch.relu(m.stem(x)), kernel, groups=2)))


def made_depthwise_kernel(m: Any, x: Tensor) -> Tensor:
    kernel = m.kernel(torch.relu(m.a(x.mean((0, 2, 3))))).view(4, 1, 3, 1)
    return m.out(torch.relu(nn.functional.conv2d(torch.relu(m.stem(x)), kernel, groups=4)))


def made(function: Callable[..., Tensor], channels: int, **parts: nn.Module) -> Meeting:
    """A convolution to so many channels whose kernel of twelve numbers another layer makes."""
    convolutions = {"stem": nn.Conv2d(2, 4, 3), "out": nn.Conv2d(channels, 2, 1)}
    return Meeting(function, a=nn.Linear(2, 5), kernel=nn.Linear(5, 12), **convolutions, **parts)


MEETINGS = {
    "index_add": (
        lambda: Meeting(
            lambda m, x: m.out(torch.relu(m.a(x)).index_add(0, torch.tensor([0, 2]), torch.tanh(m.b(x[:2])))),
            a=nn.Linear(3, 4),
            b=nn.Linear(3, 4),
            out=nn.Linear(4, 2),
        ),
        (3, 3),
    ),
    "index_put": (
        lambda: Meeting(
            lambda m, x: m.out(torch.relu(m.a(x)).index_put((torch.tensor([0, 2]),), torch.tanh(m.b(x[:2])))),
            a=nn.Linear(3, 4),
            b=nn.Linear(3, 4),
            out=nn.Linear(4, 2),
        ),
        (3, 3),
    ),
    "addmm": (
        lambda: Meeting(
            lambda m, x: m.out(torch.addmm(torch.tanh(m.a(x)), x, m.w)),
            a=nn.Linear(3, 4),
            w=nn.Parameter(torch.ones(3, 4)),
            out=nn.Linear(4, 2),
        ),
        (3, 3),
    ),
    "made_bias": (
        lambda: Meeting(
            lambda m, x: m.out(torch.relu(nn.functional.linear(x, m.w, m.b(torch.relu(m.a(x.mean(0))))))),
            a=nn.Linear(3, 5),
            b=nn.Linear(5, 4),
            w=nn.Parameter(torch.ones(4, 3)),
            out=nn.Linear(4, 2),
        ),
        (3, 3),
    ),
    "biased_attention": (
        lambda: Meeting(
            biased_attention,
            q=nn.Linear(3, 6),
            k=nn.Linear(3, 6),
            v=nn.Linear(3, 4),
            a=nn.Linear(3, 5),
            p=nn.Linear(5, 2),
            out=nn.Linear(4, 2),
        ),
        (2, 5, 3),
    ),
    "made_kernel": (lambda: made(made_kernel, 3, bias=nn.Linear(5, 3)), (2, 2, 5, 5)),
    "made_grouped_kernel": (lambda: made(made_grouped_kernel, 6), (2, 2, 5, 5)),
    "made_depthwise_kernel": (lambda: made(made_depthwise_kernel, 4), (2, 2, 5, 5)),
}

OWN = {
    **MEETINGS,
    "copies": (Copies, (3, 2)),
    "attention": (Attention, (2, 5, 3)),
    "grouped_query": (lambda: Attention(kv_heads=1), (2, 5, 3)),
    "rotary": (lambda: Attention(rotary=True), (2, 5, 3)),
    "computed": (Computed, (2, 3)),
    "two_sided": (TwoSided, (2, 5, 3)),
}


def structure(graph: ParameterGraph, values: bool) -> tuple[list[Any], Edges]:
    """Attributes of the nodes, and edges with theirs; parameters with their values if asked for."""
    layout: BlockLayout = graph.layout
    nodes = list(zip(*(getattr(graph, k).tolist() for k in ("node_layer", "node_kind", "node_index")), strict=True))
    columns = (*graph.edges().tolist(), graph.edge_block.tolist(), graph.edge_position.tolist())
    edges: Edges = []
    for source, target, number, position, value in zip(*columns, graph.edge_value.tolist(), strict=True):
        block = layout.blocks[number]
        parameter = block.view.parameter if block.view else None
        edges.append((source, target, (block.role, parameter, block.offsets[position], value if values else 0)))
    return nodes, edges


def refine(colours: list[Any], edges: Edges) -> list[int]:
    """Stable colouring of a graph with attributes on nodes and edges."""
    current, count = [hash(c) for c in colours], 0
    while len(set(current)) > count:
        count = len(set(current))
        seen: list[list[int]] = [[] for _ in current]
        for source, target, attributes in edges:
            seen[target].append(hash((0, attributes, current[source])))
            seen[source].append(hash((1, attributes, current[target])))
        current = [hash((c, tuple(sorted(s)))) for c, s in zip(current, seen, strict=True)]
    return current


def log_automorphisms(colours: list[Any], edges: Edges) -> float:
    """Logarithm of the product of class sizes along a chain of held nodes."""
    total = 0.0
    while True:
        colours = refine(colours, edges)
        sizes = Counter(colours)
        free = next((k for k, c in enumerate(colours) if sizes[c] > 1), None)
        if free is None:
            return total
        total += math.log(sizes[colours[free]])
        colours = [(c, k == free) for k, c in enumerate(colours)]


def random_weights(traced: Trace) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        n: torch.randn(w.shape, generator=generator, dtype=torch.float64) for n, w in traced.example_weights.items()
    }


def colours_of(layout: BlockLayout, weights: dict[str, Tensor]) -> list[int]:
    return sorted(refine(*structure(ParameterGraph.from_weights(layout, weights), values=True)))


def traced_case(name: str) -> Trace:
    if name in OWN:
        build, shape = OWN[name]
        return trace(build(), torch.zeros(shape))
    case = ARCHITECTURES[name]
    return trace(case.build(), *case.example)


# The weight space gives the inputs of all groups of a made kernel one order; the graph has one for each.
MORE_IN_THE_GRAPH = {"made_grouped_kernel": math.log(2)}


@pytest.mark.parametrize("name", [*OWN, *SMALL])
def test_automorphisms_are_the_group(name: str) -> None:
    traced = traced_case(name)
    space, layout, weights = traced.weight_space(), traced.layout(), random_weights(traced)
    g = next(g for g in map(space.random_permutation, range(100)) if g.moved)
    assert colours_of(layout, space.permute(weights, g)) == colours_of(layout, weights)
    assert log_automorphisms(*structure(traced.parameter_graph(), values=False)) == pytest.approx(
        space.log_order + MORE_IN_THE_GRAPH.get(name, 0.0), abs=1e-9
    )
    state = ParameterGraph.from_weights(layout, weights).to_state_dict()
    assert list(state) == [*weights, *(name for name, _ in layout.aliases)]
    assert all(torch.equal(state[n], w) for n, w in weights.items())


def heads(tensor: Tensor, order: list[int]) -> Tensor:
    return tensor.unflatten(0, (2, -1))[order].flatten(0, 1)


@pytest.mark.parametrize(
    ("what", "moved"),
    [
        ("heads of the queries alone", {"q.weight": [1, 0], "q.bias": [1, 0]}),
        ("heads of queries and keys without values", {n: [1, 0] for n in ("q.weight", "q.bias", "k.weight", "k.bias")}),
    ],
)
def test_swaps_across_heads_are_no_automorphisms(what: str, moved: dict[str, list[int]]) -> None:
    traced = traced_case("attention")
    weights = random_weights(traced)
    changed = {n: heads(w, moved[n]) if n in moved else w for n, w in weights.items()}
    assert colours_of(traced.layout(), changed) != colours_of(traced.layout(), weights), what


def test_query_dimensions_move_with_key_dimensions_inside_their_head() -> None:
    traced = traced_case("attention")
    weights, layout = random_weights(traced), traced.layout()
    inside = torch.tensor([2, 0, 1, 3, 4, 5])  # the three dimensions of the first head turned
    across = torch.tensor([3, 1, 2, 0, 4, 5])  # one exchanged with one of the second head

    def changed(order: Tensor, names: tuple[str, ...]) -> list[int]:
        return colours_of(layout, {n: w[order] if n.split(".")[0] in names else w for n, w in weights.items()})

    assert changed(inside, ("q", "k")) == colours_of(layout, weights)
    assert changed(inside, ("q",)) != colours_of(layout, weights)
    assert changed(across, ("q", "k")) != colours_of(layout, weights)


def test_rotary_dimensions_keep_their_places() -> None:
    traced = traced_case("rotary")
    weights, layout = random_weights(traced), traced.layout()
    order = torch.tensor([1, 0, 3, 2, 4, 5, 6, 7])  # pairs of the first head exchanged: other frequencies
    changed = {n: w[order] if n.split(".")[0] in ("q", "k") else w for n, w in weights.items()}
    assert colours_of(layout, changed) != colours_of(layout, weights)


def test_the_counter_sees_a_missing_edge() -> None:
    """Without the parameter-free edges heads fall apart, and the count must say so."""
    traced = traced_case("attention")
    nodes, edges = structure(traced.parameter_graph(), values=False)
    alone = [e for e in edges if e[2][1] is not None]
    assert log_automorphisms(nodes, alone) > traced.weight_space().log_order + 1
