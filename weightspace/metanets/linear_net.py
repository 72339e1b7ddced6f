"""Stacks of linear equivariant layers: what DWS, NFN and UNF have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.errors import SpecError
from weightspace.graphs import WeightSpace
from weightspace.layers.linear.equivariant_linear import EquivariantLinear, Pool, Reach
from weightspace.layers.linear.feature_encoding import FeatureEncoding
from weightspace.layers.linear.feature_space import Axes, FeatureSpace, end_groups, freed
from weightspace.layers.linear.invariant_pool import InvariantPool
from weightspace.layers.linear.kind_standardise import KindStandardise
from weightspace.layers.linear.relation_linear import RelationLinear
from weightspace.layers.linear.relation_types import kinds_of
from weightspace.layers.standardise import Standardise
from weightspace.metanets.metanet import Metanet

__all__ = ["LinearNet", "LinearNetConfig", "Norm", "Share"]

Norm = Literal["none", "batch", "layer"]
Share = Literal["tensors", "relations"]

_CALIBRATION_BATCH = (4, 64, 2**22)
"""Fewest and most networks, and numbers per layer in between. Of four small networks the mean square of what is pooled
was up to eight times off."""

_PIECE = 2**21
"""Numbers per layer of a piece of the batch on a CPU. Measured: in pieces a step of NFN 4 x 64 takes 0.55 of the time
on 64 CNNs of 4,970 weights and 0.88 on 64 INRs of 1,185."""


@dataclass(frozen=True)
class LinearNetConfig:
    """Options of :class:`LinearNet`; DWS, NFN and UNF are choices of them.

    Args:
        width: Channels per scalar of the weights in the hidden layers.
        layers: Number of linear equivariant layers (with returned weights one more follows).
        ends: ``"channels"``: input and output neurons are told apart by channels of their own, full but quadratic in
            their number; ``"sets"``: they are permutable too and told apart by learned embeddings in every layer.
        positions: The same choice for kernel positions.
        max_free: Longest product of axes that is kept as channels; longer ones are mapped to this length first, so that
            so many linear combinations are read, and edited.
        pool: How axes are reduced: mean, sum, max or attention.
        reach: Whether every tensor reads all tensors, or its neighbours only.
        set_heads: Heads of self-attention between the neurons of every group, beside what is pooled; 0 for none.
        norm: Of the channels behind every layer: none, batch (one statistic per tensor) or layer.
        share: ``"tensors"``: every pair of tensors has coefficients of its own; ``"relations"``: coefficients belong to
            kinds of tensors and how they stand to each other, so that the parameters load for other depths.
        frequencies: Gaussian Fourier features of every weight; 0 to read the weights as they are.
        frequency_scale: Their deviation, periods per standard deviation of a weight.
        head_width: Hidden units behind the pooled features.
        head_layers: Number of their layers.
        head_dropout: Rate in the head.
    """

    width: int = 32
    layers: int = 3
    ends: Axes = "channels"
    positions: Axes = "channels"
    max_free: int | None = 64
    pool: Pool = "mean"
    reach: Reach = "all"
    set_heads: int = 0
    norm: Norm = "none"
    share: Share = "tensors"
    frequencies: int = 0
    frequency_scale: float = 1.0
    head_width: int = 128
    head_layers: int = 1
    head_dropout: float = 0.0

    def __post_init__(self) -> None:
        choices = {"ends": Axes, "positions": Axes, "norm": Norm, "share": Share}
        for name, known in ((name, get_args(kind)) for name, kind in choices.items()):
            if getattr(self, name) not in known:
                raise SpecError(f"'{name}' must be one of {list(known)} (got '{getattr(self, name)}').")
        if self.layers < 1:
            raise SpecError(f"'layers' must be at least 1 (got {self.layers}).")
        if self.set_heads and self.share == "relations":
            raise SpecError(f"'set_heads' must be 0 where share='relations' (got {self.set_heads}).")


class _BatchNorm(nn.BatchNorm1d):
    """Statistics per channel over networks and set axes; of a single value there are none, so the running ones."""

    def forward(self, input: Tensor) -> Tensor:
        if len(input) > 1:
            return super().forward(input)
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


def _activate(norm: nn.Module, x: Tensor) -> Tensor:
    """Norm over the last axis and ReLU, in the memory of the norm where there is one."""
    if isinstance(norm, nn.Identity):
        return F.relu(x)
    return F.relu_(norm(x.reshape(-1, x.shape[-1]))).view_as(x)


def _refuse_generic(space: WeightSpace) -> None:
    """Linear maps here commute with products of symmetric groups; other movements they would break without a word."""
    generic = {name for name, group in space.groups.items() if group.kind == "generic"} | {"generic"}
    if moved := [f"'{b.name}'" for b in space.blocks if generic & set(b.axes)]:
        raise SpecError(
            f"Neurons on {', '.join(moved[:4])}{' and others' if len(moved) > 4 else ''} move by a group that is no "
            "nested product of symmetric groups (a channel shuffle, for example), which linear layers do not commute "
            "with. Take 'operator' or 'gmn'."
        )


class LinearNet(Metanet):
    """Linear equivariant layers with pointwise nonlinearities between them, on the blocks of a weight space.

    Permutable axes stay axes; kernel positions, gates and (with ``ends="channels"``) input and output neurons are
    channels. Weights enter standardised, as they are or through Fourier features. For a vector per network the blocks
    are pooled over all their axes; for weights one more linear layer ends in the scalars of every block.

    Args:
        space: Weight space of the networks that are read.
        out_features: Numbers returned per network; ``None`` to return weights.
        config: Options.
        copies: Versions of the weights that are returned.

    Shape:
        - input: state dict with leading axis ``B``; output: ``(B, out_features)`` or a state dict.

    Raises:
        SpecError: neurons move by a group that is no nested product of symmetric groups.
        ShapeError: (when called) weights of another architecture.

    Notes:
        ``2 * width ** 2`` floating-point operations per scalar and layer; parameters grow with the square of the
        number of tensors (``reach="neighbours"``: linearly). At the start every layer returns features of mean square
        1 for weights that are independent and normal, whatever the weight space (Zhou et al. 2023 need a rule of
        fan-in sums for this; here it is measured).
    """

    reads = WeightSpace

    def __init__(
        self, space: WeightSpace, out_features: int | None, config: LinearNetConfig | None = None, *, copies: int = 1
    ) -> None:
        config = config or self._default()
        super().__init__(space, out_features, config, copies=copies)
        _refuse_generic(space)
        read = freed(space) if config.ends == "sets" else space
        self.features = features = FeatureSpace(read, config.positions)
        if [(b.name, b.view) for b in read.blocks] != [(b.name, b.view) for b in space.blocks]:
            raise SpecError(
                "With permutable inputs and outputs the tensors of this architecture fall into other blocks. Use "
                "ends='channels'."
            )
        self.is_shared = config.share == "relations"
        # Blocks of one place share everything that is not linear: norms, pooled features, statistics, lengths of edits.
        places = kinds_of(FeatureSpace(space, config.positions))
        self.slots = [sorted(set(places)).index(p) for p in places] if self.is_shared else list(range(len(places)))
        slots = sorted(set(self.slots))
        if self.is_shared:
            self.standardise = cast(Standardise, KindStandardise(space, self.slots))
            if out_features is None:
                self.edit_scale = nn.Parameter(self.edit_scale.detach()[slots])
        self.encode = FeatureEncoding(
            features,
            slots=self.slots,
            max_free=config.max_free,
            frequencies=config.frequencies,
            frequency_scale=config.frequency_scale,
        )
        hidden = [free * config.width for free in self.encode.free]
        wide = [self.encode.out_channels, *([hidden] * config.layers)]
        if out_features is None:
            wide.append([free * copies for free in self.encode.free])
        ends = end_groups(read, space) | features.position_groups
        linear = RelationLinear if self.is_shared else EquivariantLinear
        self.linears = nn.ModuleList(
            linear(features, before, after, pool=config.pool, reach=config.reach, heads=config.set_heads)
            for before, after in zip(wide[:-1], wide[1:], strict=True)
        )
        self.positions = nn.ModuleList(_EndEmbedding(features, ends, before, self.slots) for before in wide[:-1])
        norm = {"none": nn.Identity, "batch": _BatchNorm, "layer": nn.LayerNorm}[config.norm]
        example = [self.slots.index(slot) for slot in slots]
        self.norms = nn.ModuleList(nn.ModuleList(norm(hidden[i]) for i in example) for _ in range(config.layers))
        if out_features is None:
            self.decode = nn.ModuleList(
                nn.Linear(f * copies, m.free * copies) if f < m.free else nn.Identity()
                for f, m in ((self.encode.free[i], features.maps[i]) for i in example)
            )
            for linear in self.decode:
                if isinstance(linear, nn.Linear):  # keeps the mean square that calibration gives what enters
                    nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
                    nn.init.zeros_(linear.bias)
        else:
            self.pool = InvariantPool(features, hidden, config.pool, self.slots)
            self.embedding_features = self.pool.out_features
            self.head = _head(self.embedding_features, config, out_features)
        numbers = sum(math.prod(m.sizes) * c for m, c in zip(features.maps, hidden, strict=True))
        if config.norm != "batch":  # which learns from the whole batch
            # Every piece adds to the gradients of all parameters: it is to be worth it.
            self.piece = max(1, max(_PIECE, sum(p.numel() for p in self.parameters())) // numbers)
        self.calibrate()

    @classmethod
    def _default(cls) -> LinearNetConfig:
        return LinearNetConfig()

    @torch.no_grad()
    def calibrate(self) -> None:
        """Scale every linear layer so that normal weights give features of mean square 1 all the way through."""
        generator, (fewest, most, numbers) = torch.Generator().manual_seed(0), _CALIBRATION_BATCH
        size = sum(math.prod(m.sizes) * f for m, f in zip(self.features.maps, self.encode.free, strict=True))
        batch = max(fewest, min(most, numbers // (size * self.config.width)))
        shapes = [(batch, *m.sizes, m.free) for m in self.features.maps]
        device = self.standardise.std.device  # which under torch.device(...) is not that of the generator
        x = self.encode([torch.randn(shape, generator=generator, device="cpu").to(device) for shape in shapes])
        for k, linear in enumerate(self.linears):
            assert isinstance(linear, EquivariantLinear)
            x = linear.calibrate(x, self.positions[k]())
            x = self._activate(x, k) if k < len(self.norms) else x
        for module in self.norms.modules():
            if isinstance(module, _BatchNorm):
                module.reset_running_stats()

    def _activate(self, features: list[Tensor], layer: int) -> list[Tensor]:
        norms = self.norms[layer]
        assert isinstance(norms, nn.ModuleList)
        if not self.is_shared:
            return [_activate(norm, x) for norm, x in zip(norms, features, strict=True)]
        result = list(features)
        for slot, norm in enumerate(norms):
            members = [i for i, own in enumerate(self.slots) if own == slot]
            rows = [features[i].reshape(-1, features[i].shape[-1]) for i in members]  # statistics run over all members
            parts = _activate(norm, torch.cat(rows)).split([len(r) for r in rows])
            for i, part in zip(members, parts, strict=True):
                result[i] = part.view_as(features[i])
        return result

    def _hidden(self, standard: Mapping[int, Tensor]) -> list[Tensor]:
        """Features behind the last nonlinearity."""
        x = self.encode(self.features.read(standard))
        for k in range(len(self.norms)):
            x = self._activate(self.linears[k](x, self.positions[k]()), k)
        return x

    def _embed(self, weights: Mapping[str, Tensor], raw: dict[int, Tensor], standard: dict[int, Tensor]) -> Tensor:
        return self.pool(self._hidden(standard))

    def _edits(
        self, weights: Mapping[str, Tensor], raw: dict[int, Tensor], standard: dict[int, Tensor]
    ) -> dict[int, Tensor]:
        edits = self.linears[-1](self._hidden(standard), self.positions[-1]())
        return self.features.write([self.decode[k](x) for k, x in zip(self.slots, edits, strict=True)], self.copies)

    def _edit_lengths(self) -> Tensor:
        scale = self.edit_scale[cast(KindStandardise, self.standardise).index] if self.is_shared else self.edit_scale
        return scale * self.standardise.std


class _EndEmbedding(nn.Module):
    """A learned vector for each input, output or position that the axes of the feature maps run over."""

    def __init__(self, features: FeatureSpace, ends: frozenset[str], channels: list[int], slots: list[int]) -> None:
        super().__init__()
        self.sizes = [m.sizes for m in features.maps]
        self.axes = [
            [(slot, k) for k, group in enumerate(m.groups) if group in ends]
            for m, slot in zip(features.maps, slots, strict=True)
        ]
        shapes = {
            axis: (m.sizes[axis[1]], width)
            for m, axes, width in zip(features.maps, self.axes, channels, strict=True)
            for axis in axes
        }
        self.numbers = {axis: n for n, axis in enumerate(sorted(shapes))}
        self.vectors = nn.ParameterList(nn.Parameter(torch.randn(shapes[axis])) for axis in self.numbers)

    def forward(self) -> list[Tensor | None]:
        """Their sum, ``(1, *set sizes, channels)``, or ``None``, for every map."""
        result: list[Tensor | None] = []
        for sizes, axes in zip(self.sizes, self.axes, strict=True):
            total: Tensor | None = None
            for axis in axes:
                vector = self.vectors[self.numbers[axis]]
                shape = [1] * (len(sizes) + 1)
                shape[1 + axis[1]], channels = vector.shape
                one = vector.view(*shape, channels).expand(1, *sizes, channels)
                total = one if total is None else total + one
            result.append(total)
        return result


def _head(in_features: int, config: LinearNetConfig, out_features: int) -> nn.Sequential:
    sizes = [in_features, *([config.head_width] * config.head_layers)]
    hidden = (
        layer
        for a, b in zip(sizes[:-1], sizes[1:], strict=True)
        for layer in (nn.Linear(a, b), nn.ReLU(), nn.Dropout(config.head_dropout))
    )
    return nn.Sequential(*hidden, nn.Linear(sizes[-1], out_features))
