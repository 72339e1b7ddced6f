"""Weight matching: the group element that brings one network nearest to another of the same architecture."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from weightspace.errors import ShapeError, SpecError
from weightspace.graphs.labels.axis_blocks import GENERIC
from weightspace.graphs.labels.values import reshape_groups
from weightspace.graphs.matching.coordinate_descent import Branch, CoordinateDescent, Settings
from weightspace.graphs.matching.paired_blocks import Axis, PairedBlock
from weightspace.graphs.parameter_blocks import Block
from weightspace.graphs.symmetries.group_coordinates import GroupCoordinates
from weightspace.graphs.symmetries.neuron_permutation import NeuronPermutation
from weightspace.graphs.weight_space import WeightSpace

__all__ = ["Match", "match_to_mean", "match_weights"]

_STARTS = ("sorted", "identity", "random")
_Attempt = tuple[Tensor, dict[str, Tensor], Tensor, Tensor]  # inner products, permutations, history, converged


@dataclass(frozen=True)
class Match:
    """Group elements that map the networks ``b`` onto the networks ``a``.

    Args:
        space: The weight space they belong to.
        permutations: One for each pair.
        inner_products: Of ``a`` and the moved ``b``: before the first sweep of the best start, and after each of its
            sweeps, of shape ``(sweeps + 1, N)``, in float64. Later entries repeat where a pair was done earlier.
        converged: Whether no group could be improved any more, for each pair.
    """

    space: WeightSpace
    permutations: tuple[NeuronPermutation, ...]
    inner_products: Tensor
    converged: Tensor

    @property
    def permutation(self) -> NeuronPermutation:
        """The only one; raises :class:`ShapeError` where there is a batch."""
        if len(self.permutations) != 1:
            raise ShapeError(f"This is a match of {len(self.permutations)} pairs; take one of match.permutations.")
        return self.permutations[0]

    def apply(self, b: Mapping[str, Tensor], batch_dims: int = 0) -> dict[str, Tensor]:
        """The second networks, moved onto the first ones; ``batch_dims=1`` where they are a batch."""
        if batch_dims == 0:
            return self.space.permute(b, self.permutation)
        moved = [self.space.permute({n: t[k] for n, t in b.items()}, g) for k, g in enumerate(self.permutations)]
        return {name: torch.stack([m[name] for m in moved]) for name in moved[0]}


def match_weights(
    space: WeightSpace,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    *,
    batch_dims: int = 0,
    start: str = "sorted",
    restarts: int = 0,
    sweeps: int = 100,
    normalise: bool = False,
    buffers: bool = False,
    generator: torch.Generator | int = 0,
    memory: int = 2**27,
    progress: bool = False,
) -> Match:
    r"""Find the neuron permutation :math:`g` with the largest :math:`\langle a, g b\rangle`, the nearest :math:`g b`.

    Coordinate descent over the neuron groups of any traced module (Ainsworth et al. 2023, Git Re-Basin), each step a
    linear assignment, batched over pairs. Heads with their inner dimensions and other nested groups are matched as a
    whole. Groups of kind ``generic`` are held, and so are axes that are no product of groups.

    Args:
        space: Weight space of the architecture.
        a: State dict of the first network, or several, each tensor of shape ``(*batch, *parameter shape)``.
        b: State dict of the second network, likewise.
        batch_dims: 1 for a batch of pairs; the n-th network of ``b`` is matched to the n-th of ``a``.
        start: State before the first sweep. ``"sorted"`` makes a pass in which axes of groups not visited yet are
            sorted, which finds planted permutations and is no worse elsewhere; ``"identity"`` is Git Re-Basin's;
            ``"random"``.
        restarts: Further descents from random starts; the best is kept for each pair.
        sweeps: Most sweeps of one descent.
        normalise: Let every tensor count alike (divide by its norms) instead of by its size.
        buffers: Compare persistent buffers (batch-norm statistics), too; they move along in any case.
        generator: Of the visiting order and random starts, or a seed.
        memory: Bytes of one operand that are copied into order at a time. Beyond this a descent keeps the moved
            copy of ``b`` and, for a moment, one more of its largest tensor.
        progress: Show a tqdm bar over sweeps.

    Raises:
        SpecError: ``start`` is unknown, or ``sweeps`` is below 1.
        ShapeError: a tensor is missing or has another shape.

    Example:
        >>> from weightspace.graphs import trace
        >>> mlp = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> space, a = trace(mlp, torch.zeros(4, 2)).weight_space(), mlp.state_dict()
        >>> b = space.permute(a, space.random_permutation(1))
        >>> back = match_weights(space, a, b).apply(b)
        >>> all(torch.equal(a[name], back[name]) for name in a)
        True
    """
    if start not in _STARTS:
        raise SpecError(f"start must be one of {', '.join(_STARTS)} (got '{start}').")
    if sweeps < 1:
        raise SpecError(f"sweeps must be at least 1 (got {sweeps}).")
    seeded = torch.Generator().manual_seed(generator) if isinstance(generator, int) else generator
    blocks = _paired_blocks(space, a, b, batch_dims, normalise, buffers)
    return descend(space, blocks, start=start, restarts=restarts, sweeps=sweeps, generator=seeded, memory=memory,
                   progress=progress)  # fmt: skip


def descend(
    space: WeightSpace,
    blocks: Sequence[PairedBlock],
    *,
    start: str,
    restarts: int,
    sweeps: int,
    generator: torch.Generator,
    memory: int,
    progress: bool = False,
) -> Match:
    """Coordinate descent on any blocks over the groups of a weight space, from one or more starts."""
    branches = branches_of(space)
    batch = len(blocks[0].a) if blocks else 1
    device = blocks[0].a.device if blocks else torch.device("cpu")
    narrow = all(block.a.dtype != torch.float64 for block in blocks)
    settings = Settings(torch.float32 if narrow else torch.float64, memory)
    best: _Attempt | None = None
    for attempt in range(restarts + 1):
        descent = CoordinateDescent(branches, blocks, {}, batch, settings, device)
        if attempt or start == "random":
            descent.random_start(generator)
        elif start == "sorted":
            descent.informed_start()
        history = [descent.objective()]
        for _ in tqdm(range(sweeps), desc="matching", unit="sweep", disable=not progress):
            moved = descent.sweep(torch.randperm(len(branches), generator=generator).tolist())
            history.append(descent.objective())
            if not moved:
                break
        best = _better(best, (history[-1], descent.sources, torch.stack(history), descent.settled()))
    assert best is not None
    return match_of(space, best[1], best[2], best[3])


def match_of(space: WeightSpace, sources: Mapping[str, Tensor], history: Tensor, converged: Tensor) -> Match:
    """A match from permutations group by group, each of shape ``(N, *sizes of outer groups, size)``."""
    coordinates = GroupCoordinates(space)
    arrays = {name: s.cpu().numpy() for name, s in sources.items()}
    elements = [coordinates.element({name: s[k] for name, s in arrays.items()}) for k in range(len(converged))]
    return Match(space, tuple(elements), history.cpu(), converged.cpu())


def _better(best: _Attempt | None, other: _Attempt) -> _Attempt:
    """For each pair the attempt with the larger inner product; histories are padded with their last entry."""
    if best is None:
        return other
    wins = other[0] > best[0]
    length = max(len(best[2]), len(other[2]))
    histories = [torch.cat([h, h[-1:].expand(length - len(h), -1)]) for h in (best[2], other[2])]
    sources = {n: torch.where(wins.reshape(-1, *[1] * (s.ndim - 1)), other[1][n], s) for n, s in best[1].items()}
    return (
        torch.where(wins, other[0], best[0]),
        sources,
        torch.where(wins, histories[1], histories[0]),
        torch.where(wins, other[3], best[3]),
    )


def match_to_mean(
    space: WeightSpace,
    many: Mapping[str, Tensor],  # each of shape: (M, *parameter shape)
    *,
    rounds: int = 20,
    generator: torch.Generator | int = 0,
    **options: Any,
) -> Match:
    """Bring several networks together: again and again, match one of them to the mean of the others.

    MergeMany of Git Re-Basin (Ainsworth et al. 2023), started from all networks matched to the first one. Each match
    starts from the state reached and so cannot lose; the end is reached when no network moves any more.

    Args:
        space: Weight space of the architecture.
        many: State dicts of M networks, stacked.
        rounds: Most passes over the networks.
        generator: Of the visiting orders, or a seed.
        options: Passed to :func:`match_weights` (``normalise``, ``buffers``, ``sweeps``, ``memory``).

    Returns:
        One permutation for each network; ``inner_products`` holds, for every round, the inner product of each network
        with the mean of the others.

    Raises:
        ShapeError: fewer than two networks, or a tensor is missing or has another shape.
    """
    count = min((len(t) for t in many.values() if t.ndim), default=0)
    if count < 2:
        raise ShapeError(f"Matching to a mean takes at least two networks along the first axis (got {count}).")
    seeded = torch.Generator().manual_seed(generator) if isinstance(generator, int) else generator
    first = {name: t[:1].expand(t.shape) for name, t in many.items()}
    together = match_weights(space, first, many, batch_dims=1, generator=seeded, **options)
    moved, elements = together.apply(many, 1), list(together.permutations)
    names, history, changed = [p.name for p in space.parameters], [], True
    while changed and len(history) < rounds:
        reached, changed = torch.zeros(count, dtype=torch.float64), False
        for k in torch.randperm(count, generator=seeded).tolist():
            others = {n: (moved[n].sum(0) - moved[n][k]) / (count - 1) for n in names}
            mine = {n: moved[n][k] for n in names}
            match = match_weights(space, others, mine, start="identity", generator=seeded, **options)
            reached[k] = match.inner_products[-1, 0]
            if match.permutation.moved:
                changed = True
                elements[k] = match.permutation.compose(elements[k])
                for name, tensor in match.apply(mine).items():
                    moved[name][k] = tensor
        history.append(reached)
    return Match(space, tuple(elements), torch.stack(history), torch.full((count,), not changed))


# -- from a weight space to blocks and groups --------------------------------------------------------------------------


def branches_of(space: WeightSpace, parent: str | None = None) -> tuple[Branch, ...]:
    """The permutable groups of a weight space as a forest, in its order."""
    return tuple(
        Branch(g.name, g.size, branches_of(space, g.name))
        for g in space.groups.values()
        if g.kind == "permutable" and g.parent == parent
    )


def block_axes(space: WeightSpace, block: Block, movable: Collection[str]) -> tuple[Axis, ...] | None:
    """Group and parent axis of every axis; ``None`` for a block that says nothing about these groups."""
    if GENERIC in block.axes or not set(block.axes) & set(movable):
        return None
    segments = _segments(block)
    axes = []
    for k, name in enumerate(block.axes):
        if name not in movable:
            axes.append(Axis())
            continue
        outer = space.groups[name].parent
        if outer is None:
            axes.append(Axis(name))
            continue
        found = [d for d, other in enumerate(block.axes) if other == outer]
        near = [d for d in found if segments[d] == segments[k]]
        chosen = near if len(near) == 1 else found
        if len(chosen) != 1:
            return None
        axes.append(Axis(name, chosen[0]))
    return tuple(axes)


def _segments(block: Block) -> list[int]:
    """Which axis of the parameter each axis of a block was unfolded from."""
    steps = block.view.steps
    before = block.view
    if steps and steps[-1][0] == "reshape":
        before = type(block.view)(block.view.parameter, block.view.parameter_shape, steps[:-1])
    segment = list(range(-len(block.axes), 0))  # axes of size 1 belong nowhere
    for k, (_, new) in enumerate(reshape_groups(before.shape, block.view.shape)):
        for d in new:
            segment[d] = k
    return segment


def _paired_blocks(
    space: WeightSpace,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    batch_dims: int,
    normalise: bool,
    buffers: bool,
) -> list[PairedBlock]:
    skipped = set() if buffers else {p.name for p in space.parameters if p.is_buffer}
    wanted = {block.view.parameter for block in space.blocks} - skipped
    for which, weights in (("first", a), ("second", b)):
        missing = sorted(wanted - set(weights))
        if missing:
            raise ShapeError(f"The {which} state dict lacks {missing}. Was it saved from another architecture?")
    scales: dict[str, Tensor] = {}
    movable = {name for branch in branches_of(space) for name in branch.shapes()}
    paired = []
    for block in space.blocks:
        name = block.view.parameter
        axes = None if name in skipped else block_axes(space, block, movable)
        if axes is None:
            continue
        x, y = a[name].detach(), b[name].detach()
        if batch_dims == 0:
            x, y = x.unsqueeze(0), y.unsqueeze(0)
        if name not in scales:
            norms = x.flatten(1).norm(dim=1) * y.flatten(1).norm(dim=1)
            scales[name] = norms.clamp_min(1e-30).reciprocal() if normalise else torch.ones_like(norms)
        paired.append(PairedBlock(block.view.apply(x, 1), block.view.apply(y, 1), axes, scales[name]))
    return paired
