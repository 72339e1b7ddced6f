"""Training of metanetworks: seeded, resumable to the bit, selected on the validation split."""

from weightspace.training.checkpoint import load_checkpoint, read_checkpoint
from weightspace.training.config import TrainConfig
from weightspace.training.data import Batches, LabelledWeights, ZooBatches, batches_of
from weightspace.training.history import write_json, write_metrics
from weightspace.training.loop import DivergedError, FitResult, fit
from weightspace.training.mixed import MixedWeights
from weightspace.training.objective import Classification, Objective, Regression
from weightspace.training.pipeline import Pipeline, predict, seeded
from weightspace.training.pretrained import from_pretrained, push_to_hub, save_pretrained
from weightspace.training.schedule import ParameterAverage, learning_rate_factor

__all__ = [
    "Batches",
    "Classification",
    "DivergedError",
    "FitResult",
    "LabelledWeights",
    "MixedWeights",
    "Objective",
    "ParameterAverage",
    "Pipeline",
    "Regression",
    "TrainConfig",
    "ZooBatches",
    "batches_of",
    "fit",
    "from_pretrained",
    "learning_rate_factor",
    "load_checkpoint",
    "predict",
    "push_to_hub",
    "read_checkpoint",
    "save_pretrained",
    "seeded",
    "write_json",
    "write_metrics",
]
