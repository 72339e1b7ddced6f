"""Perceptrons and what is built of them: gates, shared weights, sets, autoencoders, fields, generated weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.architectures.case import Case, log_factorial

__all__ = ["DENSE"]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


class Siren(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 8), nn.Linear(8, 6), nn.Linear(6, 1)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = torch.sin(30.0 * layer(x))
        return self.layers[-1](x) + 0.5


class LayerNormMlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(2, 6, 3), nn.LayerNorm(6)
        self.f1, self.f2 = nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x).transpose(1, 2))
        return self.f2(nn.functional.gelu(self.f1(x)).mean(1))


class CRelu(nn.Module):
    """relu(x) beside relu(-x): every neuron is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.f1, self.f2, self.f3 = nn.Linear(3, 5), nn.Linear(10, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.f1(x)
        return self.f3(torch.tanh(self.f2(torch.relu(torch.cat([h, -h], 1)))))


class Maxout(nn.Module):
    """Five units, each the larger of two pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces, self.out = nn.Linear(3, 10), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.pieces(x).view(-1, 5, 2).amax(2))


class StackedBranches(nn.Module):
    """Neurons of two layers in turns: stacked along a last axis, then flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(3, 5), nn.Linear(3, 5), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.stack([torch.tanh(self.a(x)), torch.relu(self.b(x))], -1).flatten(1))


class GatedUnit(nn.Module):
    """A GLU whose two halves come from one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.out = nn.Linear(3, 12), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(nn.functional.glu(self.both(x), -1))


class BilinearGate(nn.Module):
    """A product of two linear maps, from two matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.out = nn.Linear(3, 6), nn.Linear(3, 6, bias=False), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.left(x) * self.right(x))


class Film(nn.Module):
    """A perceptron scaled and shifted by what a second one makes of a condition."""

    def __init__(self) -> None:
        super().__init__()
        self.f1, self.f2 = nn.Linear(3, 7), nn.Linear(7, 2)
        self.read, self.scale_shift = nn.Linear(4, 5), nn.Linear(5, 14)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.scale_shift(torch.tanh(self.read(condition))).chunk(2, -1)
        return self.f2(torch.relu(self.f1(x) * (1 + scale) + shift))


class GeneratedWeights(nn.Module):
    """A hypernetwork that writes the first matrix of a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.write, self.out = nn.Linear(4, 5), nn.Linear(5, 6 * 3), nn.Linear(6, 2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        weight = self.write(torch.relu(self.read(condition))).view(-1, 6, 3)
        return self.out(torch.tanh(torch.bmm(weight, x[..., None])[..., 0]))


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
        self.decoder = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class TiedAutoencoder(nn.Module):
    """The decoder uses the encoder's matrices transposed, with biases of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.f1, self.f2 = nn.Linear(8, 6), nn.Linear(6, 3)
        self.b1, self.b2 = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        code = self.f2(torch.relu(self.f1(x)))
        return torch.relu(code @ self.f2.weight + self.b2) @ self.f1.weight + self.b1


class DeepSets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6))
        self.rho = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.rho(self.phi(x).sum(1))


class EquivariantSets(nn.Module):
    """Permutation-equivariant layers: each element and the mean of the set."""

    def __init__(self) -> None:
        super().__init__()
        self.a1, self.m1 = nn.Linear(3, 6), nn.Linear(3, 6, bias=False)
        self.a2, self.m2 = nn.Linear(6, 2), nn.Linear(6, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a1(x) + self.m1(x.mean(1, keepdim=True)))
        return self.a2(x) + self.m2(x.mean(1, keepdim=True))


class Siamese(nn.Module):
    """One encoder, called on two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 5), nn.Tanh())
        self.head = nn.Linear(10, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(torch.cat([self.encoder(x), self.encoder(y)], 1))


class Recurrent(nn.Module):
    """A layer that feeds itself, written as a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.step, self.out = nn.Linear(3, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.read(x)
        h = torch.tanh(seen)
        for _ in range(3):
            h = torch.tanh(self.step(h) + seen)
        return self.out(h)


class Triplane(nn.Module):
    """Three feature planes, read at the projections of a point; features are added or stand side by side."""

    def __init__(self, add: bool) -> None:
        super().__init__()
        self.planes = nn.ParameterList([nn.Parameter(torch.randn(1, 4, 5, 5)) for _ in range(3)])
        self.add = add
        self.decoder = nn.Sequential(nn.Linear(4 if add else 12, 6), nn.ReLU(), nn.Linear(6, 1))

    def forward(self, x: Tensor) -> Tensor:
        read = []
        for plane, axes in zip(self.planes, ((0, 1), (0, 2), (1, 2)), strict=True):
            grid = torch.stack([x[:, axes[0]], x[:, axes[1]]], 1)[None, None]
            read.append(nn.functional.grid_sample(plane, grid, align_corners=True)[0, :, 0].T)
        return self.decoder(sum(read) if self.add else torch.cat(read, 1))


class StackedTriplane(nn.Module):
    """The three planes in one tensor."""

    def __init__(self, add: bool) -> None:
        super().__init__()
        self.planes, self.add = nn.Parameter(torch.randn(3, 4, 5, 5)), add
        self.decoder = nn.Sequential(nn.Linear(4 if add else 12, 6), nn.ReLU(), nn.Linear(6, 1))

    def forward(self, x: Tensor) -> Tensor:
        grid = torch.stack([x[:, [0, 1]], x[:, [0, 2]], x[:, [1, 2]]])[:, None]
        read = nn.functional.grid_sample(self.planes, grid, align_corners=True)[:, :, 0]  # (plane, channel, point)
        return self.decoder(read.sum(0).T if self.add else read.flatten(0, 1).T)


DENSE = {
    # one symmetric group per hidden layer
    "mlp": Case(mlp, ((4, 3),), log_factorial(8, 8), 2),
    "siren": Case(Siren, ((4, 2),), log_factorial(8, 6), 2),
    "conv1d_layer_norm": Case(LayerNormMlp, ((2, 2, 9),), log_factorial(6, 5), 2),
    # both copies of a neuron move together
    "crelu": Case(CRelu, ((4, 3),), log_factorial(5, 4), 2),
    # the units move, and the two pieces inside each: S_5 wr S_2
    "maxout": Case(Maxout, ((4, 3),), log_factorial(5) + 5 * log_factorial(2), 2),
    "stacked_branches": Case(StackedBranches, ((4, 3),), log_factorial(5, 5), 2),
    # a gate moves with what it gates; the halves play different parts
    "glu": Case(GatedUnit, ((4, 3),), log_factorial(6), 1),
    "bilinear_gate": Case(BilinearGate, ((4, 3),), log_factorial(6), 1),
    # scale and shift follow the neurons they act on; the reader of the condition is free
    "film": Case(Film, ((4, 3), (4, 4)), log_factorial(7, 5), 2),
    # rows of the written matrix are neurons of the perceptron, its columns the held inputs
    "generated_weights": Case(GeneratedWeights, ((4, 3), (4, 4)), log_factorial(5, 6), 2),
    "autoencoder": Case(Autoencoder, ((4, 8),), log_factorial(6, 3, 6), 3),
    # the decoder's hidden neurons are the encoder's: the same axis of the same matrix
    "tied_autoencoder": Case(TiedAutoencoder, ((4, 8),), log_factorial(6, 3), 2),
    "deep_sets": Case(DeepSets, ((2, 4, 3),), log_factorial(8, 6, 5), 3),
    "equivariant_sets": Case(EquivariantSets, ((2, 4, 3),), log_factorial(6), 1),
    # the encoder exists once, whatever is made of its two results
    "siamese": Case(Siamese, ((4, 3), (4, 3)), log_factorial(8, 5), 2),
    # rows and columns of the step matrix move together
    "recurrent": Case(Recurrent, ((4, 3),), log_factorial(6), 1),
    # added features are one axis; side by side each plane has an order of its own
    "triplane_sum": Case(lambda: Triplane(True), ((7, 3),), log_factorial(4, 6), 2),
    "triplane_concat": Case(lambda: Triplane(False), ((7, 3),), log_factorial(4, 4, 4, 6), 4),
    "stacked_triplane_sum": Case(lambda: StackedTriplane(True), ((7, 3),), log_factorial(4, 6), 2),
    # the planes are held by their coordinates, so each has its own order of channels though they share a tensor
    "stacked_triplane_concat": Case(lambda: StackedTriplane(False), ((7, 3),), log_factorial(4, 4, 4, 6)),
}
