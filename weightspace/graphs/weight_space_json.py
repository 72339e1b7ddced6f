"""The JSON form of a weight space: all that it is made of, with runs of labels written as runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from weightspace.graphs.labels.label_graph import LabelGraph
from weightspace.graphs.labels.parameter_labels import ParameterLabels
from weightspace.graphs.labels.values import Component
from weightspace.graphs.run_length import runs, unruns
from weightspace.graphs.symmetries.scaling import Scaling

__all__ = ["from_json", "to_json"]


def to_json(
    parameters: Sequence[ParameterLabels],
    graph: LabelGraph,
    names: Mapping[int, str],
    scaling: Scaling,
    aliases: Mapping[str, str],
) -> dict[str, Any]:
    """A JSON-able form of the arguments of a weight space; :func:`from_json` inverts it."""
    return {
        "parameters": [
            {
                "name": p.name,
                "shape": list(p.shape),
                "view_shape": list(p.view_shape),
                "is_buffer": p.is_buffer,
                "components": [
                    {"dims": list(c.dims), "shape": list(c.labels.shape), "labels": runs(c.labels.reshape(-1))}
                    for c in p.components
                ],
            }
            for p in parameters
        ],
        "colours": runs(graph.colours),
        "edges": [runs(column) for column in graph.edges.T],
        "factors": [runs(column) for column in graph.factors.T],
        "names": [[node, name] for node, name in names.items()],
        **({"scaling": scaling.to_json()} if scaling.kinds else {}),
        **({"aliases": dict(aliases)} if aliases else {}),
    }


def from_json(
    data: Mapping[str, Any],
) -> tuple[list[ParameterLabels], LabelGraph, dict[int, str], Scaling | None, dict[str, str] | None]:
    """Parameters, label graph, names, scaling and aliases that :func:`to_json` wrote."""
    parameters = [
        ParameterLabels(
            p["name"],
            tuple(p["shape"]),
            tuple(p["view_shape"]),
            tuple(Component(tuple(c["dims"]), unruns(c["labels"]).reshape(c["shape"])) for c in p["components"]),
            p["is_buffer"],
        )
        for p in data["parameters"]
    ]
    edges, factors = (np.stack([unruns(c) for c in data[k]], 1) for k in ("edges", "factors"))
    graph = LabelGraph(unruns(data["colours"]), edges, factors)
    scaling = Scaling.from_json(data["scaling"]) if "scaling" in data else None
    return parameters, graph, dict(data["names"]), scaling, data.get("aliases")
