"""Runs an exported program as a pure function of its weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Interpreter, Node
from torch.utils import _pytree as pytree

from weightspace.errors import ShapeError

__all__ = ["ProgramRunner", "is_assertion"]


class _Run(Interpreter):
    """One run; keeps what it was asked to capture and lifts float32 casts when the weights are float64.

    Modules that cast to float32 inside (norms, rotary embeddings) would limit every float64 check to 1e-7.
    """

    def __init__(self, graph_module: torch.fx.GraphModule, capture: Iterable[str], double: bool) -> None:
        super().__init__(graph_module)
        self.captured: dict[str, Any] = {}
        self._wanted = set(capture)
        self._double = double

    def run_node(self, n: Node) -> Any:
        if n.op == "call_function" and is_assertion(n):
            return None
        result = super().run_node(n)
        if n.name in self._wanted:
            self.captured[n.name] = result[0] if isinstance(result, tuple) else result
        return result

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._double:
            args, kwargs = pytree.tree_map(
                lambda x: torch.float64 if x is torch.float32 else x, (args, kwargs), is_leaf=lambda x: x is None
            )
        if target is torch.ops.aten.view.default:
            # Strides of eager values may differ from those the export saw.
            target, args, kwargs = torch.ops.aten.reshape.default, (*args, *kwargs.values()), {}
        result = super().call_function(target, args, kwargs)
        # Tensors made inside the program (zeros of a first state) have the default type.
        return pytree.tree_map(lambda x: _lift(x, self._double), result)

    def fetch_attr(self, target: str) -> Any:
        value = super().fetch_attr(target)
        return _lift(value, self._double)


class ProgramRunner:
    """An exported program, called with named weights.

    Args:
        program: A functional exported program.
    """

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self._program = program
        self._specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}

    def placeholders(self) -> list[tuple[Node, Any]]:
        """Placeholders of the graph with their input specs, in order."""
        return [(n, self._specs[n.name]) for n in self._program.graph.nodes if n.op == "placeholder"]

    def calls(self) -> list[Node]:
        """Operator calls of the graph in order, those left out that only check metadata."""
        return [n for n in self._program.graph.nodes if n.op == "call_function" and not is_assertion(n)]

    def constant(self, spec: Any) -> Tensor | None:
        """Stored value of a constant or buffer."""
        value = self._program.constants.get(spec.target)
        if value is None and spec.target in self._program.state_dict:
            value = self._program.state_dict[spec.target]
        return value if isinstance(value, Tensor) else None

    def user_outputs(self) -> list[Any]:
        """Graph nodes the caller sees; updated buffers are left out."""
        output = next(n for n in self._program.graph.nodes if n.op == "output")
        specs = self._program.graph_signature.output_specs
        return [a for a, s in zip(output.args[0], specs, strict=True) if s.kind is OutputKind.USER_OUTPUT]

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """Leaves of a call's arguments in the order of the placeholders.

        Raises:
            ShapeError: the call does not have the form of the traced one.
        """
        traced = cast(pytree.TreeSpec, self._program.call_spec.in_spec)
        names = list(traced.child(1).context)
        if set(names) == set(kwargs):
            leaves, form = pytree.tree_flatten((tuple(args), {name: kwargs[name] for name in names}))
            if form == traced:
                return leaves
        raise ShapeError(
            f"The module was traced with {traced.child(0).num_children} positional inputs and keyword inputs {names} "
            f"(got {len(args)} and {list(kwargs)}, or other structures in them). Call it as at tracing time."
        )

    def __call__(
        self, weights: Mapping[str, Tensor], inputs: Sequence[Any], capture: Iterable[str] = ()
    ) -> tuple[Any, dict[str, Any]]:
        """Output of the program for inputs from :meth:`flatten`, and the captured node values."""
        double = any(w.dtype == torch.float64 for w in weights.values())
        leaves = iter(inputs)
        args = []
        for _, spec in self.placeholders():
            if spec.kind is InputKind.USER_INPUT:
                args.append(_lift(next(leaves), double))
            elif spec.target in weights:
                args.append(weights[spec.target])
            else:
                args.append(_lift(self.constant(spec), double))
        run = _Run(self._program.graph_module, capture, double)
        flat = run.run(*args)
        specs = self._program.graph_signature.output_specs
        seen = [v for v, s in zip(flat, specs, strict=True) if s.kind is OutputKind.USER_OUTPUT]
        return pytree.tree_unflatten(seen, cast(pytree.TreeSpec, self._program.call_spec.out_spec)), run.captured


def is_assertion(node: Node) -> bool:
    """Whether a node only checks metadata (torch.export leaves such nodes behind)."""
    return "_assert" in str(node.target)


def _lift(value: Any, double: bool) -> Any:
    return value.double() if double and isinstance(value, Tensor) and value.is_floating_point() else value
