"""Every exception and warning the package raises on purpose.

Message form, one or two sentences: what failed and where, with the value that was got; then what to do next.
"""

__all__ = [
    "CheckpointError",
    "DataSourceError",
    "NumericalWarning",
    "PerformanceWarning",
    "ShapeError",
    "SpecError",
    "UnreadWeightsWarning",
    "UnsupportedModuleError",
    "WeightspaceError",
    "ZooFormatError",
    "ZooWriteError",
]


class WeightspaceError(Exception):
    """Base class: ``except WeightspaceError`` catches everything the package raises about its input."""


class SpecError(WeightspaceError, ValueError):
    """A description (weight space, layout, recipe, option) contradicts itself or names something unknown."""


class ShapeError(WeightspaceError, ValueError):
    """A tensor or a state dict does not have the shape its description asks for."""


class ZooFormatError(WeightspaceError, ValueError):
    """A folder is not a zoo, or something in it is missing, truncated or altered."""


class ZooWriteError(WeightspaceError, OSError):
    """A file of a zoo could not be written (disk full, quota, permissions); everything published before is intact."""


class DataSourceError(WeightspaceError, ValueError):
    """A data set named by the user cannot be read."""


class CheckpointError(WeightspaceError, ValueError):
    """A checkpoint is unreadable or belongs to another architecture."""


class UnsupportedModuleError(WeightspaceError, TypeError):
    """A module cannot be traced, or an operator in it has no propagation rule."""


class NumericalWarning(UserWarning):
    """A number came out less accurate than promised."""


class UnreadWeightsWarning(UserWarning):
    """A metanetwork is set up so that its answer does not depend on some of the weights."""


class PerformanceWarning(UserWarning):
    """A slower path was taken than the machine could offer."""
