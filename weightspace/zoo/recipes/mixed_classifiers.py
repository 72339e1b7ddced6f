"""The recipe ``mixed-classifiers``: classifiers of many architectures, trained well and badly, with their accuracy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, vmap

from weightspace.errors import SpecError
from weightspace.zoo.architecture import Architecture
from weightspace.zoo.ensemble import AdamSchedule, fit_ensemble_vmap, one_thread
from weightspace.zoo.recipe import AbstractRecipe, TrainedUnit, Unit, register_recipe, seed_of
from weightspace.zoo.recipes.classifier import classifier_architecture
from weightspace.zoo.sources import ImageSet, load_images

__all__ = ["MixedClassifiers"]

_CONFIGS: dict[str, list[dict[str, Any]]] = {
    "mlp": [{"widths": w} for w in ([16], [32], [24, 16], [32, 32], [16, 16, 16], [24, 24, 24, 24])],
    "cnn": [{"widths": w} for w in ([12], [8, 12], [12, 12], [8, 8, 12], [12, 12, 12], [8, 8, 12, 12])],
    "resnet": [{"width": w, "blocks": b} for w, b in ((6, 1), (8, 1), (12, 1), (6, 2), (8, 2), (8, 3))],
    "vit": [
        {"width": w, "heads": h, "blocks": b}
        for w, h, b in ((8, 2, 1), (12, 2, 1), (16, 4, 1), (8, 2, 2), (12, 3, 2), (16, 2, 2))
    ],
}
_IGNORED = -100
"""Target of an image that a network does not learn from (of torch's cross entropy)."""
_FEWEST = 32
"""Images that a member learns from at least."""
_IMAGES = 1797
"""Digits of scikit-learn."""


@register_recipe
@dataclass(frozen=True)
class MixedClassifiers(AbstractRecipe):
    """Classifiers of digits of six architectures in each of four families, with hyper-parameters drawn at random.

    Every unit is one architecture. A member draws its learning rate, weight decay, number of training images, share of
    wrong labels and scale of the first weights; every ``chunk`` members share the number of steps. The columns hold
    all of them, the family, and the share of right answers on the images that no member is trained on
    (``test_accuracy``).

    Args:
        families: Which families.
        units_per_architecture: Units of ``unit_size`` members for every architecture.
        train_images: Images that members may learn from, 32 at least; all others are for testing.
        steps: Least and largest number of full-batch Adam steps.
        chunk: Members trained together, as far as they are of one unit.

    Raises:
        SpecError: an option is out of range, or an unknown family.
    """

    name: ClassVar[str] = "mixed-classifiers"

    unit_size: int = 40
    families: tuple[str, ...] = tuple(_CONFIGS)
    units_per_architecture: int = 1
    train_images: int = 256
    steps: tuple[int, int] = (30, 200)
    chunk: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("families", "steps"):
            object.__setattr__(self, option, tuple(getattr(self, option)))
        if unknown := sorted(set(self.families) - set(_CONFIGS)):
            raise SpecError(f"'families' of {self.name} must be among {list(_CONFIGS)} (got {unknown}).")
        if not self.families or len(set(self.families)) < len(self.families):
            raise SpecError(f"'families' of {self.name} must name at least one, and none twice (got {self.families}).")
        for option, least in (("units_per_architecture", 1), ("train_images", _FEWEST), ("chunk", 1)):
            if getattr(self, option) < least:
                raise SpecError(f"'{option}' of {self.name} must be at least {least} (got {getattr(self, option)}).")
        if self.train_images >= _IMAGES:
            raise SpecError(
                f"'train_images' of {self.name} must leave some of {_IMAGES} for testing (got {self.train_images})."
            )
        if len(self.steps) != 2 or not 1 <= self.steps[0] <= self.steps[1]:
            raise SpecError(f"'steps' of {self.name} must be a least and a largest, 1 or more (got {self.steps}).")

    @property
    def num_members(self) -> int:
        """Number of networks."""
        return len(self.architectures) * self.units_per_architecture * self.unit_size

    @property
    def data_sha256(self) -> str:
        """Hash of the images."""
        return self.images.sha256

    @cached_property
    def images(self) -> ImageSet:
        """The digits of scikit-learn."""
        return load_images("digits")

    @cached_property
    def architectures(self) -> list[Architecture]:
        """Of the units in turn."""
        return [
            classifier_architecture(family, side=8, classes=10, **_CONFIGS[family][number])
            for number in range(len(_CONFIGS["mlp"]))
            for family in self.families
        ]

    @cached_property
    def _order(self) -> Tensor:
        """Images in the order in which they are taken for training; the rest is for testing."""
        return torch.randperm(len(self.images), generator=torch.Generator().manual_seed(seed_of(self.seed, "images")))

    def forward_recipe(self) -> dict[str, Any]:
        """Modules are built from their architecture records; inputs are the pictures."""
        return {"kind": "classifier", "input_shape": [1, 1, 8, 8], "pixel_range": [0, 1], "classes": 10}

    def prepare(self) -> None:
        """Nothing is compiled."""

    def train(self, unit: Unit) -> TrainedUnit:
        """Train the members of a unit on one thread."""
        architecture = self.architectures[unit.start // self.unit_size % len(self.architectures)]
        module = architecture.build()
        images, labels = self.images.images, self.images.labels
        learned, held = self._order[: self.train_images], self._order[self.train_images :]
        numbers = range(unit.start, unit.stop)
        members = [self._draw(member) for member in numbers]
        parts: list[Tensor] = []
        with one_thread():
            for _, together in groupby(numbers, lambda member: member // self.chunk):
                chunk = [members[member - unit.start] for member in together]
                lr, weight_decay = (torch.tensor([m[key] for m in chunk]) for key in ("lr", "weight_decay"))
                parts.append(
                    fit_ensemble_vmap(
                        module,
                        torch.stack([_initial(architecture, m["seed"], m["init_scale"]) for m in chunk]),
                        images[learned],
                        torch.stack([_targets(labels[learned], m) for m in chunk]),
                        AdamSchedule(chunk[0]["steps"], lr, weight_decay=weight_decay),
                        members=self.chunk,
                        loss=F.cross_entropy,
                    ).weights
                )
            flat = torch.cat(parts)
            weights = architecture.unflatten({"float32": flat})
            logits = vmap(lambda state: functional_call(module, state, (images[held],)))(weights)
            accuracy = (logits.argmax(2) == labels[held]).double().mean(1)
        finite = flat.isfinite().all(1) & logits.flatten(1).isfinite().all(1)
        rows = [
            {
                "model_id": f"{unit.start + n}",
                "run_id": f"{unit.start + n}",
                "step": m["steps"],
                "seed": self.seed,
                "init_id": f"{m['seed']:016x}",
                "split_key": f"{self.seed}/{unit.start + n}",
                "label": None,
                "status": "ok" if finite[n] else "diverged",
                "family": architecture.kind.removeprefix("digits-"),
                "test_accuracy": float(accuracy[n]),
                **{key: m[key] for key in ("lr", "weight_decay", "images", "label_noise", "init_scale")},
            }
            for n, m in enumerate(members)
        ]
        return TrainedUnit(architecture, weights, rows)

    def _draw(self, member: int) -> dict[str, Any]:
        """Hyper-parameters of one member."""
        uniform = torch.rand(5, generator=_generator(self.seed, "member", member), dtype=torch.float64).tolist()
        steps = torch.rand(1, generator=_generator(self.seed, "chunk", member // self.chunk)).item()
        least, largest = self.steps
        return {
            "seed": seed_of(self.seed, "weights", member),
            "steps": round(_between(float(least), float(largest), steps)),
            "lr": _between(2e-3, 5e-2, uniform[0]),
            "weight_decay": _between(1e-6, 1e-3, uniform[1]),
            "images": round(_between(float(_FEWEST), float(self.train_images), uniform[2])),
            "label_noise": max(0.0, 0.8 * uniform[3] - 0.3),
            "init_scale": _between(0.7, 2.0, uniform[4]),
        }


def _generator(*parts: object) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(*parts))


def _between(low: float, high: float, share: float) -> float:
    """Geometric interpolation."""
    return low * math.exp(share * math.log(high / low))


def _initial(architecture: Architecture, seed: int, scale: float) -> Tensor:
    """A flat row: torch's defaults, matrices and kernels times ``scale``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = architecture.build()
    return torch.cat([(p * scale if p.ndim > 1 else p).detach().reshape(-1) for p in module.parameters()])


def _targets(labels: Tensor, member: dict[str, Any]) -> Tensor:
    """Labels of the images that a member learns from, some of them replaced; the others are ignored."""
    generator = _generator(member["seed"], "labels")
    wrong = torch.rand(len(labels), generator=generator) < member["label_noise"]
    noisy = torch.where(wrong, torch.randint(10, labels.shape, generator=generator), labels)
    return noisy.index_fill(0, torch.arange(member["images"], len(labels)), _IGNORED)
