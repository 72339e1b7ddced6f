"""Which parameters a readout of the outputs sees after so many rounds of message passing."""

from __future__ import annotations

import math
import warnings

from weightspace.errors import UnreadWeightsWarning
from weightspace.graphs.block_layout import BlockLayout
from weightspace.layers.block_roles import NEURONS, loose_layers

__all__ = ["rounds_to_read", "warn_of_unread"]


def rounds_to_read(layout: BlockLayout, *, reverse: bool) -> dict[str, float]:
    """Rounds of message passing after which the outputs have seen all of a parameter; infinite if they never do.

    Parameters of a single node that only gives them (biases, norms) are features of the neurons they reach; all others
    come with a message. Layers of parameters that touch no neuron are read like outputs.

    Args:
        layout: The architecture.
        reverse: Whether messages run against the forward pass too.
    """
    steps = [(b.source, b.target) for b in layout.blocks]
    steps += [(target, source) for source, target in steps] if reverse else []
    fresh = {layer.name for layer in layout.layers if layer.kind == "output"} | {*loose_layers(layout)}
    distance: dict[str, int] = {}
    while fresh:
        distance.update(dict.fromkeys(fresh, max(distance.values(), default=-1) + 1))
        fresh = {sender for sender, receiver in steps if receiver in fresh} - distance.keys()
    rounds: dict[str, float] = {}
    for block in layout.blocks:
        if block.view is not None:
            source = layout.layer(block.source)
            heard = min(distance.get(end, math.inf) for end in (block.target, block.source)[: 1 + reverse])
            is_feature = source.kind not in NEURONS and source.size == 1
            needed = distance.get(block.target, math.inf) if is_feature else heard + 1
            rounds[block.view.parameter] = max(rounds.get(block.view.parameter, 0), needed)
    return rounds


def warn_of_unread(name: str, layout: BlockLayout, layers: int, *, reverse: bool, pooled: str) -> None:
    """Say which parameters ``layers`` rounds in front of a readout of the outputs leave out.

    Args:
        name: Of the metanetwork.
        layout: The architecture that it reads.
        layers: Rounds of message passing.
        reverse: Whether messages run against the forward pass too.
        pooled: The readout that reads all nodes.
    """
    rounds = rounds_to_read(layout, reverse=reverse)
    unread = [parameter for parameter, needed in rounds.items() if needed > layers]
    if unread:
        enough = max(rounds.values())
        deeper = f"layers={enough:.0f} or " if enough < math.inf else ""
        few = ", ".join(repr(parameter) for parameter in unread[:3]) + (", ..." if len(unread) > 3 else "")
        warnings.warn(
            f"{name} with layers={layers} reads the outputs, which {len(unread)} of {len(rounds)} tensors do not reach "
            f"in full ({few}). Take {deeper}readout='{pooled}'.",
            UnreadWeightsWarning,
            stacklevel=3,
        )
