"""Options of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from weightspace.errors import SpecError
from weightspace.zoo.named_augmentations import DETERMINISTIC

__all__ = ["EVALUATION_BATCH", "TrainConfig"]

EVALUATION_BATCH = 256
"""Networks of a batch in evaluation; larger ones are hardly faster."""


@dataclass(frozen=True)
class TrainConfig:
    """How a metanetwork is trained; together with the data and the model it decides the result to the bit.

    The defaults are the recipe that reads SIRENs of digits best (``benchmarks/classify_digits.py``).

    Args:
        epochs: Passes over the training split, the length of the cosine schedule.
        max_seconds: Wall time after which the schedule has ended as well; ``None`` for no limit. With a limit the
            result depends on the speed of the machine.
        max_cpu_seconds: The same in processor time, which other work on the machine does not use up.
        batch_size: Networks per step; in evaluation four times as many, at most 256.
        lr: Peak learning rate of AdamW.
        weight_decay: Decoupled weight decay of matrices; vectors are left alone.
        warmup_steps: Steps of linear warm-up, at most a tenth of the budget.
        label_smoothing: Share of the target probability that is spread over all classes.
        clip: Largest norm of the gradient.
        average: Decay of the running average of the parameters, which is what gets evaluated and kept; 0 for none.
        patience: Epochs without a better validation score after which training stops; 0 for no early stop.
        augment: Names of random augmentations, applied to training batches in this order, among geo, sign, noise,
            phase and permute; geo and sign suit networks of two coordinates with sine or tanh neurons. Empty for none
            (on the command line: a bare --augment).
        prepare: Names of deterministic augmentations (wrap, canonical) through which every batch goes, in evaluation
            too.
        seed: Decides initialisation, order, augmentation and dropout.

    Raises:
        SpecError: a value outside its range.
    """

    epochs: int = 40
    max_seconds: float | None = None
    max_cpu_seconds: float | None = None
    batch_size: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup_steps: int = 100
    label_smoothing: float = 0.1
    clip: float = 1.0
    average: float = 0.995
    patience: int = 0
    augment: tuple[str, ...] = ("geo", "sign", "noise")
    prepare: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "lr", "clip"):
            self._require(name, getattr(self, name) > 0, "be positive")
        for name in ("weight_decay", "warmup_steps", "patience"):
            self._require(name, getattr(self, name) >= 0, "not be negative")
        for name in ("label_smoothing", "average"):
            self._require(name, 0 <= getattr(self, name) < 1, "lie in [0, 1)")
        for name in ("augment", "prepare"):
            self._require(name, not isinstance(getattr(self, name), str), "be a sequence of names")
        choice = " or ".join(DETERMINISTIC)
        self._require("prepare", set(self.prepare) <= set(DETERMINISTIC), f"name deterministic augmentations, {choice}")
        for name in ("max_seconds", "max_cpu_seconds"):
            limit = getattr(self, name)
            self._require(name, limit is None or limit > 0, "be positive or None")

    def _require(self, name: str, holds: bool, condition: str) -> None:
        if not holds:
            raise SpecError(f"'{name}' of TrainConfig must {condition} (got {getattr(self, name)}).")

    @property
    def evaluation_batch(self) -> int:
        """Networks of a batch in evaluation, which keeps nothing for derivatives."""
        return min(EVALUATION_BATCH, 4 * self.batch_size)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able form; :meth:`from_json` inverts it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrainConfig:
        """Read what :meth:`to_json` wrote.

        Raises:
            SpecError: an unknown option.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise SpecError(f"A training configuration has no option {unknown}. It has {sorted(known)}.")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**values)
