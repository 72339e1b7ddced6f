"""Tell the class of a network from its weights: train on a zoo, select on validation, score the test split once."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from weightspace.errors import CheckpointError, SpecError
from weightspace.graphs import BlockLayout, WeightSpace
from weightspace.metanets import Metanet, SharedMetanet, build_metanet, metanet_to_json
from weightspace.tasks.reading import num_classes, probe_of, readable, trace_zoo
from weightspace.tasks.scores import Scores, score_classes
from weightspace.training import (
    Batches,
    Classification,
    Pipeline,
    TrainConfig,
    batches_of,
    fit,
    load_checkpoint,
    predict,
    seeded,
    write_json,
)
from weightspace.training.pipeline import find_device
from weightspace.zoo import Zoo
from weightspace.zoo.augment import Compose
from weightspace.zoo.files import publish
from weightspace.zoo.named_augmentations import make_augmentation
from weightspace.zoo.splits import DEFAULT_FRACTIONS, DEFAULT_SALT, split_of

__all__ = ["ClassifyResult", "classify", "evaluate"]

NORMALISATION_SAMPLE = 8192


@dataclass(frozen=True)
class ClassifyResult:
    """Outcome of :func:`classify`, the content of ``results.json``.

    Args:
        model: Name of the metanetwork.
        parameters: Number of its trained scalars.
        views: Copies of each network that the scores average over.
        evaluates_network: Whether it runs the networks it reads, rather than reading their weights alone.
        best_epoch: Epoch kept, chosen on the validation split.
        epochs: Epochs trained.
        seconds, cpu_seconds: Wall and processor time of training and validation.
        val, test: Scores of the kept parameters.
    """

    model: str
    parameters: int
    views: int
    evaluates_network: bool
    best_epoch: int
    epochs: int
    seconds: float
    cpu_seconds: float
    val: Scores
    test: Scores

    def to_json(self) -> dict[str, Any]:
        """A JSON-able form."""
        return {**asdict(self), "val": self.val.to_json(), "test": self.test.to_json()}


def classify(
    zoo: Zoo,
    run_dir: str | Path,
    *,
    model: str = "operator",
    model_config: Mapping[str, Any] | None = None,
    config: TrainConfig | None = None,
    salt: str = DEFAULT_SALT,
    fractions: Mapping[str, float] = DEFAULT_FRACTIONS,
    target: str = "label",
    views: int = 1,
    device: str = "cpu",
    progress: bool = True,
) -> ClassifyResult:
    """Train a metanetwork to tell a label from weights, and score it.

    Rows are split by ``split_key``, so that all networks of an item are on one side. A stopped run goes on when called
    again with the same arguments; a finished one is only scored again.

    Args:
        zoo: Networks of one architecture, with labels.
        run_dir: Folder for ``config.json``, ``metrics.json|csv``, ``checkpoint.*``, ``results.json``,
            ``predictions.parquet`` and ``embedding.npz`` (both of the test split).
        model: Name of a metanetwork; see ``build_metanet``.
        model_config: Its options.
        config: How to train it.
        salt: Decides which items are in the splits train, val and test, as in ``zoo.split``.
        fractions: Expected shares of the items in these three splits.
        target: Column of the labels 0, 1, ....
        views: Average the scored probabilities over so many copies of each network, moved by those augmentations of
            ``config`` that preserve its function; training and selection do without.
        device: Where the metanetwork runs.
        progress: Show a progress bar.

    Raises:
        SpecError: the zoo cannot be read this way, an unknown name or option, no such device, ``views`` below 1, or
            fractions that are not three shares with a sum of 1.
        CheckpointError: ``run_dir`` holds another run, or one on other networks.
    """
    run_dir, config, options = Path(run_dir), config or TrainConfig(), dict(model_config or {})
    if views < 1:
        raise SpecError(f"'views' of classify must be at least 1 (got {views}). 1 scores each network as it is.")
    place, zoo = find_device(device), readable(zoo)
    traced, classes = trace_zoo(zoo), num_classes(zoo, target)
    layout, space = traced.layout(), traced.weight_space()
    if set(fractions) != set(DEFAULT_FRACTIONS):
        raise SpecError(f"'fractions' must name the splits {list(DEFAULT_FRACTIONS)} (got {dict(fractions)}).")
    fractions = {name: float(fractions[name]) for name in DEFAULT_FRACTIONS}
    splits = [split_of(key, salt, fractions) for key in zoo.column("split_key")]
    if missing := [name for name in fractions if name not in splits]:
        raise SpecError(f"The splits {missing} of {zoo!r} are empty. Take more items, or another salt (not '{salt}').")
    train, val = (batches_of(zoo.split(name, salt, fractions), target) for name in ("train", "val"))
    probe = probe_of(zoo, options["probes"]) if options.get("probes") else None
    with seeded(torch.device("cpu"), config.seed, "initialisation"):
        metanet = build_metanet(model, traced, classes, options, probe=probe)
    pipeline = Pipeline(make_augmentation(config.augment, layout, space), make_augmentation(config.prepare, layout))
    metanet.fit_normalisation(pipeline(train.sample(NORMALISATION_SAMPLE)))  # on what it will see
    metanet.to(place)
    division = {"salt": salt, "fractions": fractions, "target": target}
    read = {"zoo": zoo.manifest.zoo_id, **division, "selection": _selection(zoo, target, splits)}
    fitted = fit(
        metanet,
        train,
        val,
        config,
        run_dir,
        objective=Classification(config.label_smoothing),
        record={**metanet_to_json(metanet), **read},
        pipeline=pipeline,
        progress=progress,
    )
    description = {
        "task": "classify",
        "model": model,
        "model_config": asdict(metanet.config),
        "train": config.to_json(),
        **division,
        "views": views,
        "zoo": {"title": zoo.manifest.title, "recipe": dict(zoo.manifest.recipe), "rows": len(zoo)},
    }
    write_json(run_dir / "config.json", description)
    scoring, size = _scoring_pipeline(config, layout, space), config.evaluation_batch
    result = ClassifyResult(
        model=model,
        parameters=sum(p.numel() for p in metanet.parameters()),
        views=views,
        evaluates_network=bool(options.get("probes")),
        best_epoch=fitted.best_epoch,
        epochs=len(fitted.epochs),
        seconds=fitted.seconds,
        cpu_seconds=fitted.cpu_seconds,
        val=_score(metanet, zoo.split("val", salt, fractions), target, scoring, views, size),
        test=_score(metanet, zoo.split("test", salt, fractions), target, scoring, views, size, run_dir),
    )
    write_json(run_dir / "results.json", result.to_json())
    return result


def evaluate(run_dir: str | Path, zoo: Zoo, *, split: str = "test", device: str = "cpu") -> Scores:
    """Score the metanetwork of a finished run on a split of a zoo of the same architecture.

    Args:
        run_dir: Folder that :func:`classify` wrote.
        zoo: The zoo it was trained on or another one of that architecture.
        split: ``"train"``, ``"val"`` or ``"test"`` by the split of the run, or ``"all"`` rows.
        device: Where the metanetwork runs.

    Raises:
        SpecError: no such device, the zoo cannot be read this way, or has labels that the run does not tell.
        CheckpointError: the folder is not such a run, or reads networks of another architecture.
    """
    run_dir = Path(run_dir)
    try:
        description = json.loads((run_dir / "config.json").read_bytes())
        salt, target, options = description["salt"], description["target"], dict(description["model_config"])
        fractions = description.get("fractions", DEFAULT_FRACTIONS)  # earlier runs had no choice
        config, views = TrainConfig.from_json(description["train"]), description["views"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"'{run_dir}' is not the folder of a finished run ('config.json' is missing or damaged: "
            f"{type(error).__name__}). Give the folder that training wrote, after it has ended."
        ) from error
    place, zoo = find_device(device), readable(zoo)
    traced = trace_zoo(zoo)
    layout = traced.layout()
    probe = probe_of(zoo, options["probes"]) if options.get("probes") else None
    metanet = load_checkpoint(run_dir, architecture=traced, probe=probe).to(place)
    rows = zoo if split == "all" else zoo.split(split, salt, fractions)
    if len(rows) and num_classes(rows, target) > (metanet.out_features or 0):
        raise SpecError(
            f"Column '{target}' of {rows!r} has labels up to {num_classes(rows, target) - 1}, and the run in "
            f"'{run_dir}' tells {metanet.out_features} classes. Select rows of those classes."
        )
    scoring = _scoring_pipeline(config, layout, traced.weight_space())
    return _score(metanet, rows, target, scoring, views, config.evaluation_batch)


def _selection(zoo: Zoo, target: str, splits: Sequence[str]) -> str:
    """Number and hash of the networks, their labels and their splits, in their order."""
    rows = zip(splits, zoo.column("model_id"), zoo.column(target).tolist(), strict=True)
    digest = hashlib.sha256(json.dumps(list(rows)).encode()).hexdigest()
    return f"{len(zoo)} networks, SHA-256 {digest[:16]}"


def _scoring_pipeline(config: TrainConfig, layout: BlockLayout, space: WeightSpace) -> Pipeline:
    """The preparation of the weights, and those augmentations that leave the networks as they are."""
    steps = [make_augmentation([name], layout, space) for name in config.augment]
    preserving = [step for step in steps if step is not None and step.preserves_function]
    return Pipeline(Compose(preserving) if preserving else None, make_augmentation(config.prepare, layout))


def _log_probabilities(
    metanet: nn.Module, data: Batches, pipeline: Pipeline, views: int, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Logarithm of the mean probabilities over the views, and labels; the same at every call."""
    with seeded(next(metanet.parameters()).device, "views") as generator:
        drawn = [
            predict(metanet, data, pipeline, generator=generator if views > 1 else None, batch_size=batch_size)
            for _ in range(views)
        ]
    stacked = torch.stack([logits.log_softmax(dim=1) for logits, _ in drawn])
    return stacked.logsumexp(dim=0) - math.log(views), drawn[0][1]


def _score(
    metanet: Metanet | SharedMetanet,
    zoo: Zoo,
    target: str,
    pipeline: Pipeline,
    views: int,
    batch_size: int,
    run_dir: Path | None = None,
) -> Scores:
    """Scores of the rows; with a folder, predictions and embedding are written there."""
    data = batches_of(zoo, target)
    log_probabilities, labels = _log_probabilities(metanet, data, pipeline, views, batch_size)
    keys = zoo.column("split_key")
    if run_dir is not None:
        columns = {name: zoo.rows[name] for name in ("model_id", "split_key")}
        columns |= {"label": pa.array(labels.numpy()), "predicted": pa.array(log_probabilities.argmax(dim=1).numpy())}
        columns |= {f"log_p_{c}": pa.array(log_probabilities[:, c].numpy()) for c in range(log_probabilities.shape[1])}
        predictions, arrays = io.BytesIO(), io.BytesIO()
        pq.write_table(pa.table(columns), predictions)
        publish(run_dir / "predictions.parquet", [predictions.getbuffer()])
        embedding, _ = predict(metanet, data, pipeline, method="embed", batch_size=batch_size)
        np.savez(
            arrays,
            embedding=embedding.numpy(),
            label=labels.numpy(),
            model_id=zoo.column("model_id").astype(str),
            split_key=keys.astype(str),
        )
        publish(run_dir / "embedding.npz", [arrays.getbuffer()])
    return score_classes(log_probabilities, labels, keys)
