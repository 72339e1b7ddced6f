"""Pointwise operators that torch does not tag as such."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from weightspace.graphs.labels.values import Value
from weightspace.graphs.propagation import Propagation, register_rule
from weightspace.graphs.rules.pointwise import identity, pointwise

aten = torch.ops.aten

register_rule(
    aten.hardswish.default, aten.log_sigmoid.default, aten.where.Scalar, aten.where.ScalarSelf, aten.where.ScalarOther,
    aten.masked_fill.Tensor, aten.floor_divide.default, aten.floor_divide.Scalar, aten.isclose.default,
    aten.true_divide.Scalar, aten.divide.Tensor, aten.divide.Scalar, aten.divide.Tensor_mode, aten.divide.Scalar_mode,
    aten.multiply.Tensor, aten.multiply.Scalar, aten.subtract.Tensor, aten.subtract.Scalar, aten.rsub.Tensor,
    aten.negative.default, aten.absolute.default, aten.arctan2.default, aten.special_expit.default,
    aten.greater.Tensor, aten.greater.Scalar, aten.greater_equal.Tensor, aten.greater_equal.Scalar, aten.less.Tensor,
    aten.less.Scalar, aten.less_equal.Tensor, aten.less_equal.Scalar, aten.not_equal.Tensor, aten.not_equal.Scalar,
    aten.__and__.Tensor, aten.__and__.Scalar, aten.__or__.Tensor, aten.__or__.Scalar, aten.__xor__.Tensor,
    aten.__xor__.Scalar,
)(pointwise)  # fmt: skip

register_rule(aten.alpha_dropout.default, aten.feature_dropout.default, aten.feature_alpha_dropout.default)(identity)


@register_rule(aten.type_as.default)
def type_as(p: Propagation, node: Node, x: Value, other: Any) -> Value:
    """A cast to the type of another tensor, whose values do not matter."""
    return x
