"""UNF (github.com/AllanYangZhou/universal_neural_functional): JAX layers, compiled; needs jax and flax.

The repository holds the layers; the network around them is the one its paper describes: layers with ReLU, the mean of
every tensor, a linear head. Inputs, outputs and kernel positions are permutable groups too, as in its example; the nine
positions are one axis, which all convolutions share (two axes cost it more). The time to compile is not counted.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.peers.case import Case, weights_of
from benchmarks.peers.subject import Parts, layers_of, put_on_path


class JaxSubject:
    """A compiled function of weights and parameters, and its gradient."""

    warms_up = False  # it is compiled for the batch, half a minute each time, and warmed up there

    def __init__(self, apply: Callable[[Any, Any], Any], parameters: Any, prepare: Callable[[Any], Any]) -> None:
        self.jax = import_module("jax")
        self.apply, self.values, self.prepare = apply, parameters, prepare
        self.parameters = sum(leaf.size for leaf in self.jax.tree.leaves(parameters))

    def load(self, parts: Parts) -> None:
        """Take this batch from now on; compiles."""
        ((_, weights),) = parts
        self.given = self.prepare(weights)
        square = lambda values, given: (self.apply(values, given) ** 2).mean()  # noqa: E731
        self.run = self.jax.jit(self.apply).lower(self.values, self.given).compile()
        self.gradient = self.jax.jit(self.jax.grad(square)).lower(self.values, self.given).compile()
        self.forward()  # a first call, as torch's models have
        self.step()

    def forward(self) -> None:
        """Answers, no gradient."""
        self.jax.block_until_ready(self.run(self.values, self.given))

    def step(self) -> None:
        """Answers and the gradient of all parameters."""
        self.jax.block_until_ready(self.gradient(self.values, self.given))


def build(case: Case, options: dict[str, Any], folder: Path) -> JaxSubject:
    """``options``: ``width`` and ``layers``."""
    if os.environ.get("OMP_NUM_THREADS") == "1":  # XLA has a pool of its own
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    put_on_path(folder / "universal_neural_functional")
    jax, flax, layers = map(import_module, ("jax", "flax.linen", "layers"))
    positions = len(case.widths)  # the group of kernel positions, behind those of the neurons
    spec = []
    for number, matrix in enumerate(layers_of(weights_of(case, 1))[0]):
        kernel = (positions,) if matrix.ndim > 3 else ()
        spec.append({"kernel": (number, number + 1, *kernel), "bias": (number + 1,)})

    class Network(flax.Module):
        @flax.compact
        def __call__(self, given):
            width = 1
            for _ in range(options["layers"]):
                given = layers.nf_relu(layers.BatchUNFLayer(options["width"], width)(given, spec))
                width = options["width"]
            pooled = [leaf.mean(tuple(range(1, leaf.ndim - 1))) for leaf in jax.tree.leaves(given)]
            return flax.Dense(case.out_features)(jax.numpy.concatenate(pooled, -1))

    def prepare(weights):
        matrices, biases = layers_of(weights)
        return [
            {
                "kernel": (w.flatten(3) if w.ndim > 3 else w).transpose(1, 2).unsqueeze(-1).numpy(),
                "bias": b.unsqueeze(-1).numpy(),
            }
            for w, b in zip(matrices, biases, strict=True)
        ]

    network = Network()
    parameters = network.init(jax.random.PRNGKey(0), prepare(weights_of(case, 2)))
    return JaxSubject(network.apply, parameters, prepare)
