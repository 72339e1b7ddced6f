"""From a module to its symmetries and its graphs."""

from weightspace.graphs.block_layout import BlockLayout, EdgeBlock, NodeLayer
from weightspace.graphs.parameter_view import ParameterView

__all__ = ["BlockLayout", "EdgeBlock", "NodeLayer", "ParameterView"]
