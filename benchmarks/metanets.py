"""Cost of reading a batch of 64 INRs 2-32-32-1 (71,680 weights): forward, and forward with backward.

All metanetworks with their default options, the block executor and its edge-by-edge twin, and for comparison the
textbook graph network of PyG (``MetaLayer``, 3 rounds of 64 channels, edges in both directions). Dropout is off. The
rows are measured in turns within one run; CPU milliseconds are the figure to compare, since other work may share the
cores, wall milliseconds are beside them. ``epoch`` is the CPU time of 5,188 networks, forward and backward.

    python benchmarks/metanets.py [--repeats 20] [--batch 64]
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from torch import Tensor, nn
from torch_geometric.nn import MetaLayer
from torch_geometric.utils import scatter

from weightspace.graphs import BlockLayout
from weightspace.metanets import build_metanet

EPOCH = 5188
LAYOUT = BlockLayout.mlp([2, 32, 32, 1], activation="sin", gain=30.0)
ROWS = {
    "operator": ("operator", {}),
    "gmn": ("gmn", {}),
    "statnn": ("statnn", {}),
    "mlp": ("mlp", {}),
    "operator, edge by edge": ("operator", {"executor": "edges"}),
    "gmn, edge by edge": ("gmn", {"executor": "edges"}),
}


class _EdgeModel(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(3 * width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, source, target, edges, _u, _batch):
        return edges + self.mlp(torch.cat([source, target, edges], dim=1))


class _NodeModel(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x, edge_index, edges, _u, _batch):
        received = scatter(edges, edge_index[1], dim=0, dim_size=len(x), reduce="mean")
        return x + self.mlp(torch.cat([x, received], dim=1))


class TextbookGraphNetwork(nn.Module):
    """PyG's MetaLayer on the parameter graphs of a batch of MLPs, one edge per parameter and direction."""

    def __init__(self, layout: BlockLayout, width: int = 64, rounds: int = 3) -> None:
        super().__init__()
        ends = []
        for block in layout.blocks:
            source = layout.starts[block.source] + torch.arange(block.inputs).expand(block.out, -1)
            target = layout.starts[block.target] + torch.arange(block.out)[:, None].expand(-1, block.inputs)
            ends.append(torch.stack([source.reshape(-1), target.reshape(-1)]))
        one_way = torch.cat(ends, dim=1)
        self.layout, self.edges = layout, torch.cat([one_way, one_way.flip(0)], dim=1)
        self.nodes = nn.Parameter(torch.randn(layout.num_nodes, width))
        self.lift = nn.Linear(2, width)
        self.rounds = nn.ModuleList(MetaLayer(_EdgeModel(width), _NodeModel(width)) for _ in range(rounds))
        self.head = nn.Linear(width, 10)

    def forward(self, weights: dict[str, Tensor]) -> Tensor:  # noqa: D102
        values = torch.cat([v.flatten(1) for v in self.layout.split(weights) if v is not None], dim=1)
        batch, half = values.shape
        direction = torch.ones(batch, 2 * half)
        direction[:, half:] = -1
        edges = self.lift(torch.stack([values.repeat(1, 2), direction], dim=-1)).flatten(0, 1)
        x = self.nodes.repeat(batch, 1)
        shift = torch.arange(batch).repeat_interleave(2 * half) * len(self.nodes)
        index = self.edges.repeat(1, batch) + shift
        for layer in self.rounds:
            x, edges, _ = layer(x, index, edges)
        return self.head(x.view(batch, -1, x.shape[1]).mean(1))


def measure(action: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall milliseconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return 1e3 * (time.process_time() - cpu), 1e3 * (time.perf_counter() - wall)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    weights = {name: torch.randn(args.batch, *shape) for name, shape in LAYOUT.shapes}
    models: dict[str, nn.Module] = {
        row: build_metanet(name, LAYOUT, 10, options) for row, (name, options) in ROWS.items()
    }
    models["PyG MetaLayer, textbook"] = TextbookGraphNetwork(LAYOUT)

    def forward(model: nn.Module) -> None:
        with torch.no_grad():
            model(weights)

    def step(model: nn.Module) -> None:
        model.zero_grad()
        model(weights).square().mean().backward()

    times: dict[str, dict[str, list[tuple[float, float]]]] = {
        row: {"forward": [], "step": []} for row, model in models.items() if model.eval() is model
    }
    for repeat in range(args.repeats + 2):
        for row, model in models.items():
            if "edge by edge" in row or "MetaLayer" in row:
                if repeat % 4 != 2:
                    continue  # slow rows are measured in every fourth turn
            for kind, action in (("forward", forward), ("step", step)):
                result = measure(lambda action=action, model=model: action(model))
                if repeat >= 2:
                    times[row][kind].append(result)
    record = {
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, 1 thread",
        "batch": args.batch,
        "rows": {},
    }
    print(f"{'':26}{'parameters':>11}{'forward ms':>12}{'step ms':>10}{'wall':>8}{'epoch s':>9}")
    for row, kinds in times.items():
        count = sum(p.numel() for p in models[row].parameters())
        cpu = {kind: statistics.median(c for c, _ in pairs) for kind, pairs in kinds.items()}
        wall = statistics.median(w for _, w in kinds["step"])
        spread = [min(c for c, _ in kinds["step"]), max(c for c, _ in kinds["step"])]
        epoch = cpu["step"] * EPOCH / args.batch / 1e3
        record["rows"][row] = {
            "parameters": count,
            "forward_cpu_ms": cpu["forward"],
            "step_cpu_ms": cpu["step"],
            "step_cpu_ms_range": spread,
            "step_wall_ms": wall,
            "epoch_cpu_s": epoch,
            "runs": len(kinds["step"]),
        }
        print(f"{row:26}{count:11,}{cpu['forward']:12.1f}{cpu['step']:10.1f}{wall:8.1f}{epoch:9.1f}")
    path = Path(__file__).parent / "results" / "metanets.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
