"""The operator metanetwork on large blocks and wide fixed layers: the same numbers, no parameter per node."""

import pytest
import torch

from tests.metanets.conftest import SMALL
from weightspace.errors import SpecError
from weightspace.graphs.block_layout import BlockLayout
from weightspace.metanets import OperatorNetConfig, build_metanet


def _with_gradients(net, weights):
    answer = net(weights)
    leaves = [answer] if isinstance(answer, torch.Tensor) else list(answer.values())
    loss = torch.cat([v.flatten() for v in leaves]).square().sum()
    gradients = torch.autograd.grad(loss, [*weights.values(), *net.parameters()])
    return [*leaves, *gradients]


@pytest.mark.parametrize("wide_from", [1000, 2])
def test_streaming_changes_no_answer_and_no_gradient(wide_from, layout, build, random_weights):
    weights = {k: w.requires_grad_() for k, w in random_weights(layout, 3).items()}
    kept, streamed = (build("operator", layout, chunk=chunk, wide_from=wide_from) for chunk in (0, 5))
    streamed.load_state_dict(kept.state_dict())
    for net in (kept, streamed):
        net.fit_normalisation({k: w.detach() for k, w in weights.items()})
    for a, b in zip(_with_gradients(streamed, weights), _with_gradients(kept, weights), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-11)


def test_streamed_blocks_take_part_in_autocast(siren, random_weights):
    weights = {k: w.float() for k, w in random_weights(siren).items()}
    gradients = []
    for enabled in (False, True):
        torch.manual_seed(0)
        net = build_metanet("operator", siren, 3, {**SMALL["operator"], "chunk": 5}).eval()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            answer = net(weights)
        answer.float().square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    exact, rounded = (torch.cat([g.flatten() for g in some if g is not None]) for some in gradients)
    assert 0 < (rounded - exact).norm() < 0.05 * exact.norm()  # eight bits of mantissa


def test_large_architectures_are_streamed_and_small_ones_are_not(build):
    large = build("operator", BlockLayout.mlp([2, 2048, 2048, 1]))
    assert large._streamed(1) == {"2"}
    assert build("operator", BlockLayout.mlp([2, 2048, 2048, 1]), chunk=0)._streamed(1) == set()
    small = build("operator", BlockLayout.mlp([2, 32, 32, 1]))
    assert small._streamed(64) == set()
    assert small._streamed(4096) == {"2"}


@pytest.mark.parametrize("outputs", [3, 1500])
def test_parameters_do_not_grow_with_a_wide_fixed_layer(outputs, build, random_weights):
    def count(inputs):
        return sum(p.numel() for p in build("operator", BlockLayout.mlp([inputs, 4, outputs])).parameters())

    assert count(1200) == count(1100) < count(999)
    assert count(999) > count(998)


@pytest.mark.parametrize("wide_from", [1000, 3])
def test_fixed_nodes_are_told_apart_whether_wide_or_not(wide_from, build, random_weights):
    layout = BlockLayout.mlp([5, 4, 6])
    weights, net = random_weights(layout), build("operator", layout, wide_from=wide_from)
    assert len(net.roles.wide) == (2 if wide_from == 3 else 0)
    moved = {**weights, "layers.0.weight": weights["layers.0.weight"].roll(1, dims=2)}
    assert (net(moved) - net(weights)).abs().max() > 1e-3
    moved = {
        **weights,
        "layers.1.weight": weights["layers.1.weight"].roll(1, dims=1),
        "layers.1.bias": weights["layers.1.bias"].roll(1, dims=1),
    }
    assert (net(moved) - net(weights)).abs().max() > 1e-3


def test_bad_sizes_and_symmetries_are_refused():
    with pytest.raises(SpecError, match="'chunk' must be None, 0 or a number of edges .got -1"):
        OperatorNetConfig(chunk=-1)
    with pytest.raises(SpecError, match="'symmetry' must be one of .*'scale', 'sign', 'permutation'. .got 'phase'"):
        OperatorNetConfig(symmetry="phase")  # pyright: ignore[reportArgumentType]
    with pytest.raises(SpecError, match="'probes' must be 0 for symmetry='sign' .got 4"):
        OperatorNetConfig(symmetry="sign", probes=4)
    with pytest.raises(SpecError, match="'layers' of OperatorNet must be at least 1 .got 0"):
        OperatorNetConfig(layers=0)


def test_networks_without_hidden_neurons_are_told_apart_by_their_size():
    """All such a network gives are invariant numbers, and a norm over them would take their mean and length away."""
    layout = BlockLayout.mlp([6, 3])
    torch.manual_seed(0)
    net = build_metanet("operator", layout, 1, SMALL["operator"]).double().eval()
    weights = {n: torch.randn(32, *s, dtype=torch.float64) for n, s in layout.shapes}
    net.fit_normalisation(weights)
    answers = net(weights)
    assert (net({n: 3 * w for n, w in weights.items()}) - answers).abs().mean() > 0.3 * answers.std()
