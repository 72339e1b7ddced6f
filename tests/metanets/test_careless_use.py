"""What careless users do to a metanetwork is named: options, sizes, weights. The same for all of them."""

from dataclasses import dataclass, fields

import pytest
import torch
from torch import nn

from weightspace.errors import ShapeError, SpecError
from weightspace.graphs import BlockLayout, WeightSpace, trace
from weightspace.metanets import (
    FlatMLP,
    GraphMetanetworkConfig,
    OperatorNet,
    SharedOperatorNet,
    build_metanet,
    metanet_names,
)
from weightspace.metanets.build import _METANETS
from weightspace.metanets.options import _LEAST, check_config, config_from

NAMES = metanet_names()
WITH_EDITS = [name for name in NAMES if name not in ("weight_tokens", "mlp", "statnn")]
READ = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1))
TRACE = trace(READ, torch.zeros(1, 2))
SMALL = {"width": 8, "edge_width": 4, "attention_width": 8, "heads": 2, "head_width": 8, "frequencies": 4, "token": 4}


def build(name, out_features: int | None = 3, **more):
    torch.manual_seed(0)
    known = {field.name for field in fields(_METANETS[name][1])}
    return build_metanet(name, TRACE, out_features, {k: v for k, v in SMALL.items() if k in known}, **more).eval()


@pytest.fixture
def weights(generator):
    return {k: torch.randn(3, *w.shape, generator=generator) for k, w in READ.state_dict().items()}


OPTIONS = [(name, field.name) for name in NAMES for field in fields(_METANETS[name][1])]


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_an_option_of_the_wrong_type_is_named(name, option):
    for value in ("wide", [1], float("nan")):
        with pytest.raises(SpecError, match=f"'{option}' of metanetwork '{name}' must be "):
            build_metanet(name, TRACE, 3, {option: value})


@pytest.mark.parametrize(("name", "option"), [pair for pair in OPTIONS if pair[1] in _LEAST])
def test_a_number_below_the_smallest_is_named(name, option):
    least = _LEAST[option]
    with pytest.raises(
        SpecError, match=f"'{option}' of metanetwork '{name}' must be at least {least} .got {least - 1}"
    ):
        build_metanet(name, TRACE, 3, {option: least - 1})


@pytest.mark.parametrize("name", ["neural_graph", "neural_graph_transformer"])
def test_neural_graphs_read_through_frequencies(name):
    with pytest.raises(SpecError, match="'frequencies' must be at least 1 .got 0.: parameters enter"):
        build_metanet(name, TRACE, 3, {"frequencies": 0})


def test_every_whole_number_has_a_smallest():
    whole = {
        field.name
        for _, config in _METANETS.values()
        for field in fields(config)
        if field.type in ("int", "int | None")
    }
    assert whole == set(_LEAST), "say in metanets/options.py how small the option can be"


def test_options_are_checked_however_they_are_given():
    for value, text in (
        (True, "a whole number .got True"),
        (2.0, "a whole number .got 2.0"),
        (-1, "at least 1 .got -1"),
    ):
        with pytest.raises(SpecError, match=f"'width' of metanetwork 'gmn' must be {text}"):
            build_metanet("gmn", TRACE, 3, {"width": value})
    with pytest.raises(SpecError, match="'head_dropout' of GraphMetanetwork must be a rate between 0 and 1 .got 1.5"):
        build_metanet("gmn", TRACE, 3, GraphMetanetworkConfig(head_dropout=1.5))
    with pytest.raises(SpecError, match="'dropout' of metanetwork 'gmn' must be a rate between 0 and 1 .got -0.1"):
        build_metanet("gmn", TRACE, 3, {"dropout": -0.1})
    with pytest.raises(
        SpecError, match="'executor' of metanetwork 'gmn' must be one of .'blocks', 'sparse'. .got 'dense'"
    ):
        build_metanet("gmn", TRACE, 3, {"executor": "dense"})
    with pytest.raises(SpecError, match="'chunk' of metanetwork 'operator' must be a whole number or None"):
        build_metanet("operator", TRACE, 3, {"chunk": "all"})
    with pytest.raises(SpecError, match="'frequency_scale' of metanetwork 'operator' must be finite .got inf"):
        build_metanet("operator", TRACE, 3, {"frequency_scale": float("inf")})
    with pytest.raises(SpecError, match="'config' of FlatMLP must be its config class .*FlatMLPConfig"):
        FlatMLP(TRACE.layout(), 3, {"width": 8})  # pyright: ignore[reportArgumentType]
    assert build_metanet("mlp", TRACE, 3, {"dropout": 0, "depth": 0}).embedding_features == 44


def test_options_of_other_config_classes_are_checked_by_type():
    @dataclass(frozen=True)
    class Own:
        offset: int = -3
        name: str = "a"
        sizes: tuple[int, ...] = ()

    check_config(Own(), "Own")
    with pytest.raises(SpecError, match="'name' of Own must be a text .got 3"):
        check_config(Own(name=3), "Own")  # pyright: ignore[reportArgumentType]
    with pytest.raises(SpecError, match=r"has no option \['3', 'size'\]. It has \['name', 'offset', 'sizes'\]"):
        config_from(Own, {"size": 1, 3: 4}, "Own")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("out_features", [0, -1, 2.5, "3", True])
def test_sizes_of_the_answer(out_features):
    with pytest.raises(SpecError, match="'out_features' must be a positive number, or None"):
        build("operator", out_features)


@pytest.mark.parametrize("copies", [0, -1, 2.5, "3", True])
def test_numbers_of_copies(copies):
    with pytest.raises(SpecError, match="'copies' must be at least 1"):
        build("operator", None, copies=copies)


@pytest.mark.parametrize("name", NAMES)
def test_the_wrong_view_is_named(name):
    other = TRACE.weight_space() if _METANETS[name][0].reads is BlockLayout else TRACE.layout()
    wanted = BlockLayout if isinstance(other, WeightSpace) else WeightSpace
    with pytest.raises(
        SpecError, match=f"is built from a {wanted.__name__} .got {type(other).__name__}.*Pass the trace"
    ):
        build_metanet(name, other, 3)


def test_a_probe_that_would_not_be_used_is_refused():
    with pytest.raises(SpecError, match="'probe' of metanetwork 'operator' would not be used. Set the option 'probes'"):
        build_metanet("operator", TRACE, 3, probe=lambda weights, inputs: {})


BAD_WEIGHTS = [
    (lambda w: [w], r"reads one mapping from names to tensors .*\(got list\).*Stack the state dicts"),
    (lambda w: w["0.weight"], r"reads one mapping from names to tensors .*\(got Tensor\)"),
    (lambda w: {k: v.numpy() for k, v in w.items()}, "'0.weight' for .* must be a tensor .got ndarray"),
    (lambda w: {k: v[0] for k, v in w.items()}, r"state dict is of a single network. Add the batch axis: .*w\[None\]"),
    (lambda w: {k: v[:, None] for k, v in w.items()}, "'0.weight' must have shape"),
    (lambda w: {**w, "0.bias": w["0.bias"][0]}, "must share one leading batch axis"),
    (lambda w: {k: v for k, v in w.items() if k != "0.bias"}, r"lacks \['0.bias'\]"),
    (lambda w: {**w, "0.scale": w["0.bias"]}, r"holds \['0.scale'\], which"),
    (lambda w: {k: v.double() for k, v in w.items()}, "'0.weight' is of type torch.float64 and .* of torch.float32"),
    (lambda w: {**w, "2.bias": w["2.bias"].half()}, "'2.bias' is of type torch.float16 .*Convert"),
    (lambda w: {k: v.long() for k, v in w.items()}, "'0.weight' is of type torch.int64"),
    (lambda w: {k: v.to("meta") for k, v in w.items()}, "'0.weight' is on device meta and .* on cpu. Move one"),
]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_batch_of_these_networks_is_named(name, weights):
    net = build(name)
    for spoil, message in BAD_WEIGHTS:
        for use in (net, net.embed, net.fit_normalisation):
            with pytest.raises(ShapeError, match=message):
                use(spoil(weights))


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_gives_an_empty_answer(name, weights):
    net, none = build(name), {k: w[:0] for k, w in weights.items()}
    assert net(none).shape == (0, 3)
    assert net.embed(none).shape == (0, net.embedding_features)
    with pytest.raises(ShapeError, match="Normalisation must be fitted on at least one network .got 0"):
        net.fit_normalisation(none)


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("name", WITH_EDITS)
def test_an_empty_batch_gives_no_weights(name, copies, weights):
    net = build(name, None, copies=copies)
    answer, full = net({k: w[:0] for k, w in weights.items()}), net(weights)
    assert {k: w.shape[1:] for k, w in answer.items()} == {k: w.shape[1:] for k, w in full.items()}
    assert all(len(w) == 0 for w in answer.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_diverged_network_leaves_the_others_as_they_are(name, weights):
    net, spoilt = build(name), {k: w.clone() for k, w in weights.items()}
    spoilt["2.weight"][1, 0, 0] = torch.nan
    answer, clean = net(spoilt), net(weights)
    assert answer[1].isnan().all()
    torch.testing.assert_close(answer[[0, 2]], clean[[0, 2]], rtol=1e-6, atol=1e-6)
    if name in WITH_EDITS:
        edits = build(name, None)
        answer, clean = edits(spoilt), edits(weights)
        assert all(torch.allclose(answer[k][[0, 2]], w[[0, 2]], atol=1e-6) for k, w in clean.items())


def test_half_precision_and_autocast(weights):
    for kind in (torch.bfloat16, torch.float64):
        answer = build("operator").to(kind)({k: w.to(kind) for k, w in weights.items()})
        assert answer.dtype is kind
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer = build("mlp")({k: w.bfloat16() for k, w in weights.items()})
    assert answer.isfinite().all()


def test_a_metanetwork_on_another_device_names_itself(weights):
    net = OperatorNet(TRACE.layout(), 3).to("meta")
    with pytest.raises(ShapeError, match="'0.weight' is on device cpu and OperatorNet on meta. Move one"):
        net(weights)


NORMED = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 2)).eval()


@pytest.mark.parametrize("name", [*WITH_EDITS, "shared"])
@pytest.mark.parametrize("copies", [1, 2])
def test_edits_are_memory_of_their_own(name, copies, generator):
    """Running statistics come back as they were, and whoever trains with them does not write to what was read."""
    traced = trace(NORMED, torch.zeros(2, 1, 8, 8))
    weights = {n: torch.rand(3, *s, generator=generator) + 0.1 for n, s in traced.layout().shapes}
    before = {n: w.clone() for n, w in weights.items()}
    if name == "shared":
        layout = traced.layout()
        edited = SharedOperatorNet([layout], None, copies=copies)([(layout, weights)])[0]
    else:
        known = {field.name for field in fields(_METANETS[name][1])}
        config = {k: v for k, v in SMALL.items() if k in known}
        edited = build_metanet(name, traced, None, config, copies=copies).eval()(weights)
    for value in edited.values():
        value.detach().mul_(2.0)
    assert all(torch.equal(weights[n], w) for n, w in before.items())
    kept = before["1.running_mean"]
    assert torch.equal(edited["1.running_mean"], 2 * (kept if copies == 1 else torch.stack([kept, kept], 1)))


class _Empty(nn.Module):
    """A layer, and a parameter without any entry."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.none, self.b = nn.Linear(2, 4), nn.Parameter(torch.zeros(0, 3)), nn.Linear(4, 1)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


@pytest.mark.parametrize("name", WITH_EDITS)
def test_parameters_without_entries_come_back(name):
    traced = trace(_Empty(), torch.zeros(2, 2))
    weights = {n: torch.zeros(3, *v.shape) for n, v in _Empty().state_dict().items()}
    edited = build_metanet(name, traced, None)(weights)
    assert {n: v.shape for n, v in edited.items()} == {n: v.shape for n, v in weights.items()}


def test_networks_with_nothing_to_read_are_refused():
    traced = trace(nn.Sequential(nn.ReLU()), torch.zeros(1, 2))
    for name in set(NAMES) - {"neural_graph", "neural_graph_transformer"}:
        with pytest.raises(SpecError, match="has nothing to read"):
            build_metanet(name, traced, 3)
    for name in ("neural_graph", "neural_graph_transformer"):
        with pytest.raises(SpecError, match="needs edges between nodes"):
            build_metanet(name, traced, 3)


def test_shared_metanetworks_name_what_they_are_given():
    layout = TRACE.layout()
    with pytest.raises(SpecError, match="must be a list of layouts .got BlockLayout"):
        SharedOperatorNet(layout, 1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(SpecError, match=r"Pass SharedOperatorNetConfig\(...\)"):
        SharedOperatorNet([layout], 1, {"width": 8})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ShapeError, match="must be a pair of a BlockLayout and weights .got Trace and dict"):
        SharedOperatorNet([layout], 1)([(TRACE, {})])  # pyright: ignore[reportArgumentType]


def test_sparse_edges_are_not_streamed():
    with pytest.raises(SpecError, match="'chunk' must be None or 0 for executor='sparse' .got 7"):
        build_metanet("operator", TRACE, 3, {"chunk": 7, "executor": "sparse"})
