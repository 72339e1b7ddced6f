r"""Random changes of weights that a reader of weights should not care about.

An augmentation is a small callable built from a :class:`~weightspace.graphs.BlockLayout`; it takes a batch of state
dicts (leading axis B) and a ``torch.Generator`` and returns a new batch. ``preserves_function`` says whether the
networks compute exactly what they did before (:mod:`weightspace.zoo.neuron_symmetries`) or something near by.

The list follows Shamsian et al. 2024, "Improved generalization of weight space networks via augmentations"; where the
published code moves the input shift on into deeper layers, which is not exact, ours stops at the first bias.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from weightspace.errors import SpecError
from weightspace.graphs import BlockLayout, EdgeBlock

__all__ = ["Augmentation", "Compose", "InputTransform", "Noise", "Values"]

Values = list[Tensor | None]
"""Block values as ``BlockLayout.split`` gives them, each ``(B, groups, out, inputs, positions)``."""


class Augmentation(ABC):
    """Base of all augmentations.

    Args:
        layout: Block form of the networks that will be changed.
    """

    preserves_function: bool = False

    def __init__(self, layout: BlockLayout) -> None:
        self.layout = layout

    def __call__(self, weights: Mapping[str, Tensor], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Augmented copies of a batch of state dicts; the argument is left as it is.

        Raises:
            ShapeError: the weights belong to another architecture.
        """
        return self.layout.join(self.transform(self.layout.split(weights), generator))

    @abstractmethod
    def transform(self, values: Values, generator: torch.Generator | None) -> Values:
        """The same on block values; returns a new list and never writes into a tensor of the old one."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Compose(Augmentation):
    """Augmentations one after another; the state dicts are split into blocks once.

    Args:
        steps: At least one augmentation, all built from the same layout.

    Raises:
        SpecError: no steps, or steps built from different layouts.
    """

    def __init__(self, steps: Sequence[Augmentation]) -> None:
        if not steps:
            raise SpecError("Compose needs at least one augmentation (got none). Pass no augmentation at all instead.")
        if len({step.layout.fingerprint for step in steps}) > 1:
            raise SpecError(
                f"The steps of Compose must be built from one layout (got {[repr(s.layout) for s in steps]}). "
                "Build all of them from the layout of the zoo."
            )
        super().__init__(steps[0].layout)
        self.steps = tuple(steps)
        self.preserves_function = all(step.preserves_function for step in steps)

    def transform(self, values: Values, generator: torch.Generator | None) -> Values:
        """All steps in order."""
        for step in self.steps:
            values = step.transform(values, generator)
        return values

    def __repr__(self) -> str:
        return f"Compose({', '.join(map(repr, self.steps))})"


class Noise(Augmentation):
    """Gaussian noise on every scalar; does not preserve the function.

    Each network draws its level :math:`u \\sim U(0, scale)`; its tensors get noise of standard deviation
    :math:`u` times their own standard deviation. A tensor of one scalar has none and stays.

    Args:
        layout: Block form of the networks.
        scale: Largest noise level, a fraction of the spread of a tensor, >= 0.

    Raises:
        SpecError: ``scale`` is negative.
    """

    def __init__(self, layout: BlockLayout, scale: float = 0.1) -> None:
        if scale < 0:
            raise SpecError(f"'scale' of Noise must be >= 0 (got {scale}). It is a fraction of the spread of a tensor.")
        super().__init__(layout)
        self.scale = scale

    def transform(self, values: Values, generator: torch.Generator | None) -> Values:
        """Noisy copies of the blocks."""
        level: Tensor | None = None
        changed: Values = []
        for value in values:
            if value is None:
                changed.append(None)
                continue
            if level is None:
                level = torch.rand(len(value), 1, 1, 1, 1, generator=generator, dtype=value.dtype, device=value.device)
            spread = value.std(dim=(1, 2, 3, 4), correction=0, keepdim=True)
            noise = torch.randn(value.shape, generator=generator, dtype=value.dtype, device=value.device)
            changed.append(torch.addcmul(value, noise, level * spread, value=self.scale))
        return changed

    def __repr__(self) -> str:
        return f"Noise({self.scale})"


class InputTransform(Augmentation):
    r"""Rotation, scale and shift of the input coordinates of an INR, written into its first layer.

    The new network computes :math:`f(A x + t)` exactly: :math:`W_1 \leftarrow W_1 A`, :math:`b_1 \leftarrow b_1 +
    W_1 t`, with :math:`A` a rotation times a scale, drawn per network. For an image INR that is a small rotation,
    zoom and shift of the picture.

    Args:
        layout: Block form of the networks; the input is read by dense layers with a bias and by nothing else.
        rotation: Largest angle in degrees, both signs; needs two input coordinates unless 0.
        scale: Largest relative change of scale.
        shift: Largest shift of each coordinate, in units of the coordinates (dimensionless, pictures span [-1, 1]).

    Raises:
        SpecError: the layout does not read coordinates in that way.
    """

    def __init__(self, layout: BlockLayout, *, rotation: float = 15.0, scale: float = 0.1, shift: float = 0.1) -> None:
        super().__init__(layout)
        self.rotation, self.scale, self.shift = rotation, scale, shift
        inputs = {layer.name for layer in layout.layers if layer.kind == "input"}
        readers = [i for i, block in enumerate(layout.blocks) if block.source in inputs]
        biases = {b.target: i for i, b in enumerate(layout.blocks) if b.role == "bias" and b.target_nodes is None}
        self._dims = {layout.blocks[i].inputs for i in readers}
        if len(self._dims) != 1 or not all(_reads_coordinates(layout.blocks[i], biases) for i in readers):
            raise SpecError(
                f"InputTransform needs an input that only dense layers with a bias read (got {layout!r}, input read by "
                f"{[layout.blocks[i].name for i in readers]}). It is meant for coordinate networks: leave it out."
            )
        if rotation and self._dims != {2}:
            raise SpecError(
                f"A rotation needs 2 input coordinates (got {self._dims.pop()}). Pass rotation=0 to scale and shift."
            )
        self._readers = [(i, biases[layout.blocks[i].target]) for i in readers]

    def draw(self, batch: int, like: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Random maps ``A`` of shape ``(B, d, d)`` and shifts ``t`` of shape ``(B, d)``."""
        (d,) = self._dims
        u = torch.rand(batch, 2 + d, generator=generator, dtype=like.dtype, device=like.device) * 2 - 1
        zoom = (1 + self.scale * u[:, 1]).reshape(-1, 1, 1)
        if d == 2:
            angle = u[:, 0] * math.radians(self.rotation)
            cos, sin = angle.cos(), angle.sin()
            matrix = torch.stack([cos, -sin, sin, cos], dim=1).reshape(-1, 2, 2) * zoom
        else:
            matrix = torch.eye(d, dtype=like.dtype, device=like.device) * zoom
        return matrix, self.shift * u[:, 2:]

    def transform(self, values: Values, generator: torch.Generator | None) -> Values:
        """Blocks of the networks that see moved coordinates."""
        changed = list(values)
        first = values[self._readers[0][0]]
        if first is None:
            return changed
        matrix, shift = self.draw(len(first), first, generator)
        for reader, bias in self._readers:
            weight, offset = changed[reader], changed[bias]
            if weight is None or offset is None:
                continue
            flat = weight[:, 0, :, :, 0]
            changed[reader] = (flat @ matrix)[:, None, :, :, None]
            changed[bias] = offset + (flat @ shift[:, :, None])[:, None, :, :, None]
        return changed

    def __repr__(self) -> str:
        return f"InputTransform(rotation={self.rotation}, scale={self.scale}, shift={self.shift})"


def _reads_coordinates(block: EdgeBlock, biases: Mapping[str, int]) -> bool:
    plain = block.view is not None and block.groups == 1 and block.positions == 1 and block.target in biases
    return plain and block.source_nodes is None and block.target_nodes is None
