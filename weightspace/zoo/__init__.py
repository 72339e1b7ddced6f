"""Model zoos: populations of trained networks on disk, with provenance, splits and batches."""

from weightspace.zoo.architecture import Architecture, register_architecture
from weightspace.zoo.files import ZooWriteError
from weightspace.zoo.index import REQUIRED_COLUMNS
from weightspace.zoo.info import ZooInfo
from weightspace.zoo.loader import ZooBatch, ZooLoader
from weightspace.zoo.manifest import FORMAT_VERSION, Manifest
from weightspace.zoo.splits import DEFAULT_FRACTIONS, split_of
from weightspace.zoo.store import Zoo, ZooItem
from weightspace.zoo.verify import ZooReport

__all__ = [
    "DEFAULT_FRACTIONS",
    "FORMAT_VERSION",
    "REQUIRED_COLUMNS",
    "Architecture",
    "Manifest",
    "Zoo",
    "ZooBatch",
    "ZooInfo",
    "ZooItem",
    "ZooLoader",
    "ZooReport",
    "ZooWriteError",
    "register_architecture",
    "split_of",
]
