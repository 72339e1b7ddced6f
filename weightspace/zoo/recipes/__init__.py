"""Recipes that come with the package; importing this registers them."""

from weightspace.zoo.recipes.inr import DigitsInr
from weightspace.zoo.recipes.siren import (
    INIT_CONVENTIONS,
    Siren,
    init_bounds,
    pixel_coordinates,
    siren_architecture,
)

__all__ = ["INIT_CONVENTIONS", "DigitsInr", "Siren", "init_bounds", "pixel_coordinates", "siren_architecture"]
