"""First states of the hidden neurons, from the parameters that join them to fixed nodes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from weightspace.graphs.block_layout import BlockLayout
from weightspace.layers.block_roles import BlockRoles, Side, nodes_of, scatter

__all__ = ["NodeEmbedding", "node_features"]


def node_features(
    values: Tensor,  # shape: (B, G, O, I, K)
    side: Side,
) -> Tensor:  # shape: (B, G * O, I * K) on the target side, (B, G * I, O * K) on the source side
    """Parameters of one block as a vector per neuron of one side."""
    if side == "source":
        values = values.transpose(2, 3)
    return values.flatten(3, 4).flatten(1, 2)


class _LayerEmbedding(nn.Module):
    """Embedding of the neurons of one hidden layer."""

    def __init__(
        self, layout: BlockLayout, roles: BlockRoles, name: str, width: int, frequencies: int, frequency_scale: float
    ) -> None:
        super().__init__()
        layer, blocks = layout.layer(name), layout.blocks
        self.size, self.features = layer.size, roles.features[name]
        self.gain = layer.gain
        is_sine = layer.activation == "sin"
        self.phases: list[tuple[int, Side]] = [
            (i, side) for i, side in self.features if is_sine and blocks[i].role == "bias"
        ]
        for kind, pairs in (("feature", self.features), ("position", roles.positions[name])):
            for i, side in pairs:
                self.register_buffer(f"{kind}_{i}_{side}", nodes_of(blocks[i], side), persistent=False)
        inputs = sum(
            blocks[i].positions * (blocks[i].inputs if side == "target" else blocks[i].out) for i, side in self.features
        )
        # frequencies are sigma / sqrt(inputs) each, so that phases of standardised features have deviation sigma
        self.frequencies = nn.Parameter(torch.randn(inputs, frequencies) * frequency_scale / max(1, inputs) ** 0.5)
        columns = inputs + 2 * frequencies + 2 * len(self.phases)
        self.project = nn.Linear(columns, width, bias=False) if self.features else None
        self.constant = nn.Parameter(torch.zeros(width) if self.features else torch.randn(width))
        self.groups = nn.ParameterDict(
            {f"{i}_{side}": nn.Parameter(torch.randn(blocks[i].groups, width)) for i, side in roles.positions[name]}
        )

    def forward(self, raw: Mapping[int, Tensor], standard: Mapping[int, Tensor]) -> Tensor:
        """``(B, n, C)``."""
        if self.project is None:
            batch = next(iter(standard.values())).shape[0]
            states = self.constant.expand(batch, self.size, -1)
        else:
            x = torch.cat([self._spread(standard, i, side) for i, side in self.features], dim=-1)
            phase = x @ self.frequencies
            columns = [x, phase.sin(), phase.cos()]
            for i, side in self.phases:
                angle = self.gain * self._spread(raw, i, side)
                columns += [angle.sin(), angle.cos()]
            states = self.project(torch.cat(columns, dim=-1)) + self.constant
        for key, embedding in self.groups.items():
            nodes = getattr(self, f"position_{key}")
            members = (self.size if nodes is None else len(nodes)) // len(embedding)
            rows = embedding.repeat_interleave(members, dim=0).expand(states.shape[0], -1, -1)
            states = states + scatter(rows, nodes, self.size)
        return states

    def _spread(self, blocks: Mapping[int, Tensor], i: int, side: Side) -> Tensor:
        """Feature columns of one block, at zero where the block does not reach."""
        return scatter(node_features(blocks[i], side), getattr(self, f"feature_{i}_{side}"), self.size)


class NodeEmbedding(nn.Module):
    r"""First state of every hidden neuron.

    The standardised parameters ``f`` that join a neuron to fixed nodes (rows from the inputs, columns to the outputs,
    its bias, norm parameters, depthwise kernel) enter as themselves and through learned Fourier features
    (Tancik et al. 2020) :math:`[f, \sin f\Omega, \cos f\Omega]`; behind a sine with gain :math:`\omega_0` the bias is
    a phase and enters as :math:`\sin \omega_0 b, \cos \omega_0 b` too. A linear map per layer follows. Neurons told
    apart by the fixed node they hang on (grouped convolution of the input, residual from it) get a learned embedding
    of that node.

    Args:
        layout: The architecture.
        roles: Its sorted blocks.
        width: ``C``, channels per neuron.
        frequencies: Fourier features per layer.
        frequency_scale: Standard deviation of the initial phases, radians.

    Shape:
        - raw and standardised blocks: ``{block number: (B, G, O, I, K)}``; output: ``{hidden layer: (B, n, C)}``.
    """

    def __init__(
        self, layout: BlockLayout, roles: BlockRoles, width: int, *, frequencies: int = 64, frequency_scale: float = 1.5
    ) -> None:
        super().__init__()
        self.names = roles.hidden
        self.layers = nn.ModuleList(
            _LayerEmbedding(layout, roles, name, width, frequencies, frequency_scale) for name in roles.hidden
        )

    def forward(self, raw: Mapping[int, Tensor], standard: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """States by layer name."""
        return {name: layer(raw, standard) for name, layer in zip(self.names, self.layers, strict=True)}
