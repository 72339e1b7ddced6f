"""The message layer against the equation written with loops, and its moments at the start."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightspace.graphs.block_layout import BlockLayout, EdgeBlock, NodeLayer
from weightspace.layers import BlockRoles, EdgeFunctions, MessageLayer
from weightspace.layers.messages.message_layer import _Message, carry


def _carry_loops(functions, values, to):
    """``out[b, node, c] = sum over edges of functions[head of c, b, edge] * values[b, other node, c]``."""
    heads, batch, groups, out, inputs = functions.shape
    width = values.shape[-1]
    result = torch.zeros(batch, groups * (out if to == "target" else inputs), width, dtype=values.dtype)
    for b in range(batch):
        for g in range(groups):
            for o in range(out):
                for i in range(inputs):
                    source, target = g * inputs + i, g * out + o
                    read, write = (source, target) if to == "target" else (target, source)
                    for c in range(width):
                        phi = functions[c // (width // heads), b, g, o, i]
                        result[b, write, c] += phi * values[b % len(values), read, c]
    return result


@given(
    shape=st.tuples(*(st.integers(1, 3) for _ in range(5))),
    channels=st.integers(1, 2),
    to=st.sampled_from(["target", "source"]),
    one_state_for_all=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_both_executors_equal_loops(shape, channels, to, one_state_for_all, seed):
    generator = torch.Generator().manual_seed(seed)
    heads, batch, groups, out, inputs = shape
    nodes = groups * (inputs if to == "target" else out)
    functions = torch.randn(shape, generator=generator, dtype=torch.float64)
    states = 1 if one_state_for_all else batch
    values = torch.randn(states, nodes, heads * channels, generator=generator, dtype=torch.float64)
    expected = _carry_loops(functions, values, to)
    torch.testing.assert_close(carry(functions, values, to), expected)
    torch.testing.assert_close(carry(functions, values, to, "sparse"), expected)


@pytest.mark.parametrize("width", [8, 32, 256])
def test_messages_have_unit_second_moment_whatever_the_width_of_the_network(width, generator):
    layout = BlockLayout.mlp([2, width, width, 1])
    roles = BlockRoles.of(layout)
    layer = MessageLayer(layout, written=roles.hidden, carriers=roles.operators, width=64)
    functions = EdgeFunctions(1, 8, 2)
    values = torch.randn(8, 1, width, width, 1, generator=generator)
    states = torch.randn(8, width, 64, generator=generator)
    for i, to in enumerate(("target", "source")):
        way = layer.messages[f"2_{to}"]
        assert isinstance(way, _Message)
        message = way.write(carry(functions(values)[i], way.read(states), to))
        assert 0.5 < message.square().mean() < 2.0


def test_states_stay_of_order_one_through_many_rounds(generator):
    layout = BlockLayout.mlp([2, 32, 32, 32, 1])
    roles = BlockRoles.of(layout)
    states = {name: torch.randn(4, 32, 64, generator=generator) for name in roles.hidden}
    functions = {i: EdgeFunctions(1, 8, 2)(torch.randn(4, 1, 32, 32, 1, generator=generator)) for i in roles.operators}
    for _ in range(8):
        layer = MessageLayer(layout, written=roles.hidden, carriers=roles.operators, width=64)
        states = layer(states, functions)
    assert all(0.5 < x.square().mean() < 4.0 for x in states.values())


def test_links_carry_states_one_to_one(generator):
    layers = (NodeLayer("a", 4, "hidden"), NodeLayer("b", 4, "hidden"))
    layout = BlockLayout(layers, (EdgeBlock("skip", "residual", "a", "b", None, 4, 1, 1, 1),))
    layer = MessageLayer(layout, written=["b"], carriers=[0], width=8)
    states = {name: torch.randn(2, 4, 8, generator=generator) for name in "ab"}
    way = layer.messages["0_target"]
    assert isinstance(way, _Message)
    message = way.write(way.link(way.read(states["a"])))
    value = layer.messages["0_target"].get_submodule("value")
    torch.testing.assert_close(message, value(states["a"]))
    result = layer(states, {})
    assert torch.equal(result["a"], states["a"])  # not written
    assert not torch.equal(result["b"], states["b"])
