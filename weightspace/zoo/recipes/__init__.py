"""Recipes that come with the package; importing this registers them."""

from weightspace.zoo.recipes.classifier import CLASSIFIER_FAMILIES, classifier_architecture
from weightspace.zoo.recipes.inr import DigitsInr
from weightspace.zoo.recipes.mixed_classifiers import MixedClassifiers
from weightspace.zoo.recipes.siren import (
    INIT_CONVENTIONS,
    Siren,
    init_bounds,
    pixel_coordinates,
    siren_architecture,
)

__all__ = [
    "CLASSIFIER_FAMILIES",
    "INIT_CONVENTIONS",
    "DigitsInr",
    "MixedClassifiers",
    "Siren",
    "classifier_architecture",
    "init_bounds",
    "pixel_coordinates",
    "siren_architecture",
]
