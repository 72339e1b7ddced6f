"""The linear equivariant layer: every basis map between blocks, as reduce, mix, broadcast."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.errors import SpecError
from weightspace.layers.linear.equivariant_basis import Partition, Pattern, Reduction, Signature, patterns, reductions
from weightspace.layers.linear.feature_space import FeatureMap, FeatureSpace
from weightspace.layers.linear.maxima import maxima
from weightspace.layers.linear.set_attention import SetAttention

__all__ = ["EquivariantLinear", "Pool", "Reach", "pooled_diagonal"]

Pool = Literal["mean", "sum", "max", "attention"]
Reach = Literal["all", "neighbours"]
POOLS = ("mean", "sum", "max", "attention")
REACHES = ("all", "neighbours")


@dataclass(frozen=True)
class _Step:
    """One pooled axis: ``kept`` is the reduction ``above`` without the part on axis ``axis``."""

    source: int
    partition: Partition
    kept: frozenset[int]
    above: frozenset[int]
    axis: int


class _Mix(nn.Module):
    """Coefficients of one matrix product: some reductions of one signature, mixed into some of its patterns."""

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None


class EquivariantLinear(nn.Module):
    r"""All affine maps between the blocks of a weight space that commute with its neuron permutations.

    .. math:: y^{(t)} = b^{(t)} + \textstyle\sum_s \sum_k \theta_{tsk}\, E_{tsk}(x^{(s)})

    over the basis maps :math:`E_{tsk}` of every pair of blocks (Zhou et al. 2024, section 3; of MLPs these are the
    maps of Navon et al. 2023 and Zhou et al. 2023). Each reduction of a block is computed once, all that keep the same
    indices are mixed by one matrix product, and results are added before they are copied along the other axes.

    Args:
        space: Feature maps of the blocks.
        in_channels: Channels of every block that enters.
        out_channels: Channels of every block that leaves.
        pool: How axes that a target lacks are reduced. ``"max"`` and ``"attention"`` (a learned softmax-weighted mean)
            keep the equivariance, not the linearity.
        reach: ``"all"``: every block reads every block; ``"neighbours"``: only blocks that share neurons, also held
            ones (outputs).
        heads: Where above 0, the neurons of every group also hear from each other by
            :class:`~weightspace.layers.linear.set_attention.SetAttention` of so many heads, on what is read of them.
        bias: Whether constants are added; there is one for every way of writing a block.

    Shape:
        - input: one tensor ``(B, *set sizes, in channels)`` per block; output: the same with the out channels.

    Raises:
        SpecError: an unknown ``pool`` or ``reach``; a negative number of heads.

    Notes:
        ``2 * scalars * in_channels * out_channels`` floating-point operations and three passes over the result per
        block; what is pooled costs next to nothing.

    Example:
        >>> from weightspace.graphs import WeightSpace
        >>> space = WeightSpace.from_axes({"a": ("h", "i"), "b": ("o", "h")}, {"a": (8, 2), "b": (1, 8)},
        ...                               fixed=("i", "o"))
        >>> layer = EquivariantLinear(FeatureSpace(space), [2, 1], [6, 3])
        >>> layer([torch.zeros(5, 8, 2), torch.zeros(5, 8, 1)])[0].shape
        torch.Size([5, 8, 6])
    """

    def __init__(
        self,
        space: FeatureSpace,
        in_channels: Sequence[int],
        out_channels: Sequence[int],
        *,
        pool: Pool = "mean",
        reach: Reach = "all",
        heads: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if pool not in POOLS:
            raise SpecError(f"'pool' must be one of {list(POOLS)} (got '{pool}').")
        if reach not in REACHES:
            raise SpecError(f"'reach' must be one of {list(REACHES)} (got '{reach}').")
        if heads < 0:
            raise SpecError(f"'heads' must not be negative (got {heads}).")
        self.space, self.maps, self.reach = space, space.maps, reach
        self.pool: Pool = pool
        self.in_channels, self.out_channels = list(in_channels), list(out_channels)
        self.reductions, self.patterns = reductions(space), patterns(space)
        self.steps = _steps(self._step_sizes(), self.reductions)
        self.together: dict[tuple[int, Partition, frozenset[int]], list[int]] = {}
        for k, step in enumerate(self.steps):
            self.together.setdefault((step.source, step.partition, step.above), []).append(k)
        self.heads = heads
        self.products = _products(self.reductions, self.patterns, None if reach == "all" else space.neighbours)
        self._build(bias)
        self.scores = None
        if pool == "attention":
            keys = self._score_keys()
            sources = {key: in_channels[step.source] for key, step in zip(keys, self.steps, strict=True)}
            self.scores = nn.ModuleDict({key: nn.Linear(width, 1) for key, width in sources.items()})
            self.score_keys = keys
        self.reset_parameters()

    def _build(self, bias: bool) -> None:
        """Make the coefficients; what neurons hear by attention is read like one more reduction."""
        mixes, self.attentions = [], nn.ModuleDict()
        for n, (reads, writes) in enumerate(self.products):
            signature = self.patterns[writes[0]].signature
            read = sum(self.in_channels[self.reductions[k].source] for k in reads)
            heard = 0
            if self.heads and len(signature) == 1:
                heard = self.heads * -(-min(self.out_channels[self.patterns[k].target] for k in writes) // self.heads)
                self.attentions[str(n)] = SetAttention(read, heard, self.heads)
            written = sum(self.out_channels[self.patterns[k].target] for k in writes)
            mixes.append(_Mix(read + heard, written, bias and not signature))
        self.mixes = nn.ModuleList(mixes)

    def _affine(self) -> list[tuple[Tensor, Tensor | None]]:
        """Matrix and constants of every product."""
        return [(mix.weight, mix.bias) for mix in cast(list[_Mix], list(self.mixes))]

    def _step_sizes(self) -> list[tuple[int, ...]]:
        """Lengths of the set axes of every block by which the order of pooling is chosen."""
        return [m.sizes for m in self.maps]

    def _score_keys(self) -> list[str]:
        """Names of the scores of every step of pooling by attention."""
        return [str(k) for k in range(len(self.steps))]

    def reset_parameters(self) -> None:
        """Normal weights; the variances of all maps that reach one target add up to 1 for features of unit variance."""
        fan_in = [0] * len(self.maps)
        for weight, _, writes in self._writes():
            for target, _ in writes:
                fan_in[target] += weight.shape[1]
        with torch.no_grad():
            for weight, bias, writes in self._writes():
                weight.normal_()
                if bias is not None:
                    bias.zero_()
                for target, rows in writes:
                    weight[rows] *= max(1, fan_in[target]) ** -0.5

    @property
    def _is_linear(self) -> bool:
        """Whether a sum goes through as its parts do, but for the constants."""
        return self.pool in ("mean", "sum") and not self.heads

    @torch.no_grad()
    def calibrate(self, features: Sequence[Tensor], shared: Sequence[Tensor | None] = ()) -> list[Tensor]:
        """Scale the weights of every target so that its mean square on these features is 1; returns the result.

        How strongly pooled features vary depends on what they are pooled from, so no rule for the variance of weights
        holds the second moment through a stack of layers; measuring does.
        """
        self._scale([y.square().mean() if y.numel() else torch.ones(()) for y in self(features, shared)])
        return self(features, shared)

    def _scale(self, squares: Sequence[Tensor]) -> None:
        """Divide the coefficients of every target by the root of its mean square."""
        gains = [square.clamp(min=1e-12).rsqrt() for square in squares]
        for weight, bias, writes in self._writes():
            for target, rows in writes:
                weight[rows] *= gains[target]
                if bias is not None:
                    bias[rows] *= gains[target]

    def forward(self, features: Sequence[Tensor], shared: Sequence[Tensor | None] = ()) -> list[Tensor]:
        """Every block from every block in reach.

        ``shared`` is added to the features of every network, ``(1, *set sizes, in channels)`` or ``None`` per block.
        Where the layer is linear it goes through by itself, so that no sums are made and kept for backward.
        """
        if shared and not self._is_linear:
            features = [x if v is None else x + v for x, v in zip(features, shared, strict=True)]
            shared = ()
        read, told = self._read(features), self._read(shared) if shared else {}
        sums: list[dict[Partition, list[tuple[tuple[int, ...], Tensor]]]] = [{} for _ in self.maps]
        for n, ((reads, writes), (weight, bias)) in enumerate(zip(self.products, self._affine(), strict=True)):
            x = _joined([read[k] for k in reads])
            if str(n) in self.attentions:
                x = torch.cat([x, self.attentions[str(n)](x)], dim=-1)
            mixed = F.linear(x, weight, bias)
            if any(k in told for k in reads):
                of_all = _joined([told[k] if k in told else torch.zeros_like(read[k][:1]) for k in reads])
                mixed = mixed.add_(F.linear(of_all, weight))
            start = 0
            for k in writes:
                p = self.patterns[k]
                width = self.out_channels[p.target]
                part = mixed if len(writes) == 1 else mixed.narrow(-1, start, width)
                sums[p.target].setdefault(p.partition, []).append((p.kept, part))
                start += width
        return [_write(m, written) for m, written in zip(self.maps, sums, strict=True)]

    def _read(self, features: Sequence[Tensor | None]) -> dict[int, Tensor]:
        """Every reduction of the blocks that are there by its number, parts in the order of its signature."""
        values = {}
        for r in self.reductions:
            whole, x = (r.source, r.partition, frozenset(range(len(r.partition)))), features[r.source]
            if whole not in values and x is not None:
                values[whole] = _diagonal(x, r.partition)
        for (source, partition, above), numbers in self.together.items():
            if features[source] is None:
                continue
            steps = [self.steps[k] for k in numbers]
            for step, pooled in zip(steps, self._pooled(values[source, partition, above], numbers), strict=True):
                values[source, partition, step.kept] = pooled
        return {
            n: _moved(values[r.source, r.partition, frozenset(r.kept)], r.kept)
            for n, r in enumerate(self.reductions)
            if features[r.source] is not None
        }

    def _pooled(self, x: Tensor, steps: list[int]) -> Sequence[Tensor]:
        """What several steps make of one reduction."""
        axes = [self.steps[k].axis for k in steps]
        if self.scores is not None:
            scores = [self.scores[self.score_keys[k]](x) for k in steps]
            return [(x * s.softmax(dim=axis)).sum(axis) for s, axis in zip(scores, axes, strict=True)]
        return _pool(x, axes, self.pool)

    def _writes(self) -> list[tuple[Tensor, Tensor | None, list[tuple[int, slice]]]]:
        """Matrix, constants and the targets of their rows, of every product."""
        result = []
        for (_, writes), (weight, bias) in zip(self.products, self._affine(), strict=True):
            start, targets = 0, []
            for k in writes:
                target = self.patterns[k].target
                targets.append((target, slice(start, start + self.out_channels[target])))
                start += self.out_channels[target]
            result.append((weight, bias, targets))
        return result

    def extra_repr(self) -> str:
        """Sizes."""
        return (
            f"{len(self.maps)} blocks, {sum(self.in_channels)} -> {sum(self.out_channels)} channels, "
            f"{len(self.reductions)} reductions, {len(self.patterns)} patterns, pool={self.pool}"
        )


def _products(
    read: Sequence[Reduction], written: Sequence[Pattern], reach: Sequence[Collection[int]] | None
) -> list[tuple[list[int], list[int]]]:
    """Reductions and patterns of every matrix product: all of one signature, as far as they are in reach."""
    result: dict[tuple[Signature, tuple[int, ...]], list[int]] = {}
    for k, p in enumerate(written):
        reads = tuple(
            n
            for n, r in enumerate(read)
            if r.signature == p.signature and (reach is None or r.source in reach[p.target])
        )
        result.setdefault((p.signature, reads), []).append(k)
    return [(list(reads), writes) for (_, reads), writes in result.items()]


def _steps(lengths: Sequence[tuple[int, ...]], wanted: Sequence[Reduction]) -> list[_Step]:
    """An order of pooling in which every reduction comes from the smallest one that holds one part more."""
    found: dict[tuple[int, Partition, frozenset[int]], _Step] = {}
    groups: dict[tuple[int, Partition], set[frozenset[int]]] = {}
    for r in wanted:
        groups.setdefault((r.source, r.partition), set()).add(frozenset(r.kept))
    for (source, partition), kept_sets in groups.items():
        sizes = [lengths[source][part[0]] for part in partition]
        for kept in sorted(kept_sets, key=len, reverse=True):
            above = [other for other in kept_sets if len(other) == len(kept) + 1 and kept < other]
            if above:
                best = min(above, key=lambda other: (math.prod(sizes[k] for k in other), sorted(other)))
                (gone,) = best - kept
                axis = 1 + sorted(best).index(gone)
                found[source, partition, kept] = _Step(source, partition, kept, best, axis)
    return list(found.values())


def _diagonal(x: Tensor, partition: Partition) -> Tensor:
    """A view with one axis per part, ``(B, *axes, C) -> (B, *parts, C)``."""
    left = list(range(len([a for part in partition for a in part])))
    for part in partition:
        for axis in part[1:]:
            first, second = 1 + left.index(part[0]), 1 + left.index(axis)
            x = x.diagonal(dim1=first, dim2=second).movedim(-1, first)
            left.remove(axis)
    return x.permute(0, *(1 + left.index(part[0]) for part in partition), x.ndim - 1)


def pooled_diagonal(x: Tensor, partition: Partition, pool: Pool) -> Tensor:
    """Everything on the diagonals of a partition pooled, ``(B, *axes, C) -> (B, C)``."""
    x = _diagonal(x, partition)
    while x.ndim > 2:
        (x,) = _pool(x, [1], pool)
    return x


def _pool(x: Tensor, axes: Sequence[int], pool: Pool) -> Sequence[Tensor]:
    if pool == "max":
        return maxima(x, axes)
    # The division after the sum: autograd would divide an expanded gradient of the size of x otherwise.
    return [x.sum(axis) / x.shape[axis] if pool == "mean" else x.sum(axis) for axis in axes]


def _joined(parts: list[Tensor]) -> Tensor:
    """Channels side by side."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _moved(x: Tensor, kept: tuple[int, ...]) -> Tensor:
    """Parts from ascending order to the order of the signature."""
    rank = sorted(kept)
    return x if list(kept) == rank else x.permute(0, *(1 + rank.index(k) for k in kept), x.ndim - 1)


def _write(m: FeatureMap, written: dict[Partition, list[tuple[tuple[int, ...], Tensor]]]) -> Tensor:
    """Sum of all patterns of one target; diagonals last, into the sum of the others."""
    plain = tuple((k,) for k in range(len(m.sizes)))
    result = _broadcast_sum(written[plain], len(plain))  # whole, as every block reads itself
    for partition, parts in written.items():
        if partition != plain:  # then there are several plain parts, so that their sum is nobody else's memory
            _diagonal(result, partition).add_(_broadcast_sum(parts, len(partition)))
    return result


def _broadcast_sum(parts: list[tuple[tuple[int, ...], Tensor]], rank: int) -> Tensor:
    """Sum of tensors over some of ``rank`` axes each; small ones are added to the smallest that holds their axes."""
    waiting: list[tuple[frozenset[int], Tensor]] = []
    for kept, x in sorted(parts, key=lambda part: len(part[0])):
        if kept != tuple(range(rank)):
            place = {k: 1 + n for n, k in enumerate(kept)}
            shape = [x.shape[place[k]] if k in place else 1 for k in range(rank)]
            x = x.permute(0, *(place[k] for k in sorted(kept)), x.ndim - 1).reshape(len(x), *shape, x.shape[-1])
        axes = frozenset(kept)
        for other in [w for w in waiting if w[0] <= axes]:
            # Whole and not a part of a larger product: its memory is ours, and autograd does not need its values.
            x = x + other[1] if torch.compiler.is_compiling() or x._is_view() else x.add_(other[1])
            waiting.remove(other)
        waiting.append((axes, x))
    total = waiting.pop()[1]
    for _, x in waiting:
        total = total + x
    return total
