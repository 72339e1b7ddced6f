r"""Basis of the linear maps between feature maps that commute with neuron permutations.

A basis map from a source to a target is a partition of all their set axes into blocks of equal indices
(Zhou et al. 2024, Universal Neural Functionals, algorithm 1). Written as *reduce, mix, broadcast* it is

1. a reduction of the source: axes in one block are read on their diagonal, blocks that the target lacks are pooled;
2. a matrix on the channels;
3. a pattern of the target: blocks that the source lacks are filled with copies, axes in one block are written on
   their diagonal.

Reductions and patterns that keep the same indices (the same *signature*) combine freely, so the basis is, for every
signature, the product of its reductions and its patterns, and all of them are one matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

from weightspace.layers.linear.feature_space import FeatureMap, FeatureSpace

__all__ = ["Pattern", "Reduction", "Signature", "count_terms", "patterns", "reductions"]

Signature = tuple[tuple[str, int], ...]
"""Kept indices: neuron group of each, and the number of the index it is nested in (-1 for none)."""

Partition = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Reduction:
    """What is read of a source.

    Args:
        source: Number of the feature map.
        partition: Its set axes, those on one diagonal together.
        kept: Numbers of the parts that are not pooled, in the order of the signature.
        signature: The indices that are left.
    """

    source: int
    partition: Partition
    kept: tuple[int, ...]
    signature: Signature


@dataclass(frozen=True)
class Pattern:
    """How a target is written; fields as in :class:`Reduction`, where parts that are not kept get copies."""

    target: int
    partition: Partition
    kept: tuple[int, ...]
    signature: Signature


def reductions(space: FeatureSpace) -> list[Reduction]:
    """All reductions of all feature maps; same-group indices in every order."""
    return [
        Reduction(i, partition, order, signature)
        for i, m in enumerate(space.maps)
        for partition in _partitions(m)
        for kept in _kept(m, partition)
        for order, signature in _orders(m, partition, kept, space.rank)
    ]


def patterns(space: FeatureSpace) -> list[Pattern]:
    """All patterns of all feature maps; same-group indices in one order, as reductions have them in every one."""
    return [
        Pattern(i, partition, *_orders(m, partition, kept, space.rank)[0])
        for i, m in enumerate(space.maps)
        for partition in _partitions(m)
        for kept in _kept(m, partition)
    ]


def count_terms(space: FeatureSpace) -> tuple[int, int]:
    """Dimensions of the linear maps and of the constants, one channel per scalar (facts in Navon et al. 2023)."""
    read: dict[Signature, int] = {}
    for r in reductions(space):
        read[r.signature] = read.get(r.signature, 0) + space.maps[r.source].free
    written = patterns(space)
    linear = sum(read.get(p.signature, 0) * space.maps[p.target].free for p in written)
    return linear, sum(space.maps[p.target].free for p in written if not p.signature)


def _partitions(m: FeatureMap) -> Iterator[Partition]:
    """Partitions of the set axes: one group per part, and nested axes together only where what they are in is."""

    def extend(parts: list[list[int]], axis: int) -> Iterator[Partition]:
        if axis == len(m.groups):
            yield tuple(tuple(p) for p in parts)
            return
        of = {a: k for k, part in enumerate(parts) for a in part}
        for part in parts:
            other = part[0]
            same_parent = m.parents[axis] == m.parents[other] == -1 or (
                m.parents[axis] >= 0 <= m.parents[other] and of[m.parents[axis]] == of[m.parents[other]]
            )
            if m.groups[other] == m.groups[axis] and same_parent:
                part.append(axis)
                yield from extend(parts, axis + 1)
                part.pop()
        yield from extend([*parts, [axis]], axis + 1)

    return extend([], 0)


def _parents(m: FeatureMap, partition: Partition) -> list[int]:
    """For every part the part it is nested in, or -1."""
    of = {a: k for k, part in enumerate(partition) for a in part}
    return [-1 if m.parents[part[0]] < 0 else of[m.parents[part[0]]] for part in partition]


def _kept(m: FeatureMap, partition: Partition) -> Iterator[tuple[int, ...]]:
    """Sets of parts that may be kept: an index inside a neuron means nothing without that neuron."""
    parents = _parents(m, partition)
    for mask in range(1 << len(partition)):
        kept = tuple(k for k in range(len(partition)) if mask >> k & 1)
        if all(parents[k] < 0 or parents[k] in kept for k in kept):
            yield kept


def _orders(
    m: FeatureMap, partition: Partition, kept: Sequence[int], rank: Mapping[str, int]
) -> list[tuple[tuple[int, ...], Signature]]:
    """Orders of the kept parts that give the smallest signature, parents first."""
    parents = _parents(m, partition)
    found: dict[Signature, list[tuple[int, ...]]] = {}
    for order in permutations(kept):
        place = {k: n for n, k in enumerate(order)}
        if all(parents[k] < 0 or place[parents[k]] < place[k] for k in order):
            signature = tuple((m.groups[partition[k][0]], place.get(parents[k], -1)) for k in order)
            found.setdefault(signature, []).append(order)
    smallest = min(found, key=lambda signature: [(rank[group], parent) for group, parent in signature])
    return [(order, smallest) for order in found[smallest]]
