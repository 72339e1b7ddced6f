"""The recipe ``digits-inr``: implicit neural representations (SIRENs) of labelled images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from weightspace.errors import SpecError
from weightspace.zoo.architecture import Architecture
from weightspace.zoo.ensemble import AdamSchedule, one_thread
from weightspace.zoo.recipe import AbstractRecipe, TrainedUnit, Unit, register_recipe, seed_of
from weightspace.zoo.recipes.siren import Siren, init_bounds, pixel_coordinates, siren_architecture
from weightspace.zoo.siren_ensemble import SirenEnsemble
from weightspace.zoo.sources import ImageSet, load_images

__all__ = ["DigitsInr", "Siren"]

_OUTPUT_OFFSET = 0.5
_STEPS_AND_RATE = {"dws": (100, 5e-3), "siren": (50, 2e-3)}  # about 48 and 46 dB on 8x8 digits

_LEAST_MSE = 1e-20  # a perfect fit counts as 200 dB


@register_recipe
@dataclass(frozen=True)
class DigitsInr(AbstractRecipe):
    """Several SIRENs per image, each from its own initialisation, fitted to the pixels by Adam with a cosine to zero.

    Args:
        source: ``digits`` (scikit-learn's), an IDX file of images, a folder with one sub-folder per class, or an
            ``.npz`` file.
        grid: Pixels per side that the images are resampled to.
        widths: Sizes of the SIREN; starts with 2, ends with the channels of the images.
        omega: Factor before every sine, radians per unit.
        init: ``dws`` (one bound for all layers, zero biases) or ``siren`` (the standard one).
        copies: INRs per image.
        shared_init: Start all INRs from one draw; the copies of an image are then identical.
        steps: Adam steps of the fit; by default 100 for dws, 50 for siren.
        lr: First learning rate, falling to zero as a cosine; by default 5e-3 for dws, 2e-3 for siren.
        limit: Use the first ``limit`` images only; 0 for all.
        chunk: INRs trained together; 8 to 16 stay in the cache of a core.
        steps_per_call: Optimizer steps per compiled call; more pays for zoos of hours.
        compiled: Run the training step compiled.

    Raises:
        SpecError: an option is out of range, or the last width is not the number of channels.

    Notes:
        The initial weights of an INR follow from (seed, image key, copy), so a row depends neither on other rows nor
        on how work was cut or shared.
    """

    name: ClassVar[str] = "digits-inr"
    item: ClassVar[str] = "INR"

    source: str = "digits"
    grid: int = 8
    widths: tuple[int, ...] = (2, 32, 32, 1)
    omega: float = 30.0
    init: str = "dws"
    copies: int = 4
    shared_init: bool = False
    steps: int | None = None
    lr: float | None = None
    limit: int = 0
    chunk: int = 16
    steps_per_call: int = 1
    compiled: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "widths", tuple(self.widths))
        init_bounds(self.widths, self.omega, self.init)  # refuses unknown conventions
        for option, default in zip(("steps", "lr"), _STEPS_AND_RATE[self.init], strict=True):
            if getattr(self, option) is None:
                object.__setattr__(self, option, default)
        for option, least in (("grid", 1), ("copies", 1), ("limit", 0), ("chunk", 1), ("steps_per_call", 1)):
            if getattr(self, option) < least:
                raise SpecError(f"'{option}' of {self.name} must be at least {least} (got {getattr(self, option)}).")
        if self._schedule.steps % self.steps_per_call:
            raise SpecError(
                f"'steps' of {self.name} must be a multiple of steps_per_call={self.steps_per_call} (got {self.steps})."
            )

    @property
    def num_members(self) -> int:
        """Images times copies."""
        return len(self.images) * self.copies

    @property
    def data_sha256(self) -> str:
        """Hash of the images as fitted, after resampling."""
        return self.images.sha256

    @property
    def architecture(self) -> Architecture:
        """The one architecture of the zoo."""
        return siren_architecture(self.widths, self.omega, _OUTPUT_OFFSET)

    @cached_property
    def images(self) -> ImageSet:
        """The pictures, at ``grid`` x ``grid`` pixels."""
        images = load_images(self.source).first(self.limit).resized(self.grid)
        if (self.widths[0], self.widths[-1]) != (2, images.images.shape[1]):
            raise SpecError(
                f"'widths' of {self.name} must start with 2 and end with the {images.images.shape[1]} channels of "
                f"'{images.name}' (got {self.widths})."
            )
        return images

    def describe(self) -> dict[str, Any]:
        """As in the base class; the source goes by its name, since a path says nothing on another machine."""
        return {**super().describe(), "source": self.images.name}

    def forward_recipe(self) -> dict[str, Any]:
        """How to turn weights into a picture: ``pixel_coordinates(grid)`` through :class:`Siren`."""
        return {
            "kind": "siren",
            "omega": self.omega,
            "output_offset": _OUTPUT_OFFSET,
            "input_shape": [1, self.widths[0]],
            "grid": self.grid,
            "coordinates": "pixel centres",
            "coordinate_order": ["x", "y"],
            "coordinate_range": [-1, 1],
            "pixel_order": "row-major, top row first",
            "pixel_range": [0, 1],
        }

    def initial_weights(self, unit: Unit) -> tuple[Tensor, list[str]]:
        """Rows of shape ``(len(unit), P)`` and an ``init_id`` for each; equal ids, equal rows."""
        bounds = torch.cat(
            [
                torch.full((parameter.numel(),), bound)
                for parameter, bound in zip(
                    self._module.parameters(), init_bounds(self.widths, self.omega, self.init), strict=True
                )
            ]
        )
        seeds = []
        for member in range(unit.start, unit.stop):
            image, copy = divmod(member, self.copies)
            which = () if self.shared_init else (self.images.keys[image], copy)
            seeds.append(seed_of("siren", self.seed, self.init, self.widths, self.omega, *which))
        draws = [torch.rand(len(bounds), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return (2 * torch.stack(draws) - 1) * bounds, [f"{seed:016x}" for seed in seeds]

    def prepare(self) -> None:
        """Compile the training step."""
        with one_thread():
            self._ensemble  # noqa: B018

    def train(self, unit: Unit) -> TrainedUnit:
        """Fit the members of a unit on one thread."""
        initial, init_ids = self.initial_weights(unit)
        which = torch.arange(unit.start, unit.stop) // self.copies
        targets = self.images.images[which].flatten(2)
        with one_thread():
            fitted = self._ensemble.fit(initial, targets, self._schedule).weights
            weights = self.architecture.unflatten({"float32": fitted})
            loss = self._final_loss(weights, targets)
        finite = fitted.isfinite().all(1) & loss.isfinite()
        rows = []
        for n, (image, mse) in enumerate(zip(which.tolist(), loss.double().tolist(), strict=True)):
            key, copy = self.images.keys[image], (unit.start + n) % self.copies
            rows.append(
                {
                    "model_id": f"{key}#{copy}",
                    "run_id": f"{key}#{copy}",
                    "step": self.steps,
                    "seed": self.seed,
                    "init_id": init_ids[n],
                    "split_key": key,
                    "label": int(self.images.labels[image]),
                    "status": "ok" if finite[n] else "diverged",
                    "copy": copy,
                    "psnr": -10 * math.log10(max(mse, _LEAST_MSE)),
                    "loss": mse,
                    "steps": self.steps,
                    "lr": self.lr,
                    "init": self.init,
                    "grid": self.grid,
                }
            )
        return TrainedUnit(self.architecture, weights, rows)

    @cached_property
    def _module(self) -> Siren:
        return Siren(self.widths, self.omega, _OUTPUT_OFFSET)

    @property
    def _schedule(self) -> AdamSchedule:
        return AdamSchedule(self.steps or 0, self.lr or 0.0)

    @cached_property
    def _ensemble(self) -> SirenEnsemble:
        return SirenEnsemble(
            self.widths,
            pixel_coordinates(self.grid),
            omega=self.omega,
            output_offset=_OUTPUT_OFFSET,
            members=self.chunk,
            steps_per_call=self.steps_per_call,
            compiled=self.compiled,
        )

    def _final_loss(
        self,
        weights: dict[str, Tensor],
        targets: Tensor,  # shape: (N, channels, Q)
    ) -> Tensor:  # shape: (N,)
        """Mean squared error after the last step, by the plain module."""

        def evaluate(state: dict[str, Tensor]) -> Tensor:
            return functional_call(self._module, state, (pixel_coordinates(self.grid),))

        return (vmap(evaluate)(weights).transpose(1, 2) - targets).square().mean((1, 2))
