"""Whether Triton kernels can run: asked once here, and nowhere else."""

from __future__ import annotations

import importlib.util
import os
from functools import cache

import torch
from torch import Tensor

__all__ = ["MOST_CHANNELS", "is_installed", "is_interpreting", "takes"]

MOST_CHANNELS = 256
"""Inputs of a function, or channels of a head, that a program of the kernels holds at a time: all of them."""

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@cache
def is_installed() -> bool:
    """Whether the ``triton`` package is there; it is not imported."""
    return importlib.util.find_spec("triton") is not None


def is_interpreting() -> bool:
    """Whether kernels run under Triton's interpreter, on tensors of the CPU.

    The variable has to be set before Triton is imported for the first time, which ``torch.export`` does.
    """
    return os.environ.get("TRITON_INTERPRET", "0").lower() in {"1", "true", "on", "y"}


def takes(*tensors: Tensor) -> bool:
    """Whether the kernels read these tensors: installed, on a CUDA device, all of one of the three floating types."""
    dtype = tensors[0].dtype
    return dtype in _DTYPES and all(x.is_cuda and x.dtype == dtype for x in tensors) and is_installed()
