"""Recipes: pure functions of options and a seed that say which networks a zoo holds and how to train them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from weightspace.errors import SpecError
from weightspace.zoo.architecture import Architecture

__all__ = ["AbstractRecipe", "TrainedUnit", "Unit", "known_recipes", "make_recipe", "register_recipe", "seed_of"]


@dataclass(frozen=True)
class Unit:
    """A piece of work: members ``start`` to ``stop`` of a zoo, published together under ``name``."""

    name: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class TrainedUnit:
    """What a unit gives: an architecture, weights ``{name: (len(unit), *shape)}`` and one index row per member."""

    architecture: Architecture
    weights: dict[str, Tensor]
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class AbstractRecipe(ABC):
    """Base of recipes: a frozen dataclass whose fields are its options (JSON values only).

    A recipe is deterministic: :meth:`train` of one unit gives the same bits in every process of one machine, whatever
    was trained before it, so that a killed build can be resumed by running the missing units.

    Args:
        seed: Every random number of the zoo follows from it.
        unit_size: Members per unit, the grain of publishing and resuming.

    Raises:
        SpecError: ``unit_size`` is not positive.
    """

    name: ClassVar[str]
    item: ClassVar[str] = "network"

    seed: int = 0
    unit_size: int = 256

    def __post_init__(self) -> None:
        if self.unit_size < 1:
            raise SpecError(f"'unit_size' of recipe '{self.name}' must be at least 1 (got {self.unit_size}).")

    @property
    @abstractmethod
    def num_members(self) -> int:
        """Number of networks in the zoo."""

    @property
    @abstractmethod
    def data_sha256(self) -> str:
        """Hash of the data that the networks are trained on."""

    @abstractmethod
    def forward_recipe(self) -> dict[str, Any]:
        """All that is needed, besides the weights, to evaluate a member; for ``zoo.json``."""

    @abstractmethod
    def prepare(self) -> None:
        """Do once what all workers profit from (compile); called before any work, and not at all if none is left."""

    @abstractmethod
    def train(self, unit: Unit) -> TrainedUnit:
        """Train the members of a unit. Diverged members stay, with ``status="diverged"``."""

    def describe(self) -> dict[str, Any]:
        """Name, options and data hash as JSON values; two zoos with the same description hold the same rows."""
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return json.loads(json.dumps({"name": self.name, "data_sha256": self.data_sha256, **options}))

    @cached_property
    def fingerprint(self) -> str:
        """Eight hexadecimal digits that identify :meth:`describe`."""
        return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()[:8]

    def plan(self) -> list[Unit]:
        """The units of the whole zoo, in order; names are deterministic and tell fingerprint and range."""
        starts = range(0, self.num_members, self.unit_size)
        ends = [min(start + self.unit_size, self.num_members) for start in starts]
        digits = len(str(self.num_members))
        return [
            Unit(f"{self.fingerprint}-{start:0{digits}d}-{stop:0{digits}d}", start, stop)
            for start, stop in zip(starts, ends, strict=True)
        ]


_RECIPES: dict[str, Callable[..., AbstractRecipe]] = {}
_Recipe = TypeVar("_Recipe", bound=type[AbstractRecipe])


def register_recipe(recipe: _Recipe) -> _Recipe:
    """Class decorator: make a recipe known under its ``name``.

    Raises:
        SpecError: the name belongs to another recipe.
    """
    known = _RECIPES.setdefault(recipe.name, recipe)
    if known is not recipe:
        raise SpecError(f"Recipe '{recipe.name}' is already registered (as {known}). Choose another name.")
    return recipe


def known_recipes() -> list[str]:
    """Names that :func:`make_recipe` takes."""
    return sorted(_RECIPES)


def make_recipe(name: str, **options: Any) -> AbstractRecipe:
    """The recipe registered under ``name``, with these options.

    Raises:
        SpecError: no such recipe, or it has no such option.
    """
    if name not in _RECIPES:
        raise SpecError(f"Unknown recipe '{name}'. Choose one of {known_recipes()}, or register yours first.")
    recipe = _RECIPES[name]
    fields = {field.name for field in dataclasses.fields(recipe)}  # pyright: ignore[reportArgumentType]
    if unknown := sorted(set(options) - fields):
        raise SpecError(f"Recipe '{name}' has no option {unknown}. It has {sorted(fields)}.")
    return recipe(**options)


def seed_of(*parts: object) -> int:
    """63-bit seed from printable parts, so that a member's random numbers depend on what it is, not on its batch."""
    digest = hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
