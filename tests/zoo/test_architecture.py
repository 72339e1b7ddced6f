"""The record of an architecture: identity, layout of a row, building, errors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from weightspace.errors import ShapeError, SpecError
from weightspace.zoo import Architecture, register_architecture


class Line(nn.Module):
    def __init__(self, width: int = 1) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(2, width), nn.BatchNorm1d(width)
        self.tied = self.first


class Wider(nn.Module):
    def __init__(self, width: int = 1) -> None:
        super().__init__()
        self.first = nn.Linear(2, width + 1)


register_architecture("test-line", Line)
register_architecture("test-wider", Wider)


def test_hash_depends_on_every_part_and_survives_json():
    shapes = {"w": ((2, 3), torch.float32), "b": ((3,), "float32")}
    one = Architecture("k", {"widths": (2, 3)}, shapes)
    again = Architecture.from_json(one.to_json())
    assert again == one
    assert hash(again) == hash(one)
    assert again.config == {"widths": [2, 3]}
    others = [
        Architecture("l", {"widths": (2, 3)}, shapes),
        Architecture("k", {"widths": (2, 4)}, shapes),
        Architecture("k", {"widths": (2, 3)}, dict(reversed(shapes.items()))),
        Architecture("k", {"widths": (2, 3)}, {**shapes, "b": ((3,), "float16")}),
    ]
    assert len({one, *others}) == 5
    assert one != "k"
    assert repr(one) == f"Architecture(k, 9 scalars in 2 tensors, {one.hash})"


def test_record_of_a_module_has_tied_parameters_once_and_buffers():
    architecture = Architecture.of_module("test-line", {"width": 3}, Line(3))
    assert list(architecture.shapes) == [
        "first.weight", "first.bias", "norm.weight", "norm.bias",
        "norm.running_mean", "norm.running_var", "norm.num_batches_tracked",
    ]  # fmt: skip
    assert architecture.shapes["norm.num_batches_tracked"] == ((), "int64")
    assert architecture.numel_by_dtype == {"float32": 6 + 3 + 4 * 3, "int64": 1}
    assert architecture.nbytes == 21 * 4 + 8


def test_build():
    architecture = Architecture.of_module("test-line", {"width": 3}, Line(3))
    assert isinstance(architecture.build(), Line)


@given(
    count=st.integers(0, 4),
    tensors=st.lists(
        st.tuples(
            st.lists(st.integers(0, 3), max_size=3),
            st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64]),
        ),
        min_size=1,
        max_size=5,
    ),
    seed=st.integers(0, 2**16),
)
def test_unflatten_inverts_flatten(count, tensors, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = {
        f"t{i}": (torch.randn(count, *shape, generator=generator) * 9).to(dtype)
        for i, (shape, dtype) in enumerate(tensors)
    }
    architecture = Architecture("any", {}, {f"t{i}": tensor for i, tensor in enumerate(tensors)})
    flat = architecture.flatten(dict(reversed(weights.items())))
    assert {dtype: tuple(matrix.shape) for dtype, matrix in flat.items()} == {
        dtype: (count, size) for dtype, size in architecture.numel_by_dtype.items()
    }
    back = architecture.unflatten(flat)
    assert list(back) == list(weights)
    for name, value in weights.items():
        assert back[name].dtype == value.dtype
        assert torch.equal(back[name], value)


def test_builder_errors():
    shapes = {"first.weight": ((2, 2), "float32")}
    with pytest.raises(SpecError, match=r"No builder is registered for architecture kind 'nothing' \(known: \["):
        Architecture("nothing", {}, shapes).build()
    with pytest.raises(SpecError, match="kind 'test-line' is already registered"):
        register_architecture("test-line", Wider)
    register_architecture("test-line", Line)
    with pytest.raises(SpecError, match="The builder of 'test-wider' made tensors first.weight"):
        Architecture("test-wider", {"width": 3}, shapes).build()


def test_record_errors():
    with pytest.raises(SpecError, match="'config' of architecture 'k' must hold JSON values only"):
        Architecture("k", {"f": torch.sin}, {"w": ((1,), "float32")})
    with pytest.raises(SpecError, match="'config' of architecture 'k' must hold JSON"):
        Architecture("k", {"f": float("nan")}, {"w": ((1,), "float32")})
    with pytest.raises(SpecError, match="cannot hold tensors of dtype 'complex64'"):
        Architecture("k", {}, {"w": ((1,), torch.complex64)})
    with pytest.raises(SpecError, match="'k' has no tensors"):
        Architecture("k", {}, {})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"b": None}, r"must have the tensors \['w', 'b'\]"),
        ({"b": torch.zeros(2, 4)}, r"'b' must have shape \(2, 3\) and dtype float32 \(got \(2, 4\)"),
        ({"b": torch.zeros(5, 3)}, r"'b' must have shape \(2, 3\)"),
        ({"b": torch.zeros(2, 3, dtype=torch.float64)}, "dtype float32"),
    ],
)
def test_flatten_errors(change, match):
    architecture = Architecture("k", {}, {"w": ((2, 3), "float32"), "b": ((3,), "float32")})
    weights = {"w": torch.zeros(2, 2, 3), "b": torch.zeros(2, 3)} | change
    with pytest.raises(ShapeError, match=match):
        architecture.flatten({name: value for name, value in weights.items() if value is not None})
