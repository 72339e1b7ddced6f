"""The functions of all rounds on one block: evaluated at once where the block is small, streamed where it is large."""

from __future__ import annotations

from torch import Tensor, nn

from weightspace.graphs.block_layout import EdgeBlock
from weightspace.layers.messages.edge_functions import EdgeFunctions, FunctionMatrices, Parity
from weightspace.layers.messages.streamed_operator import StreamedOperator

__all__ = ["KEPT_FLOATS", "OperatorBank"]

KEPT_FLOATS = 2**25
"""Most functions of all blocks together that are kept, in numbers: 128 MiB of float32."""
_STREAMED_FLOATS = 2**17
"""Fewest functions of a block that are streamed; a block of fewer costs less than the calls."""
_SMALLEST_STREAM = 64
"""Rectangles of fewer edges (depthwise convolutions) are many small matrices, which chunks do not help."""


class OperatorBank(nn.Module):
    """Functions of the parameters of one block as operators between its ends, for several rounds.

    Args:
        block: Of the layout.
        heads: Functions per direction and round.
        rounds: Number of rounds.
        units: Hidden units, shared by all functions.
        parity: Of the functions.
        reverse: Whether there are functions for the backward direction; without them nothing is streamed.

    Shape:
        - values: ``(B, G, O, I, K)``; output: per round ``(forward, backward)``, each ``(heads, B, G, O, I)``, or a
          :class:`~weightspace.layers.messages.streamed_operator.StreamedOperator`.
    """

    def __init__(
        self,
        block: EdgeBlock,
        heads: int,
        rounds: int,
        *,
        units: int = 32,
        parity: Parity = "none",
        reverse: bool = True,
    ) -> None:
        super().__init__()
        self.heads, self.rounds, self.ways = heads, rounds, 1 + reverse
        self.edges, self.rectangle = block.groups * block.out * block.inputs, block.out * block.inputs
        self.functions = EdgeFunctions(block.positions, heads, self.ways * rounds, hidden=units, parity=parity)

    @property
    def floats(self) -> int:
        """Numbers per network that are kept where functions are not streamed."""
        return self.edges * (self.ways * self.rounds * self.heads + self.functions.hidden)

    def worth_streaming(self, batch: int) -> bool:
        """Whether streaming saves memory."""
        return self.ways == 2 and batch * self.floats > _STREAMED_FLOATS and self.rectangle >= _SMALLEST_STREAM

    def forward(
        self,
        values: Tensor,  # shape: (B, G, O, I, K)
        mean: Tensor,  # shape: ()
        std: Tensor,  # shape: ()
        *,
        stream: bool,
        chunk: int | None = None,
    ) -> list[tuple[Tensor, Tensor]] | list[StreamedOperator]:
        """The operators of every round, streamed (``chunk`` edges at a time, by default what fits a cache) or kept."""
        if not stream:
            sets = self.functions(values, mean, std)
            return list(zip(sets[:: self.ways], sets[self.ways - 1 :: self.ways], strict=True))
        units, mix, read = self.functions.matrices(std)
        return [
            StreamedOperator(values, mean, FunctionMatrices(units, *rows), self.heads, chunk)
            for rows in zip(mix.chunk(self.rounds), read.chunk(self.rounds), strict=True)
        ]
