"""Something that reads a batch of networks and can be timed."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.peers.case import Case
from benchmarks.peers.kinds import seconds_by_kind

__all__ = ["Parts", "TorchSubject", "alone", "layers_of", "put_on_path", "stub"]

Parts = Sequence[tuple[Case, dict[str, Tensor]]]
"""Architectures with the state dicts of their networks."""


class TorchSubject:
    """A PyTorch model, and how a batch of state dicts is brought into its form.

    Args:
        model: Put in evaluation mode: no dropout; batch norms use their running statistics.
        prepare: From the networks of every architecture to a function that returns what the model takes. The first is
            not timed, the second is: it copies where the model writes into its input.

    Attributes:
        warms_up: Whether a small batch goes first, so that nothing done once per process is timed.
    """

    warms_up = True

    def __init__(self, model: nn.Module, prepare: Callable[[Parts], Callable[[], Any]]) -> None:
        self.model, self.prepare = model.eval(), prepare
        self.parameters = sum(p.numel() for p in model.parameters())

    def compile(self) -> None:
        """Let ``torch.compile`` make code for the sizes of the batch that is loaded next; done there."""
        self.model.compile(dynamic=False)
        self.warms_up = False

    def load(self, parts: Parts) -> None:
        """Take this batch from now on."""
        self.inputs = self.prepare(parts)
        if not self.warms_up:
            self.forward()
            self.step()

    def forward(self) -> None:
        """Answers, no gradient."""
        with torch.no_grad():
            self.model(self.inputs())

    def step(self) -> None:
        """Answers and the gradient of all parameters."""
        self.model.zero_grad()
        self.model(self.inputs()).square().mean().backward()

    def products(self) -> dict[str, int]:
        """Floating-point operations of the matrix products of a step, ``"flop"``."""
        with _Products() as counted:
            self.step()
        return {"flop": counted.flop}

    def parts(self) -> dict[str, float]:
        """Seconds of a step by kind of operation."""
        return seconds_by_kind(self.step)


class _Products(TorchDispatchMode):
    """Counts matrix products. The counter of torch follows modules too, and fails for those that run in backward."""

    flop = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.flop += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


def alone(prepare: Callable[[dict[str, Tensor]], Callable[[], Any]]) -> Callable[[Parts], Callable[[], Any]]:
    """The same for batches of one architecture."""

    def of(parts: Parts) -> Callable[[], Any]:
        ((_, weights),) = parts
        return prepare(weights)

    return of


def layers_of(weights: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Weights ``(B, out, in, ...)`` and biases ``(B, out)`` of all layers, input first."""
    tensors = list(weights.values())
    return tensors[::2], tensors[1::2]


def put_on_path(*folders: Path) -> None:
    """Make the packages of these folders importable, before all others."""
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing:
        raise FileNotFoundError(f"No {', '.join(missing)}: put the public code there, or leave '--peers' away.")
    sys.path[:0] = [str(folder) for folder in folders]


def stub(*names: str) -> None:
    """Let packages that are imported but not needed be anything."""
    for name in names:
        module = types.ModuleType(name)
        module.__getattr__ = lambda _name: MagicMock()  # type: ignore[method-assign]
        module.__path__ = []
        sys.modules[name] = module
