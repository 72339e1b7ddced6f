"""Model zoos: populations of trained networks on disk, with provenance, splits and batches.

Builders, augmentations and data sources are in their own modules: ``zoo.build``, ``zoo.augment``, ``zoo.sources``.
"""

from weightspace.zoo.architecture import Architecture, register_architecture
from weightspace.zoo.index import REQUIRED_COLUMNS
from weightspace.zoo.info import ZooInfo
from weightspace.zoo.loader import ZooBatch, ZooLoader
from weightspace.zoo.manifest import FORMAT_VERSION, Manifest
from weightspace.zoo.recipe import AbstractRecipe, known_recipes, make_recipe, register_recipe
from weightspace.zoo.recipes import DigitsInr, Siren
from weightspace.zoo.splits import DEFAULT_FRACTIONS, split_of
from weightspace.zoo.store import Zoo, ZooItem
from weightspace.zoo.verify import ZooReport

__all__ = [
    "DEFAULT_FRACTIONS",
    "FORMAT_VERSION",
    "REQUIRED_COLUMNS",
    "AbstractRecipe",
    "Architecture",
    "DigitsInr",
    "Manifest",
    "Siren",
    "Zoo",
    "ZooBatch",
    "ZooInfo",
    "ZooItem",
    "ZooLoader",
    "ZooReport",
    "known_recipes",
    "make_recipe",
    "register_architecture",
    "register_recipe",
    "split_of",
]
