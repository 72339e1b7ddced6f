"""How kernels cut their work: by a table of sizes, by choices that were pinned, or by the fastest of a few."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch

from weightspace.errors import SpecError
from weightspace.graphs.message_passing.kernels.available import is_interpreting

__all__ = ["alternatives", "kernel_choices", "launch", "pin_kernel_choices"]

VARIABLE = "WEIGHTSPACE_TUNE_KERNELS"
_TUNABLE = ("BLOCK_E", "BLOCK_U", "SPAN", "num_stages", "num_warps")
_CHOICES: dict[str, dict[str, int]] = {}


def kernel_choices() -> dict[str, dict[str, int]]:
    """What was chosen in this process, by kernel and sizes, to be kept as JSON.

    Sums over other tiles are taken in another order, and differ in the last bits. By default tiles are a function of
    the sizes alone, so that every process gives the same bits. With ``WEIGHTSPACE_TUNE_KERNELS=1`` in the environment
    a kernel that meets new sizes (numbers of edges count by their powers of two) runs each of a few configurations and
    keeps the fastest until the process ends: runs within the process agree in every bit, but another process may
    choose otherwise. To repeat a run, keep what this function returns and give it to :func:`pin_kernel_choices` there.
    Nothing is searched under Triton's interpreter, or while a CUDA graph is recorded.
    """
    return {key: dict(choice) for key, choice in _CHOICES.items()}


def pin_kernel_choices(choices: Mapping[str, Mapping[str, int]]) -> None:
    """Use these choices, as :func:`kernel_choices` gave them, in place of all made so far; none for the table.

    Raises:
        SpecError: A choice sets something that is not tuned.
    """
    for key, choice in choices.items():
        if unknown := set(choice) - set(_TUNABLE):
            raise SpecError(f"Choices may set {', '.join(_TUNABLE)} (got {sorted(unknown)} for '{key}').")
    _CHOICES.clear()
    _CHOICES.update({key: dict(choice) for key, choice in choices.items()})


def alternatives(options: Mapping[str, Any]) -> list[dict[str, int]]:
    """What may be tried beside the options of the table, for kernels that walk along edges."""
    found = [{"num_warps": 12 - options.get("num_warps", 4)}, {"SPAN": 1}]  # 8 instead of 4 or the reverse
    return found + ([{"BLOCK_E": options["BLOCK_E"] // 2}] if options["BLOCK_E"] > 16 else [])


def launch(
    kernel: str,
    run: Callable[[dict[str, Any]], Any],
    options: dict[str, Any],
    others: Iterable[dict[str, int]],
    sizes: Sequence[int],
    dtype: torch.dtype,
) -> None:
    """Run a kernel with its options, or with what was chosen in their place.

    Args:
        kernel: Its name.
        run: Launches it with options; it is run several times where times are taken.
        options: Those of the table.
        others: What may replace some of them.
        sizes: Sizes that change from call to call.
        dtype: Type of the tensors.
    """
    is_searching = _is_searching()
    if not _CHOICES and not is_searching:
        run(options)
        return
    about = [f"{name}={value}" for name, value in options.items()]
    key = " ".join([kernel, str(dtype), "x".join(str(size.bit_length()) for size in sizes), *about])
    if key not in _CHOICES and is_searching:
        _CHOICES[key] = _fastest([{}, *others], lambda choice: run(options | choice))
    run(options | _CHOICES.get(key, {}))


def _is_searching() -> bool:
    if os.environ.get(VARIABLE, "0").lower() not in {"1", "true", "on", "y"} or is_interpreting():
        return False
    return not torch.cuda.is_current_stream_capturing()


def _fastest(choices: list[dict[str, int]], run: Callable[[dict[str, int]], Any]) -> dict[str, int]:
    return min(choices, key=lambda choice: _seconds(lambda: run(choice)))


def _seconds(run: Callable[[], Any]) -> float:
    """Time of a launch; without end where it does not fit the device."""
    from triton import OutOfResources
    from triton.testing import do_bench

    try:
        return cast(float, do_bench(run, warmup=5, rep=20, return_mode="median"))
    except OutOfResources:
        return float("inf")
