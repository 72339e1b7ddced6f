"""Options of metanetworks for mixed architectures."""

from __future__ import annotations

from dataclasses import dataclass

from weightspace.errors import SpecError
from weightspace.layers.mixed.shared_standardise import Normalisation

__all__ = ["SharedGraphMetanetworkConfig", "SharedOperatorNetConfig"]


@dataclass(frozen=True)
class SharedOperatorNetConfig:
    """Options of :class:`~weightspace.metanets.SharedOperatorNet`.

    Args:
        width: Channels per neuron.
        heads: Functions of the weight per direction and layer; each carries ``width / heads`` channels.
        layers: Rounds of message passing.
        function_units: Hidden units of the functions of the weight.
        head_width: Hidden units of the head.
        dropout, head_dropout: Rates inside the neuron MLPs and the head.
        normalisation: ``"relation"`` or ``"network"``, see :class:`~weightspace.layers.SharedStandardise`.
    """

    width: int = 48
    heads: int = 8
    layers: int = 3
    function_units: int = 16
    head_width: int = 128
    dropout: float = 0.1
    head_dropout: float = 0.1
    normalisation: Normalisation = "relation"

    def __post_init__(self) -> None:
        _check(self, "heads")


@dataclass(frozen=True)
class SharedGraphMetanetworkConfig:
    """Options of :class:`~weightspace.metanets.SharedGraphMetanetwork`.

    Args:
        width: Channels per node.
        edge_width: Channels per edge; each scales ``width / edge_width`` channels of the messages along it.
        layers: Rounds of message passing, with an edge update between two rounds.
        edge_units: Hidden units of the functions that embed a parameter.
        head_width: Hidden units of the head.
        dropout, head_dropout: Rates inside the node MLPs and the head.
        normalisation: ``"relation"`` or ``"network"``, see :class:`~weightspace.layers.SharedStandardise`.
    """

    width: int = 48
    edge_width: int = 8
    layers: int = 3
    edge_units: int = 16
    head_width: int = 128
    dropout: float = 0.1
    head_dropout: float = 0.1
    normalisation: Normalisation = "relation"

    def __post_init__(self) -> None:
        _check(self, "edge_width")


def _check(config: SharedOperatorNetConfig | SharedGraphMetanetworkConfig, name: str) -> None:
    part = getattr(config, name)
    if config.layers < 1:
        raise SpecError(f"'layers' must be at least 1 (got {config.layers}): messages read the weights.")
    if part < 1 or config.width % part:
        raise SpecError(f"'width' must be a multiple of '{name}' (got {config.width} and {part}).")
    if config.normalisation not in ("relation", "network"):
        raise SpecError(f"'normalisation' must be 'relation' or 'network' (got '{config.normalisation}').")
