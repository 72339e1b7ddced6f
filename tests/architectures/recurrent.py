"""Recurrent language models and a state-space block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.architectures.attention import RmsNorm
from tests.architectures.case import Case, log_factorial, tokens

__all__ = ["RECURRENT"]


class LanguageModel(nn.Module):
    """Embedding, recurrence, and a head tied to the embedding, through a projection if the widths differ."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU | nn.RNN], width: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.tokens, self.recurrence = nn.Embedding(11, width), kind(width, hidden, layers, batch_first=True)
        self.project = nn.Linear(hidden, width) if hidden != width else nn.Identity()
        self.head = nn.Linear(width, 11)
        self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.project(self.recurrence(self.tokens(x))[0]))


class BidirectionalTagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(11, 4), nn.Linear(10, 3)
        self.recurrence = nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrence(self.tokens(x))[0])


class CellLoop(nn.Module):
    """A cell called step by step from a learned state."""

    def __init__(self, cell: type[nn.LSTMCell | nn.GRUCell]) -> None:
        super().__init__()
        self.cell, self.head, self.start = cell(3, 5), nn.Linear(5, 2), nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        h = c = self.start.expand(len(x), -1)
        for k in range(x.shape[1]):
            if isinstance(self.cell, nn.LSTMCell):
                h, c = self.cell(x[:, k], (h, c))
            else:
                h = self.cell(x[:, k], h)
        return self.head(h)


class OwnGru(nn.Module):
    """Gates of one matrix, split by chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.step, self.head = nn.Linear(3, 15), nn.Linear(5, 15), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 5)
        for k in range(x.shape[1]):
            (xr, xz, xn), (hr, hz, hn) = self.read(x[:, k]).chunk(3, 1), self.step(h).chunk(3, 1)
            z = torch.sigmoid(xz + hz)
            h = (1 - z) * torch.tanh(xn + torch.sigmoid(xr + hr) * hn) + z * h
        return self.head(h)


class SelectiveBlock(nn.Module):
    """Mamba's block: a gate, a causal depthwise convolution, a state per channel with steps read from the input."""

    def __init__(self, width: int = 4, inner: int = 6, state: int = 3, rank: int = 2) -> None:
        super().__init__()
        self.norm, self.enter, self.leave = RmsNorm(width), nn.Linear(width, 2 * inner), nn.Linear(inner, width)
        self.conv = nn.Conv1d(inner, inner, 3, padding=2, groups=inner)
        self.read, self.step = nn.Linear(inner, rank + 2 * state, bias=False), nn.Linear(rank, inner)
        self.log_decay, self.direct = nn.Parameter(torch.zeros(inner, state)), nn.Parameter(torch.ones(inner))
        self.sizes = (rank, state, state)

    def forward(self, x: Tensor) -> Tensor:
        u, gate = self.enter(self.norm(x)).chunk(2, -1)
        u = nn.functional.silu(self.conv(u.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        rank, write, look = self.read(u).split(self.sizes, -1)
        step = nn.functional.softplus(self.step(rank))
        keep = torch.exp(-step[..., None] * self.log_decay.exp())  # (batch, time, inner, state)
        add = (step * u)[..., None] * write[:, :, None]
        h, seen = torch.zeros_like(add[:, 0]), []
        for k in range(x.shape[1]):
            h = keep[:, k] * h + add[:, k]
            seen.append((h * look[:, k, None]).sum(-1))
        y = torch.stack(seen, 1) + self.direct * u
        return x + self.leave(y * nn.functional.silu(gate))


class Selective(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(11, 4), nn.Linear(4, 11)
        self.blocks = nn.Sequential(SelectiveBlock(), SelectiveBlock())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.tokens(x)))


RECURRENT = {
    # gates have places; hidden neurons of each layer move. The head reads the last layer with the embedding's matrix,
    # so these neurons are the embedding's features: one group for both, another for the first layer
    "lstm_language_model": Case(lambda: LanguageModel(nn.LSTM, 5, 5, 2), (tokens(),), log_factorial(5, 5), 2),
    # the only layer is the last one
    "gru_language_model": Case(lambda: LanguageModel(nn.GRU, 5, 5, 1), (tokens(),), log_factorial(5), 1),
    # with a projection the features are a group of their own
    "lstm_projected": Case(lambda: LanguageModel(nn.LSTM, 4, 6, 2), (tokens(),), log_factorial(4, 6, 6), 3),
    "rnn_language_model": Case(lambda: LanguageModel(nn.RNN, 4, 6, 2), (tokens(),), log_factorial(4, 6, 6), 3),
    # the embedding, and one group per layer and direction
    "bidirectional_lstm": Case(BidirectionalTagger, (tokens(),), log_factorial(4) + 4 * log_factorial(5), 5),
    "lstm_cell": Case(lambda: CellLoop(nn.LSTMCell), ((2, 3, 3),), log_factorial(5), 1),
    "gru_cell": Case(lambda: CellLoop(nn.GRUCell), ((2, 3, 3),), log_factorial(5), 1),
    "own_gru": Case(OwnGru, ((2, 3, 3),), log_factorial(5), 1),
    # the stream; per block the inner channels, the state and the rank of the step (S_inner x S_state x S_rank)
    "selective_state_space": Case(Selective, (tokens(),), log_factorial(4) + 2 * log_factorial(6, 3, 2), 7),
}
