"""The linear equivariant layer with one set of coefficients for all depths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weightspace.errors import SpecError
from weightspace.layers.linear.equivariant_linear import EquivariantLinear
from weightspace.layers.linear.relation_types import kinds_of, relation_of, relations_in, term_type, terms_of

__all__ = ["RelationLinear"]


@dataclass(frozen=True)
class _Place:
    """One block of a matrix product: number ``term`` of the coefficients ``bank``, divided by ``count``."""

    bank: str
    term: int
    count: int


class RelationLinear(EquivariantLinear):
    r"""Affine equivariant maps whose coefficients belong to relations between tensors and not to pairs of tensors.

    The coefficient :math:`\theta_{tsk}` of :class:`EquivariantLinear` depends on the kinds of both tensors, on their
    relation (same, of one operation, next, before, farther: which of their axes are one neuron group) and on which
    indices they share. Maps of one type into the same tensor are averaged over the tensors they come from. The number
    of coefficients does not grow with the depth, and the parameters made for one depth load for another. (Sharing
    between layers as in graph metanetworks, Lim et al. 2024, section 3; the basis is that of Zhou et al. 2024.)

    Args, shapes and errors: see :class:`EquivariantLinear`; ``heads`` must be 0.

    Notes:
        Types that another depth may have but this one lacks are parameters too, and 0: of a network with a single
        inner weight, the maps from one inner weight to the next. A network with three weights or more has all
        relations of deeper ones between first, inner and last tensors taken together (``ends="sets"``), and all kinds.
    """

    def _build(self, bias: bool) -> None:
        if self.heads:
            raise SpecError(f"'heads' must be 0 where coefficients are shared by relation (got {self.heads}).")
        self.attentions = nn.ModuleDict()
        space, maps = self.space, self.maps
        self.kinds = kinds_of(space)
        example = {kind: i for i, kind in enumerate(self.kinds)}
        types, self.banks = {}, nn.ParameterDict()
        read = {relation_of(space, s, t) for t, near in enumerate(space.neighbours) for s in near}
        for (first, second), relations in relations_in(space).items():
            s, t = example[first], example[second]
            near = [x for x in relations if self.reach == "all" or x in read]
            terms = terms_of(maps[s], maps[t], near)
            types[first, second] = {term: n for n, term in enumerate(terms)}
            if terms:
                shape = (len(terms), self.out_channels[t], self.in_channels[s])
                self.banks[_key(first, second)] = nn.Parameter(torch.empty(shape))
        self.places: list[list[list[_Place]]] = []
        for reads, writes in self.products:
            rows = []
            for k in writes:
                p = self.patterns[k]
                found = []
                for n in reads:
                    r = self.reductions[n]
                    pair = self.kinds[r.source], self.kinds[p.target]
                    term = types[pair][term_type(relation_of(space, r.source, p.target), r, p)]
                    found.append((_key(*pair), term))
                count = Counter(found)
                rows.append([_Place(bank, term, count[bank, term]) for bank, term in found])
            self.places.append(rows)
        self.constants = nn.ParameterDict()
        self.constant_rows: list[list[tuple[str, int]]] = [[] for _ in self.products]
        if bias:
            self._build_constants(example)

    def _build_constants(self, example: dict[str, int]) -> None:
        """One constant for every way to write every kind without an index."""
        ways: dict[str, list[object]] = {}
        for rows, (_, writes) in zip(self.constant_rows, self.products, strict=True):
            if self.patterns[writes[0]].signature:
                continue
            for k in writes:
                p = self.patterns[k]
                kind = ways.setdefault(self.kinds[p.target], [])
                if p.partition not in kind:
                    kind.append(p.partition)
                rows.append((self.kinds[p.target], kind.index(p.partition)))
        for kind, partitions in ways.items():
            self.constants[kind] = nn.Parameter(torch.zeros(len(partitions), self.out_channels[example[kind]]))

    def _affine(self) -> list[tuple[Tensor, Tensor | None]]:
        banks = {name: bank.unbind() for name, bank in self.banks.items()}
        constants = {kind: rows.unbind() for kind, rows in self.constants.items()}
        ready: dict[_Place, Tensor] = {}
        result = []
        for rows, constant in zip(self.places, self.constant_rows, strict=True):
            for place in {place for row in rows for place in row} - ready.keys():
                block = banks[place.bank][place.term]
                ready[place] = block if place.count == 1 else block / place.count
            weight = torch.cat([torch.cat([ready[place] for place in row], dim=1) for row in rows])
            bias = torch.cat([constants[kind][n] for kind, n in constant]) if constant else None
            result.append((weight, bias))
        return result

    def reset_parameters(self) -> None:
        """Normal coefficients of one variance per kind of target, 0 where this depth has no such term."""
        used = {(place.bank, place.term) for rows in self.places for row in rows for place in row}
        fan_in = Counter()
        for name, _ in used:
            fan_in[name.partition(_ARROW)[2]] += self.banks[name].shape[2]
        with torch.no_grad():
            for name, bank in self.banks.items():
                bank.zero_()
                for term in range(len(bank)):
                    if (name, term) in used:
                        bank[term].normal_(std=max(1, fan_in[name.partition(_ARROW)[2]]) ** -0.5)
            for constant in self.constants.values():
                constant.zero_()

    def _scale(self, squares: Sequence[Tensor]) -> None:
        for kind in set(self.kinds):
            mine = [square for square, other in zip(squares, self.kinds, strict=True) if other == kind]
            gain = torch.stack(mine).mean().clamp(min=1e-12).rsqrt()
            for name, bank in self.banks.items():
                if name.partition(_ARROW)[2] == kind:
                    bank.mul_(gain)
            if kind in self.constants:
                self.constants[kind].mul_(gain)

    def _step_sizes(self) -> list[tuple[int, ...]]:
        # The result of attention depends on the order, which is not to depend on widths.
        return (
            [(1,) * len(sizes) for sizes in super()._step_sizes()]
            if self.pool == "attention"
            else super()._step_sizes()
        )

    def _score_keys(self) -> list[str]:
        return [f"{self.kinds[s.source]} {s.partition} {sorted(s.above)} {s.axis}" for s in self.steps]


_ARROW = " -> "


def _key(first: str, second: str) -> str:
    return f"{first}{_ARROW}{second}"
