"""Settings that read INRs of digits well, chosen on the validation split of one zoo."""

from __future__ import annotations

from weightspace.tasks.compare import ClassifyJob
from weightspace.training import TrainConfig

__all__ = ["digits_job"]

_EPOCHS = {"operator": 30, "gmn": 20, "mlp": 15, "statnn": 30}
"""Passes after which more time buys little; the baselines are at their best long before."""

_RATES = {"operator": 3e-3}
"""Learning rates other than the usual one."""

_VIEWS = 16
"""Sign-flipped copies of an INR whose probabilities are averaged: +1.0 point for operator on validation, 7 CPU s."""

_AUGMENT = {"dws": ("geo", "sign", "noise"), "siren": ("geo", "sign")}
"""By convention: a tenth of the deviation of a siren first layer is a noise of 0.9 radians, which ruins the picture."""


def digits_job(
    model: str, *, seed: int = 0, init: str = "dws", probes: int = 0, epochs: int | None = None
) -> ClassifyJob:
    """How to classify SIRENs of digits with one of the metanetworks.

    Args:
        model: Name of a metanetwork.
        seed: Of training, and salt of the split.
        init: Convention of the zoo: for ``"siren"``, whose phases span many periods, they are wrapped first.
        probes: Learned inputs on which a metanetwork evaluates the INRs; 0 reads weights only.
        epochs: Passes over the training split, instead of the preset's.

    Raises:
        SpecError: ``epochs`` is not positive.
    """
    config = TrainConfig(
        epochs=_EPOCHS.get(model, 30) if epochs is None else epochs,
        lr=_RATES.get(model, TrainConfig.lr),
        augment=_AUGMENT.get(init, _AUGMENT["dws"]),
        prepare=("wrap",) if init == "siren" else (),
        seed=seed,
    )
    name = f"{model}-probes" if probes else model
    return ClassifyJob(name, model, {"probes": probes} if probes else {}, config, salt=str(seed), views=_VIEWS)
