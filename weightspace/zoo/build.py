"""Build a zoo from a recipe: hand out its units, publish each one whole, resume after anything."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from weightspace.errors import SpecError, WeightspaceError
from weightspace.zoo.engines import AbstractExecutor, LocalExecutor, SerialExecutor, Work
from weightspace.zoo.recipe import AbstractRecipe, Unit
from weightspace.zoo.store import Zoo

__all__ = ["build"]

_log = logging.getLogger(__name__)


def build(
    recipe: AbstractRecipe,
    path: str | Path,
    *,
    workers: int | None = None,
    resume: bool = True,
    progress: bool = True,
    title: str = "",
    licence: str = "",
) -> Zoo:
    """Train the networks of a recipe and store them.

    What is already in the folder is kept: a build that was stopped, by Ctrl-C or ``kill -9``, goes on where it was and
    ends with the same files, bit for bit, as one that was not (same machine, same versions).

    Args:
        recipe: What to train.
        path: Folder of the zoo; made if need be.
        workers: Processes with one thread each; by default one per core. With 1, all work is done in this process.
        resume: Refuse a folder with units in it if false.
        progress: Show a tqdm bar.
        title: One line for people, kept in ``zoo.json``.
        licence: SPDX name of the licence of the weights.

    Raises:
        SpecError: the folder holds a zoo of other options, or units although ``resume`` is false; ``workers`` < 1.
        WeightspaceError: a unit failed or its workers keep dying; the units published so far stay.
    """
    if workers is not None and workers < 1:
        raise SpecError(f"'workers' must be at least 1 (got {workers}). Leave it out for one per core.")
    zoo = Zoo.create(path, recipe=recipe.describe(), forward=recipe.forward_recipe(), title=title, licence=licence)
    done = set(zoo.units)
    if done and not resume:
        raise SpecError(f"'{path}' already holds {len(done)} units. Pass resume=True to go on, or another folder.")
    zoo.sweep()
    plan = recipe.plan()
    todo = [unit for unit in plan if unit.name not in done]
    if todo:
        _train(recipe, zoo, todo, min(workers or _cores(), len(todo)), progress)
    zoo.refresh()
    return zoo


def _train(recipe: AbstractRecipe, zoo: Zoo, todo: list[Unit], workers: int, progress: bool) -> None:
    bar = tqdm(
        total=recipe.num_members,
        initial=recipe.num_members - sum(map(len, todo)),
        unit=recipe.item,
        desc=recipe.name,
        disable=not progress,
    )
    diverged = 0
    try:
        with bar, _executor(recipe, zoo.path, workers) as executor:
            recipe.prepare()  # while the workers start; they find its results on disk
            for unit in todo:
                executor.submit(unit)
            for outcome in executor.as_completed():
                if outcome.error is not None:
                    raise _explained(outcome.task, outcome.error) from outcome.error
                diverged += outcome.value
                bar.update(len(outcome.task))
    finally:
        zoo.sweep()  # what cancelled workers were writing
    if diverged:
        _log.warning("%d %ss diverged; they are in the zoo with status 'diverged'.", diverged, recipe.item)


def _executor(recipe: AbstractRecipe, path: Path, workers: int) -> AbstractExecutor:
    if workers == 1:
        return SerialExecutor(partial(_trainer, recipe, path))
    # A copy carries the options only, not the data and compiled code that the recipe may keep.
    make_work: Callable[[], Work] = partial(_trainer, replace(recipe), path)
    return LocalExecutor(make_work, workers)


def _trainer(recipe: AbstractRecipe, path: Path) -> Work:
    """What a worker does with a unit: train, publish, return how many members diverged."""
    zoo = Zoo.open(path)

    def work(unit: Unit) -> int:
        trained = recipe.train(unit)
        zoo.append(unit.name, trained.architecture, trained.weights, trained.rows)
        return sum(row.get("status") == "diverged" for row in trained.rows)

    return work


def _explained(unit: Unit, error: BaseException) -> BaseException:
    """Errors of ours speak for themselves; others get the unit and the way out."""
    if isinstance(error, WeightspaceError):
        return error
    return WeightspaceError(
        f"Unit '{unit.name}' failed ({type(error).__name__}: {error}). Units published so far are kept; remove the "
        "cause and run the same command to go on."
    )


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # respects taskset and containers; not on every system
    return len(affinity(0)) if affinity else os.cpu_count() or 1
