"""What every task needs from a zoo: the trace of its networks, usable rows, class labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

import weightspace.zoo.recipes  # noqa: F401  (registers the architectures that ship with the package)
from weightspace.errors import SpecError
from weightspace.graphs import Trace, trace
from weightspace.layers.probes import Probe
from weightspace.metanets.options import is_number
from weightspace.zoo import Zoo

__all__ = ["num_classes", "probe_of", "readable", "trace_zoo"]


def readable(zoo: Zoo) -> Zoo:
    """The rows whose training did not diverge.

    Raises:
        SpecError: there are none.
    """
    ok = zoo.select(status="ok") if "status" in zoo.rows.column_names else zoo
    if not len(ok):
        raise SpecError(f"{zoo!r} has no rows to read. Build it first, or select others.")
    return ok


def num_classes(zoo: Zoo, target: str = "label") -> int:
    """Number of classes: one more than the greatest label.

    Raises:
        SpecError: the column is no class label.
    """
    labels = zoo.column(target)
    if labels.dtype.kind not in "iu" or labels.min(initial=0) < 0:
        raise SpecError(
            f"Column '{target}' must hold class labels 0, 1, ... (got {labels.dtype}). Choose another column."
        )
    return int(labels.max()) + 1


def trace_zoo(zoo: Zoo, input_shape: Sequence[int] | None = None) -> Trace:
    """Trace the architecture of a zoo.

    Args:
        zoo: Rows of one architecture.
        input_shape: Shape of an example input, batch axis first; by default ``input_shape`` of the zoo's forward
            recipe.

    Raises:
        SpecError: the rows are of several architectures, or nothing says what the networks take.
    """
    if len(zoo.architectures) != 1:
        raise SpecError(
            f"{zoo!r} holds {len(zoo.architectures)} architectures, one is read at a time. "
            "Pick one with zoo.select(arch=...)."
        )
    architecture = zoo.architectures[0]
    shape = input_shape or zoo.manifest.forward.get("input_shape")
    if shape is None:
        raise SpecError(
            f"The forward recipe of {zoo!r} does not say what networks of {architecture} take. Write "
            "'input_shape' (batch axis first) into the forward recipe of the zoo, or pass it to trace_zoo."
        )
    return trace(architecture.build(), torch.zeros(*shape))


def probe_of(zoo: Zoo, probes: int) -> Probe:
    """What evaluates the networks of a zoo on ``probes`` inputs: values of all node layers.

    Raises:
        SpecError: ``probes`` is no positive whole number; or see :func:`trace_zoo`.
    """
    if not is_number(probes) or probes < 1:
        raise SpecError(f"'probes' must be a whole number, 0 to read weights only (got {probes!r}).")
    shape = zoo.manifest.forward.get("input_shape")
    traced = trace_zoo(zoo, shape and (probes, *shape[1:]))

    def probe(weights: Mapping[str, Tensor], inputs: Tensor) -> Mapping[str, Tensor]:
        return torch.vmap(lambda one: traced.node_values(one, inputs))(dict(weights))

    return probe
