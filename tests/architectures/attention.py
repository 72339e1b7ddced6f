"""Transformers, mixers and mixtures of experts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.architectures.case import Case, attention, images, log_factorial, tokens

__all__ = ["ATTENTION"]


class TorchEncoder(nn.Module):
    """``nn.TransformerEncoderLayer`` between an embedding and a head."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 6, batch_first=True, norm_first=norm_first)
        self.embed, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)))


class TorchDecoder(nn.Module):
    """``nn.TransformerDecoderLayer``: attention to itself under a mask, then to a memory."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(8, 2, 6, batch_first=True)
        self.embed, self.remember, self.head = nn.Linear(3, 8), nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(5)
        return self.head(self.layer(self.embed(x), self.remember(memory), tgt_mask=mask))


class TorchTransformer(nn.Module):
    """``nn.Transformer``: encoder and decoder, each closed by a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target, self.head = nn.Embedding(11, 8), nn.Embedding(11, 8), nn.Linear(8, 11)
        self.transformer = nn.Transformer(8, 2, 1, 1, 6, batch_first=True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.transformer(self.source(x), self.target(y)))


class SelfAttention(nn.Module):
    """Multi-head attention written out, with one matrix per role; ``value`` is the width of a value head."""

    def __init__(self, width: int, heads: int, head: int, value: int, norm: str = "softmax") -> None:
        super().__init__()
        self.q, self.k = nn.Linear(width, heads * head), nn.Linear(width, heads * head)
        self.v, self.out = nn.Linear(width, heads * value), nn.Linear(heads * value, width)
        self.heads, self.norm = heads, norm

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.norm == "linear":  # sum the keys times the values first, then read that with the queries
            q, k = nn.functional.elu(q) + 1, nn.functional.elu(k) + 1
            mixed = torch.einsum("nhtd,nhde->nhte", q, torch.einsum("nhsd,nhse->nhde", k, v))
            mixed = mixed / (q * k.sum(2, keepdim=True)).sum(-1, keepdim=True)
        else:
            mixed = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


class HeadsLast(nn.Module):
    """Attention whose fused rows are ordered dimension, role, head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 6), nn.Linear(6, 2)
        self.qkv, self.out = nn.Linear(6, 4 * 3 * 2), nn.Linear(4 * 2, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = self.qkv(x).unflatten(-1, (4, 3, 2)).permute(3, 0, 4, 1, 2)
        mixed = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
        return self.head((x + self.out(mixed.permute(0, 2, 3, 1).flatten(2))).mean(1))


class Encoder(nn.Module):
    """A pre-norm encoder of our own."""

    def __init__(self, norm: str = "softmax", blocks: int = 2) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 6), nn.Linear(6, 2)
        self.attention = nn.ModuleList([SelfAttention(6, 2, 4, 3, norm) for _ in range(blocks)])
        self.norms = nn.ModuleList([nn.LayerNorm(6) for _ in range(2 * blocks)])
        self.mlps = nn.ModuleList([nn.Sequential(nn.Linear(6, 7), nn.GELU(), nn.Linear(7, 6)) for _ in range(blocks)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for k, (mix, mlp) in enumerate(zip(self.attention, self.mlps, strict=True)):
            x = x + mix(self.norms[2 * k](x))
            x = x + mlp(self.norms[2 * k + 1](x))
        return self.head(x.mean(1))


class UniversalEncoder(nn.Module):
    """One encoder block, applied three times."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head, self.norm = nn.Linear(3, 6), nn.Linear(6, 2), nn.LayerNorm(6)
        self.mix, self.mlp = SelfAttention(6, 2, 4, 3), nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for _ in range(3):
            x = x + self.mix(self.norm(x))
            x = x + self.mlp(x)
        return self.head(x)


class Gpt2Block(nn.Module):
    """Fused query, key and value; causal."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(self.n1(x)).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, t, d))
        return x + self.mlp(self.n2(x))


class Gpt2(nn.Module):
    """Token and position embeddings, two blocks, a head tied to the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(11, 8), nn.Embedding(6, 8)
        self.blocks, self.norm = nn.Sequential(Gpt2Block(8, 2, 10), Gpt2Block(8, 2, 10)), nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x) + self.positions(torch.arange(x.shape[1]))
        return self.head(self.norm(self.blocks(h)))


class RmsNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def rotate(x: Tensor, first: int) -> Tensor:
    """Rotary positions on the first ``first`` dimensions of each head, shape ``(batch, heads, time, dims)``."""
    turned, rest = x[..., :first], x[..., first:]
    frequencies = 100.0 ** (-torch.arange(0, first, 2) / first)
    angles = torch.outer(torch.arange(x.shape[-2]).to(frequencies), frequencies).repeat(1, 2)
    left, right = turned.chunk(2, -1)
    turned = turned * angles.cos() + torch.cat([-right, left], -1) * angles.sin()
    return torch.cat([turned, rest], -1)


class LlamaBlock(nn.Module):
    """Rotary grouped-query attention and a SwiGLU: 4 query heads on 2 key heads of width 4."""

    def __init__(self, rotary: int) -> None:
        super().__init__()
        self.n1, self.n2, self.rotary = RmsNorm(6), RmsNorm(6), rotary
        self.q, self.k, self.v, self.o = (
            nn.Linear(6, 16, bias=False), nn.Linear(6, 8, bias=False), nn.Linear(6, 8, bias=False),
            nn.Linear(16, 6, bias=False),
        )  # fmt: skip
        self.gate, self.up, self.down = (nn.Linear(6, 7, bias=False) for _ in range(3))
        self.down = nn.Linear(7, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.n1(x)
        q, k, v = (f(h).unflatten(-1, (-1, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = rotate(q, self.rotary), rotate(k, self.rotary)
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).flatten(2))
        h = self.n2(x)
        return x + self.down(nn.functional.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    def __init__(self, rotary: int = 4) -> None:
        super().__init__()
        self.tokens, self.norm, self.head = nn.Embedding(11, 6), RmsNorm(6), nn.Linear(6, 11, bias=False)
        self.blocks = nn.Sequential(LlamaBlock(rotary), LlamaBlock(rotary))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.tokens(x))))


class Vit(nn.Module):
    """Patches, a class token, learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(1, 5, 8))
        self.blocks, self.norm = nn.Sequential(Gpt2Block(8, 2, 10), Gpt2Block(8, 2, 10)), nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class Mixer(nn.Module):
    """Perceptrons over the 4 patches and over the channels in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 3)
        self.norms = nn.ModuleList([nn.LayerNorm(6) for _ in range(4)])
        self.places = nn.ModuleList([nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 4)) for _ in range(2)])
        self.channels = nn.ModuleList([nn.Sequential(nn.Linear(6, 7), nn.GELU(), nn.Linear(7, 6)) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for k in range(2):
            x = x + self.places[k](self.norms[2 * k](x).transpose(1, 2)).transpose(1, 2)
            x = x + self.channels[k](self.norms[2 * k + 1](x))
        return self.head(x.mean(1))


class Perceiver(nn.Module):
    """Four learned latents read the input by attention and are averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(4, 6))
        self.q, self.k, self.v = nn.Linear(6, 5), nn.Linear(3, 5), nn.Linear(3, 6)
        self.mix, self.head = SelfAttention(6, 2, 4, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.q(self.latents) @ self.k(x).transpose(1, 2) / 5**0.5
        h = self.latents + scores.softmax(-1) @ self.v(x)
        return self.head((h + self.mix(h)).mean(1))


class StackedExperts(nn.Module):
    """A soft mixture of three experts whose matrices are stacked in one tensor each."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(3, 3)
        self.w1, self.w2 = nn.Parameter(torch.randn(3, 3, 5)), nn.Parameter(torch.randn(3, 5, 2))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(torch.einsum("nd,edf->nef", x, self.w1))
        return torch.einsum("nef,efo,ne->no", h, self.w2, self.gate(x).softmax(-1))


class SeparateExperts(nn.Module):
    """The same with a module per expert."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(3, 3)
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        results = torch.stack([expert(x) for expert in self.experts], 1)
        return (self.gate(x).softmax(-1)[..., None] * results).sum(1)


_OWN = 2 * (log_factorial(2) + 2 * log_factorial(4, 3))  # two blocks of two heads, 4 Q/K and 3 V/O dimensions each

ATTENTION = {
    # the residual stream; per layer the heads, Q/K and V/O dimensions of each, the hidden layer
    "torch_encoder": Case(
        lambda: TorchEncoder(False), ((2, 5, 3),), log_factorial(8) + 2 * (attention(2, 4) + log_factorial(6))
    ),
    "torch_encoder_norm_first": Case(
        lambda: TorchEncoder(True), ((2, 5, 3),), log_factorial(8) + 2 * (attention(2, 4) + log_factorial(6))
    ),
    # two streams (the memory has one of its own), two attentions
    "torch_decoder": Case(
        TorchDecoder, ((2, 5, 3), (2, 4, 4)), log_factorial(8, 8) + 2 * attention(2, 4) + log_factorial(6)
    ),
    "torch_transformer": Case(
        TorchTransformer, (tokens(), tokens(4)), log_factorial(8, 8) + 3 * attention(2, 4) + log_factorial(6, 6)
    ),
    "heads_last": Case(HeadsLast, ((2, 5, 3),), log_factorial(6) + attention(2, 4)),
    "encoder": Case(Encoder, ((2, 5, 3),), log_factorial(6, 7, 7) + _OWN),
    # sums of keys times values know heads, Q/K and V dimensions as well
    "linear_attention": Case(lambda: Encoder("linear"), ((2, 5, 3),), log_factorial(6, 7, 7) + _OWN),
    # the parameters exist once
    "universal_encoder": Case(UniversalEncoder, ((2, 5, 3),), log_factorial(6, 7) + _OWN / 2),
    # rows of the fused matrix move inside their role; the tied head reads the stream
    "gpt2": Case(Gpt2, (tokens(),), log_factorial(8) + 2 * (attention(2, 4) + log_factorial(10))),
    # rotation leaves no Q/K dimension free. Left: 2 key heads, 2 query heads on each, 4 V dimensions of each key head
    "llama": Case(
        Llama, (tokens(),), log_factorial(6) + 2 * (log_factorial(2) + 2 * log_factorial(2, 4) + log_factorial(7))
    ),
    # half of each head is not rotated, so that its 2 Q/K dimensions move, in each key head (GPT-NeoX)
    "llama_half_rotary": Case(
        lambda: Llama(2),
        (tokens(),),
        log_factorial(6) + 2 * (log_factorial(2) + 2 * log_factorial(2, 4, 2) + log_factorial(7)),
    ),
    "vit": Case(Vit, (images(8),), log_factorial(8) + 2 * (attention(2, 4) + log_factorial(10))),
    # patches have places in the image; hidden layers over patches and over channels are free
    "mlp_mixer": Case(Mixer, (images(8),), log_factorial(6, 5, 5, 7, 7)),
    # the latents are averaged, so that they move too; the stream, Q/K of the reading head; its V are the stream
    "perceiver": Case(Perceiver, ((2, 5, 3),), log_factorial(4, 6, 5) + attention(2, 4, 3)),
    # experts move, and inside each its hidden layer
    "stacked_experts": Case(StackedExperts, ((4, 3),), log_factorial(3) + 3 * log_factorial(5)),
    # exchanging experts would exchange whole tensors, which no permutation of axes does
    "separate_experts": Case(SeparateExperts, ((4, 3),), 3 * log_factorial(5), 3),
}
