"""Augmentations by name, so that a training configuration is data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from weightspace.errors import SpecError
from weightspace.graphs import BlockLayout, WeightSpace
from weightspace.zoo.augment import Augmentation, Compose, InputTransform, Noise
from weightspace.zoo.neuron_symmetries import Canonicalise, PermuteNeurons, PhaseShift, PhaseWrap, SignFlip

__all__ = ["DETERMINISTIC", "augmentation_names", "make_augmentation"]

_AUGMENTATIONS: dict[str, Callable[[BlockLayout], Augmentation]] = {
    "geo": InputTransform,
    "sign": SignFlip,
    "noise": Noise,
    "phase": PhaseShift,
    "wrap": PhaseWrap,
    "canonical": Canonicalise,
}
DETERMINISTIC = ("wrap", "canonical")
"""Names of those that draw nothing."""
_PERMUTE = "permute"  # the one that needs to know the group


def augmentation_names() -> list[str]:
    """Names that :func:`make_augmentation` takes."""
    return [*_AUGMENTATIONS, _PERMUTE]


def make_augmentation(
    names: Sequence[str], layout: BlockLayout, space: WeightSpace | None = None
) -> Augmentation | None:
    """The augmentations of these names, with their default strengths, one after another; ``None`` for no names.

    Args:
        names: ``"geo"`` (input coordinates), ``"sign"``, ``"noise"``, ``"phase"``, ``"permute"``, and the
            deterministic ``"wrap"`` (phases into half a period) and ``"canonical"``.
        layout: Block form of the networks.
        space: Their weight space, needed for ``"permute"`` alone.

    Raises:
        SpecError: an unknown name, ``"permute"`` without a weight space, or an augmentation that these networks do
            not allow.

    Example:
        >>> make_augmentation(["sign", "noise"], BlockLayout.mlp([2, 8, 1], activation="sin"))
        Compose(SignFlip(0.5), Noise(0.1))
    """
    unknown = [name for name in names if name not in augmentation_names()]
    if unknown:
        raise SpecError(f"Unknown augmentation {unknown}. Choose among {augmentation_names()}.")
    if _PERMUTE in names and space is None:
        raise SpecError("Augmentation 'permute' needs the weight space of the networks. Pass trace.weight_space().")
    steps: list[Augmentation] = []
    for name in names:
        try:
            steps.append(PermuteNeurons(layout, space) if name == _PERMUTE and space else _AUGMENTATIONS[name](layout))
        except SpecError as error:
            raise SpecError(f"Augmentation '{name}' does not suit these networks: {error} Or leave it out.") from error
    return Compose(steps) if steps else None
