"""A metanetwork for mixed architectures as one that reads a flat mapping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from weightspace.errors import ShapeError
from weightspace.graphs import BlockLayout
from weightspace.metanets.mixed import Group, SharedMetanet

__all__ = ["MixedReader"]


class MixedReader(nn.Module):
    """A shared metanetwork behind one flat mapping, for what hands on batches as mappings of tensors (training loops).

    Args:
        metanet: Reads the groups.
        layouts: Architecture number ``n`` of the mapping.

    Shape:
        - input: ``{"n/tensor name": (B_n, *shape)}``, as :class:`weightspace.training.MixedWeights` delivers; output:
          ``(sum of B_n, out_features)``, by ``n`` in the order in which they first appear; or weights, named as the
          input.

    Raises:
        ShapeError: (when called) a name that starts with no number of an architecture.
    """

    def __init__(self, metanet: SharedMetanet, layouts: Sequence[BlockLayout]) -> None:
        super().__init__()
        self.metanet, self.layouts = metanet, list(layouts)

    def groups(self, weights: Mapping[str, Tensor]) -> list[Group]:
        """The same networks as groups."""
        parts: dict[str, dict[str, Tensor]] = {}
        for key, value in weights.items():
            number, _, name = key.partition("/")
            if not (number.isdigit() and int(number) < len(self.layouts)):
                raise ShapeError(
                    f"Tensor '{key}' of a mixed batch must be named 'n/name' with an architecture n below "
                    f"{len(self.layouts)}. Let MixedWeights make the batches, from groups in the order of the layouts."
                )
            parts.setdefault(number, {})[name] = value
        return [(self.layouts[int(number)], part) for number, part in parts.items()]

    def fit_normalisation(self, weights: Mapping[str, Tensor]) -> None:
        """Take the normalisation statistics from these networks; call it once, with the training split."""
        self.metanet.fit_normalisation(self.groups(weights))

    def forward(self, weights: Mapping[str, Tensor]) -> Any:
        """Answers of all groups."""
        answer = self.metanet(self.groups(weights))
        if self.metanet.kind == "invariant":
            return answer
        numbers = dict.fromkeys(key.partition("/")[0] for key in weights)
        return {f"{n}/{name}": w for n, edited in zip(numbers, answer, strict=True) for name, w in edited.items()}
