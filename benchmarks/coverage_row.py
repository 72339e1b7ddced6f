"""Trace one model: its row of the coverage table."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.families.subject import Subject
from weightspace.errors import UnsupportedModuleError, WeightspaceError
from weightspace.graphs import Trace, trace

TRIALS = 3
# The graph has an edge per scalar; of larger models it is not expanded here.
LARGEST_GRAPH = 3_000_000
FAMILIES = {
    "transformers": [("language", "CAUSAL"), ("language", "MASKED"), ("language", "ENCODER_DECODER"),
                     ("vision", "VISION"), ("signals", "SIGNALS")],
    "timm": [("image_models", "IMAGE_MODELS")],
    "diffusers": [("diffusion", "DIFFUSION")],
}  # fmt: skip


def hand_made() -> dict[str, Callable[[], Subject]]:
    """The architectures of the tests."""
    from tests.architectures.zoo import ARCHITECTURES

    return {
        name: lambda case=case: Subject(case.build(), case.example, log_order=case.log_order)
        for name, case in ARCHITECTURES.items()
    }


def layers() -> dict[str, Callable[[], Subject]]:
    """Every ``torch.nn`` class with parameters, inside a small network."""
    try:
        table = importlib.import_module("tests.architectures.nn_layers")
    except ModuleNotFoundError:
        return {}
    return {
        name: lambda factory=factory, inputs=inputs, order=order: Subject(factory(), tuple(inputs), log_order=order)
        for name, (factory, inputs, order) in table.NN_LAYERS.items()
    }


def families(kind: str) -> dict[str, Callable[[], Subject]]:
    """Models of a library, if it is installed."""
    _declare_vision_operators()
    found: dict[str, Callable[[], Subject]] = {}
    for module, table in FAMILIES[kind]:
        found |= getattr(importlib.import_module(f"benchmarks.families.{module}"), table)
    return found


def subjects(kind: str) -> dict[str, Callable[[], Subject]]:
    """Builders by name."""
    return layers() if kind == "nn" else hand_made() if kind == "hand-made" else families(kind)


_KEEP: list[Any] = []


def _declare_vision_operators() -> None:
    """Let ``torchvision`` be imported where its compiled operators do not fit the machine; none of them is used."""
    package = importlib.util.find_spec("torchvision")
    if _KEEP or package is None or package.origin is None:
        return
    try:
        for library in Path(package.origin).parent.glob("_C*.so"):
            torch.ops.load_library(str(library))
    except OSError:
        _KEEP.append(torch.library.Library("torchvision", "DEF"))
        for name in ("nms", "qnms"):
            _KEEP[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def measure(name: str, build: Callable[[], Subject], seconds: float, gigabytes: float) -> dict[str, Any]:
    """The row of one model, within limits of processor time and address space for the rest of this process."""
    limits = {resource.RLIMIT_CPU: int(time.process_time() + seconds), resource.RLIMIT_AS: int(gigabytes * 2**30)}
    for limit, most in limits.items():
        resource.setrlimit(limit, (most, most))
    return measure_row(name, build)


def measure_row(name: str, build: Callable[[], Subject]) -> dict[str, Any]:
    """The row of one model."""
    torch.manual_seed(0)
    result: dict[str, Any] = {"name": name, "status": "refused"}
    start = time.process_time()
    with _reason(result, "cannot be built"):
        subject = build()
        subject.module.eval()
        result["parameters"] = sum(p.numel() for p in subject.module.parameters())
        with torch.no_grad():
            subject.module(*subject.args, **subject.kwargs)
        start = time.process_time()
        traced = _trace(result, subject)
        if traced is not None:
            result["trace_seconds"] = time.process_time() - start
            _examine(result, traced, subject)
    result["seconds"] = time.process_time() - start
    result["peak_memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return result


def _trace(result: dict[str, Any], subject: Subject) -> Trace | None:
    try:
        return trace(subject.module, *subject.args, outputs=subject.outputs, **subject.kwargs)
    except UnsupportedModuleError as error:
        result["reason"] = _short(error)
    return None


def _examine(result: dict[str, Any], traced: Trace, subject: Subject) -> None:
    check = traced.verify(TRIALS, seed=1)
    space = traced.weight_space(check=False)
    result |= {
        "status": "traced" if check.ok else "wrong",
        "groups": len(space.permutable),
        "log_order": space.log_order,
        "deviation": check.deviation,
        "moved": check.moved,
        "scalars": sum(w.numel() for w in traced.example_weights.values()),
    }
    if not check.ok:
        result["reason"] = f"broken by {', '.join(check.broken)[:200]}"
    if subject.log_order is not None:
        result["expected"] = subject.log_order
        result["equal"] = math.isclose(subject.log_order, space.log_order, rel_tol=1e-9, abs_tol=1e-9)
    result["graph"] = _round_trip(traced, result["scalars"])


def _round_trip(traced: Trace, scalars: int) -> str:
    """Module to parameter graph to state dict: exact, or why not."""
    try:
        layout = traced.layout()
        if scalars > LARGEST_GRAPH:
            values = layout.split(traced.example_weights, batch_dims=0)
            state = layout.join(values, batch_dims=0)
        else:
            state = traced.parameter_graph().to_state_dict()
    except WeightspaceError as error:
        return _short(error)
    except (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        return f"{type(error).__name__}: {_short(error)}"
    if list(state) != [*traced.example_weights, *(name for name, _ in layout.aliases)]:
        return "other names"
    same = all(torch.equal(state[n].nan_to_num(), w.nan_to_num()) for n, w in traced.example_weights.items())
    return "exact" if same else "other values"


@contextlib.contextmanager
def _reason(result: dict[str, Any], what: str) -> Iterator[None]:
    """Any other error is a row as well, with the kind of error."""
    try:
        yield
    except Exception as error:
        stage = what if "parameters" not in result else "error"
        result["status"] = "refused" if stage == "error" else "not built"
        result["reason"] = f"{stage}: {type(error).__name__}: {_short(error)}"


def _short(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]
