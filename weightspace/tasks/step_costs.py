"""What a training step of a metanetwork costs on the networks of a zoo: seconds and memory by batch size."""

from __future__ import annotations

import mmap
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightspace.errors import SpecError
from weightspace.metanets import Metanet, build_metanet
from weightspace.tasks.reading import probe_of, readable, trace_zoo
from weightspace.training.pipeline import find_device
from weightspace.zoo import Zoo

__all__ = ["SMALLEST", "StepCost", "StepCosts", "measure_steps"]

SMALLEST = 8
"""Networks of the first batch."""
_CLOSE = 0.97
"""A batch size that reaches this share of the most networks per second is as good as the best."""
_SAFE = 0.8
"""Share of the memory there is that the next batch may take."""
_ROUNDS = 3
_Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class StepCost:
    """Cost at one batch size.

    Args:
        batch_size: Networks.
        forward_seconds: An answer without derivatives.
        step_seconds: Answer, derivatives and step of AdamW.
        memory_bytes: Most memory a step took beyond what was held before the first one; ``None`` where the system
            does not say.
    """

    batch_size: int
    forward_seconds: float
    step_seconds: float
    memory_bytes: int | None

    @property
    def networks_per_second(self) -> float:
        """In training."""
        return self.batch_size / self.step_seconds


@dataclass(frozen=True)
class StepCosts:
    """Outcome of :func:`measure_steps`.

    Args:
        model: Name of the metanetwork.
        parameters: Number of its scalars.
        weights: Scalars of one network that is read.
        device, threads: Where it ran.
        costs: By batch size, ascending.
        stopped: Why there is no larger one: ``"memory"``, ``"time"`` or ``"largest"``.
    """

    model: str
    parameters: int
    weights: int
    device: str
    threads: int
    costs: tuple[StepCost, ...]
    stopped: str

    @property
    def best(self) -> StepCost:
        """The smallest batch size with nearly the most networks per second."""
        most = max(cost.networks_per_second for cost in self.costs)
        return next(cost for cost in self.costs if cost.networks_per_second >= _CLOSE * most)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able form."""
        costs = [{**asdict(cost), "networks_per_second": cost.networks_per_second} for cost in self.costs]
        return {**asdict(self), "costs": costs, "best_batch_size": self.best.batch_size, "torch": torch.__version__}


def measure_steps(
    zoo: Zoo,
    *,
    model: str = "operator",
    model_config: Mapping[str, Any] | None = None,
    out_features: int = 10,
    largest: int = 4096,
    seconds: float = 60.0,
    device: str = "cpu",
    threads: int | None = None,
    report: Callable[[StepCost], None] | None = None,
) -> StepCosts:
    """Time training steps of a metanetwork on networks of a zoo, in batches of 8, 16, 32, ....

    A batch size is timed three times after a first call, and the median counts; networks are repeated where the zoo has
    fewer. It ends before a batch that would take more than the free memory or the time that is left. Reading from disk
    and augmentations are not counted.

    Args:
        zoo: Networks of one architecture.
        model: Name of a metanetwork; see ``build_metanet``.
        model_config: Its options.
        out_features: Numbers it returns per network.
        largest: No batch is larger.
        seconds: Time for all batch sizes; the first one is always measured.
        device: Where the metanetwork runs, for instance ``"cuda"``.
        threads: Of torch on the CPU; by default as it is set.
        report: Called with every batch size when it is done.

    Raises:
        SpecError: the zoo cannot be read this way, an unknown name or option, no such device, a limit that leaves
            nothing to measure, or too little memory for the smallest batch.
    """
    if largest < SMALLEST or seconds <= 0 or (threads is not None and threads < 1):
        raise SpecError(
            f"'largest' must be at least {SMALLEST}, 'seconds' positive and 'threads' at least 1 "
            f"(got {largest}, {seconds}, {threads})."
        )
    place, options = find_device(device), dict(model_config or {})
    rows = readable(zoo)
    traced = trace_zoo(rows)
    probe = probe_of(rows, options["probes"]) if options.get("probes") else None
    metanet = build_metanet(model, traced, out_features, options, probe=probe)
    weights = rows.weights(range(min(len(rows), largest)))
    metanet.fit_normalisation(weights)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads or before)
        costs, stopped = _sweep(_Trainer(metanet.to(place), weights, place), largest, seconds, report)
        used = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    if not costs:
        raise SpecError(f"Metanetwork '{model}' has too little memory on '{device}' for {SMALLEST} networks at a time.")
    size = sum(value[0].numel() for value in weights.values())
    parameters = sum(p.numel() for p in metanet.parameters())
    return StepCosts(model, parameters, size, str(place), used, tuple(costs), stopped)


def _sweep(
    trainer: _Trainer, largest: int, seconds: float, report: Callable[[StepCost], None] | None
) -> tuple[list[StepCost], str]:
    """Costs of every batch size, and why there are no more."""
    start, size, costs = time.perf_counter(), SMALLEST, []
    while size <= largest:
        began = time.perf_counter()
        try:
            cost = trainer.cost(size)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            return costs, "memory"
        costs.append(cost)
        if report is not None:
            report(cost)
        now, size = time.perf_counter(), 2 * size
        if size <= largest and now - start + 2 * (now - began) > seconds:
            return costs, "time"
        room = trainer.room()
        if size <= largest and room is not None and 2 * (cost.memory_bytes or 0) > _SAFE * room:
            return costs, "memory"
    return costs, "largest"


class _Trainer:
    """Takes training steps, and says what they cost."""

    def __init__(self, metanet: Metanet, weights: _Weights, place: torch.device) -> None:
        self.metanet, self.weights, self.place = metanet, weights, place
        self.optimizer = torch.optim.AdamW(metanet.parameters(), lr=1e-4)
        self.held = torch.cuda.memory_allocated(place) if place.type == "cuda" else _resident()

    def cost(self, size: int) -> StepCost:
        """Of batches of this size."""
        count = len(next(iter(self.weights.values())))
        chosen = torch.arange(size) % count
        batch = {name: value[chosen].to(self.place) for name, value in self.weights.items()}
        counts_memory = self._forget_peak()
        self._step(batch)
        forward = statistics.median(self._timed(self._answer, batch) for _ in range(_ROUNDS))
        step = statistics.median(self._timed(self._step, batch) for _ in range(_ROUNDS))
        return StepCost(size, forward, step, self._peak() if counts_memory else None)

    def room(self) -> int | None:
        """Bytes that steps may take: what is free and what they hold now; ``None`` where the system does not say."""
        if self.place.type == "cuda":
            return torch.cuda.mem_get_info(self.place)[0] + torch.cuda.memory_reserved(self.place) - (self.held or 0)
        free, now = _free_memory(), _resident()
        return None if free is None or now is None else free + now - (self.held or 0)

    def _step(self, batch: _Weights) -> None:
        self.optimizer.zero_grad()
        self.metanet.train()(batch).square().mean().backward()
        self.optimizer.step()

    @torch.no_grad()
    def _answer(self, batch: _Weights) -> None:
        self.metanet.eval()(batch)

    def _timed(self, action: Callable[[_Weights], None], batch: _Weights) -> float:
        self._wait()
        start = time.perf_counter()
        action(batch)
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.place.type == "cuda":
            torch.cuda.synchronize(self.place)

    def _forget_peak(self) -> bool:
        """Start counting memory anew; whether that can be done."""
        if self.place.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.place)
            return True
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return False
        return self.held is not None

    def _peak(self) -> int:
        """Most memory since then, beyond what was held at first."""
        if self.place.type == "cuda":
            return torch.cuda.max_memory_allocated(self.place) - (self.held or 0)
        lines = Path("/proc/self/status").read_text().splitlines()
        highest = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) << 10
        return max(0, highest - (self.held or 0))


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _resident() -> int | None:
    """Bytes this process holds, if the system says."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
    except OSError:
        return None


def _free_memory() -> int | None:
    """Bytes this process may still take, of the machine and of its control group."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable")]
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text().strip() for name in ("max", "current"))
        found += [int(limit) - int(used)] if limit.isdigit() else []
    except OSError:
        pass
    return min(found, default=None)
