"""Train several metanetworks on one zoo at the same time, one thread and one process a group."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from weightspace.tasks.classify import ClassifyResult, classify
from weightspace.training import TrainConfig
from weightspace.zoo import Zoo
from weightspace.zoo.splits import DEFAULT_FRACTIONS, DEFAULT_SALT

__all__ = ["ClassifyJob", "compare"]


@dataclass(frozen=True)
class ClassifyJob:
    """One call of :func:`classify`.

    Args:
        name: Sub-folder of the run.
        model, model_config, config, salt, fractions, views: As there.
    """

    name: str
    model: str
    model_config: Mapping[str, Any] = field(default_factory=dict)
    config: TrainConfig = field(default_factory=TrainConfig)
    salt: str = DEFAULT_SALT
    fractions: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_FRACTIONS))
    views: int = 1


def compare(
    zoo: str | Path,
    out: str | Path,
    groups: Sequence[Sequence[ClassifyJob]],
    *,
    progress: bool = True,
) -> dict[str, ClassifyResult]:
    """Results by name. Each group runs in a process of its own with one thread, its jobs one after another.

    Processes are spawned, so a script must call this under ``if __name__ == "__main__"``.

    Args:
        zoo: Path of the zoo.
        out: Folder that gets a run folder per job; jobs that have ended before are not trained again.
        groups: Jobs; put the longest group first, its progress is shown.
        progress: Show a progress bar.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max(1, len(groups)), mp_context=context, initializer=_one_thread) as pool:
        running = [
            pool.submit(_run_group, str(zoo), Path(out), list(jobs), progress and number == 0)
            for number, jobs in enumerate(groups)
        ]
        return {name: result for future in running for name, result in future.result().items()}


def _run_group(zoo: str, out: Path, jobs: list[ClassifyJob], progress: bool) -> dict[str, ClassifyResult]:
    opened = Zoo.open(zoo)
    return {
        job.name: classify(
            opened,
            out / job.name,
            model=job.model,
            model_config=job.model_config,
            config=job.config,
            salt=job.salt,
            fractions=job.fractions,
            views=job.views,
            progress=progress,
        )
        for job in jobs
    }


def _one_thread() -> None:
    torch.set_num_threads(1)
