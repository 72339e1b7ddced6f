"""Operators without a propagation rule, rewritten in terms of others."""

from __future__ import annotations

from typing import Any

import torch
from torch.export import ExportedProgram

from weightspace.graphs.propagation import has_rule

__all__ = ["decompose_unknown"]


def decompose_unknown(program: ExportedProgram) -> ExportedProgram:
    """Rewrite operators that have no rule in terms of others, as far as torch knows how.

    Operators with a rule stay whole: a rule says more than the pieces (of an attention, of a norm), and is faster. An
    operator that is left without a rule is for the propagation to judge.
    """
    decompositions: dict[Any, Any] = {}
    while unknown := {t for t in _operators(program) if not has_rule(t)}:
        decompositions = decompositions or dict(torch.export.default_decompositions().items())
        table: dict[Any, Any] = {target: decompositions.pop(target) for target in unknown if target in decompositions}
        if not table:
            break
        try:
            program = program.run_decompositions(table)
        except Exception:  # what torch cannot rewrite stays as it is: whichever of its checks stumbled over it
            break
    return program


def _operators(program: ExportedProgram) -> set[torch._ops.OpOverload]:
    """Operators that a weight goes into, at once or later; what masks and positions are made of needs no rule."""
    signature = program.graph_signature
    weighted = {*signature.inputs_to_parameters, *signature.inputs_to_buffers}
    found = set()
    for node in program.graph.nodes:
        if node.op == "call_function" and any(n.name in weighted for n in node.all_input_nodes):
            weighted.add(node.name)
            if isinstance(node.target, torch._ops.OpOverload):
                found.add(node.target)
    return found
