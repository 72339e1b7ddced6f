"""Labels of a parameter."""

from __future__ import annotations

from dataclasses import dataclass

from weightspace.graphs.labels.values import Component

__all__ = ["ParameterLabels"]


@dataclass
class ParameterLabels:
    """Labels of one parameter (or persistent buffer), over the axes of a reshaped view of it.

    The components may share axes (the group axis of a grouped convolution): an entry is addressed by all of them.
    """

    name: str
    shape: tuple[int, ...]
    view_shape: tuple[int, ...]
    components: tuple[Component, ...]
    is_buffer: bool = False
