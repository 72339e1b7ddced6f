"""INRs fitted per second: one network at a time, by vmap, and by the hand-derived compiled step.

    python benchmarks/fit_inrs.py
    python benchmarks/fit_inrs.py --images t10k-images-idx3-ubyte.gz

One process, one thread. The variants take turns, with a 1024 x 1024 matrix product in every round as the peak; medians
of CPU seconds of the thread, which other processes on the machine disturb less than wall time. ``loop`` is
``torch.optim.Adam`` on one :class:`Siren` after the other. The second table trains all of them to the end and compares
parameters; ``float64`` is the loop in double precision, so its column shows what single precision costs the loop too.
8x8 pixels are always scikit-learn digits; 28x28 are those of ``--images``, or digits resampled.
"""

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightspace.zoo.ensemble import AdamSchedule, fit_ensemble_vmap
from weightspace.zoo.recipe import Unit
from weightspace.zoo.recipes import DigitsInr, Siren, pixel_coordinates
from weightspace.zoo.siren_ensemble import SirenEnsemble

RESULTS = Path(__file__).parent / "results" / "fit_inrs.json"
WIDTHS = (2, 32, 32, 1)
Fit = Callable[[Tensor, Tensor, AdamSchedule], Tensor]


def loop(weights: Tensor, targets: Tensor, schedule: AdamSchedule) -> Tensor:
    """The plain way: one network at a time, default optimizer."""
    fitted = []
    grid = math.isqrt(targets.shape[2])
    coordinates = pixel_coordinates(grid).to(weights.dtype)
    for theta, target in zip(weights, targets, strict=True):
        module = Siren(WIDTHS).to(weights.dtype)
        torch.nn.utils.vector_to_parameters(theta.clone(), module.parameters())
        optimizer = torch.optim.Adam(module.parameters(), lr=float(schedule.lr))
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, schedule.steps)
        for _ in range(schedule.steps):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(module(coordinates), target.t()).backward()
            optimizer.step()
            cosine.step()
        fitted.append(torch.nn.utils.parameters_to_vector(module.parameters()).detach())
    return torch.stack(fitted)


def variants(grid: int) -> dict[str, tuple[Fit, int, float]]:
    """Name to (fit, members per batch, seconds to compile)."""
    coordinates = pixel_coordinates(grid)

    def twin(weights: Tensor, targets: Tensor, schedule: AdamSchedule) -> Tensor:
        return fit_ensemble_vmap(Siren(WIDTHS), weights, coordinates, targets.transpose(1, 2), schedule).weights

    found: dict[str, tuple[Fit, int, float]] = {"loop": (loop, 1, 0.0), "vmap": (twin, 16, 0.0)}
    for name, members, steps_per_call, compiled in (
        ("hand-derived, uncompiled", 16, 1, False),
        ("compiled, 8 members", 8, 1, True),
        ("compiled, 16 members", 16, 1, True),
        ("compiled, 8 members, 4 steps", 8, 4, True),
        ("compiled, 16 members, 4 steps", 16, 4, True),
    ):
        start = time.perf_counter()
        ensemble = SirenEnsemble(WIDTHS, coordinates, members=members, steps_per_call=steps_per_call, compiled=compiled)

        def fast(w: Tensor, t: Tensor, s: AdamSchedule, ensemble: SirenEnsemble = ensemble) -> Tensor:
            return ensemble.fit(w, t, s).weights

        found[name] = fast, members, time.perf_counter() - start
    return found


def flops_per_step(points: int) -> int:
    """Matrix products of one INR and step: forward, weight gradients, and input gradients but for the first layer."""
    layers = [d_in * d_out for d_in, d_out in zip(WIDTHS[:-1], WIDTHS[1:], strict=True)]
    return 2 * points * (2 * sum(layers) + sum(layers[1:]))


def cpu_seconds(run: Callable[[], Any]) -> float:
    start = time.thread_time()
    run()
    return time.thread_time() - start


def speed(recipe: DigitsInr, fits: dict[str, tuple[Fit, int, float]], rounds: int) -> list[dict[str, Any]]:
    """Interleaved timing."""
    points, schedule = recipe.grid**2, AdamSchedule(20, lr=recipe.lr or 0.0)
    weights, _ = recipe.initial_weights(Unit("timed", 0, 32))
    targets = recipe.images.images[:32].flatten(2)
    matrix = torch.rand(1024, 1024, generator=torch.Generator().manual_seed(0))
    seconds: dict[str, list[float]] = {name: [] for name in ("peak", *fits)}
    for timed in [False, *[True] * rounds]:
        took = {"peak": cpu_seconds(lambda: [matrix @ matrix for _ in range(4)])}
        for name, (fit, _, _) in fits.items():
            rows = 2 if name == "loop" else 32
            took[name] = cpu_seconds(lambda fit=fit, n=rows: fit(weights[:n], targets[:n], schedule)) / rows
        for name, value in took.items() if timed else ():
            seconds[name].append(value)
    peak = 4 * 2 * 1024**3 / statistics.median(seconds["peak"]) / 1e9
    base = statistics.median(seconds["loop"])
    table = []
    for name, (_, members, compile_seconds) in fits.items():
        median = statistics.median(seconds[name])
        gflops = flops_per_step(points) * schedule.steps / median / 1e9
        table.append(
            {
                "grid": recipe.grid,
                "variant": name,
                "members": members,
                "steps_per_second": schedule.steps / median,
                "spread": [schedule.steps / max(seconds[name]), schedule.steps / min(seconds[name])],
                "inrs_per_second": schedule.steps / median / (recipe.steps or 1),
                "times_the_loop": base / median,
                "gflops": gflops,
                "sgemm_gflops": peak,
                "share_of_peak": gflops / peak,
                "compile_seconds": compile_seconds,
            }
        )
    return table


def parity(recipe: DigitsInr, fits: dict[str, tuple[Fit, int, float]], lr: float) -> list[dict[str, Any]]:
    """Distances between the parameters after a whole fit of 8 images."""
    weights, _ = recipe.initial_weights(Unit("compared", 0, 8))
    targets, schedule = recipe.images.images[:8].flatten(2), AdamSchedule(recipe.steps or 1, lr=lr)
    plain = loop(weights, targets, schedule)
    exact = loop(weights.double(), targets.double(), schedule)
    rows = []
    for name, (fit, _, _) in fits.items():
        fitted = plain if name == "loop" else fit(weights, targets, schedule)
        apart = (fitted - plain).double()
        rows.append(
            {
                "grid": recipe.grid,
                "init": recipe.init,
                "lr": lr,
                "steps": schedule.steps,
                "variant": name,
                "max_from_loop": apart.abs().max().item(),
                "rms_from_loop": apart.square().mean().sqrt().item(),
                "max_from_float64": (fitted.double() - exact).abs().max().item(),
                "max_weight": plain.abs().max().item(),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", help="IDX file, folder or .npz for 28x28; digits resampled by default")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--grids", type=int, nargs="+", default=[8, 28])
    args = parser.parse_args()
    torch.set_num_threads(1)
    fast, equal = [], []
    for grid in args.grids:
        source = args.images if args.images and grid == 28 else "digits"
        fits = variants(grid)
        recipe = DigitsInr(source=source, grid=grid, copies=1, limit=32, steps=100)
        fast += speed(recipe, fits, args.rounds)
        print(f"\n{grid}x{grid} ({recipe.images.name}), sgemm {fast[-1]['sgemm_gflops']:.0f} GFLOP/s")
        print(f"{'variant':32}{'INR-steps/s':>12}{'INRs/s':>9}{'x loop':>8}", end="")
        print(f"{'GFLOP/s':>9}{'of sgemm':>10}{'compile s':>11}")
        for row in fast[-len(fits) :]:
            print(
                f"{row['variant']:32}{row['steps_per_second']:12,.0f}{row['inrs_per_second']:9.1f}"
                f"{row['times_the_loop']:8.1f}{row['gflops']:9.1f}{row['share_of_peak']:10.1%}"
                f"{row['compile_seconds']:11.1f}"
            )
        settings = [(init, lr) for init in ("dws", "siren") for lr in (5e-4, 2e-3, 5e-3)]
        print(f"\n{'parameters after 100 steps':40}{'max |. - loop|':>16}{'rms':>10}{'max |. - float64|':>19}")
        for init, lr in settings:
            compared = DigitsInr(source=source, grid=grid, copies=1, limit=32, steps=100, init=init)
            equal += parity(compared, fits, lr)
            for row in equal[-len(fits) :]:
                if row["variant"] in {"loop", "vmap", "compiled, 16 members"}:
                    label = f"{init}, lr {lr:g}, {row['variant']}"
                    print(
                        f"{label:40}{row['max_from_loop']:16.1e}{row['rms_from_loop']:10.1e}"
                        f"{row['max_from_float64']:19.1e}"
                    )
    record = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "rounds": args.rounds,
        "steps_per_second is": "INR-steps per CPU second of one thread",
        "speed": fast,
        "parity": equal,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    print(f"\nwritten to {RESULTS.relative_to(Path(__file__).parent.parent)}")


if __name__ == "__main__":
    main()
