"""Tracing: one pass over the exported program of a module gives its labels, its neurons and its layout."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cached_property, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind

import weightspace.graphs.rules  # noqa: F401  (registers the rules)
from weightspace.errors import ShapeError, SpecError, UnsupportedModuleError
from weightspace.graphs.block_layout import BlockLayout
from weightspace.graphs.decomposition import decompose_unknown
from weightspace.graphs.execution import ProgramRunner, is_assertion
from weightspace.graphs.labels.values import Component, without_constant_axes
from weightspace.graphs.layout_building import build_layout
from weightspace.graphs.operators.operator_graph import OperatorGraph
from weightspace.graphs.operators.operator_reading import read_operations
from weightspace.graphs.parameter_graph import ParameterGraph
from weightspace.graphs.propagation import Propagation
from weightspace.graphs.symmetries.find_scaling import find_scaling
from weightspace.graphs.symmetries.verification import Verification, verify_symmetry
from weightspace.graphs.weight_space import WeightSpace

__all__ = ["Trace", "trace"]


class Trace:
    """A module seen as a pure function of its weights, with its symmetries and its graph.

    Made by :func:`trace`. The views are :meth:`weight_space`, :meth:`parameter_graph` and the block form of the latter,
    :meth:`layout`, and :meth:`operator_graph`.

    Args:
        program: What ``torch.export`` returned, decomposed to functional operators.
        module: The module it was exported from.
        inputs: The positional example inputs.
        keyword_inputs: The keyword ones.
        held: Patterns of the names of weights whose positions keep their places.
    """

    def __init__(
        self,
        program: torch.export.ExportedProgram,
        module: nn.Module,
        inputs: Sequence[Any],
        keyword_inputs: Mapping[str, Any],
        held: Sequence[str] = (),
    ) -> None:
        self._runner = ProgramRunner(program)
        self._inputs = tuple(self._runner.flatten(inputs, keyword_inputs))
        self._held = tuple(held)
        self._propagation = Propagation()
        aliases = _tied(module)
        self.example_weights: dict[str, Tensor] = {}
        tensors = dict(_named_tensors(module))
        for node, spec in self._runner.placeholders():
            self._add_placeholder(node, spec, tensors, aliases)
        unused = [p for p in held if not any(fnmatchcase(n, p) for n in (*self.example_weights, *aliases))]
        if unused:
            raise SpecError(f"No parameter or buffer is named {unused}; the names are {list(self.example_weights)}.")
        self._aliases = {n: first for n, first in aliases.items() if n != first and first in self.example_weights}
        for node in program.graph.nodes:
            if node.op == "call_function":
                if is_assertion(node):
                    continue
                self._propagation.run(node)
            elif node.op == "get_attr":
                constant = getattr(program.graph_module, str(node.target))
                if not isinstance(constant, Tensor):
                    raise UnsupportedModuleError(
                        f"Control flow '{node.target}' inside {type(module).__name__} cannot be followed. Trace the "
                        "branches as modules of their own."
                    )
                self._propagation.add_constant(node, constant, tuple(constant.shape))
        self._propagation.hold_unread()
        self._outputs = self._propagation.hold_outputs(self._runner.user_outputs())

    def _add_placeholder(self, node: Any, spec: Any, tensors: dict[str, Tensor], aliases: dict[str, str]) -> None:
        value = node.meta.get("val")
        shape = tuple(int(n) for n in value.shape) if isinstance(value, Tensor) else ()
        name = str(spec.target)
        is_weight = spec.kind is InputKind.PARAMETER or (
            spec.kind is InputKind.BUFFER and spec.persistent and tensors[name].is_floating_point()
        )
        if is_weight:
            first = aliases.get(name, name)
            if first not in self.example_weights:
                self.example_weights[first] = tensors[first].detach()
                tied = sum(other == first for other in aliases.values()) > 1
                self._propagation.add_parameter(node, first, shape, spec.kind is InputKind.BUFFER, tied)
            else:
                self._propagation.add_alias(node, first)
            if any(fnmatchcase(n, pattern) for n in (name, first) for pattern in self._held):
                self._propagation.hold(self._propagation.values[node], range(len(shape)))
        elif spec.kind is InputKind.USER_INPUT:
            self._propagation.add_input(node, shape)
        else:
            constant = self._runner.constant(spec)
            self._propagation.add_constant(node, constant, shape)

    # -- the views -----------------------------------------------------------------------------------------------

    @cached_property
    def _weight_space(self) -> WeightSpace:
        names = {**{n: n for n in self.example_weights}, **self._aliases}
        held = [n for n in names if any(fnmatchcase(n, pattern) for pattern in self._held)]
        return WeightSpace.from_propagation(self._propagation, find_scaling(self._runner, names, held), self._aliases)

    @cached_property
    def _checked(self) -> Verification:
        check = self.verify(trials=2)
        if not check:
            raise UnsupportedModuleError(
                f"The symmetries derived for this module do not hold ({check!r}): a propagation rule is wrong. Please "
                "report the module; WeightSpace.from_axes takes a specification written by hand."
            )
        return check

    def weight_space(self, *, check: bool = True) -> WeightSpace:
        """Parameters with their neuron groups and permutation symmetries.

        Args:
            check: The first time, try them on random weights in float64 (five runs of the module) and raise rather
                than return a wrong answer.

        Raises:
            UnsupportedModuleError: the check fails.
        """
        if check:
            _ = self._checked
        return self._weight_space

    @cached_property
    def _layout(self) -> BlockLayout:
        shapes = [(name, tuple(t.shape)) for name, t in self.example_weights.items()]
        classes: dict[int, int] = {}
        for ours, placed in zip(self._propagation.parameters.values(), self._weight_space.parameters, strict=True):
            for c, d in zip(ours.components, placed.components, strict=True):
                found = without_constant_axes(Component(c.dims, self._propagation.labels.find(c.labels)))
                roots = found.labels.reshape(-1)
                cells = self._weight_space.label_classes[d.labels.reshape(-1)]
                classes.update(zip(roots.tolist(), cells.tolist(), strict=True))
        layout = build_layout(self._propagation, self._outputs, shapes, classes)
        return replace(layout, aliases=tuple(self._aliases.items()))

    def layout(self) -> BlockLayout:
        """Node layers and edge blocks of the parameter graph; every scalar of every weight is in one of them.

        Notes:
            The layout may show fewer symmetries than :meth:`weight_space`, never more. Parameters that only meet zeros
            are the known case: the recurrent matrix of a cell traced with its default state has columns that nothing
            depends on, so the weight space may permute them, while the layout joins them to the nodes of the state as
            in every later step. Trace a cell with its state, ``trace(cell, x, h)``, and both agree.
        """
        return self._layout

    def parameter_graph(self, weights: Mapping[str, Tensor] | None = None) -> ParameterGraph:
        """Parameter graph of one network of this architecture (the traced one by default).

        Raises:
            ShapeError: a tensor is missing, unknown, or has another shape.
        """
        layout = self.layout()
        return ParameterGraph.from_weights(layout, self.example_weights if weights is None else weights)

    def operator_graph(self, *, movement: bool = False) -> OperatorGraph:
        """The architecture as a graph of operations.

        Args:
            movement: Keep operations that only move data (reshapes, permutations, slices, copies); by default the
                operations around them are joined directly.
        """
        return read_operations(self._runner, self._aliases, self.example_weights, movement)

    def verify(self, trials: int = 3, seed: int = 0, kinds: Sequence[str] | None = None) -> Verification:
        """Check the weight space against the traced function in float64, on random weights and inputs.

        Args:
            trials: Number of random group elements.
            seed: Of everything random.
            kinds: Kinds of symmetry to try, all there are by default.
        """

        def run(weights: Mapping[str, Tensor], *leaves: Any) -> Any:
            return self._runner(self._complete(weights), leaves)[0]

        return verify_symmetry(
            self._weight_space, run, self.example_weights, self._inputs, trials=trials, seed=seed, kinds=kinds
        )

    # -- the function --------------------------------------------------------------------------------------------

    def _complete(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        known = {*self.example_weights, *self._aliases}
        unknown = [n for n, w in weights.items() if n not in known and w.is_floating_point()]
        if unknown:
            raise ShapeError(
                f"The state dict has {unknown}, which the traced module does not "
                f"(it has {list(self.example_weights)}). "
                "Pass the weights of a network of the traced architecture."
            )
        given = {n: w for n, w in weights.items() if n in known}
        tied = {first: given[name] for name, first in reversed(self._aliases.items()) if name in given}
        full = {**self.example_weights, **tied, **given}
        return {**full, **{name: full[first] for name, first in self._aliases.items()}}

    def _call(
        self, weights: Mapping[str, Tensor], inputs: Sequence[Any], keywords: Mapping[str, Any], capture: set[str]
    ) -> tuple[Any, dict[str, Any]]:
        leaves = self._runner.flatten(inputs, keywords) if inputs or keywords else self._inputs
        for given, traced in zip(leaves, self._inputs, strict=True):
            if not isinstance(traced, Tensor) and not _is_constant(given, traced):
                raise ShapeError(
                    f"The module was traced with {traced!r}, which is part of the function now (got {given!r}). Trace "
                    "it again with the other value."
                )
        return self._runner(self._complete(weights), leaves, capture)

    def evaluate(self, weights: Mapping[str, Tensor], *inputs: Any, **keyword_inputs: Any) -> Any:
        """Output of the traced function for other weights; pure, works under ``torch.vmap``.

        Args:
            weights: State dict; parameters or buffers left out keep their values of tracing time, integer buffers
                (counters) are ignored. Of tied weights one name is enough; if there are several, the first one counts.
            inputs: As at tracing time; none at all means the example inputs. Shapes are those of tracing time where
                the module computes with them: it may take batches of another size, if it does not ask for theirs.
            keyword_inputs: Likewise.

        Raises:
            ShapeError: a weight that the module does not have, or inputs of another structure or other constants than
                at tracing time.
        """
        return self._call(weights, inputs, keyword_inputs, set())[0]

    def node_values(self, weights: Mapping[str, Tensor], *inputs: Any, **keyword_inputs: Any) -> dict[str, Tensor]:
        """Pre-activation values of every node layer that has them, by layer name; arguments as :meth:`evaluate`."""
        sites = self._propagation.recorder.sites()
        captured = self._call(weights, inputs, keyword_inputs, set(sites.values()))[1]
        return {layer: captured[site] for layer, site in sites.items() if site in captured}

    def __repr__(self) -> str:
        numel = sum(t.numel() for t in self.example_weights.values())
        return f"Trace({len(self.example_weights)} tensors, {numel:,} scalars)"


def trace(
    module: nn.Module,
    *example_inputs: Any,
    outputs: Callable[[Any], Any] | None = None,
    held: Sequence[str] = (),
    **example_keyword_inputs: Any,
) -> Trace:
    """Trace a module once; everything else is read off the result.

    The module is traced in evaluation mode; its parameters and mode are left as they were. Persistent buffers of
    floating-point numbers count as weights (the statistics of a norm move with its channels), other buffers are
    constants.

    Args:
        module: Any module that ``torch.export`` accepts.
        example_inputs: What its ``forward`` takes; only shapes and dtypes matter, and control flow that depends on
            them.
        outputs: Picks what counts of the module's output, ``lambda out: out.logits`` say. Everything that is returned
            is held, so a hidden state or a cache among the outputs takes away the symmetries of the layers inside.
        held: Names of parameters and buffers (shell patterns, ``"*.frequencies"``) whose positions keep their places:
            a table of sines or a random projection that is the same for all networks.
        example_keyword_inputs: What ``forward`` takes by name. (Names that are options of this function can only be
            given by position.)

    Raises:
        SpecError: a pattern in ``held`` fits no name.
        UnsupportedModuleError: ``torch.export`` refuses the module, or an operator in it has no propagation rule.

    Example:
        >>> mlp = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> traced = trace(mlp, torch.zeros(4, 2))
        >>> traced.layout()
        BlockLayout(13 nodes in 5 layers, 33 edges in 4 blocks)
    """
    if not isinstance(module, nn.Module):
        raise UnsupportedModuleError(f"trace takes a module, an instance of torch.nn.Module (got {module!r}).")
    modes = {m: m.training for m in module.modules()}
    try:
        with warnings.catch_warnings(), torch.no_grad(), _quiet(), _picking(module, outputs):
            warnings.simplefilter("ignore")  # torch.export warns about its own internals
            module.eval()
            exported = torch.export.export(module, example_inputs, example_keyword_inputs, strict=False)
            program = decompose_unknown(exported.run_decompositions({}))
    except Exception as error:
        # Whatever stopped the export (control flow on values, a wrong example input) is the user's to see.
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnsupportedModuleError(
            f"torch.export cannot trace {type(module).__name__}: {first_line.rstrip('.')}. "
            "Check the example inputs, and move control flow that depends on values out of the module; or write the "
            "specification by hand with WeightSpace.from_axes."
        ) from error
    finally:
        for m, mode in modes.items():
            m.training = mode
    return Trace(program, module, example_inputs, example_keyword_inputs, held)


@contextmanager
def _picking(module: nn.Module, outputs: Callable[[Any], Any] | None) -> Iterator[None]:
    """Let the module return less; a wrapper around it would change the names of its parameters."""
    if outputs is None:
        yield
        return
    forward, own = module.forward, vars(module).get("forward")

    @wraps(forward)
    def picked(*args: Any, **kwargs: Any) -> Any:
        return outputs(forward(*args, **kwargs))

    vars(module)["forward"] = picked
    try:
        yield
    finally:
        del vars(module)["forward"]
        if own is not None:
            vars(module)["forward"] = own


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from logging what is raised as an error anyway."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _is_constant(given: Any, traced: Any) -> bool:
    if isinstance(given, Tensor):
        return False
    return given == traced or (given != given and traced != traced)  # nan is that of tracing, too


def _tied(module: nn.Module) -> dict[str, str]:
    """First name of every parameter and buffer object."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in _named_tensors(module)}


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)
