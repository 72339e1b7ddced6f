r"""Moves along the symmetries of a network: other weights, the same function.

A hidden neuron with an odd activation (sine, tanh) may be negated: its incoming weights, its bias and its outgoing
weights change sign. A sine neuron :math:`\sin(g (w x + b))` may be shifted by whole half periods: :math:`b \leftarrow
b + k \pi / g`, outgoing weights times :math:`(-1)^k`. Together with the order of the neurons these generate every
symmetry of one hidden SIREN layer. :class:`Canonicalise` picks one representative under the first two.

Only layers that weights and biases alone touch are moved: a parameter-free edge (residual, pooling) or a norm would
have to move with them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.errors import SpecError
from weightspace.graphs import BlockLayout, NodeLayer, WeightSpace
from weightspace.zoo.augment import Augmentation, Values

__all__ = ["Canonicalise", "PermuteNeurons", "PhaseShift", "PhaseWrap", "SignFlip"]

ODD = ("sin", "tanh")
"""Activations with a(-z) = -a(z), of neurons that are told apart by nothing else."""


@dataclass(frozen=True)
class _Touched:
    """A movable layer and the blocks that enter and leave it, with the nodes of each ``(g, o)`` or ``(g, i)``."""

    layer: NodeLayer
    incoming: tuple[tuple[int, Tensor | None], ...]
    outgoing: tuple[tuple[int, Tensor | None], ...]
    bias: int | None

    def negate(self, values: Values, sign: Tensor) -> Values:
        """Block values with neuron ``n`` of network ``b`` multiplied by ``sign[b, n]`` on both sides."""
        return self._outgoing(self._incoming(values, sign), sign)

    def shift(self, values: Values, half_periods: Tensor) -> Values:
        """Block values with the bias of neuron ``n`` moved by ``half_periods[b, n] * pi / gain``."""
        changed = self._outgoing(values, 1 - 2 * half_periods.remainder(2))
        bias = self.bias_values(values)
        assert self.bias is not None
        changed[self.bias] = (bias + half_periods * (math.pi / self.layer.gain))[:, None, :, None, None]
        return changed

    def bias_values(self, values: Values) -> Tensor:
        """Biases of the layer; shape: ``(B, n)``."""
        assert self.bias is not None  # only layers with a bias are asked
        return _present(values[self.bias])[:, 0, :, 0, 0]

    def odd_moment(self, values: Values) -> Tensor:
        """Sum of cubes of the incoming weights, which follows every sign flip and no input order; ``(B, n)``."""
        total: Tensor | None = None
        for index, nodes in self.incoming:
            value = _present(values[index])
            cubes = value.pow(3).sum(dim=(3, 4)).flatten(1)
            if total is None:
                total = cubes.new_zeros(len(cubes), self.layer.size)
            total = total + cubes if nodes is None else total.index_add(1, nodes.to(cubes.device), cubes)
        return _present(total)

    def _incoming(self, values: Values, sign: Tensor) -> Values:
        changed = list(values)
        for index, nodes in self.incoming:
            value = _present(values[index])
            changed[index] = value * _on_nodes(sign, nodes).reshape(-1, *value.shape[1:3], 1, 1)
        return changed

    def _outgoing(self, values: Values, sign: Tensor) -> Values:
        changed = list(values)
        for index, nodes in self.outgoing:
            value = _present(values[index])
            changed[index] = value * _on_nodes(sign, nodes).reshape(-1, value.shape[1], 1, value.shape[3], 1)
        return changed


def _present(value: Tensor | None) -> Tensor:
    if value is None:
        raise SpecError("A parameter-free block has no values to move. Build the augmentation from the layout in use.")
    return value


def _on_nodes(per_neuron: Tensor, nodes: Tensor | None) -> Tensor:
    return per_neuron if nodes is None else per_neuron.index_select(1, nodes.to(per_neuron.device))


def _touched(layout: BlockLayout) -> list[_Touched]:
    """Hidden layers that only weight and bias blocks touch, in forward order."""
    found = []
    for layer in layout.layers:
        ends = [(i, b) for i, b in enumerate(layout.blocks) if layer.name in (b.source, b.target)]
        if layer.kind != "hidden" or any(b.view is None or b.role not in ("weight", "bias") for _, b in ends):
            continue
        nodes = {"source": [], "target": []}
        for i, block in ends:
            for end, listed in (("source", block.source_nodes), ("target", block.target_nodes)):
                if getattr(block, end) == layer.name:
                    nodes[end].append((i, None if listed is None else torch.tensor(listed)))
        whole = [i for i, b in ends if b.role == "bias" and b.target_nodes is None and b.groups == 1]
        found.append(_Touched(layer, tuple(nodes["target"]), tuple(nodes["source"]), whole[0] if whole else None))
    return found


def _movable(layout: BlockLayout, what: str, activations: tuple[str, ...], *, bias: bool = False) -> list[_Touched]:
    found = [t for t in _touched(layout) if t.layer.activation in activations and (t.bias is not None or not bias)]
    if not found:
        raise SpecError(
            f"{what} needs a hidden layer with activation {' or '.join(activations)}{' and a bias' if bias else ''} "
            f"that only weights and biases touch (got {layout!r} with none). Leave it out for these networks."
        )
    return found


class SignFlip(Augmentation):
    """Negates random neurons with an odd activation; preserves the function exactly.

    Args:
        layout: Block form of the networks.
        probability: Chance of each neuron to be negated, in [0, 1].

    Raises:
        SpecError: no hidden layer has an odd activation, or ``probability`` is outside [0, 1].
    """

    preserves_function = True

    def __init__(self, layout: BlockLayout, probability: float = 0.5) -> None:
        super().__init__(layout)
        if not 0 <= probability <= 1:
            raise SpecError(f"'probability' of SignFlip must be in [0, 1] (got {probability}).")
        self.probability = probability
        self._layers = _movable(layout, "SignFlip", ODD)

    def transform(self, values: Values, generator: torch.Generator | None) -> Values:
        """Blocks with random neurons negated."""
        like = _present(values[self._layers[0].incoming[0][0]])
        for touched in self._layers:
            u = torch.rand(len(like), touched.layer.size, generator=generator, device=like.device, dtype=like.dtype)
            values = touched.negate(values, 1 - 2 * (u < self.probability).to(like.dtype))
        return values

    def __repr__(self) -> str:
        return f"SignFlip({self.probability})"


class PhaseShift(Augmentation):
    """Shifts sine neurons by random whole half periods; preserves the function up to rounding.

    Args:
        layout: Block form of the networks.
        half_periods: Largest number of half periods, both ways, >= 1.

    Raises:
        SpecError: no hidden sine layer has a bias, or ``half_periods`` is below 1.
    """

    preserves_function = True

    def __init__(self, layout: BlockLayout, half_periods: int = 4) -> None:
        super().__init__(layout)
        if half_periods < 1:
            raise SpecError(f"'half_periods' of PhaseShift must be at least 1 (got {half_periods}).")
        self.half_periods = half_periods
        self._layers = _movable(layout, "PhaseShift", ("sin",), bias=True)

    def transform(self, values: Values, generator: torch.Generator | None) -> Values:
        """Blocks with biases moved by random half periods."""
        for touched in self._layers:
            bias = touched.bias_values(values)
            draw = torch.randint(
                -self.half_periods, self.half_periods + 1, bias.shape, generator=generator, device=bias.device
            )
            values = touched.shift(values, draw.to(bias.dtype))
        return values

    def __repr__(self) -> str:
        return f"PhaseShift({self.half_periods})"


class PhaseWrap(Augmentation):
    r"""Brings the bias of every sine neuron into :math:`\pm \pi / (2 g)`; preserves the function up to rounding.

    Deterministic (takes no random numbers): meant for weights on their way into a metanetwork.

    Args:
        layout: Block form of the networks.

    Raises:
        SpecError: no hidden sine layer has a bias.
    """

    preserves_function = True

    def __init__(self, layout: BlockLayout) -> None:
        super().__init__(layout)
        self._layers = _movable(layout, "PhaseWrap", ("sin",), bias=True)

    def transform(self, values: Values, generator: torch.Generator | None = None) -> Values:
        """Blocks with wrapped biases."""
        for touched in self._layers:
            values = _wrap(values, touched)
        return values


def _wrap(values: Values, touched: _Touched) -> Values:
    return touched.shift(values, -(touched.bias_values(values) * (touched.layer.gain / math.pi)).round())


class Canonicalise(Augmentation):
    r"""One representative of each network under phase shifts and sign flips; preserves the function up to rounding.

    Layers in forward order: wrap the bias of a sine neuron, then negate the neuron if its bias is negative, so that
    it ends in :math:`[0, \pi / (2 g)]`. Where the bias is zero or missing, the sum of cubes of the incoming weights
    decides instead (earlier layers are already fixed, and no order of neurons enters). Two networks that differ by
    such moves become equal; deterministic.

    Args:
        layout: Block form of the networks.

    Raises:
        SpecError: no hidden layer has an odd activation.
    """

    preserves_function = True

    def __init__(self, layout: BlockLayout) -> None:
        super().__init__(layout)
        self._layers = _movable(layout, "Canonicalise", ODD)

    def transform(self, values: Values, generator: torch.Generator | None = None) -> Values:
        """Blocks in canonical form."""
        for touched in self._layers:
            decide = touched.odd_moment(values)
            if touched.bias is not None:
                if touched.layer.activation == "sin":
                    values = _wrap(values, touched)
                bias = touched.bias_values(values)
                decide = torch.where(bias == 0, decide, bias)
            values = touched.negate(values, torch.where(decide < 0, -1.0, 1.0).to(decide.dtype))
        return values


class PermuteNeurons(Augmentation):
    """Puts the neurons of all hidden layers into another order; preserves the function up to rounding.

    The order is a random element of the whole permutation group of the architecture (tied layers move together), one
    for all networks of a batch.

    Args:
        layout: Block form of the networks.
        space: Weight space of the same networks, which knows the group; a layout alone does not.

    Raises:
        SpecError: nothing may be permuted.
    """

    preserves_function = True

    def __init__(self, layout: BlockLayout, space: WeightSpace) -> None:
        super().__init__(layout)
        if not space.permutable:
            raise SpecError(f"PermuteNeurons found no neurons to permute in {layout!r}. Leave it out.")
        self._space = space

    def transform(self, values: Values, generator: torch.Generator | None) -> Values:
        """Blocks with reordered neurons."""
        device = torch.device("cpu") if generator is None else generator.device
        g = self._space.random_permutation(int(torch.randint(2**62, (), generator=generator, device=device)))
        return self.layout.split(self._space.permute(self.layout.join(values), g, batch_dims=1))
