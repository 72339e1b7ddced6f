"""What people do with metanetworks: whole tasks from a zoo to a folder of results."""

from weightspace.tasks.classify import ClassifyResult, classify, evaluate
from weightspace.tasks.compare import ClassifyJob, compare
from weightspace.tasks.presets import digits_job
from weightspace.tasks.reading import num_classes, probe_of, readable, trace_zoo
from weightspace.tasks.scores import Scores, score_classes, vote
from weightspace.tasks.step_costs import StepCost, StepCosts, measure_steps

__all__ = [
    "ClassifyJob",
    "ClassifyResult",
    "Scores",
    "StepCost",
    "StepCosts",
    "classify",
    "compare",
    "digits_job",
    "evaluate",
    "measure_steps",
    "num_classes",
    "probe_of",
    "readable",
    "score_classes",
    "trace_zoo",
    "vote",
]
