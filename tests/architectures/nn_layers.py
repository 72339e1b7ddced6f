"""Every class of ``torch.nn`` that holds parameters or buffers, inside a network that makes its axes permutable.

``NN_LAYERS`` maps a name (the class, and a variant in brackets) to a factory, its example inputs and the natural
logarithm of the order of the symmetry group by hand; ``LEFT_OUT`` says why a class is not there.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from tests.architectures.case import attention, log_factorial

__all__ = ["LEFT_OUT", "NN_LAYERS"]

Row = tuple[Callable[[], nn.Module], tuple[Tensor, ...], float]


class Mean(nn.Module):
    """Mean over everything behind the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mean(2)


class Calls(nn.Module):
    """Layers called by a function of them and the inputs."""

    def __init__(self, call: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self.call = call

    def forward(self, *inputs: Tensor) -> Any:
        return self.call(self.layers, *inputs)


ROWS, TOKENS, CLASSES = torch.zeros(5, 3), torch.tensor([[1, 4, 2], [0, 5, 6]]), torch.tensor([1, 0, 3, 2, 1])
SEQUENCE, BATCH_FIRST = torch.zeros(4, 2, 3), torch.zeros(2, 4, 3)
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def images(dims: int) -> tuple[Tensor]:
    """Images of 2 channels and this many axes."""
    return (torch.zeros(2, 2, *[4] * dims),)


def dense(layer: Callable[[], nn.Module], out: int = 6) -> Callable[[], nn.Module]:
    """A layer of 6 neurons in front of, and a readout behind, a layer that takes 6 and gives ``out`` features."""
    return lambda: nn.Sequential(nn.Linear(3, 6), nn.Tanh(), layer(), nn.Tanh(), nn.Linear(out, 2))


def spatial(dims: int, layer: Callable[[], nn.Module], out: int = 6) -> Callable[[], nn.Module]:
    """The same with channels."""
    return lambda: nn.Sequential(CONVOLUTIONS[dims](2, 6, 1), nn.Tanh(), layer(), nn.Tanh(), Mean(), nn.Linear(out, 2))


def recurrent(layer: Callable[[], nn.Module], out: int, read: str = "all steps") -> Callable[[], nn.Module]:
    """6 neurons, a recurrent layer, and a readout of all steps or of the last hidden state."""

    def call(m: Any, x: Tensor) -> Tensor:
        steps, last = m.layer(m.first(x))
        if read == "last state":
            return m.last((last[0] if isinstance(last, tuple) else last)[-1])
        return m.last(steps)

    return lambda: Calls(call, first=nn.Linear(3, 6), layer=layer(), last=nn.Linear(out, 2))


def unrolled(cell: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """6 neurons, two steps of a cell of 4, and a readout."""

    def call(m: Any, x: Tensor) -> Tensor:
        h = m.cell(m.first(x), m.cell(m.first(-x)))
        return m.last(h[0] if isinstance(h, tuple) else h)

    return lambda: Calls(call, first=nn.Linear(3, 6), cell=cell(), last=nn.Linear(4, 2))


def attending(**options: Any) -> Callable[[], nn.Module]:
    """Self-attention of width 8 with 2 heads between a stream of its own and a readout."""

    def call(m: Any, x: Tensor) -> Tensor:
        h = m.first(x)
        return m.last(m.layer(h, h, h)[0])

    return lambda: Calls(
        call, first=nn.Linear(3, 8), layer=nn.MultiheadAttention(8, 2, **options), last=nn.Linear(8, 2)
    )


def cross_attending() -> nn.Module:
    """Attention whose queries, keys and values have streams and widths of their own."""
    return Calls(
        lambda m, x: m.last(m.layer(m.q(x), m.k(x), m.v(x), need_weights=False)[0]),
        q=nn.Linear(3, 8), k=nn.Linear(3, 6), v=nn.Linear(3, 5),
        layer=nn.MultiheadAttention(8, 2, kdim=6, vdim=5), last=nn.Linear(8, 2),
    )  # fmt: skip


def streams(layer: Callable[[], nn.Module], memory: bool) -> Callable[[], nn.Module]:
    """A transformer part on a stream of width 8, with a second stream beside it where it takes one."""

    def call(m: Any, x: Tensor) -> Tensor:
        return m.last(m.layer(m.other(x), m.first(x)) if memory else m.layer(m.first(x)))

    parts = {"other": lambda: nn.Linear(3, 8)} if memory else {}
    return lambda: Calls(
        call, first=nn.Linear(3, 8), **{n: f() for n, f in parts.items()}, layer=layer(), last=nn.Linear(8, 2)
    )


def loss(layer: Callable[[], nn.Module], before: Callable[[Tensor], Tensor] = lambda x: x) -> Callable[[], nn.Module]:
    """A loss of 4 outputs against a target that is an input."""
    return lambda: Calls(
        lambda m, x, target: m.loss(before(m.last(torch.tanh(m.first(x)))), target),
        first=nn.Linear(3, 6), last=nn.Linear(6, 4), loss=layer(),
    )  # fmt: skip


def old_weight_norm(layer: nn.Module) -> nn.Module:
    """The form by hooks, which many published models still have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return weight_norm(layer)


def encoder_layer() -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(8, 2, 6, batch_first=True)


def decoder_layer() -> nn.TransformerDecoderLayer:
    return nn.TransformerDecoderLayer(8, 2, 6, batch_first=True)


def classes_by_frequency() -> nn.Module:
    """Log probabilities only: ``forward`` compares targets with cluster bounds, and its shapes depend on them."""
    return Calls(
        lambda m, x: m.layer.log_prob(m.first(x)),
        first=nn.Linear(3, 8), layer=nn.AdaptiveLogSoftmaxWithLoss(8, 10, [3, 6], div_value=2.0),
    )  # fmt: skip


SIX = log_factorial(6)
HEADS = attention(2, 4)
# two groups of channels change places; inside each, 3 inputs and 2 outputs
GROUPED = math.log(2) + 2 * log_factorial(3, 2)
TARGETS = torch.tensor([[0.0, 1, 0, 1]] * 5)

NN_LAYERS: dict[str, Row] = {
    # a symmetric group per layer of neurons
    "Linear": (dense(lambda: nn.Linear(6, 5), 5), (ROWS,), log_factorial(6, 5)),
    "Bilinear": (
        lambda: Calls(
            lambda m, x: m.last(m.layer(m.a(x), m.b(x))),
            a=nn.Linear(3, 4), b=nn.Linear(3, 5), layer=nn.Bilinear(4, 5, 6), last=nn.Linear(6, 2),
        ), (ROWS,), log_factorial(4, 5, 6),
    ),
    **{
        f"Conv{n}d": (spatial(n, lambda c=c: c(6, 5, 3, padding=1), 5), images(n), log_factorial(6, 5))
        for n, c in CONVOLUTIONS.items()
    },
    "Conv2d (2 groups)": (spatial(2, lambda: nn.Conv2d(6, 4, 3, groups=2), 4), images(2), GROUPED),
    "Conv2d (depthwise)": (spatial(2, lambda: nn.Conv2d(6, 6, 3, groups=6)), images(2), SIX),
    **{
        f"ConvTranspose{n}d": (spatial(n, lambda c=c: c(6, 5, 2, stride=2), 5), images(n), log_factorial(6, 5))
        for n, c in {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}.items()
    },
    "ConvTranspose2d (2 groups)": (spatial(2, lambda: nn.ConvTranspose2d(6, 4, 3, groups=2), 4), images(2), GROUPED),
    # norms add nothing, except that groups of channels are kept together
    "BatchNorm1d": (dense(lambda: nn.BatchNorm1d(6)), (ROWS,), SIX),
    "BatchNorm2d": (spatial(2, lambda: nn.BatchNorm2d(6)), images(2), SIX),
    "BatchNorm3d": (spatial(3, lambda: nn.BatchNorm3d(6)), images(3), SIX),
    "SyncBatchNorm": (spatial(2, lambda: nn.SyncBatchNorm(6)), images(2), SIX),
    **{
        f"InstanceNorm{n}d": (
            spatial(n, lambda c=c: c(6, affine=True, track_running_stats=True)), images(n), SIX,
        )
        for n, c in {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}.items()
    },
    "GroupNorm": (spatial(2, lambda: nn.GroupNorm(3, 6)), images(2), log_factorial(3) + 3 * math.log(2)),
    "LayerNorm": (dense(lambda: nn.LayerNorm(6)), (ROWS,), SIX),
    "RMSNorm": (dense(lambda: nn.RMSNorm(6)), (ROWS,), SIX),
    "PReLU": (dense(lambda: nn.PReLU(6)), (ROWS,), SIX),
    "PReLU (one slope)": (dense(lambda: nn.PReLU()), (ROWS,), SIX),
    # the vocabulary is held, features move
    "Embedding": (lambda: nn.Sequential(nn.Embedding(7, 6), nn.Tanh(), nn.Linear(6, 2)), (TOKENS,), SIX),
    **{
        f"EmbeddingBag ({mode})": (
            lambda mode=mode: nn.Sequential(nn.EmbeddingBag(7, 6, mode=mode), nn.Linear(6, 2)), (TOKENS,), SIX,
        )
        for mode in ("sum", "mean", "max")
    },
    # one order per layer and direction: gates are held, and what a step writes the next one reads
    **{
        f"{c.__name__}": (recurrent(lambda c=c: c(6, 4), 4), (SEQUENCE,), log_factorial(6, 4))
        for c in (nn.LSTM, nn.GRU, nn.RNN)
    },
    **{
        f"{c.__name__} (2 layers, both directions)": (
            recurrent(lambda c=c: c(6, 4, 2, bidirectional=True, batch_first=True), 8),
            (BATCH_FIRST,), log_factorial(6, 4, 4, 4, 4),
        )
        for c in (nn.LSTM, nn.GRU, nn.RNN)
    },
    "RNN (relu, no bias, last state)": (
        recurrent(lambda: nn.RNN(6, 4, 2, nonlinearity="relu", bias=False), 4, "last state"),
        (SEQUENCE,), log_factorial(6, 4, 4),
    ),
    # cells keep an order of their own behind a projection
    "LSTM (projections)": (
        recurrent(lambda: nn.LSTM(6, 5, 2, proj_size=3), 3), (SEQUENCE,), log_factorial(6, 5, 3, 5, 3),
    ),
    **{
        f"{c.__name__}": (unrolled(lambda c=c: c(6, 4)), (ROWS,), log_factorial(6, 4))
        for c in (nn.LSTMCell, nn.GRUCell, nn.RNNCell)
    },
    "RNNCell (relu)": (unrolled(lambda: nn.RNNCell(6, 4, nonlinearity="relu")), (ROWS,), log_factorial(6, 4)),
    # heads move, inside a head queries with keys, values with outputs; without a residual two streams are free
    "MultiheadAttention": (attending(batch_first=True), (BATCH_FIRST,), HEADS + log_factorial(8, 8)),
    "MultiheadAttention (bias for keys and values)": (
        attending(add_bias_kv=True, add_zero_attn=True), (SEQUENCE,), HEADS + log_factorial(8, 8),
    ),
    "MultiheadAttention (three widths)": (cross_attending, (SEQUENCE,), HEADS + log_factorial(8, 6, 5, 8)),
    # one stream, heads, hidden neurons; a decoder layer has two attentions and reads a second stream with an order of
    # its own, though one fused projection reads both
    "TransformerEncoderLayer": (streams(encoder_layer, False), (BATCH_FIRST,), HEADS + log_factorial(8, 6)),
    "TransformerEncoderLayer (norm first, gelu)": (
        streams(lambda: nn.TransformerEncoderLayer(8, 2, 6, activation="gelu", norm_first=True), False),
        (SEQUENCE,), HEADS + log_factorial(8, 6),
    ),
    "TransformerDecoderLayer": (streams(decoder_layer, True), (BATCH_FIRST,), 2 * HEADS + log_factorial(8, 8, 6)),
    "TransformerEncoder": (
        streams(lambda: nn.TransformerEncoder(encoder_layer(), 2, nn.LayerNorm(8)), False),
        (BATCH_FIRST,), 2 * HEADS + log_factorial(8, 6, 6),
    ),
    "TransformerDecoder": (
        streams(lambda: nn.TransformerDecoder(decoder_layer(), 2), True),
        (BATCH_FIRST,), 4 * HEADS + log_factorial(8, 8, 6, 6),
    ),
    "Transformer": (
        streams(lambda: nn.Transformer(8, 2, 1, 1, 6, batch_first=True), True),
        (BATCH_FIRST,), 3 * HEADS + log_factorial(8, 8, 6, 6),
    ),
    # inputs, and the hidden neurons of the two clusters of rare classes
    "AdaptiveLogSoftmaxWithLoss": (classes_by_frequency, (ROWS,), log_factorial(8, 4, 2)),
    # losses hold their classes, the layer before is free
    "LinearCrossEntropyLoss": (
        lambda: Calls(
            lambda m, x, target: m.loss(m.first(x), target),
            first=nn.Linear(3, 6), loss=nn.LinearCrossEntropyLoss(6, 4),
        ), (ROWS, CLASSES), SIX,
    ),
    "CrossEntropyLoss": (loss(lambda: nn.CrossEntropyLoss(torch.ones(4), label_smoothing=0.1)), (ROWS, CLASSES), SIX),
    "NLLLoss": (loss(lambda: nn.NLLLoss(torch.ones(4)), lambda x: x.log_softmax(1)), (ROWS, CLASSES), SIX),
    "MultiMarginLoss": (loss(lambda: nn.MultiMarginLoss(weight=torch.ones(4))), (ROWS, CLASSES), SIX),
    "BCELoss": (loss(lambda: nn.BCELoss(torch.ones(4)), torch.sigmoid), (ROWS, TARGETS), SIX),
    "BCEWithLogitsLoss": (
        loss(lambda: nn.BCEWithLogitsLoss(torch.ones(4), pos_weight=torch.ones(4))), (ROWS, TARGETS), SIX,
    ),
    "MultiLabelSoftMarginLoss": (loss(lambda: nn.MultiLabelSoftMarginLoss(torch.ones(4))), (ROWS, TARGETS), SIX),
    # norms of whole rows or of a matrix change with no order
    "Linear (weight norm)": (
        dense(lambda: parametrizations.weight_norm(nn.Linear(6, 5)), 5), (ROWS,), log_factorial(6, 5),
    ),
    "Linear (weight norm of the whole matrix)": (
        dense(lambda: parametrizations.weight_norm(nn.Linear(6, 5), dim=cast(Any, None)), 5),
        (ROWS,), log_factorial(6, 5),
    ),
    "Conv2d (weight norm by hooks)": (
        spatial(2, lambda: old_weight_norm(nn.Conv2d(6, 5, 3)), 5), images(2), log_factorial(6, 5),
    ),
    "Linear (spectral norm)": (
        dense(lambda: parametrizations.spectral_norm(nn.Linear(6, 5)), 5), (ROWS,), log_factorial(6, 5),
    ),
    "Conv2d (spectral norm)": (
        spatial(2, lambda: parametrizations.spectral_norm(nn.Conv2d(6, 5, 3)), 5), images(2), log_factorial(6, 5),
    ),
    "Linear (spectral norm by hooks)": (
        dense(lambda: spectral_norm(nn.Linear(6, 5)), 5), (ROWS,), log_factorial(6, 5),
    ),
    # an orthogonal matrix is made of a triangle, in an order; a fixed matrix in front of it has rows that move
    **{
        f"Linear (orthogonal, {kind})": (
            lambda kind=kind: nn.Sequential(
                parametrizations.orthogonal(nn.Linear(3, 6), orthogonal_map=kind), nn.Tanh(), nn.Linear(6, 2)
            ), (ROWS,), SIX,
        )
        for kind in ("matrix_exp", "cayley", "householder")
    },
    "Linear (orthogonal, householder alone)": (
        dense(
            lambda: parametrizations.orthogonal(nn.Linear(6, 5), "weight", "householder", use_trivialization=False),
            5,
        ), (ROWS,), 0.0,
    ),
}  # fmt: skip

_LAZY = "turns into the class without 'Lazy' when it first sees an input"
LEFT_OUT: dict[str, str] = {
    "Module": "abstract",
    "RNNBase": "abstract",
    "RNNCellBase": "abstract",
    "NLLLoss2d": "an old name of NLLLoss",
    "ParameterDict": "a container: what its parameters do is written elsewhere",
    "ParameterList": "a container: what its parameters do is written elsewhere",
    "FractionalMaxPool2d": "pools at random places; no function of weights and inputs",
    "FractionalMaxPool3d": "pools at random places; no function of weights and inputs",
    **{name: _LAZY for name in dir(nn) if name.startswith("Lazy")},
}
