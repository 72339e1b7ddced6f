"""``weightspace bench``: what a training step costs on a zoo, and which batch size is best."""

from pathlib import Path

from weightspace.commands.console import say
from weightspace.commands.option_values import literals
from weightspace.errors import SpecError
from weightspace.tasks import StepCost, measure_steps
from weightspace.tasks.step_costs import SMALLEST
from weightspace.training import write_json
from weightspace.zoo import Zoo

__all__ = ["bench"]

_HEADER = f"{'batch':>6}{'forward ms':>12}{'step ms':>12}{'memory MiB':>12}{'networks/s':>12}\n"
_STOPPED = {
    "memory": "A larger batch would not fit the memory.",
    "time": "A larger batch would take longer than --seconds leaves.",
    "largest": "--largest allows no larger batch.",
}


def bench(
    *,
    zoo: Path,
    model: str = "operator",
    model_config: dict[str, str] | None = None,
    largest: int = 4096,
    seconds: float = 60.0,
    device: str = "cpu",
    threads: int | None = None,
    out: Path | None = None,
) -> None:
    """Time training steps of a metanetwork on the networks of a zoo, in batches of 8, 16, 32, ....

    A step is answer, derivatives and update; reading from disk is not counted. Memory is what steps take beyond what
    was held before the first one.

    Args:
        zoo: Folder of the zoo.
        model: Name of a metanetwork, as in weightspace train.
        model_config: Options of the metanetwork, one at a time: --model-config.width 32.
        largest: No batch is larger.
        seconds: Time for all batch sizes together.
        device: Where the metanetwork runs, for instance cuda.
        threads: Of torch on the CPU; by default as many as it takes.
        out: JSON file to write.
    """
    if out is not None and not out.parent.is_dir():
        raise SpecError(f"There is no folder '{out.parent}' for --out {out}. Make it first.")
    opened = Zoo.open(zoo)
    found = measure_steps(
        opened,
        model=model,
        model_config=literals(model_config),
        largest=largest,
        seconds=seconds,
        device=device,
        threads=threads,
        report=lambda cost: say((_HEADER if cost.batch_size == SMALLEST else "") + _line(cost)),
    )
    best = found.best
    say(
        f"\n{model}: {found.parameters:,} parameters; networks of {found.weights:,} weights; {found.device}, "
        f"{found.threads} thread{'s' * (found.threads > 1)}.\nBest batch size: {best.batch_size}, "
        f"{best.networks_per_second:,.0f} networks/s. {_STOPPED[found.stopped]}"
    )
    if out is not None:
        write_json(out, found.to_json())


def _line(cost: StepCost) -> str:
    memory = "?" if cost.memory_bytes is None else f"{cost.memory_bytes / 2**20:,.0f}"
    return (
        f"{cost.batch_size:6}{1e3 * cost.forward_seconds:12,.1f}{1e3 * cost.step_seconds:12,.1f}{memory:>12}"
        f"{cost.networks_per_second:12,.0f}"
    )
