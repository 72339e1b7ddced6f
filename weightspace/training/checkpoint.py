"""Checkpoints: a safetensors file of tensors and a JSON file that names it, published by rename.

The tensors are written first, under a name that carries the epoch and their SHA-256, so that an epoch that is repeated
overwrites nothing; the JSON file, which holds that name, replaces its predecessor last. A run that is killed at any
moment therefore leaves the old checkpoint or the new one, never a mixture, and nothing in a checkpoint is code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from weightspace.errors import CheckpointError
from weightspace.graphs import Trace
from weightspace.layers.blocks import Architecture, first_line
from weightspace.metanets import (
    Metanet,
    SharedMetanet,
    architecture_from_json,
    metanet_from_json,
    shared_metanet_from_json,
    view_of,
)
from weightspace.zoo.files import publish

__all__ = ["has_checkpoint", "load_checkpoint", "read_checkpoint", "write_checkpoint"]

FORMAT_VERSION = 1


def write_checkpoint(run_dir: Path, name: str, epoch: int, tensors: Mapping[str, Tensor], record: Any) -> None:
    """Publish ``{name}-{epoch}-{hash}.safetensors`` and then ``{name}.json``; the files they replace are deleted after.

    Args:
        run_dir: Folder of the run.
        name: ``"checkpoint"`` (best on the validation split) or ``"resume"`` (everything needed to go on).
        epoch: Epochs done.
        tensors: Any tensors; written contiguous, from the CPU.
        record: JSON values kept beside them.
    """
    data = safetensors.torch.save(
        {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    )
    digest = hashlib.sha256(data).hexdigest()
    file = f"{name}-{epoch:04d}-{digest[:8]}.safetensors"
    publish(run_dir / file, [data])
    head = {"format": FORMAT_VERSION, "epoch": epoch, "tensors": file, "sha256": digest}
    publish(run_dir / f"{name}.json", [json.dumps({**head, **record}, indent=1).encode()])
    for old in run_dir.glob(f"{name}-*.safetensors"):
        if old.name != file:
            old.unlink(missing_ok=True)


def has_checkpoint(run_dir: Path, name: str) -> bool:
    """Whether a checkpoint of that name was published in the folder."""
    return (run_dir / f"{name}.json").exists()


def read_checkpoint(run_dir: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and record of a checkpoint.

    Raises:
        CheckpointError: there is none, or a file is missing, truncated, altered or of a newer format.
    """
    path = run_dir / f"{name}.json"
    try:
        record = json.loads(path.read_bytes())
        version, file, digest = record["format"], Path(record["tensors"]).name, record["sha256"]
    except FileNotFoundError as error:
        raise CheckpointError(
            f"'{run_dir}' holds no checkpoint ('{path.name}' is missing). Give the folder of a training run that has "
            "finished at least one epoch."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"'{path}' is not the record of a checkpoint ({type(error).__name__}: {error}). Restore it or train again."
        ) from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"'{path}' has format {version}, this version reads {FORMAT_VERSION}. Update weightspace."
        )
    try:
        data = (run_dir / file).read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise CheckpointError(
            f"'{path}' names the tensors '{file}', which are missing. Restore that file or train again."
        ) from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise CheckpointError(
            f"'{run_dir / file}' is truncated or altered ({len(data)} bytes, SHA-256 differs from '{path.name}'). "
            "Restore it or train again."
        )
    try:
        return safetensors.torch.load(data), record
    except SafetensorError as error:
        raise CheckpointError(f"'{run_dir / file}' is not a safetensors file ({error}). Train again.") from error


def load_checkpoint(
    run_dir: str | Path, *, architecture: Trace | Architecture | None = None, probe: Any = None
) -> Metanet | SharedMetanet:
    """The metanetwork of a run, with the parameters that were best on the validation split, in evaluation mode.

    It has the precision it was trained in. One for mixed architectures, trained behind a
    :class:`~weightspace.metanets.MixedReader`, comes without the reader.

    Args:
        run_dir: Folder of the run.
        architecture: Trace or view of the networks it is to read; checked against what it was trained for, where it
            reads one architecture.
        probe: For a metanetwork with probes, what evaluates the networks; see ``build_metanet``.

    Raises:
        CheckpointError: unreadable, trained on another architecture, or not described by ``metanet_to_json``.
    """
    run_dir = Path(run_dir)
    tensors, record = read_checkpoint(run_dir, "checkpoint")
    try:
        model = _described(run_dir, record["model"], architecture, probe)
    except (KeyError, StopIteration, TypeError) as error:
        raise CheckpointError(
            f"The record in '{run_dir}' does not describe a metanetwork ({type(error).__name__}: {error}). Read its "
            "tensors with read_checkpoint; runs whose 'record' is that of metanet_to_json can be loaded."
        ) from error
    if isinstance(model, SharedMetanet):
        tensors = {name.removeprefix("metanet."): value for name, value in tensors.items()}
    model.to(dtype=next((value.dtype for value in tensors.values() if value.is_floating_point()), None))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"The tensors in '{run_dir}' do not fit metanetwork '{record['model']['name']}' of this version "
            f"({str(error).splitlines()[-1].strip()}). Use the version that wrote them, or train again."
        ) from error
    return model.eval()


def _described(
    run_dir: Path, described: Mapping[str, Any], architecture: Trace | Architecture | None, probe: Any
) -> Metanet | SharedMetanet:
    """The metanetwork of a record with fresh parameters, if it reads that architecture."""
    if "types" in described:
        return shared_metanet_from_json(described)
    trained = architecture_from_json(described)
    if architecture is not None:
        wanted = view_of(architecture, type(trained))
        if wanted.fingerprint != trained.fingerprint:
            raise CheckpointError(
                f"The checkpoint in '{run_dir}' reads networks of {first_line(trained)} ({trained.fingerprint}), not "
                f"of {first_line(wanted)} ({wanted.fingerprint}). Evaluate it on a zoo of that architecture, or train "
                "on this one."
            )
    return metanet_from_json(described, probe=probe)
