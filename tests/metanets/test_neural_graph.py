"""Neural Graphs: laws of both networks, their edits, counts, and the rounds against plain edge lists."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.utils import scatter, softmax

from weightspace.errors import SpecError
from weightspace.graphs import trace
from weightspace.graphs.block_layout import BlockLayout
from weightspace.graphs.message_passing import Sent, edge_pass
from weightspace.layers.neural_graph.graph_embedding import FourierFeatures
from weightspace.layers.neural_graph.neural_graph import NeuralGraph
from weightspace.layers.neural_graph.pna import (
    STATISTICS,
    PrincipalAggregation,
    PrincipalConv,
    SplitEdgeUpdate,
    rectangles,
)
from weightspace.layers.neural_graph.relational_attention import RelationalAttention, RelationalEdgeUpdate
from weightspace.layers.probes import Probe
from weightspace.metanets import (
    NeuralGraphNet,
    NeuralGraphNetConfig,
    NeuralGraphTransformer,
    NeuralGraphTransformerConfig,
    build_metanet,
)

NAMES = ("neural_graph", "neural_graph_transformer", "dense")
SMALL = {
    "neural_graph": {"width": 6, "edge_width": 5, "frequencies": 7, "frequency_scale": 0.3},
    "neural_graph_transformer": {
        "width": 6,
        "edge_width": 5,
        "attention_width": 8,
        "heads": 2,
        "node_hidden": 7,
        "edge_hidden": 9,
        "frequencies": 7,
        "frequency_scale": 0.3,
    },
}
SMALL["dense"] = {**SMALL["neural_graph_transformer"], "dense": True}


def make(
    name: str, layout: BlockLayout, out_features: int | None = 3, copies: int = 1, probe: Probe | None = None, **options
) -> Any:
    model = "neural_graph" if name == "neural_graph" else "neural_graph_transformer"
    net = build_metanet(model, layout, out_features, {**SMALL[name], **options}, copies=copies, probe=probe)
    return net.double().eval()


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("options", [{}, {"readout": "mean"}, {"readout": "max", "layers": 2}], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_answers_are_invariant(name, options, layout_name, layout, random_weights, permute_neurons):
    net, weights = make(name, layout, **options), random_weights(layout)
    answer = net(weights)
    assert answer.std(dim=0).min() > 1e-4
    assert relative(net(permute_neurons(layout_name, layout, weights)), answer) < 1e-10


@pytest.mark.parametrize("name", NAMES)
def test_edits_are_equivariant(name, layout_name, layout, random_weights, permute_neurons, generator):
    net, weights = make(name, layout, None), random_weights(layout)
    torch.nn.init.ones_(net.edit_scale)

    def edit(w):
        return {k: new - w[k] for k, new in net(w).items()}

    state = generator.get_state()
    moved = permute_neurons(layout_name, layout, weights)
    generator.set_state(state)  # the same group element for the edits
    wanted = permute_neurons(layout_name, layout, edit(weights))
    got = edit(moved)
    assert all(relative(got[k], wanted[k]) < 1e-9 for k in weights)
    assert all(change.abs().min() > 1e-8 for change in got.values())


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_takes_part(name, layout, random_weights):
    """Vectors need no update of the edges behind the last round; edits need no readout; nothing is left over."""
    weights = random_weights(layout, 3)
    for out_features, copies in ((3, 1), (None, 2)):
        net = make(name, layout, out_features, copies)
        answer = net(weights)
        values = [answer] if out_features else list(answer.values())
        torch.stack([v.square().sum() for v in values]).sum().backward()
        idle = [key for key, p in net.named_parameters() if p.grad is None]
        assert not [key for key in idle if key != "edit_scale"]


def test_copies_differ_and_start_near_the_weights(siren, random_weights):
    weights = random_weights(siren)
    edited = make("neural_graph", siren, None, 3)(weights)
    for key, w in weights.items():
        assert edited[key].shape == (len(w), 3, *w.shape[1:])
        assert 0 < (edited[key] - w[:, None]).abs().mean() < 0.1
        assert not torch.equal(edited[key][:, 0], edited[key][:, 1])


@pytest.mark.parametrize("name", NAMES[:2])
def test_a_position_of_its_own_for_hidden_nodes_is_caught(name, siren, random_weights, permute_neurons):
    net, weights = make(name, siren), random_weights(siren)
    net.embedding.position_rows = torch.arange(net.graph.num_nodes) % len(net.embedding.positions)
    assert relative(net(permute_neurons("siren", siren, weights)), net(weights)) > 1e-4


def test_pieces_of_a_batch_answer_as_the_whole(siren, random_weights):
    for name in NAMES:
        weights = random_weights(siren, 7)
        net, editor = make(name, siren), make(name, siren, None)
        whole, edited = net(weights), editor(weights)
        net.piece = editor.piece = 3
        torch.testing.assert_close(net(weights), whole, rtol=1e-12, atol=1e-12)
        again = editor(weights)
        for key, value in edited.items():
            torch.testing.assert_close(again[key], value, rtol=1e-12, atol=1e-12)


def test_messages_against_the_forward_pass_can_be_left_out(siren, random_weights, permute_neurons):
    net, weights = make("neural_graph", siren, reverse=False), random_weights(siren)
    assert net.graph.num_edges * 2 == NeuralGraph.of(siren).num_edges == 2 * (2 * 7 + 7 * 6 + 6 * 1)
    assert relative(net(permute_neurons("siren", siren, weights)), net(weights)) < 1e-10
    # without them the inputs hear nothing, so a second layer's weight cannot change their state
    x, _ = net._states(net.standardise(net._blocks(weights)), None)
    other = {**weights, "layers.1.weight": weights["layers.1.weight"] + 1}
    y, _ = net._states(net.standardise(net._blocks(other)), None)
    assert torch.equal(x[:, :2], y[:, :2])
    assert not torch.equal(x[:, -1], y[:, -1])


def edge_list(graph: NeuralGraph, edges: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Receiver, sender and state of every edge, one by one."""
    receivers, senders, states = [], [], []
    for relation, e in zip(graph.relations, edges, strict=True):
        to = graph.rows(relation, sender=False).view(relation.groups, relation.receivers)
        origin = graph.rows(relation, sender=True).view(relation.groups, relation.senders)
        for g in range(relation.groups):
            for r in range(relation.receivers):
                for s in range(relation.senders):
                    receivers.append(int(to[g, r]))
                    senders.append(int(origin[g, s]))
                    states.append(e[:, g, r, s])
    return torch.tensor(receivers), torch.tensor(senders), torch.stack(states, dim=1)


def draw_states(graph: NeuralGraph, width: int, edge_width: int, generator) -> tuple[Tensor, list[Tensor]]:
    def draw(*shape):
        return torch.randn(2, *shape, generator=generator, dtype=torch.float64, requires_grad=True)

    return draw(graph.num_nodes, width), [draw(r.groups, r.receivers, r.senders, edge_width) for r in graph.relations]


def same_with_gradients(one, two, inputs) -> None:
    results = []
    for value in (one, two):
        weight = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).view_as(value)
        results.append([value, *torch.autograd.grad((value * weight).sum(), inputs, allow_unused=True)])
    for a, b in zip(*results, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("reverse", [True, False])
def test_principal_convolution_equals_edge_by_edge(reverse, layout, generator):
    graph = NeuralGraph.of(layout, reverse=reverse)
    conv = PrincipalConv(graph, 4, 3).double()
    x, edges = draw_states(graph, 4, 3, generator)
    to, origin, e = edge_list(graph, edges)
    weight = torch.cat([conv.from_receiver.weight, conv.from_sender.weight], dim=1)
    pair = torch.cat([x[:, to], x[:, origin]], dim=-1) @ weight.T + conv.from_receiver.bias
    scale, shift = conv.modulate(e).chunk(2, dim=-1)
    m, n = scale * pair + shift, graph.num_nodes
    degree = torch.bincount(to, minlength=n).double()[:, None]
    mean = scatter(m, to, 1, n, "mean")
    deviation = (torch.relu(scatter(m * m, to, 1, n, "mean") - mean * mean) + 1e-5).sqrt() * (degree > 0)
    columns = torch.cat([mean, scatter(m, to, 1, n, "min"), scatter(m, to, 1, n, "max"), deviation], dim=-1)
    amplified = columns * (degree + 1).log() / (degree + 1).log().mean()
    plain = conv.update(torch.cat([x, columns, amplified], dim=-1))
    same_with_gradients(conv(x, edges), plain, [x, *edges, *conv.parameters()])


def statistics_of(messages):
    """Partial results of one relation, of messages that are the edges themselves."""
    batch, groups, rows, _, channels = messages.shape
    none = [messages.new_zeros(batch, groups * n, 1) for n in messages.shape[2:4]]
    arguments = rectangles(messages, *none)
    passed = edge_pass(lambda edges, receivers, senders: Sent(edges), *arguments, to_receivers=STATISTICS)
    return {how: x.view(batch, groups * rows, channels) for how, x in passed.receivers.items()}


@pytest.mark.parametrize("order", [1, 2])
def test_derivatives_of_the_aggregation(order, generator):
    graph = NeuralGraph.of(BlockLayout.mlp([2, 3, 2]), reverse=False)
    aggregate = PrincipalAggregation(graph).double()
    shapes = [(1, r.groups, r.receivers, r.senders, 2) for r in graph.relations]
    messages = [torch.randn(*s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]
    check = torch.autograd.gradcheck if order == 1 else torch.autograd.gradgradcheck
    assert check(lambda *m: aggregate([statistics_of(x) for x in m]), messages)


def test_equal_messages_share_the_derivative_of_an_extremum():
    graph = NeuralGraph.of(BlockLayout.mlp([4, 1]), reverse=False)
    m = torch.tensor([3.0, 1.0, 3.0, 0.0]).view(1, 1, 1, 4, 1).requires_grad_()
    mean, bottom, top, deviation = PrincipalAggregation(graph)([statistics_of(m)])[0, -1, :4]
    assert (mean, bottom, top) == (1.75, 0.0, 3.0)
    assert torch.autograd.grad(top, m, retain_graph=True)[0].flatten().tolist() == [0.5, 0, 0.5, 0]
    assert torch.autograd.grad(bottom, m)[0].flatten().tolist() == [0, 0, 0, 1]
    torch.testing.assert_close(deviation, (torch.tensor(19 / 4 - 1.75**2) + 1e-5).sqrt())


@pytest.mark.parametrize("dense", [False, True])
def test_relational_attention_equals_edge_by_edge(dense, layout, generator):
    graph = NeuralGraph.of(layout)
    graph = graph.all_pairs() if dense else graph
    layer = RelationalAttention(graph, 4, 3, 8, 2).double()
    torch.nn.init.normal_(layer.message.modulation)
    x, edges = draw_states(graph, 4, 3, generator)
    to, origin, e = edge_list(graph, edges)
    query, key, value = layer.from_node(x).chunk(3, dim=-1)
    on_query, on_key, on_value, add = (e @ w.T for w in layer.message.from_edge.weight.chunk(4))
    product = (query[:, to] + on_query) * (key[:, origin] + on_key) / math.sqrt(8)
    score = product.unflatten(-1, (2, 4)).sum(-1)
    alpha = softmax(score, to, dim=1, num_nodes=graph.num_nodes).repeat_interleave(4, dim=-1)
    message = alpha * (value[:, origin] * (on_value + layer.message.modulation) + add)
    plain = layer.out(scatter(message, to, 1, graph.num_nodes, "sum"))
    same_with_gradients(layer(x, edges), plain, [x, *edges, *layer.parameters()])


def test_attention_survives_large_scores(siren, generator):
    graph = NeuralGraph.of(siren)
    layer = RelationalAttention(graph, 4, 3, 8, 2)
    x, edges = draw_states(graph, 4, 3, generator)
    answer = layer(1e4 * x.float(), [e.float() for e in edges])
    assert torch.isfinite(answer).all()


@pytest.mark.parametrize("kind", ["convolution", "attention"])
def test_edge_updates_equal_edge_by_edge(kind, layout, generator):
    graph = NeuralGraph.of(layout)
    x, edges = draw_states(graph, 4, 3, generator)
    to, origin, e = edge_list(graph, edges)
    if kind == "convolution":
        update = SplitEdgeUpdate(graph, 4, 3).double()
        parts = [update.edge.weight, update.from_receiver.weight, update.from_sender.weight]
        columns = torch.cat([e, x[:, to], x[:, origin]], dim=-1) @ torch.cat(parts, dim=1).T
        plain = update.out(torch.nn.functional.silu(columns + update.from_receiver.bias))
    else:
        update = RelationalEdgeUpdate(graph, 4, 3, 5).double()
        reversed_edges = [edges[k].transpose(2, 3) for k in graph.partners()]
        _, _, partner = edge_list(graph, reversed_edges)
        parts = [update.message.edge, update.message.partner, update.from_receiver, update.from_sender]
        weight = torch.cat([part.weight for part in parts], dim=1)
        hidden = torch.cat([e, partner, x[:, to], x[:, origin]], dim=-1) @ weight.T + update.message.edge.bias
        new = update.message
        first = new.norms[0](e + new.out(torch.nn.functional.silu(hidden)))
        plain = new.norms[1](first + new.mlp(first))
    _, _, fast = edge_list(graph, update(edges, x))
    same_with_gradients(fast, plain, [x, *edges, *update.parameters()])


def test_a_weight_space_is_no_neural_graph():
    space = trace(torch.nn.Linear(2, 3), torch.zeros(1, 2)).weight_space()
    with pytest.raises(SpecError, match="made of a BlockLayout.*got WeightSpace"):
        NeuralGraphNet(space, 10)  # pyright: ignore[reportArgumentType]


def test_counts_of_the_published_configuration():
    """2-32-32-1: with every linear map of the paper's code listed; see the docstring for what is merged."""
    layout = BlockLayout.mlp([2, 32, 32, 1], activation="sin", gain=30.0)
    net = NeuralGraphNet(layout, 10)
    c, f = 32, 2 * 128
    embedding = (f * c + c) + (f * 2 * c + 2 * c) + (2 + 1 + 1 + 1) * c  # biases, edges of two directions, positions
    conv = (2 * c * c + c) + (c * 2 * c + 2 * c) + (9 * c * c + c)  # pair, modulation, update from state and 8 c
    update = 3 * c * c + c + c * c + c
    head = 2 * (c * c + c) + c * 10 + 10
    assert sum(p.numel() for p in net.parameters()) == embedding + 4 * conv + 3 * (update + 2 * c) + head == 93_706
    # the public code has 92,010: no second map for reversed edges, but two maps after the aggregation
    c, e, a = 64, 32, 128
    attention = c * 3 * a + 3 * a + e * 3 * a + a + e * a + a * c + c
    mlp = c * 128 + 128 + 128 * c + c
    edge = (2 * e + 2 * c) * 64 + 64 + 64 * e + e + e * 64 + 64 + 64 * e + e + 4 * e
    embedding = (f * c + c) + (f * 2 * e + 2 * e) + 5 * c
    head = c * 128 + 128 + 128 * 10 + 10
    transformer = NeuralGraphTransformer(layout, 10)
    assert sum(p.numel() for p in transformer.parameters()) == (
        embedding + 4 * (attention + mlp + 4 * c) + 3 * edge + head
    )


@pytest.mark.parametrize("features", [1, 3])
def test_fourier_features_are_cosines_and_sines(features, generator):
    fourier = FourierFeatures(features, 5, 2.0).double()
    x = torch.randn(4, 2, features, generator=generator, dtype=torch.float64, requires_grad=True)
    phase = x @ fourier.frequencies
    same_with_gradients(fourier(x), torch.cat([phase.cos(), phase.sin()], dim=-1), [x])


def test_depth_costs_a_position_only():
    counts = [
        sum(p.numel() for p in NeuralGraphNet(BlockLayout.mlp([2, *[8] * depth, 1]), 3).parameters())
        for depth in (2, 3, 9)
    ]
    assert [b - counts[0] for b in counts] == [0, 32, 7 * 32]


def test_second_moments_are_kept_at_the_start(generator):
    """Edge and message states of standard normal networks stay of order one through the rounds."""
    for widths in ([2, 32, 32, 1], [64, 48, 10]):
        layout = BlockLayout.mlp(widths)
        weights = {n: torch.randn(2, *s, generator=generator) for n, s in layout.shapes}
        net = NeuralGraphNet(layout, None).eval()
        x, edges = net.embedding(net.standardise(net._blocks(weights)))
        _, last = net._rounds(x, edges)
        for states in (edges, last):
            moment = torch.cat([e.flatten() for e in states]).square().mean()
            assert 0.2 < moment < 5


def _tanh_values(weights, inputs):
    """Pre-activation values of a network 2-7-6-1."""
    x = inputs.to(weights["layers.0.weight"]).expand(len(weights["layers.0.weight"]), -1, -1)
    values = {}
    for m in range(3):
        values[f"layers.{m}"] = x @ weights[f"layers.{m}.weight"].mT + weights[f"layers.{m}.bias"][:, None]
        x = values[f"layers.{m}"].tanh()
    return values


@pytest.mark.parametrize("name", ["neural_graph", "neural_graph_transformer"])
def test_probes(name, siren, random_weights, permute_neurons):
    weights = random_weights(siren)
    moved = permute_neurons("siren", siren, weights)
    net = make(name, siren, probes=5, probe=_tanh_values)
    assert net.config.evaluates_network
    assert relative(net(moved), net(weights)) < 1e-10
    net(weights).sum().backward()
    assert net.probes.inputs.grad.abs().min() > 0
    editor = make(name, siren, None, probes=5, probe=_tanh_values)
    editor(weights)["layers.1.weight"].sum().backward()
    assert editor.probes.inputs.grad.abs().max() > 0
    with pytest.raises(SpecError, match="'probe' must be given for probes=5"):
        make(name, siren, probes=5)


def test_bad_options_are_refused(siren):
    with pytest.raises(SpecError, match="'readout' of .* must be one of .'outputs', 'mean', 'max'. .got 'last'"):
        NeuralGraphNet(siren, 3, NeuralGraphNetConfig(readout="last"))  # pyright: ignore[reportArgumentType]
    with pytest.raises(SpecError, match="'attention_width' must be a multiple of 'heads' .got 12 and 8"):
        NeuralGraphTransformer(siren, 3, NeuralGraphTransformerConfig(attention_width=12))
    with pytest.raises(SpecError, match="all pairs of 603 nodes, more than 512. Attend along edges"):
        NeuralGraphTransformer(BlockLayout.mlp([2, 600, 1]), 3, NeuralGraphTransformerConfig(dense=True))
    hidden_only = BlockLayout(siren.layers[:3], siren.blocks[:2], siren.shapes[:2])
    with pytest.raises(SpecError, match="has no output nodes. Pool all nodes: readout='mean'"):
        NeuralGraphNet(hidden_only, 3)
