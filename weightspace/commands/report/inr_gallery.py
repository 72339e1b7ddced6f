"""Images beside what the INRs of a zoo draw: reading them from the zoo and evaluating them."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call, vmap

from weightspace.errors import DataSourceError
from weightspace.zoo import Zoo
from weightspace.zoo.recipe import make_recipe
from weightspace.zoo.recipes import DigitsInr, pixel_coordinates

__all__ = ["InrPictures", "inr_pictures", "render"]

_FINER = 8


@dataclass(frozen=True)
class InrPictures:
    """One INR per class, each array with N rows in the order of the classes.

    Args:
        originals: Images the INRs were fitted to, shape ``(N, grid, grid)``.
        rendered: The INRs on the same pixels.
        fine: The INRs on eight times as many pixels per side.
        psnr: Of ``rendered``, in decibel, as the zoo's index records it.
        labels: Class of each image.
    """

    originals: NDArray[np.floating]
    rendered: NDArray[np.floating]
    fine: NDArray[np.floating]
    psnr: NDArray[np.floating]
    labels: NDArray[np.integer]


def render(
    zoo: Zoo,
    weights: dict[str, Tensor],  # each of shape: (N, *shape)
    grid: int,
) -> NDArray[np.floating]:  # shape: (N, grid, grid, channels)
    """Pictures that SIRENs of a zoo draw on a square raster, clipped to [0, 1]."""
    module, coordinates = zoo.architectures[0].build(), pixel_coordinates(grid)
    with torch.no_grad():
        values = vmap(lambda state: functional_call(module, state, (coordinates,)))(weights)
    return values.reshape(len(values), grid, grid, -1).clamp(0, 1).numpy()


def inr_pictures(zoo: Zoo) -> InrPictures:
    """The first INR of each class among ``zoo``'s rows, with its image.

    Args:
        zoo: Rows of a zoo of the recipe ``digits-inr``, for instance its test split.

    Raises:
        DataSourceError: the images are no longer those that the zoo was built from.
    """
    described = zoo.manifest.recipe
    recipe = make_recipe(described["name"], **described["options"])
    assert isinstance(recipe, DigitsInr)
    if recipe.data_sha256 != described["data_sha256"]:
        raise DataSourceError(
            f"The images of '{recipe.source}' are not those that {zoo.path.name} was built from (their hashes differ). "
            "Put the original data back, or build the zoo anew."
        )
    labels, first = np.unique(zoo.column("label"), return_index=True)
    weights = zoo.weights(first)
    where = {key: n for n, key in enumerate(recipe.images.keys)}
    images = recipe.images.images[[where[key] for key in zoo.column("split_key")[first]]]
    return InrPictures(
        images.mean(1).numpy(),
        render(zoo, weights, recipe.grid).mean(-1),
        render(zoo, weights, _FINER * recipe.grid).mean(-1),
        zoo.column("psnr")[first],
        labels,
    )
