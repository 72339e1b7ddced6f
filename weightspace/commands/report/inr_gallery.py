"""Images beside what the INRs of a zoo draw: reading them from the zoo and evaluating them."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call, vmap

from weightspace.errors import DataSourceError
from weightspace.zoo import Zoo
from weightspace.zoo.recipes import pixel_coordinates
from weightspace.zoo.sources import load_images

__all__ = ["InrPictures", "inr_pictures", "render"]

_FINER = 8


@dataclass(frozen=True)
class InrPictures:
    """One INR per class, each array with N rows in the order of the classes.

    Args:
        originals: Images the INRs were fitted to, shape ``(N, grid, grid)``; ``None`` if they are not at hand.
        rendered: The INRs on the same pixels.
        fine: The INRs on eight times as many pixels per side.
        psnr: Of ``rendered``, in decibel, as the zoo's index records it.
        labels: Class of each image.
    """

    originals: NDArray[np.floating] | None
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
    """The first INR of each class among ``zoo``'s rows, with its image if the images are at hand.

    Args:
        zoo: Rows of a zoo of the recipe ``digits-inr``, for instance its test split.
    """
    labels, first = np.unique(zoo.column("label"), return_index=True)
    weights, grid = zoo.weights(first), int(zoo.manifest.forward["grid"])
    return InrPictures(
        _originals(zoo, zoo.column("split_key")[first]),
        render(zoo, weights, grid).mean(-1),
        render(zoo, weights, _FINER * grid).mean(-1),
        zoo.column("psnr")[first],
        labels,
    )


def _originals(zoo: Zoo, keys: NDArray[np.object_]) -> NDArray[np.floating] | None:
    """Images of these keys; ``None`` if they lie elsewhere or are not those that the zoo was built from."""
    recipe = zoo.manifest.recipe
    try:
        images = load_images(recipe["source"]).first(recipe["limit"]).resized(recipe["grid"])
    except DataSourceError:  # a zoo names its source, it does not say where the files of another machine are
        return None
    if images.sha256 != recipe["data_sha256"]:
        return None
    where = {key: n for n, key in enumerate(images.keys)}
    return images.images[[where[key] for key in keys]].mean(1).numpy()
