"""What each operator asks of the exponents of scales and signs; operators without a rule hold their operands."""

from weightspace.graphs.symmetries.scale_rules import linear_maps, movement, norms, pointwise

__all__ = ["linear_maps", "movement", "norms", "pointwise"]
