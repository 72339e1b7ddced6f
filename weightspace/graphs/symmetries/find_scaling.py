"""Finds the scale, sign and phase symmetries of an exported program."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import weightspace.graphs.symmetries.scale_rules  # noqa: F401  (registers the rules)
from weightspace.graphs.execution import ProgramRunner
from weightspace.graphs.symmetries.scale_propagation import ScaleWalk
from weightspace.graphs.symmetries.scaling import Scaling

__all__ = ["find_scaling"]


def find_scaling(runner: ProgramRunner, weights: Mapping[str, str], held: Collection[str] = ()) -> Scaling:
    """Walk over a program once for scales and once for signs, and solve what was asked.

    Args:
        runner: The program.
        weights: For every name of a parameter or persistent buffer the name it goes under (the same, unless tied).
        held: Names of weights that keep their values.
    """
    return Scaling.from_walks(*(_walk(runner, weights, held, signs) for signs in (False, True)))


def _walk(runner: ProgramRunner, weights: Mapping[str, str], held: Collection[str], signs: bool) -> ScaleWalk:
    walk = ScaleWalk(signs)
    for node, spec in runner.placeholders():
        name = weights.get(str(spec.target))
        if name is None:
            walk.add_held(node, node.meta.get("val"))
            continue
        walk.add_parameter(node, name, tuple(int(n) for n in node.meta["val"].shape))
        if {name, str(spec.target)} & set(held):
            walk.hold(walk.values[node])
    for node in runner.calls():
        walk.run(node)
    walk.hold_outputs(runner.user_outputs())
    return walk
