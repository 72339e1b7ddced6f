"""``weightspace demo``: from nothing to a page of results on real data, in minutes on two cores."""

import datetime
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from weightspace.commands.command_line import given
from weightspace.commands.console import say, text_table
from weightspace.commands.report.classification import RESULTS_HEADER, results_rows, write_report
from weightspace.commands.report.runs import read_run
from weightspace.tasks import compare, digits_job
from weightspace.zoo.build import build
from weightspace.zoo.recipes import DigitsInr

__all__ = ["demo"]

# A process each; the longest first, because its progress is the one that is shown.
_GROUPS = (("operator",), ("gmn", "mlp", "statnn"))


def demo(
    *,
    out: Path = Path("runs/demo"),
    seed: int = 0,
    init: Literal["dws", "siren"] = "dws",
    epochs: int | None = None,
    limit: int = 0,
) -> None:
    """Build a zoo of digit INRs, train metanetworks that read their weights, and write one page.

    Everything is kept in the folder: the same command goes on where it stopped; a finished demo is only drawn again.

    Args:
        out: Folder of the zoo, the runs, the figures and index.html.
        seed: Of zoo, split and training.
        init: Initialisation of the INRs; dws is the easy one to read, siren the standard one.
        epochs: Passes over the training split, for every model; by default as many as fit into five minutes.
        limit: Use the first images only, for a quick try; 0 for all 1,797.
    """
    jobs = [[digits_job(model, seed=seed, init=init, epochs=epochs) for model in group] for group in _GROUPS]
    seconds: dict[str, float] = {}
    with _timed(seconds, "building the zoo"):
        recipe = DigitsInr(init=init, seed=seed, limit=limit)
        zoo = build(recipe, out / "zoo", title=f"SIRENs of the scikit-learn digits ({init} initialisation)")
    say(f"Zoo: {len(zoo):,} INRs, mean PSNR {zoo.column('psnr').mean():.1f} dB. Training on two cores; bar: operator.")
    with _timed(seconds, "training"):
        compare(out / "zoo", out, jobs)
    runs = {job.name: out / job.name for group in jobs for job in group}
    with _timed(seconds, "figures and page"):
        date = datetime.date.today().isoformat()
        page = write_report(zoo, runs, out, date=date, seconds=dict(seconds), commands=given())
    say("\n" + text_table(RESULTS_HEADER, results_rows([read_run(name, folder) for name, folder in runs.items()])))
    say("\n" + ", ".join(f"{part} {value:.0f} s" for part, value in seconds.items()))
    say(f"The page with figures: {page}")


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[part] = time.perf_counter() - start
