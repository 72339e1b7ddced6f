"""Baselines that know no neurons: sets of numbers, and a sequence of weight tokens."""

import pytest
import torch

from weightspace.errors import SpecError
from weightspace.graphs.block_layout import BlockLayout
from weightspace.metanets import DeepSets, DeepSetsConfig, WeightTokens, WeightTokensConfig

LAYOUT = BlockLayout.mlp([3, 5, 4, 2])


def shuffle(weights, generator):
    """An order of its own for the numbers of every tensor."""
    moves = {k: torch.randperm(w[0].numel(), generator=generator) for k, w in weights.items()}
    return {k: w.flatten(1)[:, moves[k]].view_as(w) for k, w in weights.items()}, moves


def test_deep_sets_ignore_any_order_inside_a_tensor(random_weights, generator):
    net, weights = DeepSets(LAYOUT, 3).double().eval(), random_weights(LAYOUT)
    moved, _ = shuffle(weights, generator)
    answer = net(weights)
    assert answer.std(dim=0).min() > 1e-4
    torch.testing.assert_close(net(moved), answer, rtol=1e-10, atol=1e-12)


def test_deep_sets_tell_tensors_apart(random_weights):
    layout = BlockLayout.mlp([4, 4, 4])
    net, weights = DeepSets(layout, 3).double().eval(), random_weights(layout)
    swapped = {**weights, "layers.0.weight": weights["layers.1.weight"], "layers.1.weight": weights["layers.0.weight"]}
    assert (net(swapped) - net(weights)).abs().min() > 1e-4


def test_edits_of_deep_sets_follow_the_order_and_see_the_other_tensors(random_weights, generator):
    net, weights = DeepSets(LAYOUT, None, copies=2).double().eval(), random_weights(LAYOUT)
    moved, moves = shuffle(weights, generator)
    edited, edited_moved = net(weights), net(moved)
    for key, value in edited.items():
        assert value.shape == (4, 2, *weights[key].shape[1:])
        wanted = value.flatten(2)[..., moves[key]].view_as(value)
        torch.testing.assert_close(edited_moved[key], wanted, rtol=1e-10, atol=1e-12)
    other = net({**weights, "layers.2.bias": weights["layers.2.bias"] + 1})
    assert (other["layers.0.weight"] - edited["layers.0.weight"]).abs().min() > 0


def test_second_moment_of_deep_sets_at_the_start(generator):
    net = DeepSets(LAYOUT, 3, DeepSetsConfig(width=256, layers=6)).eval()
    weights = {n: torch.randn(64, *s, generator=generator) for n, s in LAYOUT.shapes}
    states = torch.cat([x.flatten() for x in net._states(net.standardise(net._blocks(weights)))])
    assert 0.2 < states.square().mean() < 0.7  # silu of unit inputs has 0.36


def test_tokens_hold_every_number_once(random_weights):
    net = WeightTokens(LAYOUT, 3, WeightTokensConfig(token=2)).double()
    weights = random_weights(LAYOUT, 1)
    tokens = net.tokens(net._blocks(weights))
    # rows of 3, 5, 4 numbers need 2, 3, 2 tokens each; biases of 5, 4, 2 are rows of their own
    assert net.num_tokens == tokens.shape[1] == 5 * 2 + 3 + 4 * 3 + 2 + 2 * 2 + 1
    flat = torch.cat([w.flatten() for w in weights.values()]).sort().values
    assert torch.equal(tokens[tokens != 0].sort().values, flat)


def test_tokens_are_not_invariant(siren, random_weights, permute_neurons):
    net, weights = WeightTokens(siren, 3).double().eval(), random_weights(siren)
    assert net.kind == "none"
    assert (net(permute_neurons("siren", siren, weights)) - net(weights)).abs().max() > 1e-3


def test_one_transformer_layer_equals_the_one_of_torch(generator):
    net = WeightTokens(LAYOUT, 3, WeightTokensConfig(width=8, heads=2, layers=1)).double().eval()
    layer = net.layers[0]
    twin = torch.nn.TransformerEncoderLayer(8, 2, 32, 0.0, torch.nn.functional.silu, batch_first=True, norm_first=True)
    twin = twin.double().train()  # dropout is 0; training keeps torch off its fused path
    names = {
        "self_attn.in_proj_": "project.",
        "self_attn.out_proj.": "out.",
        "linear1.": "mlp.0.",
        "linear2.": "mlp.2.",
        "norm1.": "norms.0.",
        "norm2.": "norms.1.",
    }
    ours = layer.state_dict()
    twin.load_state_dict({a + end: ours[b + end] for a, b in names.items() for end in ("weight", "bias")})
    x = torch.randn(3, 5, 8, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(layer(x), twin(x), rtol=1e-10, atol=1e-12)


def test_bad_options_are_refused():
    with pytest.raises(SpecError, match="'width' must be a multiple of 'heads' .got 10 and 4"):
        WeightTokensConfig(width=10)
    with pytest.raises(SpecError, match="'token' must be at least 1 .got 0"):
        WeightTokensConfig(token=0)
    with pytest.raises(SpecError, match="WeightTokens returns no weights. Give 'out_features'"):
        WeightTokens(LAYOUT, None)
