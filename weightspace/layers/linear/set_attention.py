"""Self-attention between the neurons of one group."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["SetAttention"]


class SetAttention(nn.Module):
    r"""What every neuron of a group hears from the others by attention.

    .. math:: y_i = \sum_j \mathrm{softmax}_j(q_i \cdot k_j / \sqrt{d})\, v_j

    per head, with linear queries, keys and values (the self-attention of Lee et al. 2019, Set Transformer, section
    3.1, without its feed-forward map; Navon et al. 2023 take it as a set layer).

    Args:
        in_features: Of every neuron.
        out_features: Of the answers, all heads together; a multiple of ``heads``.
        heads: Attention heads.

    Shape:
        - input: ``(B, n, in_features)``; output: ``(B, n, out_features)``.

    Notes:
        Commutes with permutations of the neurons; ``4 n ** 2`` operations per output feature besides the projections.
    """

    def __init__(self, in_features: int, out_features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(in_features, 3 * out_features)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal projections that keep the second moment."""
        nn.init.normal_(self.project.weight, std=self.project.in_features**-0.5)
        nn.init.zeros_(self.project.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Answers of all heads."""
        query, key, value = self.project(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)

    def extra_repr(self) -> str:
        """Heads."""
        return f"heads={self.heads}"
