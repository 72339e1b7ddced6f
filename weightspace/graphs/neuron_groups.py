"""Neuron groups: the groups of a solved label graph under the names of the weights that write their neurons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from weightspace.graphs.labels.label_graph import Solution
from weightspace.graphs.labels.parameter_labels import ParameterLabels

__all__ = ["NeuronGroup", "group_table", "name_groups", "neuron_groups"]


@dataclass(frozen=True)
class NeuronGroup:
    """A set of parameter axes that are permuted together.

    Args:
        name: Where the neurons are written first.
        size: Number of neurons (of inner neurons for each outer one, where there is a parent).
        kind: ``"permutable"``, or ``"generic"``: moved by a group that is no nested product of symmetric groups,
            sampled and applied exactly, refused by linear metanetworks.
        parent: Group inside whose every neuron this one is permuted independently.
    """

    name: str
    size: int
    kind: str = "permutable"
    parent: str | None = None


def name_groups(parameters: Sequence[ParameterLabels], solution: Solution, given: Mapping[int, str]) -> dict[int, str]:
    """Name every group after the weight that writes its neurons, or else after the first parameter it is on.

    Args:
        parameters: Parameters over the labels.
        solution: The groups, and the labels that each moves.
        given: Names by label, which go before those of parameters.
    """
    names: dict[int, str] = {}
    taken: set[str] = set()
    ordered = [(c.dims[0] > 0 or len(p.shape) < 2, p, c) for p in parameters for c in p.components]
    for _, p, component in sorted(ordered, key=lambda x: x[0]):
        for node in component.labels.reshape(-1).tolist():
            for depth, (group, _) in enumerate(solution.coordinates[node]):
                if group in names:
                    continue
                base = given.get(node) or (p.name.rsplit(".", 1)[0] if "." in p.name else p.name)
                base += ".outer" if depth + 1 < len(solution.coordinates[node]) else ""
                name, k = base, 1
                while name in taken:
                    name, k = f"{base}:{k}", k + 1
                names[group] = name
                taken.add(name)
    for group in range(len(solution.groups)):
        names.setdefault(group, f"group:{group}")
    return names


def neuron_groups(solution: Solution, names: Mapping[int, str]) -> dict[str, NeuronGroup]:
    """The groups by name, in the order in which they are named."""
    found = {}
    for index, name in names.items():
        solved = solution.groups[index]
        kind = "permutable" if solved.kind == "symmetric" else "generic"
        parent = None if solved.parent is None else names[solved.parent]
        found[name] = NeuronGroup(name, solved.size, kind, parent)
    return found


def group_table(groups: Sequence[NeuronGroup], axes: Mapping[str, Sequence[str]]) -> list[str]:
    """A line for each group: name, kind, size and the first of its axes.

    Args:
        groups: The groups to list.
        axes: Parameter axes by name of the group that acts on them.
    """
    rows = []
    for g in groups:
        listed = axes[g.name]
        shown = " ".join(listed[:6]) + (f" ... ({len(listed)} axes)" if len(listed) > 6 else "")
        rows.append((g.name + (f" in {g.parent}" if g.parent else ""), g.kind, str(g.size), shown))
    widths = [max((len(r[k]) for r in rows), default=0) for k in range(3)]
    return ["  ".join([*(c.ljust(w) for c, w in zip(r[:3], widths, strict=True)), r[3]]) for r in rows]
