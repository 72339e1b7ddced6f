"""What a step spends its time on, by kind of operation."""

from __future__ import annotations

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

__all__ = ["KINDS", "kind_of", "seconds_by_kind"]

_NAMES = {
    "products": "mm addmm bmm baddbmm dot mv addmv mkldnn_convolution convolution_overrideable "
    "_scaled_dot_product_flash_attention_for_cpu",
    "norms": "native_batch_norm native_layer_norm native_group_norm",
    "reductions": "sum mean amax amin max min var std prod argmax cumsum logsumexp linalg_vector_norm _softmax "
    "_log_softmax scatter_add scatter_reduce index_add segment_reduce",
    "copies": "copy cat fill index index_put _index_put_impl index_select gather masked_fill repeat "
    "_reshape_copy slice_backward select_backward",
    "rest": "view reshape _unsafe_view t transpose permute as_strided slice select expand narrow unsqueeze squeeze "
    "detach empty empty_like empty_strided new_empty new_zeros new_empty_strided zeros zeros_like zero ones resize "
    "linear matmul einsum unbind split split_with_sizes chunk flatten unflatten movedim alias diagonal to _to_copy "
    "clone contiguous stack resolve_conj resolve_neg",
}
_KIND = {name: kind for kind, names in _NAMES.items() for name in names.split()}
KINDS = (*list(_NAMES)[:-1], "pointwise", "rest")
"""``pointwise`` is every operator with no kind of its own; ``rest`` is views, allocation, dispatch, autograd, Python;
attention in one operator of torch counts as products."""


def kind_of(operator: str) -> str:
    """One of :data:`KINDS`, by the name that the profiler gives."""
    if not operator.startswith("aten::"):
        return "rest"
    name = operator.removeprefix("aten::").removesuffix("_")
    return _KIND.get(name) or _KIND.get(name.removesuffix("_backward"), "pointwise")


def seconds_by_kind(step: Callable[[], None], calls: int = 3) -> dict[str, float]:
    """Seconds inside operators of every kind, as the profiler counts them, of the fastest of some calls."""
    return min((_of_one_call(step) for _ in range(calls)), key=lambda parts: sum(parts.values()))


def _of_one_call(step: Callable[[], None]) -> dict[str, float]:
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step()
    total = dict.fromkeys(KINDS, 0.0)
    for event in found.key_averages():
        total[kind_of(event.key)] += event.self_cpu_time_total / 1e6
    return total
