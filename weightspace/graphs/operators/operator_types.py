"""The vocabulary of operator graphs: which kind of operation an operator of the exported program is.

The exported program knows some hundreds of operators; a network that reads architectures needs a short list that stays
as it is. :data:`OPERATION_TYPES` is that list; its order is part of the file format (new types go to the end).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["ACTIVATIONS", "GHN2_TYPES", "MOVEMENT", "OPERATION_TYPES", "PARAMETER_SLOTS", "operation_type"]

#: Types of operations, by family; the integer id of a type is its place in this tuple.
OPERATION_TYPES: tuple[str, ...] = (
    *("input", "output", "parameter", "buffer", "constant"),
    *("linear", "conv", "grouped_conv", "depthwise_conv", "transposed_conv", "embedding", "bilinear"),
    *("lstm", "gru", "rnn", "attention", "matmul", "softmax", "log_softmax", "weight_norm"),
    *("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "local_response_norm"),
    *("max_pool", "avg_pool", "global_pool", "upsample", "pad"),
    *("sum", "difference", "product", "quotient", "power", "maximum", "minimum", "where", "concat"),
    *("shift", "scale"),
    *("relu", "leaky_relu", "prelu", "relu6", "elu", "selu", "celu", "gelu", "silu", "mish", "glu", "sigmoid", "tanh"),
    *("softplus", "softsign", "log_sigmoid", "hardswish", "hardsigmoid", "hardtanh", "hardshrink", "softshrink"),
    *("threshold", "clamp", "sin", "cos", "tan", "exp", "log", "sqrt", "rsqrt", "square", "reciprocal", "abs"),
    *("negative", "sign", "erf", "round", "compare", "logical"),
    *("mean", "total", "extremum", "product_over", "norm_over", "variance", "log_sum_exp", "cumulative", "sort"),
    *("fft", "gather", "scatter", "unfold", "sample_grid", "distance", "random"),
    *("reshape", "permute", "slice", "expand", "roll", "copy"),
    "other",
)

#: Operations that only move data: contracted away unless asked for.
MOVEMENT = frozenset({"reshape", "permute", "slice", "expand", "roll", "copy"})

#: Pointwise functions of one variable; graph hypernetworks of the literature leave them out of the graph.
ACTIVATIONS = frozenset(OPERATION_TYPES[OPERATION_TYPES.index("relu") : OPERATION_TYPES.index("erf") + 1])

#: Names GHN-2 (Knyazev et al. 2021, arXiv:2110.13100, section 3) gives to operations; all others are not nodes there.
#: Its ``sep_conv`` and ``dil_conv`` are grouped and dilated convolutions, its ``pos_enc`` any parameter read as data.
GHN2_TYPES: Mapping[str, str] = {
    **dict.fromkeys(("linear", "conv", "transposed_conv", "embedding"), "conv"),
    **dict.fromkeys(("grouped_conv", "depthwise_conv"), "sep_conv"),
    **dict.fromkeys(("layer_norm", "group_norm", "instance_norm", "rms_norm"), "ln"),
    **{"batch_norm": "bn", "attention": "msa", "max_pool": "max_pool", "avg_pool": "avg_pool", "sum": "sum"},
    **{"global_pool": "glob_avg", "product": "cse", "concat": "concat", "input": "input", "parameter": "pos_enc"},
}

#: Argument names under which operators take tensors that are theirs (a weight, a bias, running statistics).
PARAMETER_SLOTS: Mapping[str, frozenset[str]] = {
    **{
        kind: frozenset({"weight", "bias", "running_mean", "running_var"})
        for kind in (
            *("linear", "conv", "grouped_conv", "depthwise_conv", "transposed_conv", "embedding", "bilinear", "prelu"),
            *("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"),
        )
    },
    **dict.fromkeys(
        ("lstm", "gru", "rnn"), frozenset({"params", "w_ih", "w_hh", "b_ih", "b_hh", "weights", "bias", "biases"})
    ),
    "weight_norm": frozenset({"v", "g"}),
}

# Operator names (the overload packet of aten, trailing underscores off) by type; what is not here is looked up below.
_NAMES: dict[str, str] = {
    "linear": "linear",
    "embedding": "embedding embedding_bag _embedding_bag",
    "bilinear": "bilinear _trilinear",
    "lstm": "lstm lstm_cell",
    "gru": "gru gru_cell",
    "rnn": "rnn_tanh rnn_relu rnn_tanh_cell rnn_relu_cell",
    "attention": "scaled_dot_product_attention _native_multi_head_attention _scaled_dot_product_flash_attention "
    "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention "
    "_scaled_dot_product_attention_math",
    "matmul": "matmul mm bmm addmm baddbmm addbmm mv addmv dot vdot einsum outer ger tensordot inner",
    "softmax": "softmax _softmax softmin",
    "log_softmax": "log_softmax _log_softmax",
    "weight_norm": "_weight_norm_interface _weight_norm",
    "batch_norm": "batch_norm _native_batch_norm_legit_no_training _native_batch_norm_legit native_batch_norm "
    "_batch_norm_no_update _batch_norm_with_update cudnn_batch_norm",
    "layer_norm": "layer_norm native_layer_norm",
    "group_norm": "group_norm native_group_norm",
    "instance_norm": "instance_norm",
    "rms_norm": "rms_norm _fused_rms_norm",
    "local_response_norm": "local_response_norm",
    "upsample": "interpolate upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d "
    "upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d _upsample_nearest_exact1d _upsample_nearest_exact2d "
    "_upsample_bicubic2d_aa _upsample_bilinear2d_aa",
    "pad": "pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d "
    "replication_pad2d replication_pad3d _pad_circular",
    "difference": "sub rsub subtract",
    "quotient": "div true_divide floor_divide remainder fmod",
    "power": "pow float_power",
    "maximum": "maximum fmax",
    "minimum": "minimum fmin",
    "where": "where masked_fill",
    "concat": "cat concat stack hstack vstack",
    "abs": "abs absolute",
    "negative": "neg negative",
    "round": "round floor ceil trunc frac",
    "clamp": "clamp clamp_min clamp_max clip",
    "log": "log log1p log2 log10",
    "exp": "exp expm1 exp2",
    "square": "square",
    "compare": "eq ne lt le gt ge isnan isinf isfinite isclose",
    "logical": "logical_and logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_not bitwise_xor "
    "__and__ __or__",
    "log_sigmoid": "log_sigmoid log_sigmoid_forward",
    "hardshrink": "hardshrink",
    "mean": "mean nanmean",
    "total": "sum nansum",
    "extremum": "max min amax amin aminmax argmax argmin any all",
    "product_over": "prod",
    "norm_over": "norm linalg_vector_norm linalg_norm",
    "variance": "var std var_mean std_mean",
    "log_sum_exp": "logsumexp",
    "cumulative": "cumsum cumprod cummax cummin logcumsumexp",
    "sort": "sort argsort topk",
    "fft": "_fft_r2c _fft_c2r _fft_c2c fft_fft fft_ifft fft_rfft fft_irfft fft_rfft2 fft_irfft2 fft_fft2 fft_ifft2",
    "gather": "gather index index_select take take_along_dim one_hot nonzero",
    "scatter": "scatter scatter_add scatter_reduce index_add index_put _unsafe_index_put slice_scatter "
    "select_scatter diagonal_scatter masked_scatter index_copy",
    "unfold": "unfold im2col col2im",
    "sample_grid": "grid_sampler grid_sampler_2d grid_sampler_3d",
    "distance": "cdist _cdist_forward cosine_similarity pairwise_distance",
    "random": "rand randn rand_like randn_like randint bernoulli normal multinomial",
    "constant": "full full_like zeros zeros_like ones ones_like empty empty_like arange linspace eye scalar_tensor "
    "new_zeros new_ones new_full new_empty lift_fresh_copy _tensor_constant fill",
    "reshape": "view reshape _unsafe_view flatten unflatten unsqueeze squeeze view_as reshape_as _reshape_alias "
    "view_as_real view_as_complex pixel_shuffle pixel_unshuffle channel_shuffle",
    "permute": "permute transpose t numpy_T swapaxes swapdims movedim adjoint mT",
    "slice": "slice select split split_with_sizes chunk unbind narrow unsafe_split unsafe_chunk tensor_split diagonal "
    "as_strided getitem tril triu",
    "expand": "expand expand_as broadcast_to repeat repeat_interleave tile",
    "roll": "roll flip rot90",
    "copy": "clone contiguous alias detach _to_copy to lift_fresh copy dropout feature_dropout alpha_dropout "
    "native_dropout type_as float detach_copy view_copy identity conj _conj resolve_conj",
}
_BY_NAME = {name: kind for kind, names in _NAMES.items() for name in names.split()}
_BY_NAME |= {kind: kind for kind in OPERATION_TYPES if kind in ACTIVATIONS and kind not in _BY_NAME}

# What joins become where only one operand varies.
_WITH_NUMBER = {"sum": "shift", "difference": "shift", "product": "scale", "quotient": "scale"}
_JOINS = {"add": "sum", "mul": "product", "multiply": "product", "addcmul": "sum", "lerp": "sum", "addcdiv": "sum"}


def operation_type(name: str, arguments: Mapping[str, Any], tensors: Sequence[Sequence[int]]) -> str:
    """Type of an operator of the exported program; ``"other"`` where the vocabulary has none.

    Args:
        name: Name of the operator without namespace and overload (``"conv2d"``, ``"add"``).
        arguments: Its arguments by name; tensors as their shapes.
        tensors: Shapes of the operands that depend on inputs or weights.

    Example:
        >>> operation_type("add", {"other": 1.0}, [(2, 3)]), operation_type("add", {"other": (2, 3)}, [(2, 3), (2, 3)])
        ('shift', 'sum')
    """
    name = name if name.startswith("__") else name.rstrip("_")
    if "conv" in name:
        return _convolution(name, arguments)
    if "pool" in name:
        return _pooling(name, arguments)
    if name == "mean" and _spans_space(arguments.get("dim"), tensors):
        return "global_pool"
    kind = _JOINS.get(name) or _BY_NAME.get(name, "other")
    if kind == "other" and name == "_prelu_kernel":
        return "prelu"
    return _WITH_NUMBER.get(kind, kind) if len(tensors) < 2 else kind


def _convolution(name: str, arguments: Mapping[str, Any]) -> str:
    weight, groups = arguments.get("weight"), arguments.get("groups", 1)
    if "transpose" in name or arguments.get("transposed") is True:
        return "transposed_conv"
    if groups == 1:
        return "conv"
    # One input channel a group: no mixing of channels.
    return "depthwise_conv" if weight is not None and weight[1] == 1 else "grouped_conv"


def _pooling(name: str, arguments: Mapping[str, Any]) -> str:
    if "adaptive" in name:
        size = arguments.get("output_size", 0)
        return "global_pool" if math.prod(size if isinstance(size, (list, tuple)) else [size]) == 1 else "avg_pool"
    return "max_pool" if "max" in name else "avg_pool"


def _spans_space(dims: Any, tensors: Sequence[Sequence[int]]) -> bool:
    """Whether a mean runs over all axes behind the channels of a picture or a volume."""
    if not tensors or len(tensors[0]) < 4 or not isinstance(dims, (list, tuple)):
        return False
    rank = len(tensors[0])
    return sorted(d % rank for d in dims) == list(range(2, rank))
