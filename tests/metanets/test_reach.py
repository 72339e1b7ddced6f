"""Metanetworks that read the outputs say which weights their rounds leave out."""

import math
import warnings

import pytest
import torch

from tests.architectures.zoo import ARCHITECTURES
from weightspace.errors import UnreadWeightsWarning
from weightspace.graphs import BlockLayout, trace
from weightspace.layers.reach import rounds_to_read
from weightspace.metanets import build_metanet

SMALL = {"width": 4, "edge_width": 4, "head_width": 4}
MODELS = {
    "neural_graph": ("neural_graph", SMALL, True),
    "neural_graph, forward": ("neural_graph", {**SMALL, "reverse": False}, False),
    "neural_graph_transformer": ("neural_graph_transformer", {**SMALL, "heads": 1}, True),
    "scale_gmn": ("scale_gmn", {"width": 4, "readout": "last_layer"}, False),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ["mlp", "lenet", "resnet"])
def test_parameters_within_reach_are_those_with_a_gradient(name, model):
    case = ARCHITECTURES[name]
    traced = trace(case.build(), *case.example)
    kind, options, reverse = MODELS[model]
    needed = rounds_to_read(traced.layout(), reverse=reverse)
    weights = {
        key: torch.randn(1, *shape, dtype=torch.float64, requires_grad=True) for key, shape in traced.layout().shapes
    }
    for layers in (1, 3):
        torch.manual_seed(0)
        net = build_metanet(kind, traced, 3, {**options, "layers": layers}).double().eval()
        answer = net(weights).square().sum()
        gradients = torch.autograd.grad(answer, list(weights.values()), allow_unused=True)
        for key, gradient in zip(weights, gradients, strict=True):
            seen = gradient is not None and bool((gradient != 0).all())
            assert seen == (needed[key] <= layers), (key, layers)


@pytest.mark.parametrize("model", MODELS)
def test_what_is_left_out_is_named(model):
    layout = BlockLayout.mlp([2, 4, 4, 4, 1], activation="relu")
    kind, options, _ = MODELS[model]
    way = "full_graph" if kind == "scale_gmn" else "mean"
    words = rf"{kind} with layers=2 .* 3 of 8 tensors .* in full \('.*', '.*', '.*'\). Take layers=4 or readout='{way}'"
    with pytest.warns(UnreadWeightsWarning, match=words):
        build_metanet(kind, layout, 3, {**options, "layers": 2})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_metanet(kind, layout, 3, {**options, "layers": 4})
        build_metanet(kind, layout, 3, {**options, "layers": 2, "readout": way})
        build_metanet(kind, layout, None, {**options, "layers": 2})


@pytest.mark.parametrize(("name", "never", "count"), [("gpt2", 28, 28), ("vit", 1, 32)])
def test_more_rounds_are_no_way_out_for_weights_that_never_reach_the_outputs(name, never, count):
    case = ARCHITECTURES[name]
    layout = trace(case.build(), *case.example).layout()
    rounds = rounds_to_read(layout, reverse=False)
    assert (sum(needed == math.inf for needed in rounds.values()), len(rounds)) == (never, count)
    with pytest.warns(UnreadWeightsWarning, match=rf"of {count} tensors .*\)\. Take readout='mean'"):
        build_metanet("neural_graph", layout, 3, {**SMALL, "layers": 2, "reverse": False})
