"""Mean, deviation and attention out of the sums that a pass gives, for one set of edges or several joined ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from weightspace.graphs.message_passing.reductions import by_head

__all__ = ["mean_and_deviation", "softmax_mean"]


def mean_and_deviation(
    received: Mapping[str, Tensor], degrees: Tensor | int, *, floor: float = 1e-5
) -> tuple[Tensor, Tensor]:
    r"""Mean and standard deviation of the messages of every receiver, from the reductions ``sum`` and ``square``.

    .. math::
        \mu_i = \frac1{d_i} \sum_j m_{ij} \qquad
        \sigma_i = \sqrt{\max(0, \tfrac1{d_i} \textstyle\sum_j m_{ij}^2 - \mu_i^2) + \varepsilon}

    with the small number under the root of Corso et al. 2020, which keeps derivatives finite. Sums of several passes
    are added before.

    Args:
        received: ``Passed.receivers`` with ``sum`` and ``square``.
        degrees: Edges per receiver: the number of senders of a rectangle, ``edges.rowptr.diff()[:, None]`` of sparse
            edges; 0 where none arrives.
        floor: :math:`\varepsilon`.

    Returns:
        Both of the shape of the sums; 0 where no edge arrives.

    Example:
        >>> received = {"sum": torch.tensor([[4.0], [0.0]]), "square": torch.tensor([[10.0], [0.0]])}  # of 1 and 3
        >>> mean, deviation = mean_and_deviation(received, torch.tensor([[2], [0]]), floor=0.0)
        >>> mean.flatten().tolist(), deviation.flatten().tolist()
        ([2.0, 0.0], [1.0, 0.0])
    """
    degrees = torch.as_tensor(degrees, device=received["sum"].device)
    count = degrees.clamp(min=1)
    mean = received["sum"] / count
    variance = F.relu(received["square"] / count - mean * mean)
    return mean, (variance + floor).sqrt() * (degrees > 0)


def softmax_mean(received: Mapping[str, Tensor]) -> Tensor:
    r"""Mean of the values with the weights of the reduction ``softmax``: ``weighted`` by ``total``, head by head.

    Sums of several passes are multiplied by :math:`e^{t - t_{\max}}` of their largest scores and added before.

    Args:
        received: ``Passed.receivers`` with ``total`` and ``weighted``.

    Returns:
        Of the shape of ``weighted``; 0 where no edge arrives or all scores are minus infinity.

    Example:
        >>> softmax_mean({"total": torch.tensor([[2.0], [0.0]]), "weighted": torch.tensor([[3.0], [0.0]])}).tolist()
        [[1.5], [0.0]]
    """
    total = received["total"]
    return by_head(torch.where(total == 0, 1.0, total).reciprocal(), received["weighted"])
