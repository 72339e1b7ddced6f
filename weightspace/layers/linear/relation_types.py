"""Kinds of tensors and relations between them: what weight spaces of different depths have in common."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from weightspace.layers.linear.equivariant_basis import Partition, Pattern, Reduction, patterns, reductions
from weightspace.layers.linear.feature_space import FeatureMap, FeatureSpace

__all__ = ["Relation", "TermType", "kinds_of", "relation_of", "relations_in", "term_type", "terms_of"]


@dataclass(frozen=True, order=True)
class Relation:
    """How a tensor stands to another one.

    Args:
        source: Role of the tensor that is read (see :func:`role_of`).
        target: Role of the tensor that is written.
        position: ``"same"`` tensor, ``"own"`` for two of one operation (by name, or because they share held neurons and
            no others), else ``"other"``.
        ties: ``(axis of the source, axis of the target)`` of every pair of axes with one neuron group; of two weights
            (0, 1) says that the target comes next, (1, 0) that it comes before, none that it is farther away.
    """

    source: str
    target: str
    position: str
    ties: tuple[tuple[int, int], ...]


@dataclass(frozen=True, order=True)
class TermType:
    """Type of a basis map between two kinds of tensors.

    Args:
        relation: Between the tensors.
        read: Partition of the set axes of the source.
        written: Partition of the set axes of the target.
        pairs: Parts of the source and of the target that share an index.
    """

    relation: Relation
    read: Partition
    written: Partition
    pairs: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


def role_of(space: FeatureSpace, i: int) -> str:
    """Last part of the name without its number, number of axes, and the same of its siblings in one operation.

    The siblings tell the weight of a norm from a bias, whatever both are called.
    """
    operation = _operation(space.maps[i])
    siblings = sorted({_stem(m) for m in space.maps if operation and _operation(m) == operation})
    return f"{_stem(space.maps[i])}({','.join(siblings)})"


def kinds_of(space: FeatureSpace) -> list[str]:
    """Kind of every feature map: its role, which of its axes are sets, how they nest, and its free axes.

    Tensors of one kind have coefficients in common. First and last weights are kinds of their own where inputs and
    outputs are channels, as they have channels for each of them. Where kernel positions are sets, so are kernels with
    different numbers of them, which are told apart by different embeddings.
    """
    result = []
    for i, m in enumerate(space.maps):
        sets = ",".join(f"{axis}<{parent}" if parent >= 0 else str(axis) for axis, parent in _set_axes(m))
        free = "x".join(str(n) for n in m.unfolded[len(m.order) - _free_axes(m) :])
        repeats = "".join(str(m.groups.index(g)) for g in m.groups)
        result.append(f"{role_of(space, i)} sets {sets or '-'} {repeats or '-'} free {free or '1'}".replace(".", "_"))
    kernels = [
        math.prod(n for g, n in zip(m.groups, m.sizes, strict=True) if g in space.position_groups) for m in space.maps
    ]
    lengths: dict[str, set[int]] = {}
    for kind, length in zip(result, kernels, strict=True):
        lengths.setdefault(kind, set()).add(length)
    return [k if len(lengths[k]) == 1 else f"{k} positions {n}" for k, n in zip(result, kernels, strict=True)]


def relation_of(space: FeatureSpace, s: int, t: int) -> Relation:
    """Relation of two feature maps."""
    source, target = space.maps[s], space.maps[t]
    ties = tuple(
        (a, b)
        for (a, _), group in zip(_set_axes(source), source.groups, strict=True)
        for (b, _), other in zip(_set_axes(target), target.groups, strict=True)
        if group == other
    )
    is_own = _operation(source) == _operation(target) != "" or (not ties and s in space.neighbours[t])
    position = "same" if s == t else "own" if is_own else "other"
    return Relation(role_of(space, s), role_of(space, t), position, ties)


def relations_in(space: FeatureSpace) -> dict[tuple[str, str], list[Relation]]:
    """For every two kinds the relations between them that a network of the same make may have at another depth.

    These are the relations that occur between two tensors of their roles and tie axes that are sets in both kinds; of
    one operation only those that occur between these very kinds.
    """
    kinds = kinds_of(space)
    example = {kind: i for i, kind in reversed(list(enumerate(kinds)))}
    found: dict[Relation, set[tuple[str, str]]] = {}
    for s, first in enumerate(kinds):
        for t, second in enumerate(kinds):
            found.setdefault(relation_of(space, s, t), set()).add((first, second))
    result: dict[tuple[str, str], list[Relation]] = {}
    for first, s in example.items():
        for second, t in example.items():
            axes = [{axis for axis, _ in _set_axes(space.maps[i])} for i in (s, t)]
            roles = (role_of(space, s), role_of(space, t))
            result[first, second] = sorted(
                relation
                for relation, pairs in found.items()
                if (first, second) in pairs
                or (
                    relation.position == "other"
                    and (relation.source, relation.target) == roles
                    and all(a in axes[0] and b in axes[1] for a, b in relation.ties)
                )
            )
    return result


def term_type(relation: Relation, r: Reduction, p: Pattern) -> TermType:
    """Type of the basis map that reads ``r`` and writes ``p``, whatever order their indices are kept in."""
    pairs = zip((r.partition[k] for k in r.kept), (p.partition[k] for k in p.kept), strict=True)
    return TermType(relation, r.partition, p.partition, tuple(sorted(pairs)))


def terms_of(source: FeatureMap, target: FeatureMap, relations: Iterable[Relation]) -> list[TermType]:
    """All types of basis maps between two feature maps of these kinds, under each relation."""
    result = []
    for relation in relations:
        pair = _Pair(source, target, relation)
        read = [r for r in reductions(pair) if r.source == 0]
        written = [p for p in patterns(pair) if p.target == 1]
        found = {term_type(relation, r, p) for r in read for p in written if r.signature == p.signature}
        result += sorted(found)
    return result


class _Pair(FeatureSpace):
    """Two feature maps whose groups are the same exactly where a relation ties their axes."""

    def __init__(self, source: FeatureMap, target: FeatureMap, relation: Relation) -> None:
        ours = {axis: f"s{g}" for (axis, _), g in zip(_set_axes(source), source.groups, strict=True)}
        theirs = {axis: f"t{g}" for (axis, _), g in zip(_set_axes(target), target.groups, strict=True)}
        theirs.update({b: ours[a] for a, b in relation.ties})
        self.maps = (replace(source, groups=tuple(ours.values())), replace(target, groups=tuple(theirs.values())))
        names = dict.fromkeys((*ours.values(), *theirs.values()))
        self.rank = {group: -n for n, group in enumerate(names)}


def _set_axes(m: FeatureMap) -> list[tuple[int, int]]:
    """Axis of the block, and number of the set axis it is nested in, of every set axis."""
    return [(m.order[k], parent) for k, parent in enumerate(m.parents)]


def _free_axes(m: FeatureMap) -> int:
    """Number of axes of the block that are channels."""
    count, length = 0, 1
    while length < m.free:
        count += 1
        length *= m.unfolded[-count]
    return count


def _stem(m: FeatureMap) -> str:
    """``"weight"`` of ``"features.3.weight"``, ``"W"`` of ``"W3"``, ``"in_proj_weight:2"`` of that slice; with axes."""
    name, colon, part = m.name.rpartition(".")[2].partition(":")
    return f"{name.rstrip('0123456789') or name}{colon}{part}/{len(m.order)}"


def _operation(m: FeatureMap) -> str:
    return m.name.rpartition(".")[0]
