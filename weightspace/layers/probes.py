"""Probe features: what the neurons of the network that is read answer to learned inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from weightspace.errors import ShapeError, SpecError
from weightspace.graphs.block_layout import BlockLayout

__all__ = ["Probe", "ProbeFeatures"]

Probe = Callable[[Mapping[str, Tensor], Tensor], Mapping[str, Tensor]]

_HOW = "Pass torch.vmap(traced.node_values, in_dims=(0, None)) of a trace with as many example inputs as probes"


class ProbeFeatures(nn.Module):
    r"""Neuron states and output values on ``M`` learned inputs (Kofinas et al. 2024, section 3.3).

    A pre-activation ``z`` of a sine with gain :math:`\omega_0` enters as :math:`\sin \omega_0 z, \cos \omega_0 z`,
    any other as :math:`\mathrm{asinh}(z)`. A metanetwork with probes evaluates the network it reads.

    Args:
        layout: The architecture.
        probe: ``(weights, inputs (M, d_in)) -> {layer: (B, M, n)}``, pre-activation values of the node layers.
        probes: ``M``, number of learned inputs, started uniformly in [-1, 1].
        width: Channels per neuron that the values are mapped to.

    Shape:
        - output: ``{hidden layer: (B, n, width)}`` and the outputs' values ``(B, M * d_out)``.

    Raises:
        SpecError: ``probe`` cannot be called, or (when called) does not return the values of a layer.
        ShapeError: (when called) values of another shape.
    """

    @classmethod
    def of(cls, layout: BlockLayout, probe: Probe | None, probes: int, width: int) -> ProbeFeatures | None:
        """None for no probes.

        Raises:
            SpecError: probes, but nothing that evaluates the networks.
        """
        if probes and probe is None:
            raise SpecError(f"'probe' must be given for probes={probes}. {_HOW}, or read weights only: probes=0.")
        return cls(layout, probe, probes, width) if probe is not None and probes else None

    def __init__(self, layout: BlockLayout, probe: Probe, probes: int, width: int) -> None:
        super().__init__()
        if not callable(probe):
            raise SpecError(f"'probe' must be a function of weights and inputs (got {type(probe).__name__}). {_HOW}.")
        self.sizes = {x.name: x.size for x in layout.layers if x.kind in ("hidden", "output")}
        self.probe = probe
        self.hidden = {x.name: x.gain if x.activation == "sin" else None for x in layout.layers if x.kind == "hidden"}
        self.outputs = [x.name for x in layout.layers if x.kind == "output"]
        inputs = sum(x.size for x in layout.layers if x.kind == "input")
        self.num_outputs = probes * sum(x.size for x in layout.layers if x.kind == "output")
        self.inputs = nn.Parameter(torch.rand(probes, inputs) * 2 - 1)
        self.project = nn.ModuleList(
            nn.Linear(probes if gain is None else 2 * probes, width) for gain in self.hidden.values()
        )

    def forward(self, weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Mapped hidden values by layer, and flattened output values."""
        values = self.probe(weights, self.inputs)
        missing = [name for name in (*self.hidden, *self.outputs) if name not in values]
        if missing:
            raise SpecError(
                f"'probe' must return the values of every node layer (it lacks {missing}, it gave {list(values)}). "
                f"{_HOW}; or read weights only (probes=0) where a layer is a residual sum or gathers positions: those "
                "have no values."
            )
        for name, size in self.sizes.items():
            if values[name].ndim != 3 or values[name].shape[1:] != (len(self.inputs), size):
                raise ShapeError(
                    f"'probe' must return values of '{name}' of shape (networks, {len(self.inputs)}, {size}) (got "
                    f"{tuple(values[name].shape)}). Evaluate every network on every input."
                )
        states = {}
        for (name, gain), project in zip(self.hidden.items(), self.project, strict=True):
            z = values[name].transpose(1, 2)
            phase = None if gain is None else gain * z
            states[name] = project(z.asinh() if phase is None else torch.cat([phase.sin(), phase.cos()], dim=-1))
        return states, torch.cat([values[name].flatten(1) for name in self.outputs], dim=-1)
