"""Operators whose results are no function of weights and inputs, or whose shapes depend on values."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch.fx import Node

from weightspace.errors import UnsupportedModuleError
from weightspace.graphs.propagation import Propagation, register_rule

aten = torch.ops.aten


@register_rule(
    aten.rand.default, aten.rand_like.default, aten.randn.default, aten.randn_like.default, aten.randint.default,
    aten.randint.low, aten.randint_like.default, aten.randint_like.low_dtype, aten.randperm.default,
    aten.bernoulli.default, aten.bernoulli.p, aten.multinomial.default, aten.normal.Tensor_Tensor,
    aten.normal.Tensor_float, aten.normal.float_Tensor, aten.normal.float_float, aten.normal_functional.default,
    aten.uniform.default, aten.exponential.default, aten.poisson.default, aten.rrelu_with_noise_functional.default,
)  # fmt: skip
def random(p: Propagation, node: Node, *args: Any, **kwargs: Any) -> NoReturn:
    """Random numbers."""
    raise UnsupportedModuleError(
        f"'{node.target}' draws random numbers, so the module is no function of its weights and inputs. Pass them to "
        "forward as an input."
    )


@register_rule(
    aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten.unique_dim.default,
    aten.unique_consecutive.default, aten.repeat_interleave.Tensor, aten.repeat_interleave.self_Tensor,
)  # fmt: skip
def shape_of_values(p: Propagation, node: Node, *args: Any, **kwargs: Any) -> NoReturn:
    """Results whose shape depends on values."""
    raise UnsupportedModuleError(
        f"The shape of what '{node.target}' returns depends on values, not on shapes, so no fixed axes stand behind "
        "it. Use a mask (torch.where) instead, or trace the parts of the module before and behind it."
    )
