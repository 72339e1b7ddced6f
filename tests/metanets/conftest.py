"""Layouts written by hand: every kind of block the metanetworks claim to read."""

import pytest
import torch
from torch import Tensor, nn

from weightspace.graphs.block_layout import BlockLayout, EdgeBlock, NodeLayer
from weightspace.graphs.parameter_view import ParameterView
from weightspace.metanets import (
    Metanet,
    SharedGraphMetanetwork,
    SharedGraphMetanetworkConfig,
    SharedMetanet,
    SharedOperatorNet,
    SharedOperatorNetConfig,
    build_metanet,
)


def block(name, role, source, target, shape, *, view=True, parameter_shape=None, **more) -> EdgeBlock:
    """A block that is a whole parameter in the shape of the block."""
    groups, out, inputs, positions = shape
    whole = parameter_shape or shape
    cut = ParameterView(name, whole).reshape(*shape) if view else None
    offsets = tuple((p,) for p in range(positions)) if positions > 1 else ((),)
    return EdgeBlock(name, role, source, target, cut, *shape, offsets=more.pop("offsets", offsets), **more)


def layout_of(layers, blocks) -> BlockLayout:
    shapes = tuple((b.view.parameter, b.view.parameter_shape) for b in blocks if b.view is not None)
    return BlockLayout(tuple(layers), tuple(blocks), shapes)


def residual_cnn() -> BlockLayout:
    """Convolution, norm, depthwise convolution with a residual, grouped convolution, flatten to a linear output."""
    layers = [
        NodeLayer("input", 3, "input"),
        NodeLayer("c1", 8, "hidden", "relu"),
        NodeLayer("c1.bias", 1, "bias"),
        NodeLayer("n1.weight", 1, "norm"),
        NodeLayer("n1.bias", 1, "norm"),
        NodeLayer("c2", 8, "hidden", "relu"),
        NodeLayer("c3", 4, "hidden", "relu"),
        NodeLayer("fc", 5, "output"),
        NodeLayer("fc.bias", 1, "bias"),
    ]
    blocks = [
        block("c1.weight", "weight", "input", "c1", (1, 8, 3, 9), parameter_shape=(8, 3, 3, 3)),
        block("c1.bias", "bias", "c1.bias", "c1", (1, 8, 1, 1), parameter_shape=(8,)),
        block("n1.weight", "norm_scale", "n1.weight", "c1", (1, 8, 1, 1), parameter_shape=(8,)),
        block("n1.bias", "norm_shift", "n1.bias", "c1", (1, 8, 1, 1), parameter_shape=(8,)),
        block("c2.weight", "weight", "c1", "c2", (8, 1, 1, 9), parameter_shape=(8, 1, 3, 3)),
        block("skip", "residual", "c1", "c2", (8, 1, 1, 1), view=False),
        block("c3.weight", "weight", "c2", "c3", (2, 2, 4, 4), parameter_shape=(4, 4, 2, 2)),
        block("fc.weight", "weight", "c3", "fc", (1, 5, 4, 6), parameter_shape=(5, 24)),
        block("fc.bias", "bias", "fc.bias", "fc", (1, 5, 1, 1), parameter_shape=(5,)),
    ]
    return layout_of(layers, blocks)


def concatenation() -> BlockLayout:
    """Two branches concatenated into one layer, whose weight is cut in two blocks; a skip weight input to output."""
    layers = [
        NodeLayer("input", 2, "input"),
        NodeLayer("a", 4, "hidden", "sin", 30.0),
        NodeLayer("b", 3, "hidden", "relu"),
        NodeLayer("join", 5, "hidden", "relu"),
        NodeLayer("join.bias", 1, "bias"),
        NodeLayer("out", 2, "output"),
    ]
    whole = ParameterView("join.weight", (5, 7))
    blocks = [
        block("a.weight", "weight", "input", "a", (1, 4, 2, 1), parameter_shape=(4, 2)),
        block("b.weight", "weight", "input", "b", (1, 3, 2, 1), parameter_shape=(3, 2)),
        EdgeBlock("join.a", "weight", "a", "join", whole.slice(1, 0, 4).reshape(1, 5, 4, 1), 1, 5, 4, 1),
        EdgeBlock("join.b", "weight", "b", "join", whole.slice(1, 4, 7).reshape(1, 5, 3, 1), 1, 5, 3, 1),
        block("join.bias", "bias", "join.bias", "join", (1, 5, 1, 1), parameter_shape=(5,)),
        block("out.weight", "weight", "join", "out", (1, 2, 5, 1), parameter_shape=(2, 5)),
        block("skip.weight", "weight", "input", "out", (1, 2, 2, 1), parameter_shape=(2, 2)),
    ]
    shapes = {b.view.parameter: b.view.parameter_shape for b in blocks if b.view is not None}
    return BlockLayout(tuple(layers), tuple(blocks), tuple(shapes.items()))


def node_subsets() -> BlockLayout:
    """Blocks that touch a part of a layer, in an order of their own; a grouped convolution of the inputs."""
    layers = [
        NodeLayer("input", 4, "input"),
        NodeLayer("h", 6, "hidden", "relu"),
        NodeLayer("k", 3, "hidden", "relu"),
        NodeLayer("out", 1, "output"),
    ]
    blocks = [
        block("h.weight", "weight", "input", "h", (2, 3, 2, 1), parameter_shape=(6, 2)),
        block("k.weight", "weight", "h", "k", (1, 2, 3, 1), source_nodes=(5, 0, 2), target_nodes=(2, 0)),
        block("out.weight", "weight", "k", "out", (1, 1, 3, 1)),
        block("out.part", "weight", "h", "out", (1, 1, 2, 1), source_nodes=(1, 3)),
        block("tie", "link", "input", "h", (2, 1, 1, 1), view=False, source_nodes=(0, 1), target_nodes=(0, 3)),
    ]
    return layout_of(layers, blocks)


def without_bias() -> BlockLayout:
    """Four linear maps without biases: the middle hidden layer touches no fixed node."""
    layers = [NodeLayer("input", 2, "input"), *(NodeLayer(f"h{i}", 3 + i, "hidden", "relu") for i in range(3))]
    layers.append(NodeLayer("out", 2, "output"))
    pairs = zip(layers[:-1], layers[1:], strict=True)
    return layout_of(
        layers, [block(f"{b.name}.weight", "weight", a.name, b.name, (1, b.size, a.size, 1)) for a, b in pairs]
    )


SIREN = BlockLayout.mlp([2, 7, 6, 1], activation="sin", gain=30.0)
LAYOUTS = {
    "siren": SIREN,
    "deep": BlockLayout.mlp([3, 4, 5, 6, 2]),
    "one_neuron": BlockLayout.mlp([1, 1, 1, 1]),
    "one_hidden_layer": BlockLayout.mlp([3, 5, 2]),
    "linear": BlockLayout.mlp([3, 2]),
    "without_bias": without_bias(),
    "residual_cnn": residual_cnn(),
    "concatenation": concatenation(),
    "node_subsets": node_subsets(),
}
# where not every hidden layer permutes freely: sets of layers that move together, with the parts that may be shuffled
SYMMETRIES = {
    "residual_cnn": [(["c1", "c2"], [[0, 1, 2, 3], [4, 5, 6, 7]]), (["c3"], [[0, 1], [2, 3]])],
    "node_subsets": [(["k"], [[0, 2]])],
}
SMALL = {
    "operator": {"width": 8, "heads": 4, "layers": 2, "frequencies": 8, "head_width": 16},
    "gmn": {"width": 8, "edge_width": 4, "layers": 3, "edge_units": 8, "head_width": 16},
    "neural_graph": {
        "width": 6,
        "edge_width": 5,
        "layers": 4,
        "frequencies": 7,
        "frequency_scale": 0.5,
        "head_width": 8,
    },
    "neural_graph_transformer": {
        "width": 6,
        "edge_width": 5,
        "attention_width": 8,
        "heads": 2,
        "node_hidden": 7,
        "edge_hidden": 9,
        "frequencies": 7,
        "frequency_scale": 0.5,
    },
    "deep_sets": {"width": 8, "head_width": 16},
    "scale_gmn": {"width": 6, "layers": 4, "bidirectional": True, "head_width": 8},
    "nft": {"width": 8, "heads": 2, "layers": 2, "frequencies": 4, "head_width": 16},
    "weight_tokens": {"token": 4, "width": 8, "heads": 2, "layers": 1},
    "mlp": {"width": 16},
    "statnn": {"width": 16},
}


@pytest.fixture(params=LAYOUTS)
def layout_name(request) -> str:
    return request.param


@pytest.fixture
def layout(layout_name) -> BlockLayout:
    return LAYOUTS[layout_name]


@pytest.fixture
def siren() -> BlockLayout:
    return SIREN


@pytest.fixture
def build():
    """A small metanetwork in float64, in evaluation mode unless asked otherwise."""

    def build(name: str, layout: BlockLayout, *, train: bool = False, **options) -> Metanet:
        torch.manual_seed(0)
        return build_metanet(name, layout, 3, {**SMALL[name], **options}).double().train(train)

    return build


@pytest.fixture
def random_weights(generator):
    """Standard normal networks in float64."""

    def draw(layout: BlockLayout, batch: int = 4) -> dict[str, Tensor]:
        return {n: torch.randn(batch, *s, generator=generator, dtype=torch.float64) for n, s in layout.shapes}

    return draw


@pytest.fixture
def permute_neurons(generator):
    """The same functions with their hidden neurons relabelled at random."""

    def permute(name: str, layout: BlockLayout, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return _permute(layout, weights, _permutations(name, layout, generator))

    return permute


@pytest.fixture
def permute_action():
    """The same as an action on the weights of a layout, for :mod:`weightspace.testing`."""

    def action_of(name: str, layout: BlockLayout):
        def act(weights: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
            return _permute(layout, weights, _permutations(name, layout, generator))

        return act

    return action_of


def _permutations(name: str, layout: BlockLayout, generator: torch.Generator) -> dict[str, Tensor]:
    """One neuron permutation per hidden layer, gather convention ``new = old[perm]``."""
    hidden = [([x.name], [list(range(x.size))]) for x in layout.layers if x.kind == "hidden"]
    result = {}
    for layers, parts in SYMMETRIES.get(name, hidden):
        perm = torch.arange(layout.layer(layers[0]).size)
        for part in map(torch.tensor, parts):
            perm[part] = part.roll(1)[torch.randperm(len(part), generator=generator)]
        result |= dict.fromkeys(layers, perm)
    if name == "residual_cnn":  # the two groups may change places too
        swap = {"c1": [4, 5, 6, 7, 0, 1, 2, 3], "c2": [4, 5, 6, 7, 0, 1, 2, 3], "c3": [2, 3, 0, 1]}
        result = {layer: perm[torch.tensor(swap[layer])] for layer, perm in result.items()}
    return result


def _permute(layout: BlockLayout, weights: dict[str, Tensor], moves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Relabel hidden neurons, block by block, through a dense table of node pairs."""
    values: list[Tensor | None] = []
    for b, value in zip(layout.blocks, layout.split(weights), strict=True):
        if value is None:
            values.append(None)
            continue
        own, move = [], []
        for name, nodes, shape in (
            (b.target, b.target_nodes, (b.groups, b.out)),
            (b.source, b.source_nodes, (b.groups, b.inputs)),
        ):
            identity = torch.arange(layout.layer(name).size)
            own.append((identity if nodes is None else torch.tensor(nodes)).view(shape))
            move.append(moves.get(name, identity))
        table = value.new_full((len(value), len(move[0]), len(move[1]), b.positions), torch.nan)
        for t, s, values_of_group in zip(*own, value.unbind(1), strict=True):
            table[:, t[:, None], s[None, :]] = values_of_group
        table = table[:, move[0]][:, :, move[1]]
        values.append(torch.stack([table[:, t[:, None], s[None, :]] for t, s in zip(*own, strict=True)], dim=1))
    return layout.join(values)


OPERATOR = {"width": 8, "heads": 4, "layers": 2, "function_units": 6, "head_width": 16}
GMN = {"width": 8, "edge_width": 4, "layers": 3, "edge_units": 6, "head_width": 16}


@pytest.fixture(params=["operator", "gmn"])
def make_mixed(request):
    """Small metanetworks for mixed architectures, in float64."""

    def make(architectures, out_features: int | None, **options) -> SharedMetanet:
        torch.manual_seed(0)
        if request.param == "operator":
            config = SharedOperatorNetConfig(**{**OPERATOR, **options})
            net: SharedMetanet = SharedOperatorNet(architectures, out_features, config)
        else:
            config = SharedGraphMetanetworkConfig(**{**GMN, **options})
            net = SharedGraphMetanetwork(architectures, out_features, config)
        for name, parameter in net.named_parameters():
            if name.endswith("difference"):  # as after training: types have parameters of their own
                nn.init.normal_(parameter, std=0.3 * max(1, parameter[0].numel()) ** -0.5)
        return net.double().eval()

    return make
