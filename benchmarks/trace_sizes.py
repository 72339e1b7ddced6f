"""Time and peak memory of tracing networks of 1, 10 and 100 million parameters.

Every row is a process of its own, so that its peak is its own. Steps: export and propagation (``trace``), solving the
symmetry group (``solve``), the block form of the parameter graph (``graph``), the check in float64 (``verify``: one
random group element, two runs of the network). Times are CPU seconds; the peak of a step is the highest resident memory
until its end, the network included, less what the process held with the libraries alone.

    python benchmarks/trace_sizes.py [--only resnet] [--sizes 1 10]
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from torch import Tensor, nn

from weightspace.graphs import trace

RESULT = Path(__file__).parent / "results" / "trace_sizes.json"
FEED_FORWARD = 4


class Mlp(nn.Sequential):
    """Four hidden layers of one width."""

    def __init__(self, width: int) -> None:
        hidden = [layer for _ in range(3) for layer in (nn.Linear(width, width), nn.ReLU())]
        super().__init__(nn.Linear(784, width), nn.ReLU(), *hidden, nn.Linear(width, 10))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and a 1x1 shortcut where the width changes."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(before, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(width), nn.BatchNorm2d(width)])
        self.shortcut = nn.Conv2d(before, width, 1) if before != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` in, and out with another width."""
        inner = self.norms[1](self.second(self.norms[0](self.first(x)).relu()))
        return (inner + self.shortcut(x)).relu()


class ResNet(nn.Module):
    """ResNet-18's four stages of two blocks, from a given width on."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width, width, 2 * width, 2 * width, 4 * width, 4 * width, 8 * width, 8 * width]
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(a, b) for a, b in zip([width, *widths], widths, strict=False)))
        self.head = nn.Linear(8 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Transformer(nn.Module):
    """A causal language model of torch's own encoder layers, with its embedding as output layer."""

    def __init__(self, width: int, layers: int, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, width // 64, FEED_FORWARD * width, batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of token numbers ``(N, T)``."""
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x) @ self.embedding.weight.T


NETWORKS: dict[str, dict[int, Callable[[], nn.Module]]] = {
    "mlp": {1: lambda: Mlp(470), 10: lambda: Mlp(1700), 100: lambda: Mlp(5650)},
    "resnet": {1: lambda: ResNet(19), 10: lambda: ResNet(61), 100: lambda: ResNet(191)},
    "transformer": {
        1: lambda: Transformer(128, 4, 2000),
        10: lambda: Transformer(320, 6, 8000),
        100: lambda: Transformer(768, 12, 20000),
    },
}
INPUTS = {
    "mlp": lambda: torch.zeros(1, 784),
    "resnet": lambda: torch.zeros(1, 3, 16, 16),
    "transformer": lambda: torch.zeros(1, 8, dtype=torch.int64),
}


def peak() -> float:
    """Highest resident memory so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str, millions: int) -> dict[str, object]:
    """One row, in this process."""
    trace(nn.Linear(2, 2), torch.zeros(1, 2)).weight_space()  # loads what the first export loads
    base = peak()
    network = NETWORKS[name][millions]()
    parameters = sum(p.numel() for p in network.parameters())
    row: dict[str, object] = {"network": name, "parameters": parameters, "model_mb": round(4 * parameters / 2**20, 1)}
    state: dict[str, object] = {}

    def step(label: str, run: Callable[[], object]) -> None:
        start = time.process_time()
        state[label] = run()
        row[f"{label}_s"] = round(time.process_time() - start, 2)
        row[f"{label}_mb"] = round(peak() - base, 1)

    step("trace", lambda: trace(network, INPUTS[name]()))
    traced = state["trace"]
    step("solve", lambda: traced.weight_space(check=False))  # type: ignore[attr-defined]
    step("graph", lambda: traced.layout())  # type: ignore[attr-defined]
    step("verify", lambda: traced.verify(trials=1))  # type: ignore[attr-defined]
    space, layout, check = state["solve"], state["graph"], state["verify"]
    row |= {
        "groups": len(space.groups),  # type: ignore[attr-defined]
        "log_order": round(space.log_order, 2),  # type: ignore[attr-defined]
        "nodes": layout.num_nodes,  # type: ignore[attr-defined]
        "edges": layout.num_edges,  # type: ignore[attr-defined]
        "deviation": check.deviation,  # type: ignore[attr-defined]
    }
    return row


def main() -> None:
    """Measure every row and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--sizes", nargs="*", type=int, default=[1, 10, 100], choices=[1, 10, 100])
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(measure(args.row[0], int(args.row[1]))))
        return
    rows = []
    print(
        f"{'network':12s} {'parameters':>12s} {'model':>8s}"
        + "".join(f"{s:>18s}" for s in ("trace", "solve", "graph", "verify"))
    )
    for name in args.only:
        for size in args.sizes:
            command = [sys.executable, __file__, "--row", name, str(size)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            row = json.loads(done.stdout.splitlines()[-1])
            rows.append(row)
            steps = "".join(
                f"{row[f'{s}_s']:8.1f} s {row[f'{s}_mb']:5.0f} MB" for s in ("trace", "solve", "graph", "verify")
            )
            print(f"{name:12s} {row['parameters']:12,d} {row['model_mb']:5.0f} MB{steps}", flush=True)
    result = {"date": str(date.today()), "cpu": platform.processor(), "torch": torch.__version__, "rows": rows}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
