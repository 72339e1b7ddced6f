"""A conditional diffusion U-Net of diffusers: traced, checked, and matched against a permuted copy, in bounded memory.

The copy moves every group that matching treats (all but those of kind ``generic``). Seconds are wall seconds, with CPU
seconds beside them where other work shares the machine; memory is the largest resident set so far. The defaults are the
widths of Stable Diffusion 1 (860 M parameters, 3.4 GB), which need 11 GB; the check in float64 needs twice that and is
left out there unless asked for. Needs the extra ``families``.

    python benchmarks/match_unet.py [--widths 320 640 1280 1280] [--context 768] [--check]
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from weightspace.graphs import match_weights, trace
from weightspace.graphs.matching.weight_matching import block_axes, branches_of
from weightspace.graphs.symmetries.group_coordinates import GroupCoordinates
from weightspace.graphs.weight_space import WeightSpace

RESULTS = Path(__file__).parent / "results" / "match_unet.json"


def build(widths: list[int], context: int) -> tuple[torch.nn.Module, tuple[Any, ...]]:
    """The module with example inputs: a noisy 16x16 latent, the time step, seven text tokens."""
    # diffusers imports vision code whose operators have no CPU binary everywhere; nothing here calls them.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from diffusers import UNet2DConditionModel

    module = UNet2DConditionModel(
        sample_size=16, block_out_channels=tuple(widths), cross_attention_dim=context, attention_head_dim=8
    )
    return module, (torch.randn(1, 4, 16, 16), torch.tensor(3), torch.randn(1, 7, context))


def products(space: WeightSpace) -> float:
    """Floating-point operations of the matrix products of one sweep; the floor of its cost."""
    movable, total = {name for branch in branches_of(space) for name in branch.shapes()}, 0
    for block in space.blocks:
        axes, shape = block_axes(space, block, movable), block.view.shape
        for k, axis in enumerate(axes or ()):
            if axis.group and axis.parent is None:
                rows = shape[k] * int(np.prod([shape[d] for d, other in enumerate(axes or ()) if other.parent == k]))
                total += 2 * rows * block.view.numel
    return float(total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[320, 640, 1280, 1280])
    parser.add_argument("--context", type=int, default=768)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    row: dict[str, Any] = {"widths": options.widths, "torch": torch.__version__}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        row[name] = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu,
                     "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}  # fmt: skip
        print(name, row[name], flush=True)
        return result

    torch.manual_seed(0)
    module, inputs = timed("build", lambda: build(options.widths, options.context))
    row["parameters"] = sum(p.numel() for p in module.parameters())
    traced = timed("trace", lambda: trace(module, *inputs))
    space = timed("weight_space", lambda: traced.weight_space(check=False))
    if options.check:
        row["deviation"] = timed("verify", lambda: traced.verify(trials=1)).deviation
    groups = list(space.groups.values())
    row |= {"groups": len(groups), "generic": [g.size for g in groups if g.kind == "generic"],
            "log_order": space.log_order, "flop_per_sweep": products(space)}  # fmt: skip
    a, coordinates = traced.example_weights, GroupCoordinates(space)
    for tensor in a.values():  # zeros and ones of a fresh network would leave neurons that nothing tells apart
        if tensor.ndim == 1:
            tensor.normal_()
    g = coordinates.element(coordinates.random(np.random.default_rng(0)))
    b = timed("permute", lambda: space.permute(a, g))
    match = timed("match", lambda: match_weights(space, a, b))
    row |= {"sweeps": len(match.inner_products) - 1, "moved": sum(int((a[n] != b[n]).sum()) for n in a)}
    back = timed("apply", lambda: match.apply(b))
    row["exact"] = all(torch.equal(a[n], back[n]) for n in a)
    print(row)
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    RESULTS.write_text(json.dumps([r for r in known if r["widths"] != row["widths"]] + [row], indent=1) + "\n")


if __name__ == "__main__":
    main()
