"""Cost of reading every weight of a ResNet-50 and of GPT-2 small with the operator metanetwork.

Rows: forward without autograd (``forward``), and forward with the gradient to the metanetwork's own parameters
(``step``), with its default options and with a lean set, 1 and 2 threads. Every row is a process of its own: its peak
is the highest resident memory of the call, less what the process held before it drew the weights that are read, so that
these, the metanetwork and all temporaries are counted. Random weights, one network. ``seconds`` is the better of two
calls, CPU seconds are beside it as other work may share the cores (``load``: processes that wanted one). Rows are added
to what the result file holds. Needs the extra ``families``.

    python benchmarks/operator_scale.py [--only resnet50] [--threads 1 2]
"""

import argparse
import itertools
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.graphs import BlockLayout, trace
from weightspace.metanets import build_metanet

RESULT = Path(__file__).parent / "results" / "operator_scale.json"
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "lean": {"width": 32, "heads": 4, "layers": 2, "function_units": 8},
}
_KEEP: list[Any] = []


class Logits(nn.Module):
    """A language model without its cache."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of token numbers."""
        return self.net(tokens).logits


def declare_vision_operators() -> None:
    """Let ``torchvision`` be imported where its compiled operators do not fit the machine; none of them is used."""
    _KEEP.append(torch.library.Library("torchvision", "FRAGMENT"))
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            _KEEP[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def model(name: str) -> tuple[nn.Module, Tensor]:
    """The model that is read, and an input to trace it with."""
    declare_vision_operators()
    if name == "resnet50":
        import timm

        return timm.create_model("resnet50").eval(), torch.zeros(1, 3, 64, 64)
    from transformers import GPT2Config, GPT2LMHeadModel

    return Logits(GPT2LMHeadModel(GPT2Config(use_cache=False))).eval(), torch.zeros(1, 8, dtype=torch.long)


def resident() -> int:
    """Bytes held now."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


def reset_peak() -> None:
    """Let the highest resident memory start from now."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Highest resident memory since :func:`reset_peak`, bytes."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def measure(record: Path, options: str, kind: str, threads: int) -> dict[str, Any]:
    """One row, in this process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    layout = BlockLayout.from_json(json.loads(record.read_text()))
    before = resident()
    weights = {name: torch.randn(1, *shape).mul_(0.02) for name, shape in layout.shapes}  # no second copy in the heap
    size = sum(w.numel() * w.element_size() for w in weights.values())
    net = build_metanet("operator", layout, 10, OPTIONS[options]).eval()
    seconds, processor = [], []
    reset_peak()
    for _ in range(2):
        net.zero_grad()
        start, begun = time.perf_counter(), time.process_time()
        with torch.set_grad_enabled(kind == "step"):
            answer = net(weights)
            if kind == "step":
                answer.square().mean().backward()
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - begun)
    return {
        "seconds": min(seconds),
        "cpu_seconds": min(processor),
        "load": os.getloadavg()[0],
        "peak_bytes": peak() - before,
        "model_bytes": size,
        "weights": size // 4,
        "parameters": sum(p.numel() for p in net.parameters()),
    }


def trace_to(path: Path, name: str) -> None:
    """Write the layout of a model, in this process."""
    module, inputs = model(name)
    with torch.no_grad():
        path.write_text(json.dumps(trace(module, inputs).layout().to_json()))


def run(*arguments: object) -> str:
    """What this script prints in a process of its own."""
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def show(name: str, row: dict[str, Any]) -> None:
    """One line of the table."""
    peak_mib, ratio = row["peak_bytes"] / 2**20, row["peak_bytes"] / row["model_bytes"]
    print(
        f"{name:34}{row['weights']:13,}{row['parameters']:12,}{row['seconds']:9.1f}{row['cpu_seconds']:8.1f}{row['load']:6.1f}"
        f"{peak_mib:10.0f}{ratio:9.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["resnet50", "gpt2"])
    parser.add_argument("--options", nargs="+", default=list(OPTIONS), choices=list(OPTIONS))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--trace", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if missing := [name for name in ("timm", "transformers") if find_spec(name) is None]:
        parser.error(f"it needs {' and '.join(missing)}: pip install --editable '.[families]'")
    if args.trace:
        trace_to(Path(args.trace[0]), args.trace[1])
        return
    if args.measure:
        path, options, kind, threads = args.measure
        print(json.dumps(measure(Path(path), options, kind, int(threads))))
        return
    record = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    rows = record.get("rows", {})
    print(
        f"{'':34}{'weights':>13}{'parameters':>12}{'seconds':>9}{'CPU s':>8}{'load':>6}{'peak MiB':>10}{'x model':>9}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only:
            path = Path(folder) / f"{name}.json"
            run("--trace", path, name)
            for options, kind, threads in itertools.product(args.options, ("forward", "step"), args.threads):
                row = f"{name}, {options}, {kind}, {threads} thread"
                rows[row] = json.loads(run("--measure", path, options, kind, threads))
                show(row, rows[row])
                record = {
                    "date": date.today().isoformat(),
                    "torch": torch.__version__,
                    "machine": platform.machine(),
                    "options": OPTIONS,
                    "rows": rows,
                }
                RESULT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
