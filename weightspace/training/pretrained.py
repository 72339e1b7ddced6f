"""Trained metanetworks as folders that can be shared: safetensors, JSON and a model card, here or on a model hub."""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from weightspace.errors import CheckpointError, SpecError
from weightspace.graphs import Trace
from weightspace.layers.blocks import Architecture, first_line
from weightspace.layers.probes import Probe
from weightspace.metanets import (
    Metanet,
    SharedMetanet,
    metanet_from_json,
    metanet_to_json,
    shared_metanet_from_json,
    view_of,
)
from weightspace.zoo.files import publish

__all__ = ["from_pretrained", "push_to_hub", "save_pretrained"]

FORMAT_VERSION = 1
_CONFIG, _TENSORS, _CARD = "config.json", "model.safetensors", "README.md"
_HEADER = "weightspace"
"""Where the header of the tensors keeps the configuration."""


def save_pretrained(
    metanet: Metanet | SharedMetanet, folder: str | Path, *, card: str = "", details: Mapping[str, Any] | None = None
) -> None:
    """Write a metanetwork with its normalisation: ``model.safetensors``, ``config.json`` and ``README.md``.

    Args:
        metanet: One of those with a name, or one for mixed architectures.
        folder: Created where it is missing; files of these names are replaced.
        card: Text of the model card; what it was trained on, how well it reads.
        details: JSON values kept in ``config.json`` (figures, seeds, data).

    Raises:
        SpecError: the metanetwork has no name, see ``metanet_to_json``, or ``details`` are no JSON.
        ZooWriteError: the folder cannot be written.

    Notes:
        The tensors carry the configuration in their header and are published whole, so that a folder holds the old
        metanetwork or the new one wherever a save is cut off. ``config.json`` is a copy for people and tools.
    """
    folder = Path(folder)
    record = metanet.to_json() if isinstance(metanet, SharedMetanet) else metanet_to_json(metanet)
    tensors = {
        k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in metanet.state_dict().items()
    }
    config = {
        "library": "weightspace",
        "format": FORMAT_VERSION,
        "torch": torch.__version__,
        "model": record,
        "details": dict(details or {}),
    }
    try:
        described = json.dumps(config, indent=1)
    except (TypeError, ValueError) as error:
        raise SpecError(f"'details' must hold JSON values ({error}). Convert tensors with tolist() first.") from error
    head = f"---\nlibrary_name: weightspace\ntags: [weightspace, {record['name']}]\n---\n\n"
    read = first_line(metanet.architecture) if isinstance(metanet, Metanet) else "networks of mixed architectures"
    text = card or f"A metanetwork `{record['name']}` that reads {read}.\n"
    publish(folder / _TENSORS, [safetensors.torch.save(tensors, {_HEADER: described})])
    publish(folder / _CONFIG, [described.encode()])
    publish(folder / _CARD, [(head + text).encode()])


def from_pretrained(
    name: str | Path,
    *,
    architecture: Trace | Architecture | None = None,
    probe: Probe | None = None,
    revision: str | None = None,
) -> Metanet | SharedMetanet:
    """A metanetwork that :func:`save_pretrained` wrote, in evaluation mode and in the precision it had.

    Args:
        name: A folder; or, where there is none of that name, a repository ``owner/name`` of the Hugging Face hub
            (needs ``pip install 'weightspace[hub]'``).
        architecture: Trace or view of the networks it is to read; checked against what it was trained for, where it
            reads one architecture.
        probe: For a metanetwork with probes, what evaluates the networks.
        revision: Branch, tag or commit of the repository.

    Raises:
        CheckpointError: nothing there, damaged, of a newer format, or for networks of another architecture.
        SpecError: the hub is needed and ``huggingface_hub`` is not installed; ``architecture`` is neither a trace nor
            the view that the metanetwork reads; it needs a probe.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from weightspace.graphs import BlockLayout
        >>> from weightspace.metanets import build_metanet
        >>> with TemporaryDirectory() as folder:
        ...     save_pretrained(build_metanet("statnn", BlockLayout.mlp([2, 8, 1]), 10), folder)
        ...     type(from_pretrained(folder)).__name__
        'StatNN'
    """
    folder = Path(name)
    if not folder.is_dir():
        hub = _hub(str(name))
        try:
            folder = Path(hub.snapshot_download(str(name), revision=revision))
        except (OSError, ValueError) as error:  # what the hub's client raises derives from these
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise CheckpointError(
                f"There is no folder '{name}', and the Hugging Face hub gave no repository of that name ({reason}). "
                "Check the name."
            ) from error
    record = _read_record(folder)
    try:
        metanet = shared_metanet_from_json(record) if "types" in record else metanet_from_json(record, probe=probe)
    except (KeyError, StopIteration, TypeError) as error:
        raise CheckpointError(
            f"The configuration in '{folder}' does not describe a metanetwork ({type(error).__name__}: {error}). "
            "Restore it, or save the metanetwork again."
        ) from error
    except SpecError as error:
        if record["config"].get("probes"):  # it is about the probe that was given, or was not
            raise
        raise CheckpointError(
            f"The configuration in '{folder}' is of no metanetwork that this version knows ({error}) Update."
        ) from error
    if architecture is not None and isinstance(metanet, Metanet):
        wanted = view_of(architecture, metanet.reads, type(metanet).__name__)
        if wanted.fingerprint != metanet.architecture.fingerprint:
            raise CheckpointError(
                f"'{folder}' reads networks of {first_line(metanet.architecture)}, not of {first_line(wanted)}. Take "
                "one that was trained for these networks."
            )
    try:
        tensors = safetensors.torch.load_file(folder / _TENSORS)
        metanet.to(next(value.dtype for value in tensors.values() if value.is_floating_point()))
        metanet.load_state_dict(tensors)
    except (OSError, SafetensorError, RuntimeError, StopIteration) as error:
        reason = next(iter(str(error).splitlines()), "no tensors")
        raise CheckpointError(
            f"'{folder / _TENSORS}' is missing, damaged or of another metanetwork ({reason})."
        ) from error
    return metanet.eval()


def _read_record(folder: Path) -> dict[str, Any]:
    """How the metanetwork of a folder was built, from the header of its tensors, or beside them where it has none."""
    try:
        with safe_open(folder / _TENSORS, framework="pt") as file:
            described = (file.metadata() or {}).get(_HEADER)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"'{folder}' holds no metanetwork ('{_TENSORS}' is missing or damaged: {error}). Give a folder that "
            "save_pretrained wrote."
        ) from error
    try:
        config = json.loads(described or (folder / _CONFIG).read_bytes())
        version, record = config["format"], dict(config["model"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"'{folder}' holds no metanetwork ('{_CONFIG}' is missing or damaged: {type(error).__name__}). Give a "
            "folder that save_pretrained wrote."
        ) from error
    if version != FORMAT_VERSION:
        raise CheckpointError(f"'{folder}' has format {version}, this version reads {FORMAT_VERSION}. Update.")
    return record


def push_to_hub(metanet: Metanet | SharedMetanet, repository: str, *, private: bool = False, card: str = "") -> str:
    """Upload a metanetwork to the Hugging Face hub with the credentials stored there; returns the address.

    Raises:
        SpecError: ``huggingface_hub`` is not installed, or the metanetwork has no name.
    """
    api = _hub(repository).HfApi()
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(metanet, folder, card=card)
        api.create_repo(repository, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder))


def _hub(name: str) -> Any:
    """The hub's client, which only those who use it need."""
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise SpecError(
            f"There is no folder '{name}', and for a repository of that name on the Hugging Face hub its client is "
            "missing. Run: pip install 'weightspace[hub]'"
        ) from error
