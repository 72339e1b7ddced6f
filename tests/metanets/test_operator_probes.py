"""Probes: the operator metanetwork that evaluates what it reads."""

import pytest
import torch

from weightspace.errors import ShapeError, SpecError
from weightspace.graphs.block_layout import BlockLayout
from weightspace.metanets import OperatorNet, OperatorNetConfig, build_metanet

CONFIG = OperatorNetConfig(width=8, heads=4, layers=2, frequencies=8, head_width=16, probes=5)


def _siren_values(weights, inputs):
    """Pre-activation values of every layer of the SIREN of these tests."""
    x = inputs.to(weights["layers.0.weight"]).expand(len(weights["layers.0.weight"]), -1, -1)
    values = {}
    for m in range(3):
        values[f"layers.{m}"] = x @ weights[f"layers.{m}.weight"].mT + weights[f"layers.{m}.bias"][:, None]
        x = torch.sin(30.0 * values[f"layers.{m}"])
    return values


@pytest.fixture
def probed(siren) -> OperatorNet:
    net = build_metanet("operator", siren, 3, CONFIG, probe=_siren_values)
    assert isinstance(net, OperatorNet)
    return net.double().eval()


def test_probes_keep_the_answer_invariant(probed, siren, random_weights, permute_neurons):
    weights = random_weights(siren)
    moved = permute_neurons("siren", siren, weights)
    torch.testing.assert_close(probed(moved), probed(weights), rtol=1e-10, atol=1e-10)


def test_probes_see_a_phase_wrap_as_what_it_is(probed, siren, random_weights):
    """A first-layer bias moved by a full turn leaves every probe value behind the sine as it was."""
    weights = random_weights(siren)
    turned = {**weights, "layers.0.bias": weights["layers.0.bias"] + 2 * torch.pi / 30}
    seen, outputs = probed.probes(weights)
    seen_turned, outputs_turned = probed.probes(turned)
    torch.testing.assert_close(outputs_turned, outputs)
    torch.testing.assert_close(seen_turned["layers.0"], seen["layers.0"])


def test_probe_inputs_are_learned(probed, siren, random_weights):
    probed(random_weights(siren)).sum().backward()
    assert probed.probes.inputs.shape == (5, 2)
    assert probed.probes.inputs.grad.abs().min() > 0


def test_activations_other_than_sines(random_weights):
    layout = BlockLayout.mlp([2, 7, 6, 1])
    net = OperatorNet(layout, 3, CONFIG, probe=_siren_values).double()
    assert net(random_weights(layout)).shape == (4, 3)


def test_configuration_tells_whether_the_network_is_run():
    assert CONFIG.evaluates_network
    assert not OperatorNetConfig().evaluates_network


def test_bad_probes_are_refused(siren, random_weights):
    with pytest.raises(SpecError, match="'probe' must be given for probes=5"):
        OperatorNet(siren, 3, CONFIG)
    net = OperatorNet(siren, 3, CONFIG, probe=lambda weights, inputs: {"layers.0": torch.zeros(4, 5, 7)}).double()
    with pytest.raises(SpecError, match=r"it lacks \['layers.1', 'layers.2'\].*torch.vmap"):
        net(random_weights(siren))
    with pytest.raises(SpecError, match="'probe' must be a function of weights and inputs .got int"):
        OperatorNet(siren, 3, CONFIG, probe=3)  # pyright: ignore[reportArgumentType]
    flat = OperatorNet(
        siren, 3, CONFIG, probe=lambda w, x: {k: v.mean(1) for k, v in _siren_values(w, x).items()}
    ).double()
    with pytest.raises(ShapeError, match=r"'layers.0' of shape \(networks, 5, 7\) \(got \(4, 7\)\)"):
        flat(random_weights(siren))
