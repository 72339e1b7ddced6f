"""The training loop: seeded, resumable to the bit, selected on the validation split."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from weightspace.errors import CheckpointError, SpecError, WeightspaceError
from weightspace.training.checkpoint import has_checkpoint, read_checkpoint, write_checkpoint
from weightspace.training.config import TrainConfig
from weightspace.training.data import Batches
from weightspace.training.history import write_metrics
from weightspace.training.objective import Objective
from weightspace.training.pipeline import Pipeline, device_of, predict, seeded
from weightspace.training.run_lock import only_writer
from weightspace.training.schedule import ParameterAverage, learning_rate_factor
from weightspace.zoo.files import sweep

__all__ = ["DivergedError", "FitResult", "fit"]


class DivergedError(WeightspaceError, ArithmeticError):
    """The loss of a training run is no longer a finite number."""


@dataclass(frozen=True)
class FitResult:
    """Outcome of :func:`fit`.

    Args:
        epochs: One mapping of figures per epoch, as in ``metrics.json``.
        best_epoch: Epoch (counted from 1) whose averaged parameters scored best on the validation split.
        seconds: Wall time of training, of all sessions together.
        cpu_seconds: Processor time of the same.
    """

    epochs: list[dict[str, float]]
    best_epoch: int
    seconds: float
    cpu_seconds: float


def fit(
    model: nn.Module,
    train: Batches,
    val: Batches,
    config: TrainConfig,
    run_dir: str | Path,
    *,
    objective: Objective,
    record: Mapping[str, Any],
    pipeline: Pipeline | None = None,
    progress: bool = True,
) -> FitResult:
    """Train ``model``, leave the parameters that were best on ``val`` in it, and keep everything in ``run_dir``.

    A run that was stopped at any moment goes on from its last epoch and ends with the same bits as one that was not
    (without limits of time). A run that has ended is loaded, not repeated.

    Args:
        model: Maps a batched state dict to outputs; on its device the training runs.
        train: Networks to learn from.
        val: Networks that select the epoch and stop the run; nothing is learned from them.
        config: How to train.
        run_dir: Folder of the run: ``checkpoint.*`` (best), ``resume.*`` (last), ``metrics.json``, ``metrics.csv``.
        objective: Loss and figures.
        record: JSON values that describe the model (``metanet_to_json``) and which networks it learns from, kept in the
            checkpoint; a run goes on only where they are the same.
        pipeline: Augmentation and preparation of the weights.
        progress: Show a progress bar.

    Raises:
        CheckpointError: ``run_dir`` holds a run of another configuration or model, or a damaged one, or another
            process trains in it.
        SpecError: ``train`` or ``val`` is empty.
        DivergedError: the loss became infinite or not a number.
    """
    for name, data in (("train", train), ("val", val)):
        if not len(data):
            raise SpecError(f"'{name}' of fit must hold networks (got none). Select others, or divide them otherwise.")
    run_dir = Path(run_dir)
    run = _Run(model, train, val, config, run_dir, objective, dict(record), pipeline or Pipeline())
    with only_writer(run_dir):
        sweep(run_dir)
        if has_checkpoint(run_dir, "resume"):
            run.restore()
        run.finish(progress)
        best, head = read_checkpoint(run_dir, "checkpoint")
    model.load_state_dict(best)
    model.eval()
    return FitResult(run.history, head["epoch"], run.seconds, run.cpu_seconds)


class _Run:
    """State of a run between epochs; everything in it is either an argument of ``fit`` or in ``resume.*``."""

    def __init__(
        self,
        model: nn.Module,
        train: Batches,
        val: Batches,
        config: TrainConfig,
        run_dir: Path,
        objective: Objective,
        record: dict[str, Any],
        pipeline: Pipeline,
    ) -> None:
        self.model, self.train, self.val, self.config, self.run_dir = model, train, val, config, run_dir
        self.objective, self.pipeline, self.device = objective, pipeline, device_of(model)
        described = {"model": record, "config": config.to_json(), "networks": [len(train), len(val)]}
        self.record = json.loads(json.dumps(described))  # as it comes back from a file
        self.optimizer = _optimizer(model, config)
        self.average = ParameterAverage(model, config.average)
        self.history: list[dict[str, float]] = []
        self.best: tuple[float, ...] | None = None
        self.best_epoch = self.step = 0
        self.seconds = self.cpu_seconds = 0.0

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history)

    @property
    def finished(self) -> bool:
        """Whether the budget is used up, or patience is."""
        patience = self.config.patience
        return self._progress(self.seconds, self.cpu_seconds) >= 1 or 0 < patience <= self.epoch - self.best_epoch

    def finish(self, progress: bool) -> None:
        """Train to the end, showing a bar where ``progress``."""
        steps = -(-len(self.train) // self.config.batch_size) * self.config.epochs
        pause = 0.1 if sys.stderr.isatty() else 15.0  # seconds between updates; a log file wants few lines
        with tqdm(
            total=steps,
            initial=self.step,
            unit="step",
            desc=self.run_dir.name,
            disable=not progress,
            mininterval=pause,
        ) as bar:
            while not self.finished:
                self.train_epoch(bar)
                self.close_epoch()
                figures = self.history[-1]
                shown = {k: f"{figures[k]:.3f}" for k in ("val_loss", "val_accuracy", "val_r2") if k in figures}
                bar.set_postfix(shown, refresh=False)

    def train_epoch(self, bar: tqdm) -> None:
        """One pass over the training split; appends its figures to ``history``."""
        start, cpu_start = time.perf_counter(), time.process_time()
        answers: list[tuple[Tensor, Tensor]] = []
        lr = 0.0
        self.model.train()
        with seeded(self.device, self.config.seed, self.epoch) as generator:
            order = torch.Generator().manual_seed(generator.initial_seed())
            for weights, targets in self.train.batches(self.config.batch_size, order):
                used = (self.seconds + time.perf_counter() - start, self.cpu_seconds + time.process_time() - cpu_start)
                if answers and self._progress(*used) >= 1:
                    break  # a limit of time may end a pass before all networks were seen
                lr = self._set_lr(*used)
                ready = self.pipeline({name: value.to(self.device) for name, value in weights.items()}, generator)
                targets = targets.to(self.device)
                answers.append((self._update(ready, targets), targets))
                bar.update()
        outputs, wanted = (torch.cat(parts) for parts in zip(*answers, strict=True))
        figures = {f"train_{name}": value for name, value in self.objective.measure(outputs, wanted).items()}
        self.seconds += time.perf_counter() - start
        self.cpu_seconds += time.process_time() - cpu_start
        self.history.append({"epoch": self.epoch + 1, "step": self.step, "lr": lr, **figures})

    def close_epoch(self) -> None:
        """Score the averaged parameters on the validation split, keep the best, and write the state of the run."""
        start, cpu_start = time.perf_counter(), time.process_time()
        outputs, targets = predict(
            self.model,
            self.val,
            self.pipeline,
            parameters=self.average.values,
            batch_size=self.config.evaluation_batch,
        )
        figures = self.objective.measure(outputs, targets)
        score = self.objective.score(figures)
        if self.best is None or score > self.best:
            self.best, self.best_epoch = score, self.epoch
        self.seconds += time.perf_counter() - start
        self.cpu_seconds += time.process_time() - cpu_start
        row = self.history[-1] | {f"val_{name}": value for name, value in figures.items()}
        self.history[-1] = row | {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds}
        # The state of the run comes first: what is kept as the best is then always of an epoch in the history, and can
        # be written again from that state where a run is killed in between.
        self._save()
        if self.best_epoch == self.epoch:
            self._keep()
        write_metrics(self.run_dir, self.history)

    def restore(self) -> None:
        """Take up the state that ``resume.*`` holds, and write what of it had not been written."""
        tensors, state = read_checkpoint(self.run_dir, "resume")
        for part, mine in self.record.items():
            theirs = state.get(part)
            if theirs != mine:
                raise CheckpointError(
                    f"'{self.run_dir}' holds a run with another {part} ({_difference(theirs, mine)}). Give another "
                    "folder, or the options of that run to go on with it."
                )
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
        for key, value in tensors.items():
            group, name = key.split("/", 1)
            groups[group][name] = value
        try:
            self.model.load_state_dict(groups["model"])
        except RuntimeError as error:
            raise CheckpointError(
                f"'{self.run_dir}' holds a run of another module with the same record "
                f"({str(error).splitlines()[-1].strip()}). Give another folder, or the module of that run."
            ) from error
        self.average.values = {name: value.to(self.device) for name, value in groups["average"].items()}
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in groups["optimizer"].items():
            index, name = key.split("/")
            slots.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": slots})
        self.history, self.step, self.best_epoch = state["history"], state["step"], state["best_epoch"]
        self.best = tuple(state["best"])
        self.seconds, self.cpu_seconds = state["seconds"], state["cpu_seconds"]
        kept = 0
        if has_checkpoint(self.run_dir, "checkpoint"):
            kept = read_checkpoint(self.run_dir, "checkpoint")[1]["epoch"]
        if kept < self.best_epoch == self.epoch:
            self._keep()
        elif kept > self.epoch:
            self.best = None  # written first by an older version, over the best of the history: keep the next epoch
        write_metrics(self.run_dir, self.history)

    def _keep(self) -> None:
        """Write the averaged parameters as those of the best epoch, which is the last one."""
        figures = {key.removeprefix("val_"): value for key, value in self.history[-1].items() if key.startswith("val_")}
        tensors = {**self.model.state_dict(), **self.average.values}
        write_checkpoint(self.run_dir, "checkpoint", self.epoch, tensors, {**self.record, "figures": figures})

    def _save(self) -> None:
        tensors = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"average/{name}": value for name, value in self.average.values.items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": value for name, value in slots.items()}
        state = {"step": self.step, "best": self.best, "best_epoch": self.best_epoch, "history": self.history}
        seconds = {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds}
        write_checkpoint(self.run_dir, "resume", self.epoch, tensors, {**self.record, **state, **seconds})

    def _update(self, weights: dict[str, Tensor], targets: Tensor) -> Tensor:
        """One optimizer step; outputs of the batch."""
        outputs = self.model(weights)
        loss = self.objective.loss(outputs, targets)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DivergedError(
                f"The loss is {value} in epoch {self.epoch + 1}, step {self.step + 1} of '{self.run_dir}'. Lower 'lr' "
                f"({self.config.lr}) or look for damaged networks; the state of epoch {self.epoch} is kept."
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.average.update(self.model, self.step)
        self.step += 1
        return outputs.detach()

    def _progress(self, seconds: float, cpu_seconds: float) -> float:
        """Share of the budget that is used."""
        steps = -(-len(self.train) // self.config.batch_size) * self.config.epochs
        limits = ((seconds, self.config.max_seconds), (cpu_seconds, self.config.max_cpu_seconds))
        return max(self.step / steps, *(used / limit if limit else 0.0 for used, limit in limits))

    def _set_lr(self, seconds: float, cpu_seconds: float) -> float:
        progress = self._progress(seconds, cpu_seconds)
        lr = self.config.lr * learning_rate_factor(self.step, progress, self.config.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    parameters = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim >= 2]
    others = [p for p in parameters if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, fused=True)


def _difference(theirs: Any, mine: Any) -> str:
    if not (isinstance(theirs, dict) and isinstance(mine, dict)):
        return f"{theirs}, not {mine}"
    keys = [k for k in mine if theirs.get(k) != mine[k]]
    return ", ".join(f"{k}: {str(theirs.get(k, 'unknown'))[:60]}, not {str(mine[k])[:60]}" for k in keys)
