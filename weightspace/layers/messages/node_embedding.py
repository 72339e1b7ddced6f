"""First states of the neurons, from the parameters that join them to fixed nodes and from what tells them apart."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from weightspace.graphs.block_layout import BlockLayout, EdgeBlock
from weightspace.layers.block_roles import BlockRoles, Side, node_features, nodes_of, scatter

__all__ = ["NodeEmbedding", "node_codes"]


def node_codes(
    size: int,
    width: int,
) -> Tensor:  # shape: (size, width)
    """Sines and cosines of the node's number, wavelengths in geometric steps from 4 to ``4 * size`` nodes.

    The position code of Vaswani et al. 2017, section 3.5, with wavelengths that follow the number of nodes.
    """
    half = (width + 1) // 2
    wavelengths = 4.0 * size ** (torch.arange(half, dtype=torch.float64) / max(1, half - 1))
    angles = 2 * torch.pi * torch.arange(size, dtype=torch.float64)[:, None] / wavelengths
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width].float() * 2**0.5


def _joined(block: EdgeBlock, side: Side) -> list[int]:
    """For every node of one side of a block, which of the different fixed nodes at the other side it hangs on."""
    fixed = block.source_nodes if side == "target" else block.target_nodes
    others, members = (block.inputs, block.out) if side == "target" else (block.out, block.inputs)
    nodes = range(block.groups * others) if fixed is None else fixed
    numbers: dict[tuple[int, ...], int] = {}
    groups = [tuple(nodes[k : k + others]) for k in range(0, len(nodes), others)]
    return [numbers.setdefault(group, len(numbers)) for group in groups for _ in range(members)]


class _Labels(nn.Module):
    """What tells the nodes of one layer apart before any parameter is read, as a vector per node."""

    classes: Tensor | None
    codes: Tensor | None

    def __init__(self, layout: BlockLayout, roles: BlockRoles, name: str, width: int) -> None:
        super().__init__()
        layer, blocks = layout.layer(name), layout.blocks
        self.size = layer.size
        numbers = sorted(set(layer.index or ()))
        named = layer.kind == "hidden" and len(numbers) > 1
        places = torch.tensor([numbers.index(k) for k in layer.index]) if named and layer.index else None
        self.register_buffer("classes", places, persistent=False)
        self.of_class = nn.Parameter(torch.randn(len(numbers), width)) if named else None
        codes = node_codes(layer.size, width) if name in roles.wide else None
        self.register_buffer("codes", codes, persistent=False)
        self.of_code = nn.Linear(width, width, bias=False) if codes is not None else None
        self.of_group = nn.ParameterDict()
        for i, side in roles.positions[name]:
            self.register_buffer(f"nodes_{i}_{side}", nodes_of(blocks[i], side), persistent=False)
            joined = _joined(blocks[i], side)
            self.register_buffer(f"joined_{i}_{side}", torch.tensor(joined), persistent=False)
            self.of_group[f"{i}_{side}"] = nn.Parameter(torch.randn(max(joined) + 1, width))

    @property
    def empty(self) -> bool:
        """Whether the nodes are all alike."""
        return self.of_class is None and self.of_code is None and not self.of_group

    def forward(self) -> Tensor:
        """``(1, n, C)``."""
        rows = []
        if self.of_class is not None and self.classes is not None:
            rows.append(self.of_class[self.classes][None])
        if self.of_code is not None:
            rows.append(self.of_code(self.codes)[None])
        for key, embedding in self.of_group.items():
            joined = embedding[getattr(self, f"joined_{key}")]
            rows.append(scatter(joined[None], getattr(self, f"nodes_{key}"), self.size))
        return torch.stack(rows).sum(0)


class _LayerEmbedding(nn.Module):
    """Embedding of the neurons of one layer."""

    def __init__(
        self,
        layout: BlockLayout,
        roles: BlockRoles,
        name: str,
        width: int,
        frequencies: int,
        frequency_scale: float,
        *,
        odd: bool,
    ) -> None:
        super().__init__()
        layer, blocks = layout.layer(name), layout.blocks
        self.size, self.width, self.features, self.odd = layer.size, width, roles.features[name], odd
        self.gain = layer.gain
        is_sine = layer.activation == "sin"
        self.phases: list[tuple[int, Side]] = [
            (i, side) for i, side in self.features if is_sine and blocks[i].role == "bias"
        ]
        for i, side in self.features:
            self.register_buffer(f"feature_{i}_{side}", nodes_of(blocks[i], side), persistent=False)
        labels = _Labels(layout, roles, name, width)
        self.labels = None if labels.empty or (odd and not self.features) else labels
        inputs = sum(
            blocks[i].positions * (blocks[i].inputs if side == "target" else blocks[i].out) for i, side in self.features
        )
        # frequencies are sigma / sqrt(inputs) each, so that phases of standardised features have deviation sigma
        scale = frequency_scale / max(1, inputs) ** 0.5
        self.frequencies = nn.Parameter(torch.randn(inputs, frequencies) * scale) if self.features else None
        waves = frequencies + len(self.phases)
        columns = inputs + waves if odd else inputs + 2 * waves
        self.project = nn.Linear(columns, width, bias=False) if self.features else None
        self.gate = nn.Linear(waves, width) if odd and self.features else None
        constant = torch.zeros(width) if self.features else torch.randn(width)
        self.constant = None if odd else nn.Parameter(constant)

    def forward(self, raw: Mapping[int, Tensor], standard: Mapping[int, Tensor]) -> Tensor:
        """``(B, n, C)``, with ``B = 1`` where no parameter enters."""
        labels = None if self.labels is None else self.labels()
        if self.project is None or self.frequencies is None:
            if self.constant is None:
                return next(iter(raw.values())).new_zeros(1, self.size, self.width)
            states = self.constant.expand(1, self.size, -1)
            return states if labels is None else states + labels
        x = torch.cat([self._spread(standard, i, side) for i, side in self.features], dim=-1)
        angles = [x @ self.frequencies, *(self.gain * self._spread(raw, i, side) for i, side in self.phases)]
        sines, cosines = torch.cat([a.sin() for a in angles], -1), torch.cat([a.cos() for a in angles], -1)
        if self.gate is not None:
            gate = self.gate(cosines) if labels is None else self.gate(cosines) + labels
            return self.project(torch.cat([x, sines], dim=-1)) * torch.sigmoid(gate)
        states = self.project(torch.cat([x, sines, cosines], dim=-1)) + self.constant
        return states if labels is None else states + labels

    def _spread(self, blocks: Mapping[int, Tensor], i: int, side: Side) -> Tensor:
        """Feature columns of one block, at zero where the block does not reach."""
        return scatter(node_features(blocks[i], side), getattr(self, f"feature_{i}_{side}"), self.size)


class NodeEmbedding(nn.Module):
    r"""First state of every node that keeps one.

    The standardised parameters ``f`` that join a neuron to fixed nodes (rows from the inputs, columns to the outputs,
    its bias, norm parameters, depthwise kernel) enter as themselves and through learned Fourier features
    (Tancik et al. 2020) :math:`[f, \sin f\Omega, \cos f\Omega]`; behind a sine with gain :math:`\omega_0` the bias is
    a phase and enters as :math:`\sin \omega_0 b, \cos \omega_0 b` too. A linear map per layer follows. Neurons that no
    symmetry exchanges get a learned embedding: of their class in the layer (queries, keys and values of one
    projection; gates), and of the fixed node they hang on (grouped convolution of the input, residual from it). Nodes
    of wide fixed layers (vocabularies) have the code of their number, :func:`node_codes`, through a linear map, so
    that no parameter grows with their number.

    In odd layers the state changes sign with ``f``: :math:`[f, \sin f\Omega]` goes through a linear map, and
    :math:`\cos f\Omega` and the embeddings through a gate between 0 and 1 that multiplies it.

    Args:
        layout: The architecture.
        roles: Its sorted blocks.
        width: ``C``, channels per neuron.
        frequencies: Fourier features per layer.
        frequency_scale: Standard deviation of the initial phases, radians.
        odd: Names of the layers whose states change sign with the neuron.

    Shape:
        - raw and standardised blocks: ``{block number: (B, G, O, I, K)}``; output: ``{layer: (B, n, C)}``, with
          ``B = 1`` for layers of which no parameter is read here.
    """

    def __init__(
        self,
        layout: BlockLayout,
        roles: BlockRoles,
        width: int,
        *,
        frequencies: int = 64,
        frequency_scale: float = 1.5,
        odd: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.names = roles.hidden
        self.layers = nn.ModuleList(
            _LayerEmbedding(layout, roles, name, width, frequencies, frequency_scale, odd=name in odd)
            for name in roles.hidden
        )

    def forward(self, raw: Mapping[int, Tensor], standard: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """States by layer name."""
        return {name: layer(raw, standard) for name, layer in zip(self.names, self.layers, strict=True)}
