"""From networks to outputs: preparation of weights, evaluation in batches, seeding."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from weightspace.errors import SpecError
from weightspace.training.config import EVALUATION_BATCH
from weightspace.training.data import Batches
from weightspace.zoo.augment import Augmentation

__all__ = ["Pipeline", "device_of", "find_device", "predict", "seeded"]


@dataclass(frozen=True)
class Pipeline:
    """What happens to a batch of networks on its way into the metanetwork.

    Args:
        augment: Random, on training batches only.
        prepare: Deterministic, on every batch, after ``augment``.
    """

    augment: Augmentation | None = None
    prepare: Augmentation | None = None

    def __call__(self, weights: dict[str, Tensor], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Weights as the metanetwork sees them; a generator switches augmentation on."""
        if self.augment is not None and generator is not None:
            weights = self.augment(weights, generator)
        return weights if self.prepare is None else self.prepare(weights)


@torch.no_grad()
def predict(
    model: nn.Module,
    data: Batches,
    pipeline: Pipeline | None = None,
    *,
    parameters: Mapping[str, Tensor] | None = None,
    method: str = "forward",
    generator: torch.Generator | None = None,
    batch_size: int = EVALUATION_BATCH,
) -> tuple[Tensor, Tensor]:
    """Outputs and targets of all networks, in their order, on the CPU.

    Args:
        model: Used in evaluation mode; left in the mode it was in.
        data: Networks.
        pipeline: Preparation of the weights.
        parameters: Used instead of the model's own (a running average).
        generator: Switches the augmentation of the pipeline on; on the device of the model.
        method: ``"forward"`` or another method of the model that takes a batched state dict (``"embed"``).
        batch_size: Networks at a time.
    """
    training, device = model.training, device_of(model)
    model.eval()
    outputs, targets = [], []
    for weights, target in data.batches(batch_size):
        ready = (pipeline or Pipeline())({name: value.to(device) for name, value in weights.items()}, generator)
        if parameters is None:
            out = getattr(model, method)(ready)
        else:
            out = functional_call(model, dict(parameters), (ready,))
        outputs.append(out.cpu())
        targets.append(target)
    model.train(training)
    return torch.cat(outputs), torch.cat(targets)


@contextmanager
def seeded(device: torch.device, *parts: object) -> Iterator[torch.Generator]:
    """A generator on ``device`` seeded by ``parts``; torch's global state (dropout) is too, and restored after."""
    seed = int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big") >> 1
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield torch.Generator(device).manual_seed(seed)


def device_of(model: nn.Module) -> torch.device:
    """Device of the parameters of a module."""
    return next(model.parameters()).device


def find_device(name: str) -> torch.device:
    """The device of that name, once a tensor has been made on it.

    Raises:
        SpecError: torch finds none here.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise SpecError(f"'device' must be one that torch finds here (got '{name}': {reason}). Try 'cpu'.") from error
    return device
