"""Diagrams: nothing overlaps, no line runs through a box, equal modules fold, pictures come out."""

import itertools

import pytest
import torch
from torch import nn

from weightspace.graphs import BlockLayout, OperatorGraph, ParameterGraph, trace
from weightspace.graphs.drawing.diagram import Diagram
from weightspace.graphs.drawing.diagram_layout import lay_out
from weightspace.graphs.drawing.drawing import draw, draw_operators


class Layer(nn.Module):
    """Pre-norm transformer layer with a GELU written out."""

    def __init__(self):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.out, self.up, self.down = (nn.Linear(8, n) for n in (24, 8, 8, 8))

    def forward(self, x):
        q, k, v = self.qkv(self.n1(x)).chunk(3, -1)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v))
        return x + self.down(nn.functional.gelu(self.up(self.n2(x))))


class Transformer(nn.Module):
    def __init__(self, depth=3):
        super().__init__()
        self.stem, self.layers, self.head = (
            nn.Linear(4, 8),
            nn.ModuleList(Layer() for _ in range(depth)),
            nn.Linear(8, 2),
        )
        self.position = nn.Parameter(torch.zeros(5, 8))

    def forward(self, x):
        x = self.stem(x) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class UNet(nn.Module):
    """Links that pass many rows: down, down, up, up, with concatenations and a residual connection over everything."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.d, self.e = nn.Conv2d(8, 4, 3, 1, 1), nn.Conv2d(8, 2, 3, 1, 1)

    def forward(self, x):
        a = torch.relu(self.a(x))
        b = torch.relu(self.b(a))
        d = torch.relu(self.d(torch.cat([torch.relu(self.c(b)), b], 1)))
        return x + self.e(torch.cat([d, a], 1))


class InTurns(nn.Module):
    """A module called twice around another one."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 3))
        self.other = nn.Linear(3, 3)

    def forward(self, x):
        return self.shared(torch.relu(self.other(self.shared(x)))) + x


def _graph(module, *shape) -> OperatorGraph:
    return trace(module, torch.zeros(shape)).operator_graph()


@pytest.fixture(scope="module")
def graphs():
    return {
        "transformer": _graph(Transformer(), 2, 5, 4),
        "unet": _graph(UNet(), 1, 2, 8, 8),
        "in_turns": _graph(InTurns(), 2, 3),
    }


def _placed(frame, left=0.0, top=0.0):
    """Frames and lines with their place on the page: (frame, left, top) and (line, left, top)."""
    x, y = left + frame.left, top + frame.top
    frames, lines = [(frame, x, y)], [(line, x, y) for line in frame.lines]
    for child in frame.inner:
        more = _placed(child, x, y)
        frames, lines = frames + more[0], lines + more[1]
    return frames, lines


def _points(line, left, top, steps=12):
    """Points of a line as it is drawn: down, a cubic curve, down."""
    (x, y), (to, end), middle = line.start, line.end, (line.bend + line.arrive) / 2
    ends = [(x, line.bend), (x, middle), (to, middle), (to, line.arrive)]
    curve = [
        tuple(sum(w * p[i] for w, p in zip(((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3), ends,
                                           strict=True)) for i in (0, 1))
        for t in (k / steps for k in range(steps + 1))
    ]  # fmt: skip
    straight = [(x, y + (line.bend - y) * k / steps) for k in range(steps)]
    return [(left + a, top + b) for a, b in (*straight, *curve, (to, end))]


@pytest.mark.parametrize("name", ["transformer", "unet", "in_turns"])
def test_no_line_runs_through_a_box_and_no_boxes_overlap(graphs, name):
    diagram = Diagram.from_operators(graphs[name])
    for closed in (frozenset(), diagram.closed_for(6), diagram.closed_for(1)):
        frames, lines = _placed(lay_out(diagram, closed))
        leaves = [(f, x, y) for f, x, y in frames if not f.inner]
        for (f, x, y), (g, u, v) in itertools.combinations(leaves, 2):
            assert x + f.width <= u or u + g.width <= x or y + f.height <= v or v + g.height <= y
        for line, left, top in lines:
            for a, b in _points(line, left, top):
                assert not [
                    f.box.name for f, x, y in leaves if x < a < x + f.width and y + 0.1 < b < y + f.height - 0.1
                ]
        for f, _, _ in frames:
            for child in f.inner:
                assert child.left >= -1e-6
                assert child.left + child.width <= f.width + 1e-6
                assert child.top + child.height <= f.height + 1e-6


@pytest.mark.parametrize("name", ["transformer", "unet", "in_turns"])
def test_every_operation_is_in_one_box_and_lines_join_what_data_joins(graphs, name):
    graph, diagram = graphs[name], Diagram.from_operators(graphs[name])
    assert sorted(m for b in diagram.boxes.values() if not b.children for m in b.members) == list(range(len(graph)))
    for box in diagram.boxes.values():
        if not box.children:
            continue
        plan = diagram.plan(box)
        row = {k: n for n, items in enumerate(plan.rows) for k in items}
        assert sorted(row) == list(range(len(plan.items)))
        assert all(row[b] == row[a] + 1 for a, b, _ in plan.lines)
        # Following the lines of one result from where it is made leads to exactly those that read it.
        inside = {m: k for k, child in enumerate(box.children) for m in child.members}
        for u in range(len(graph)):
            lines = [(a, b) for a, b, m in plan.lines if m == u]
            ends = {plan.items[b].child for _, b in lines if plan.items[b].kind == "box"}
            readers = {inside[v] for s, v in graph.edges if s == u and v in inside}
            assert ends == readers - {inside.get(u, -1)}


def test_a_conv_its_norm_and_its_activation_share_a_box():
    block = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 1))
    diagram = Diagram.from_operators(_graph(block, 1, 1, 8, 8))
    assert [box.lines for box in diagram.root.children] == [
        *(("input", "1×1×8×8"), ("0", "conv 3×3 1→2", "batch norm 2", "relu"), ("3", "conv 1×1 2→2")),
        *(("output", "1×2×6×6"),),
    ]


def test_equal_layers_fold_into_one(graphs):
    diagram = Diagram.from_operators(graphs["transformer"])
    folded = diagram.folded()
    assert [(b.name, b.repeat) for b in folded.root.children if b.children] == [("layers.0", 3)]
    kept = {m for b in folded.boxes.values() for m in b.members}
    assert {m for edge in folded.edges for m in edge} <= kept
    # the head, which read the third layer, now reads the one that stands for all
    head = folded.boxes["head"].members[0]
    assert [u for u, v in folded.edges if v == head][0] in folded.boxes["layers.0"].members
    unequal = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 3)),
                            nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 3)))  # fmt: skip
    assert all(b.repeat == 1 for b in Diagram.from_operators(_graph(unequal, 1, 3)).folded().boxes.values())


def test_closing_reaches_the_limit(graphs):
    diagram = Diagram.from_operators(graphs["transformer"])
    frames, _ = _placed(lay_out(diagram, diagram.closed_for(8)))
    assert sum(not f.inner for f, _, _ in frames) <= 8
    assert not diagram.closed_for(1000)


def test_pictures(graphs, tmp_path):
    for figure in (
        draw_operators(graphs["transformer"], title="whole"),
        draw_operators(graphs["transformer"], max_boxes=10, title="folded"),
        draw(_parameter_graph([2, 8, 1])),
        draw(_parameter_graph([2, 8, 1]), max_edges=1),
    ):
        figure.savefig(tmp_path / "picture.png")
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    texts = [t.get_text() for t in draw_operators(graphs["transformer"], max_boxes=10).axes[0].texts]
    assert "layers.0  ×3  Layer" in texts
    assert texts[0] == "36 operations, 41 parameters"  # 12 a layer, 2 each of stem and head, the position


def _parameter_graph(widths):
    layout = BlockLayout.mlp(widths)
    return ParameterGraph.from_weights(layout, {name: torch.ones(shape) for name, shape in layout.shapes})
