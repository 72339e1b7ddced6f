"""Weight spaces: the parameters of an architecture with their permutation symmetries, without their values."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from weightspace.errors import ShapeError, SpecError
from weightspace.graphs.axis_specification import labels_of_axes
from weightspace.graphs.compaction import compact
from weightspace.graphs.labels.label_graph import LabelGraph, Solution, solve
from weightspace.graphs.labels.label_sampling import log_order, random_source
from weightspace.graphs.labels.parameter_labels import ParameterLabels
from weightspace.graphs.labels.pool import IntArray
from weightspace.graphs.neuron_groups import NeuronGroup, group_table, name_groups, neuron_groups
from weightspace.graphs.parameter_blocks import Block, blocks_of, join_blocks
from weightspace.graphs.propagation import Propagation
from weightspace.graphs.symmetries.canonical import Canonicaliser
from weightspace.graphs.symmetries.neuron_permutation import NeuronPermutation
from weightspace.graphs.symmetries.neuron_symmetry import NeuronSymmetry
from weightspace.graphs.symmetries.scaling import KINDS, Scaling, check_kinds
from weightspace.graphs.symmetries.verification import Verification, verify_symmetry
from weightspace.graphs.weight_space_json import from_json, to_json

__all__ = ["WeightSpace"]


class WeightSpace:
    """Parameters of one architecture with their permutation symmetries; data-free, hashable, JSON round trip.

    Made by ``trace(module, *inputs).weight_space()`` or, by hand, by :meth:`from_axes`.

    Attributes:
        parameters: Name, shape and labels of every parameter and persistent buffer.
        aliases: First name of every further name of a tied weight.
        groups: Neuron groups by name.
        blocks: Views of the parameters with one group per axis; every scalar is in exactly one.
        log_order: Natural logarithm of the number of group elements.

    Example:
        >>> space = WeightSpace.from_axes({"a": ("in", "h"), "b": ("h", "out")}, {"a": (2, 8), "b": (8, 1)},
        ...                               fixed=("in", "out"))
        >>> space
        WeightSpace(2 tensors, 24 scalars, 1 permutable group, log order 10.60)
          h  permutable  8  a[1] b[0]
    """

    def __init__(
        self,
        parameters: Sequence[ParameterLabels],
        graph: LabelGraph,
        names: Mapping[int, str] | None = None,
        scaling: Scaling | None = None,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self.parameters = tuple(parameters)
        self.aliases = dict(aliases or {})
        self.scaling = scaling or Scaling()
        self._given = dict(names or {})
        self._canonicalisers: dict[tuple[str, ...], Canonicaliser] = {}
        self._graph = graph
        self._solution: Solution = solve(graph)
        self._names = name_groups(self.parameters, self._solution, self._given)
        self.groups = neuron_groups(self._solution, self._names)
        self.blocks = tuple(b for p in self.parameters for b in self._blocks_of(p))
        self.log_order = log_order(self._solution)

    # -- construction --------------------------------------------------------------------------------------------

    @classmethod
    def from_propagation(
        cls, propagation: Propagation, scaling: Scaling | None = None, aliases: Mapping[str, str] | None = None
    ) -> WeightSpace:
        """Read the weight space off a finished propagation."""
        return cls(*compact(propagation), scaling=scaling, aliases=aliases)

    @classmethod
    def from_axes(
        cls,
        axes: Mapping[str, Sequence[str]],
        shapes: Mapping[str, Sequence[int]],
        *,
        fixed: Sequence[str] = (),
    ) -> WeightSpace:
        """A hand-written specification: the name of a group for every axis of every parameter.

        Args:
            axes: Group names by parameter, one per axis.
            shapes: Shapes by parameter.
            fixed: Groups that keep their order (inputs, outputs, kernel positions).

        Raises:
            SpecError: an axis is missing, a group has two sizes, or a fixed group is on no axis.
        """
        return cls(*labels_of_axes(axes, shapes, fixed))

    @property
    def label_graph(self) -> LabelGraph:
        """The coloured graph whose automorphisms are the group; its nodes are the labels of :attr:`parameters`."""
        return self._graph

    @property
    def label_classes(self) -> IntArray:
        """Class of every label of :attr:`parameters`; no symmetry exchanges labels of different classes."""
        return self._solution.cells

    @property
    def coordinates(self) -> list[tuple[tuple[str, int], ...]]:
        """Group and index in it for every label of :attr:`parameters`, outermost group first; none where it is held."""
        return self._coordinates

    @cached_property
    def _coordinates(self) -> list[tuple[tuple[str, int], ...]]:
        return [tuple((self._names[g], i) for g, i in c) for c in self._solution.coordinates]

    # -- group action --------------------------------------------------------------------------------------------

    def random_permutation(self, generator: torch.Generator | int) -> NeuronPermutation:
        """A random group element.

        Args:
            generator: A torch generator, or a seed.
        """
        if isinstance(generator, torch.Generator):  # whatever the default device is
            generator = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        return NeuronPermutation(random_source(self._solution, np.random.default_rng(generator)))

    def random_symmetry(self, generator: torch.Generator | int, kinds: Sequence[str] = KINDS) -> NeuronSymmetry:
        """A random group element: a permutation with scales, signs and sine phases.

        Args:
            generator: A torch generator, or a seed.
            kinds: The kinds wanted; those the architecture lacks are left out.

        Raises:
            SpecError: a kind is unknown.
        """
        check_kinds(kinds)
        if isinstance(generator, int):
            generator = torch.Generator().manual_seed(generator)
        moved = "permutation" in kinds
        g = self.random_permutation(generator) if moved else NeuronPermutation(np.arange(len(self.label_classes)))
        factors, shifts = self.scaling.draw(generator, kinds)
        return NeuronSymmetry(g, {p.name: p for p in self.parameters}, factors, shifts, self.scaling.offsets)

    def permute(self, weights: Mapping[str, Tensor], g: NeuronPermutation, batch_dims: int = 0) -> dict[str, Tensor]:
        """:meth:`apply` with a permutation: the weights of the same function with its neurons relabelled."""
        return self.apply(weights, g, batch_dims)

    def apply(
        self,
        weights: Mapping[str, Tensor],  # each of shape: (*batch, *parameter shape)
        g: NeuronPermutation | NeuronSymmetry,
        batch_dims: int = 0,
    ) -> dict[str, Tensor]:
        """Other weights of the same function; gradients flow.

        Further names of tied weights follow the first; names that the weight space does not know (integer buffers,
        say) are passed through.

        Raises:
            ShapeError: a parameter or buffer is missing (moving only some of them changes the function) or has
                another shape, or the group element is of another weight space.
        """
        moved_labels = len((g if isinstance(g, NeuronPermutation) else g.permutation).source)
        if moved_labels != len(self.label_classes):
            raise ShapeError(
                f"The group element moves {moved_labels} labels, this weight space has {len(self.label_classes)}. Pass "
                "one of the same architecture, as from random_permutation."
            )
        missing = [p.name for p in self.parameters if p.name not in weights]
        if missing:
            raise ShapeError(
                f"The state dict lacks {missing}, which move with the rest. Pass all parameters and floating-point "
                "buffers, as in module.state_dict()."
            )
        moved = dict(weights)
        for p in self.parameters:
            tensor = weights[p.name]
            if tuple(tensor.shape[batch_dims:]) != p.shape:
                raise ShapeError(
                    f"'{p.name}' must have shape {p.shape} behind {batch_dims} batch axes (got "
                    f"{tuple(tensor.shape)}). Is it a batch (batch_dims=1), or of another architecture?"
                )
            moved[p.name] = g.act(tensor, p, batch_dims)
        return self._with_aliases(moved)

    def _with_aliases(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Let further names of tied weights, where they are given, follow the first."""
        return {**weights, **{name: weights[first] for name, first in self.aliases.items() if name in weights}}

    def canonicalise(
        self, weights: Mapping[str, Tensor], kinds: Sequence[str] = KINDS, batch_dims: int = 0
    ) -> dict[str, Tensor]:
        """One representative of all weights that differ by a group element; see :class:`Canonicaliser`.

        Args:
            weights: State dict, each tensor of shape ``(*batch, *parameter shape)``.
            kinds: What to settle: scales, signs, sine phases, the order of neurons.
            batch_dims: Leading axes; every network of a batch gets its own form.

        Raises:
            SpecError: a kind is unknown.
            ShapeError: a parameter or buffer is missing or has another shape.
        """
        if tuple(kinds) not in self._canonicalisers:
            self._canonicalisers[tuple(kinds)] = Canonicaliser(self, kinds)
        return self._with_aliases(self._canonicalisers[tuple(kinds)](weights, batch_dims))

    def split(self, weights: Mapping[str, Tensor], batch_dims: int = 0) -> dict[str, Tensor]:
        """Values of every block, by block name, one neuron group per axis."""
        return {b.name: b.view.apply(weights[b.view.parameter], batch_dims) for b in self.blocks}

    def join(self, values: Mapping[str, Tensor], batch_dims: int = 0) -> dict[str, Tensor]:
        """Exact inverse of :meth:`split`; tied weights under all their names."""
        joined = join_blocks(self.blocks, values, batch_dims)
        if len(joined) < len(self.parameters):  # tensors without any entry are in no block
            like = next(iter(joined.values()), torch.empty((0,) * batch_dims))
            batch = like.shape[:batch_dims]
            joined |= {p.name: like.new_empty(*batch, *p.shape) for p in self.parameters if p.name not in joined}
        ordered = {p.name: joined[p.name] for p in self.parameters}
        return {**ordered, **{name: ordered[first] for name, first in self.aliases.items()}}

    def verify(self, module: nn.Module, *inputs: Any, trials: int = 3, seed: int = 0) -> Verification:
        """Apply random group elements in float64 and compare the function's outputs.

        Args:
            module: A module of this architecture; its own values are not used, random ones are. (Modules that keep
                something computed from their weights are no functions of them: check ``trace(module, ...).verify()``.)
            inputs: Example inputs.
            trials: Number of random group elements.
            seed: Of weights, inputs and elements.

        Returns:
            The largest relative deviation, and which groups break the function if any does.
        """
        double = copy.deepcopy(module).double().eval()
        weights = {**dict(double.named_parameters()), **dict(double.named_buffers())}

        def evaluate(weights: Mapping[str, Tensor], *inputs: Any) -> Any:
            return functional_call(double, dict(weights), inputs)

        return verify_symmetry(self, evaluate, weights, inputs, trials=trials, seed=seed)

    def restricted(self, group: str, g: NeuronPermutation) -> NeuronPermutation:
        """The part of a group element that moves only neurons of one group (and of groups nested in it)."""
        if group not in self.groups:
            raise SpecError(f"There is no group '{group}'; the groups are {list(self.groups)}.")
        index = next(k for k, name in self._names.items() if name == group)
        source = np.where(self._solution.inside(index), g.source, np.arange(len(g.source)))
        return NeuronPermutation(source)

    def _blocks_of(self, p: ParameterLabels) -> list[Block]:
        return blocks_of(p, self._solution, self._names)

    # -- description ---------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """A JSON-able form; :meth:`from_json` inverts it."""
        return to_json(self.parameters, self._graph, self._given, self.scaling, self.aliases)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> WeightSpace:
        """Read what :meth:`to_json` wrote."""
        return cls(*from_json(data))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the whole description."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WeightSpace) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of symmetry the architecture has, out of :data:`~weightspace.graphs.symmetries.scaling.KINDS`."""
        return (*(("permutation",) if self.permutable else ()), *self.scaling.kinds)

    @cached_property
    def symmetries(self) -> dict[str, tuple[str, ...]]:
        """Kinds of symmetry of every neuron group."""
        found: dict[str, tuple[str, ...]] = {}
        labels = {
            k: [self._solution.coordinates[n] for n in at] for k, at in self.scaling.labels(self.parameters).items()
        }
        for index, name in self._names.items():
            touched = [kind for kind, listed in labels.items() if any(index in dict(c) for c in listed)]
            found[name] = ("permutation", *touched)
        return found

    @property
    def permutable(self) -> list[NeuronGroup]:
        """The groups in order; what is held is in none."""
        return list(self.groups.values())

    def axes_of(self, group: str) -> list[str]:
        """Parameter axes a group acts on, as ``name[axis]``."""
        return [f"{b.name}[{k}]" for b in self.blocks for k, axis in enumerate(b.axes) if axis == group]

    def __repr__(self) -> str:
        numel = sum(math.prod(p.shape) for p in self.parameters)
        count = len(self.permutable)
        head = (
            f"WeightSpace({len(self.parameters)} tensors, {numel:,} scalars, {count} permutable group"
            f"{'' if count == 1 else 's'}, log order {self.log_order:.2f})"
        )
        table = group_table(self.permutable, {g.name: self.axes_of(g.name) for g in self.permutable})
        return "\n  ".join([head, *table])
