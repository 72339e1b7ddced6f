"""Coordinate descent over nested neuron groups: one linear assignment after the other, batched over pairs of networks.

Git Re-Basin (Ainsworth et al., ICLR 2023, section 3.2 and algorithm 1) visits one permutation at a time and solves a
linear assignment with the others held. Three things are added. A group with groups nested in it (heads with their
inner dimensions) is solved as a whole: the value of matching two outer neurons is the value of the best matching of
what is inside them, which is the same problem again, batched over all pairs of outer neurons. A group on two axes of
one tensor (recurrent weights) is linearised at the current state, and a step is kept only if the exact inner product
grows. And the first pass does not trust an order nobody has found yet: axes of groups not visited so far are sorted,
which makes rows comparable whatever the order of those neurons.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from weightspace.graphs.matching.paired_blocks import Axis, PairedBlock, contract, gather_axes, with_sorted_axes

__all__ = ["Branch", "CoordinateDescent", "Settings", "assign"]

Path = tuple[str, ...]
_DAMPING = (0.0, 0.25, 0.5, 0.75, 0.9)  # reward for staying, as a fraction of the largest gain of a single neuron
_ENOUGH = 64  # weights per neuron on axes of known order that make sorting the others superfluous
_ENUMERATED = 3  # up to this size all permutations are tried at once, which beats a call per matrix


@dataclass(frozen=True)
class Branch:
    """A permutable group with the groups nested in it."""

    name: str
    size: int
    children: tuple[Branch, ...] = ()

    def shapes(self, outer: tuple[int, ...] = ()) -> dict[str, tuple[int, ...]]:
        """Shape of the permutations of this group and of all below: sizes of the outer groups, then their own."""
        here = (*outer, self.size)
        return {self.name: here, **{n: s for c in self.children for n, s in c.shapes(here).items()}}

    def axes(self, outer: int | None = None) -> dict[str, tuple[Axis, ...]]:
        """What stands along the axes of those permutations."""
        depth = 0 if outer is None else outer + 1
        own = {self.name: (Axis(self.name, outer),)}
        below = {n: (Axis(self.name, outer), *a) for c in self.children for n, a in c.axes(depth).items()}
        return {**own, **below}


@dataclass(frozen=True)
class Settings:
    """Numerical choices: type of the sums, bytes that may be copied at a time, passes inside a nested problem."""

    dtype: torch.dtype
    limit: int = 2**27
    inner_sweeps: int = 10

    def tolerance(self) -> float:
        """Relative growth below which a step counts as rounding."""
        return 8 * torch.finfo(self.dtype).eps


class CoordinateDescent:
    """A batch of matching problems with the same groups; moves ``b`` step by step.

    Args:
        branches: The groups, with those nested in them.
        blocks: What is compared.
        costs: Inner products already known: by path from an outer group inwards, of shape ``(N, n, n, m, m, ...)``,
            for each level the neuron of ``a`` and that of ``b``.
        batch: Number N of problems.
        settings: Numerical choices.
        device: Where the permutations live.
    """

    def __init__(
        self,
        branches: Sequence[Branch],
        blocks: Sequence[PairedBlock],
        costs: Mapping[Path, Tensor],
        batch: int,
        settings: Settings,
        device: torch.device,
    ) -> None:
        self._branches = tuple(branches)
        self._blocks = list(blocks)
        self._costs = dict(costs)
        self._settings = settings
        self._axes = {n: a for branch in branches for n, a in branch.axes().items()}
        self.sources = {
            name: torch.arange(shape[-1], device=device).expand(batch, *shape)
            for branch in branches
            for name, shape in branch.shapes().items()
        }
        self._touching = {
            branch.name: [i for i, block in enumerate(blocks) if block.occurrences(branch.name)] for branch in branches
        }
        self._stale = {branch.name: torch.ones(batch, dtype=torch.bool, device=device) for branch in branches}
        self._zero = torch.zeros(batch, dtype=torch.float64, device=device)
        norms = [b.scale.double() * b.a.flatten(1).norm(dim=1) * b.b.flatten(1).norm(dim=1) for b in blocks]
        self._noise = settings.tolerance() * sum(norms, self._zero)

    # -- the descent ---------------------------------------------------------------------------------------------

    def objective(self) -> Tensor:
        """Inner product of ``a`` and the moved ``b`` of each problem, of shape ``(N,)``, in float64."""
        return self._known(self._costs) + sum((block.inner_product() for block in self._blocks), self._zero)

    def informed_start(self) -> None:
        """First pass: every group by what does not depend on the order of groups not visited yet."""
        unknown = {name for branch in self._branches for name in branch.shapes()}
        for branch in self._branches:
            compared = [(self._blocks[i], k) for i in self._touching[branch.name]
                        for k in self._blocks[i].occurrences(branch.name)]  # fmt: skip
            seen = [block for block, k in compared if not _hidden(block, k, unknown)]
            enough = sum(block.a[0].numel() // branch.size for block in seen) >= _ENOUGH
            costs, coupled = self._costs_of(branch, None, unknown, seen_only=enough)
            moves, _ = _best_moves(branch, *self._pair_values(branch, costs, coupled))
            self._apply(branch, moves, None)
            self._stale[branch.name].fill_(len(seen) < len(compared))
            unknown -= set(branch.shapes())

    def settled(self) -> Tensor:
        """Whether no single group can be improved, of shape ``(N,)``."""
        return ~torch.stack([torch.zeros_like(self._zero, dtype=torch.bool), *self._stale.values()]).any(0)

    def random_start(self, generator: torch.Generator) -> None:
        """Random permutations of every group in every problem."""
        for branch in self._branches:
            moves = {
                name: torch.rand(len(self._stale[branch.name]), *shape, generator=generator).argsort(-1)
                for name, shape in branch.shapes().items()
            }
            self._apply(branch, {n: m.to(self.sources[n].device) for n, m in moves.items()}, None)

    def sweep(self, order: Sequence[int]) -> bool:
        """Visit every group once in this order; returns whether anything moved."""
        moved = False
        for k in order:
            stale = self._stale[self._branches[k].name]
            if stale.any():
                moved |= self._improve(self._branches[k], None if stale.all() else stale.nonzero()[:, 0])
        return moved

    def solved(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Values and permutations of the problems after an informed start; none is worse than without any move."""
        before, held = (self.objective() if self._blocks else None), dict(self.sources)
        self.informed_start()
        for _ in range(self._settings.inner_sweeps):
            if not self.sweep(range(len(self._branches))):
                break
        values = self.objective()
        if before is None:
            return values, self.sources
        worse = before > values
        sources = {n: torch.where(worse.reshape(-1, *[1] * (s.ndim - 1)), held[n], s) for n, s in self.sources.items()}
        return torch.maximum(before, values), sources

    # -- one step ------------------------------------------------------------------------------------------------

    def _improve(self, branch: Branch, rows: Tensor | None) -> bool:
        """Solve one group with the others held, in some of the problems; keep what is exactly better."""
        costs, coupled = self._costs_of(branch, rows, ())
        values, nested = self._pair_values(branch, costs, coupled)
        moves, value = _best_moves(branch, values, nested)
        noise = self._noise if rows is None else self._noise[rows]
        touching = [self._blocks[i].pick(rows) for i in self._touching[branch.name]]
        quadratic = any(len(block.occurrences(branch.name)) > 1 for block in touching)
        if quadratic:
            moves, better = self._damped_moves(branch, values, nested, touching, rows, noise)
        else:
            better = value - self._known(costs) - sum(block.inner_product() for block, _ in coupled) > noise
        where = torch.arange(len(better), device=better.device) if rows is None else rows
        self._stale[branch.name][where] = False
        if not better.any():
            return False
        kept = {n: _where(better, m, torch.arange(m.shape[-1], device=m.device)) for n, m in moves.items()}
        self._apply(branch, kept, rows)
        for other in self._branches:
            met = not set(self._touching[other.name]).isdisjoint(self._touching[branch.name])
            if (quadratic or coupled) if other is branch else met:
                self._stale[other.name][where[better]] = True
        return True

    def _costs_of(
        self, branch: Branch, rows: Tensor | None, unknown: Collection[str], seen_only: bool = False
    ) -> tuple[dict[Path, Tensor], list[tuple[PairedBlock, int]]]:
        """Inner products by path, and the blocks with two axes inside one outer neuron, with the axis of the group.

        The latter are no sum over single assignments; they go into the nested problems as they are. Axes of
        ``unknown`` groups are sorted, or their blocks left out for ``seen_only``.
        """
        costs = {p: c if rows is None else c[rows] for p, c in self._costs.items() if p[0] == branch.name}
        coupled = []
        for i in self._touching[branch.name]:
            block = self._blocks[i].pick(rows)
            for k in block.occurrences(branch.name):
                hidden = _hidden(block, k, unknown)
                if hidden and seen_only:
                    continue
                a, axes = with_sorted_axes(block.a, block.axes, hidden)
                b, _ = with_sorted_axes(block.b, block.axes, hidden)
                shown = PairedBlock(a, b, axes, block.scale)
                k = k - sum(d < k for d in hidden)
                chain = shown.chain(k)
                if chain is None:
                    coupled.append((shown, k))
                    continue
                products = contract(a, b, chain, dtype=self._settings.dtype, limit=self._settings.limit)
                products *= block.scale.to(products.dtype).reshape(-1, 1, 1)
                sizes = [a.shape[d + 1] for d in chain]
                order = [x for d in range(len(chain)) for x in (d + 1, d + 1 + len(chain))]
                path = tuple(axes[d].group or "" for d in chain)
                products = products.reshape(len(a), *sizes, *sizes).permute(0, *order)
                costs[path] = costs[path] + products if path in costs else products
        return costs, coupled

    def _pair_values(
        self, branch: Branch, costs: Mapping[Path, Tensor], coupled: Sequence[tuple[PairedBlock, int]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Value of matching neuron i of ``a`` with neuron j of ``b``, and the best permutations inside such a pair."""
        any_name = next(iter(branch.shapes()))
        batch = next((len(c) for c in (*costs.values(), *(block.a for block, _ in coupled))), 0)
        batch = batch or len(self.sources[any_name])
        size, device = branch.size, self.sources[any_name].device
        own = costs.get((branch.name,))
        values = torch.zeros(batch, size, size, dtype=torch.float64, device=device)
        if own is not None:
            values += own
        if not branch.children:
            return values, {}
        below = {path[1:]: c for path, c in costs.items() if len(path) > 1}
        tables: dict[str, list[Tensor]] = {}
        spread = sum(2 * block.a.numel() * block.a.element_size() for block, _ in coupled)
        step = max(1, min(size, self._settings.limit // max(1, spread)))
        for start in range(0, size, step):
            rows = slice(start, min(start + step, size))
            count = (rows.stop - rows.start) * size * batch
            inner = CoordinateDescent(
                branch.children,
                [_pairs_of(block, k, rows) for block, k in coupled],
                {path: c[:, rows].reshape(count, *c.shape[3:]) for path, c in below.items()},
                count,
                self._settings,
                device,
            )
            found, sources = inner.solved()
            values[:, rows] += found.reshape(batch, -1, size)
            for name, s in sources.items():
                tables.setdefault(name, []).append(s.reshape(batch, -1, size, *s.shape[1:]))
        return values, {name: torch.cat(parts, 1) for name, parts in tables.items()}

    def _damped_moves(
        self,
        branch: Branch,
        values: Tensor,
        nested: Mapping[str, Tensor],
        touching: Sequence[PairedBlock],
        rows: Tensor | None,
        noise: Tensor,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Moves under a linearised value, and which of them are exactly better.

        The linearisation is good for small moves. Where the full one overshoots, staying is rewarded more and more,
        so that fewer neurons move.
        """
        most = (values.amax(2) - values.diagonal(dim1=1, dim2=2)).amax(1)
        moves, better = {}, torch.zeros(len(values), dtype=torch.bool, device=values.device)
        for fraction in _DAMPING:
            stay = torch.diag_embed((fraction * most)[:, None].expand(-1, branch.size))
            tried, _ = _best_moves(branch, values + stay, nested)
            now = ~better & (self._exact_gain(branch, tried, touching, rows) > noise)
            moves = {n: _where(now, m, moves.get(n, m)) for n, m in tried.items()}
            better |= now
            if better.all():
                break
        return moves, better

    def _exact_gain(
        self, branch: Branch, moves: Mapping[str, Tensor], touching: Sequence[PairedBlock], rows: Tensor | None
    ) -> Tensor:
        """Growth of the inner product under these moves, where a block has the group on two axes."""
        costs = {p: c if rows is None else c[rows] for p, c in self._costs.items() if p[0] == branch.name}
        moved = {p: gather_axes(c, _cost_axes(p), moves) for p, c in costs.items()}
        gain = self._known(moved) - self._known(costs)
        for block in touching:
            gain = gain + block.with_b(gather_axes(block.b, block.axes, moves)).inner_product() - block.inner_product()
        return gain

    def _apply(self, branch: Branch, moves: Mapping[str, Tensor], rows: Tensor | None) -> None:
        """Move ``b`` and remember where everything came from."""

        def moved(tensor: Tensor, axes: Sequence[Axis]) -> Tensor:
            if rows is None:
                return gather_axes(tensor, axes, moves)
            return tensor.index_copy(0, rows, gather_axes(tensor[rows], axes, moves))

        for i in self._touching[branch.name]:
            block = self._blocks[i]
            self._blocks[i] = block.with_b(moved(block.b, block.axes))
        for path, cost in self._costs.items():
            if path[0] == branch.name:
                self._costs[path] = moved(cost, _cost_axes(path))
        for name in branch.shapes():
            self.sources[name] = moved(self.sources[name], self._axes[name])

    def _known(self, costs: Mapping[Path, Tensor]) -> Tensor:
        """Value of the costs if every neuron stays where it is, of shape ``(N,)``."""
        total = torch.zeros((), dtype=torch.float64)
        for path, cost in costs.items():
            for _ in path:
                cost = cost.diagonal(dim1=1, dim2=2)
            total = total + cost.flatten(1).sum(1, dtype=torch.float64)
        return total


def _hidden(block: PairedBlock, axis: int, unknown: Collection[str]) -> list[int]:
    """Axes of groups whose order means nothing yet, other than this one and what is nested in it."""
    inside = [axis, *block.below(axis)]
    return [d for d, other in enumerate(block.axes) if other.group in unknown and d not in inside]


def _best_moves(branch: Branch, values: Tensor, nested: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """Best permutations of a group and of those nested in it, with their value, of shape ``(N,)``."""
    best = assign(values)
    moves = {branch.name: best}
    batch = torch.arange(len(best), device=best.device)[:, None]
    mine = torch.arange(branch.size, device=best.device)[None]
    for name, table in nested.items():
        moves[name] = table[batch, mine, best]
    return moves, values.gather(2, best.unsqueeze(-1)).sum((1, 2))


def _where(rows: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Entries of ``yes`` for some rows, of ``no`` for the others; ``rows`` has shape ``(N,)``."""
    return torch.where(rows.reshape(-1, *[1] * (yes.ndim - 1)), yes, no)


def _cost_axes(path: Path) -> tuple[Axis, ...]:
    """Axes of the costs of a path; only those of ``b`` move."""
    axes: list[Axis] = []
    for depth, group in enumerate(path):
        axes += [Axis(), Axis(group, 2 * depth - 1 if depth else None)]
    return tuple(axes)


def _pairs_of(block: PairedBlock, axis: int, rows: slice) -> PairedBlock:
    """The slices of a block along one axis, every one of some of ``a`` with every one of ``b``, as a batch."""
    a, b = block.a.movedim(axis + 1, 1)[:, rows], block.b.movedim(axis + 1, 1)
    shape = (len(a), a.shape[1], b.shape[1], *a.shape[2:])
    flat = (math.prod(shape[:3]), *shape[3:])
    inside = block.below(axis)
    axes: list[Axis] = []
    for d, other in enumerate(block.axes):
        if d == axis:
            continue
        if d not in inside:
            axes.append(Axis())
        elif other.parent is None or other.parent == axis:
            axes.append(Axis(other.group))
        else:
            axes.append(Axis(other.group, other.parent - (other.parent > axis)))
    return PairedBlock(
        a.unsqueeze(2).expand(shape).reshape(flat),
        b.unsqueeze(1).expand(shape).reshape(flat),
        tuple(axes),
        block.scale.repeat_interleave(shape[1] * shape[2]),
    )


def assign(values: Tensor) -> Tensor:
    """Linear assignment of largest value.

    Args:
        values: Shape ``(N, n, n)``.

    Returns:
        Column of every row, of shape ``(N, n)``.
    """
    n = values.shape[-1]
    if n <= _ENUMERATED:
        every = torch.tensor(list(permutations(range(n))), device=values.device)
        sums = values[:, torch.arange(n, device=values.device), every].sum(-1)
        return every[sums.argmax(1)]
    matrices = values.detach().cpu().numpy()
    best = np.stack([linear_sum_assignment(m, maximize=True)[1] for m in matrices])
    return torch.from_numpy(best).to(values.device)
