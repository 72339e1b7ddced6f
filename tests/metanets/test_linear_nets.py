"""DWS, NFN and UNF: the laws under the true group of MLPs, convolutions, recurrence and attention; initialisation."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tests.architectures.weight_spaces import SPACES, attention, mlp
from weightspace.errors import ShapeError, SpecError
from weightspace.graphs import BlockLayout, WeightSpace, trace
from weightspace.metanets import LinearNet, build_metanet, metanet_from_json, metanet_to_json
from weightspace.testing import assert_equivariant, assert_invariant, permutation_action

NETS = {
    "dws": {"width": 4, "layers": 3},
    "nfn": {"width": 4, "layers": 2, "head_width": 16},
    "unf": {"width": 4, "layers": 2},
}
VARIANTS = [
    ("dws", {}),
    ("dws", {"pool": "attention", "reach": "neighbours", "max_free": 2}),
    ("nfn", {}),
    ("nfn", {"ends": "channels", "frequencies": 3}),
    ("unf", {"norm": "layer"}),
    ("unf", {"share": "relations"}),
    ("dws", {"set_heads": 3}),
    ("dws", {"share": "relations", "pool": "attention", "reach": "neighbours", "max_free": 2}),
    ("unf", {"pool": "sum", "positions": "sets"}),
]


def make(name: str, space: WeightSpace, out: int | None = 3, *, copies: int = 1, **options) -> LinearNet:
    torch.manual_seed(0)
    net = build_metanet(name, space, out, {**NETS[name], **options}, copies=copies).double().eval()
    assert isinstance(net, LinearNet)
    return net


def weights_of(space: WeightSpace, batch: int = 3, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {p.name: torch.randn(batch, *p.shape, generator=generator, dtype=torch.float64) for p in space.parameters}


@pytest.mark.parametrize("architecture", SPACES)
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_laws_under_the_true_group(name, options, architecture) -> None:
    space = SPACES[architecture]()
    weights, action = weights_of(space), permutation_action(space)
    net = make(name, space, **options)
    net.fit_normalisation(weights)
    assert_invariant(net, weights, action)
    editor = make(name, space, None, **options)
    editor.fit_normalisation(weights)
    assert_equivariant(editor, weights, action)


def test_the_same_editor_is_not_equivariant_to_a_permutation_of_its_outputs() -> None:
    """Outputs are fixed: an editor may treat them differently, and does."""
    space = mlp(2, 5, 4, 3)
    editor, weights = make("unf", space, None), weights_of(space)

    def swapped(given: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**given, "W3": given["W3"].flip(1), "b3": given["b3"].flip(1)}

    with pytest.raises(AssertionError, match="Not equivariant"):
        assert_equivariant(editor, weights, lambda w, _: swapped(w))


def test_copies_differ_and_each_is_equivariant() -> None:
    space = mlp(2, 5, 4, 1)
    editor, weights = make("nfn", space, None, copies=3), weights_of(space)
    answer = editor(weights)
    assert {k: v.shape[:2] for k, v in answer.items()} == {k: (3, 3) for k in weights}
    assert not torch.equal(answer["W2"][:, 0], answer["W2"][:, 1])
    first = lambda w: {k: v[:, 1] for k, v in editor(w).items()}  # noqa: E731
    assert_equivariant(first, weights, permutation_action(space))


def test_queries_keys_and_values_are_told_apart() -> None:
    space = attention()
    net, weights = make("unf", space), weights_of(space)
    fused = weights["self_attn.in_proj_weight"]
    query, key, value = fused.chunk(3, dim=1)
    for order in ((key, query, value), (value, key, query), (query, value, key)):
        moved = {**weights, "self_attn.in_proj_weight": torch.cat(order, dim=1)}
        assert (net(moved) - net(weights)).abs().max() > 1e-3


@pytest.mark.parametrize("architecture", SPACES)
@pytest.mark.parametrize("name", NETS)
def test_features_keep_their_mean_square_at_the_start(name, architecture) -> None:
    space = SPACES[architecture]()
    net = make(name, space, norm="none", pool="mean", layers=4)
    weights = weights_of(space, 64, seed=1)
    x = net.encode(net.features.read(net.standardise(net._blocks(weights))))
    for k, linear in enumerate(net.linears):
        answers = linear(x, net.positions[k]())
        for y in answers:
            assert 0.2 < y.detach().square().mean() < 5
        x = net._activate(answers, k)


class _Draws(TorchFunctionMode):
    """Refuses what an accelerator would: numbers for it from a generator of the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert func is not torch.randn or "generator" not in kwargs or kwargs.get("device") == "cpu"
        return func(*args, **kwargs)


def test_networks_can_be_made_on_a_device() -> None:
    with torch.device("meta"), _Draws():
        net = build_metanet("nfn", mlp(2, 5, 4, 1), 3, {"width": 4})
    assert {p.device.type for p in net.parameters()} == {"meta"}


def test_edits_of_wide_inputs_start_with_mean_square_one() -> None:
    space = mlp(300, 5, 4, 3)
    editor, weights = make("unf", space, None, max_free=8, copies=2), weights_of(space, 64, seed=1)
    editor.fit_normalisation(weights)
    blocks = editor._blocks(weights)
    edits = editor._edits(weights, blocks, editor.standardise(blocks))
    assert all(0.5 < edit.detach().square().mean() < 2 for edit in edits.values())


@pytest.mark.parametrize("name", NETS)
def test_every_parameter_learns(name) -> None:
    space = mlp(2, 5, 4, 3)
    for out in (3, None):
        net = make(name, space, out).train()
        answer = net(weights_of(space))
        leaves = [answer] if out else answer.values()
        torch.cat([v.flatten() for v in leaves]).square().sum().backward()
        assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("name", NETS)
def test_json_round_trip(name) -> None:
    space = attention()
    net, weights = make(name, space, None, copies=2), weights_of(space)
    copy = metanet_from_json(json.loads(json.dumps(metanet_to_json(net)))).double().eval()
    copy.load_state_dict(net.state_dict())
    again = copy(weights)
    assert all(torch.equal(v, again[k]) for k, v in net(weights).items())


def test_wide_inputs_are_mapped_to_a_short_axis() -> None:
    space = mlp(300, 5, 4, 3)
    short, full = make("dws", space, max_free=8), make("dws", space, max_free=None)
    assert sum(p.numel() for p in short.parameters()) < 0.02 * sum(p.numel() for p in full.parameters())
    assert_invariant(short, weights_of(space), permutation_action(space))


@pytest.mark.parametrize("view", ["space", "layout"])
def test_running_statistics_are_read_and_come_back(view) -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    traced = trace(net.eval(), torch.zeros(1, 1, 4, 4))
    weights = weights_of(traced.weight_space())
    name = "unf" if view == "space" else "operator"
    edited = build_metanet(name, traced, None, {"width": 8}).double().eval()(weights)
    kept = [k for k in weights if torch.equal(edited[k], weights[k])]
    assert sorted(kept) == ["1.running_mean", "1.running_var"]
    reader = build_metanet(name, traced, 2, {"width": 8}).double().eval()
    assert (reader({**weights, "1.running_var": 2 * weights["1.running_var"]}) - reader(weights)).abs().max() > 1e-6


def test_kernel_positions_as_sets_are_told_apart_by_few_parameters() -> None:
    space = SPACES["convolutional"]()
    channels, sets = make("unf", space), make("unf", space, positions="sets")
    assert sum(p.numel() for p in sets.parameters()) < 0.5 * sum(p.numel() for p in channels.parameters())
    weights = weights_of(space)
    kernel = space.parameters[0].name
    turned = {**weights, kernel: weights[kernel].flip(-1)}
    assert (sets(turned) - sets(weights)).abs().max() > 1e-3


def test_pieces_of_a_batch_give_what_the_whole_batch_gives() -> None:
    space = mlp(2, 5, 4, 3)
    weights = weights_of(space, 5)
    for out in (3, None):
        net = make("nfn", space, out)
        whole = net(weights)
        net.piece = 2
        torch.testing.assert_close(net(weights), whole, rtol=1e-12, atol=1e-12)


def test_bad_arguments_are_refused() -> None:
    space = mlp(2, 3, 1)
    with pytest.raises(SpecError, match="DWSNet is built from a WeightSpace .*Pass the trace"):
        build_metanet("dws", BlockLayout.mlp([2, 3, 1]), 2)
    with pytest.raises(SpecError, match="'architecture' must be a trace, .*got Linear.*Pass trace"):
        build_metanet("dws", nn.Linear(2, 3), 2)  # pyright: ignore[reportArgumentType]
    for wrong in (0, -1, "4"):
        with pytest.raises(SpecError, match=f"'out_features' must be a positive number.*got {wrong!r}"):
            build_metanet("dws", space, wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(SpecError, match="'copies' must be at least 1, and 1 where vectors are returned .got 2"):
        build_metanet("dws", space, 2, copies=2)
    with pytest.raises(SpecError, match="StatNN returns no weights"):
        build_metanet("statnn", BlockLayout.mlp([2, 3, 1]), None)
    with pytest.raises(SpecError, match="returns weights, so it has no embedding"):
        make("unf", space, None).embed(weights_of(space))
    with pytest.raises(SpecError, match="'ends' of .* must be one of"):
        build_metanet("nfn", space, 2, {"ends": "open"})
    with pytest.raises(SpecError, match="'positions' of .* must be one of .*got 'axes'"):
        build_metanet("nfn", space, 2, {"positions": "axes"})
    with pytest.raises(SpecError, match="'norm' of .* must be one of"):
        build_metanet("nfn", space, 2, {"norm": "group"})
    with pytest.raises(SpecError, match="'layers' must be at least 1"):
        build_metanet("nfn", space, 2, {"layers": 0})
    with pytest.raises(ShapeError, match=r"lacks \['b2'\]"):
        make("unf", space)({k: v for k, v in weights_of(space).items() if k != "b2"})
