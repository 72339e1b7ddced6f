"""A small zoo of two units and the pieces it is made of."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from weightspace.zoo import Architecture, Zoo

RECIPE = {"name": "toy", "steps": 3}
FORWARD = {"omega": 30.0}
SHAPES = {"0.weight": ((4, 2), "float32"), "0.bias": ((4,), "float32"), "1.weight": ((1, 4), "float32")}


class ToyZoo:
    """Makes weights and rows that are functions of the unit name and the number of networks."""

    recipe, forward = RECIPE, FORWARD
    architecture = Architecture("toy", {"width": 4}, SHAPES)

    def weights(self, seed: int, count: int, architecture: Architecture | None = None) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {
            name: torch.randn(count, *shape, generator=generator).to(getattr(torch, dtype))
            for name, (shape, dtype) in (architecture or self.architecture).shapes.items()
        }

    def rows(self, unit: str, count: int, **more: object) -> list[dict]:
        return [
            {
                "model_id": f"{unit}-{i}",
                "run_id": f"{unit}-{i}",
                "step": 3,
                "seed": i,
                "init_id": f"init-{i}",
                "split_key": f"{unit}/image-{i // 2}",
                "label": i % 3,
                "psnr": 40.0 + i,
                **more,
            }
            for i in range(count)
        ]

    def create(self, path: Path, units: dict[str, int] | None = None) -> Zoo:
        """A zoo with the given number of networks per unit; 6 in a and 5 in b unless told."""
        zoo = Zoo.create(path, recipe=self.recipe, forward=self.forward, title="Toy", licence="MIT")
        for seed, (unit, count) in enumerate(({"a": 6, "b": 5} if units is None else units).items()):
            zoo.append(unit, self.architecture, self.weights(seed, count), self.rows(unit, count))
        return zoo


@pytest.fixture
def toy() -> ToyZoo:
    return ToyZoo()
