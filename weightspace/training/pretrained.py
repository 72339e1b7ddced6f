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
from safetensors import SafetensorError

from weightspace.errors import CheckpointError, SpecError
from weightspace.graphs import Trace
from weightspace.layers.blocks import Architecture, first_line
from weightspace.layers.probes import Probe
from weightspace.metanets import Metanet, metanet_from_json, metanet_to_json, view_of
from weightspace.zoo.files import publish

__all__ = ["from_pretrained", "push_to_hub", "save_pretrained"]

FORMAT_VERSION = 1
_CONFIG, _TENSORS, _CARD = "config.json", "model.safetensors", "README.md"


def save_pretrained(
    metanet: Metanet, folder: str | Path, *, card: str = "", details: Mapping[str, Any] | None = None
) -> None:
    """Write a metanetwork with its normalisation: ``model.safetensors``, ``config.json`` and ``README.md``.

    Args:
        metanet: One of those with a name.
        folder: Created where it is missing; files of these names are replaced, each whole or not at all.
        card: Text of the model card; what it was trained on, how well it reads.
        details: JSON values kept in ``config.json`` (figures, seeds, data).

    Raises:
        SpecError: the metanetwork has no name, see ``metanet_to_json``, or ``details`` are no JSON.
        ZooWriteError: the folder cannot be written.
    """
    folder, record = Path(folder), metanet_to_json(metanet)
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
    head = f"---\nlibrary_name: weightspace\ntags: [weightspace, {record['name']}]\n---\n\n"
    text = card or f"A metanetwork `{record['name']}` that reads {first_line(metanet.architecture)}.\n"
    try:
        described = json.dumps(config, indent=1).encode()
    except (TypeError, ValueError) as error:
        raise SpecError(f"'details' must hold JSON values ({error}). Convert tensors with tolist() first.") from error
    publish(folder / _TENSORS, [safetensors.torch.save(tensors)])
    publish(folder / _CARD, [(head + text).encode()])
    publish(folder / _CONFIG, [described])


def from_pretrained(
    name: str | Path,
    *,
    architecture: Trace | Architecture | None = None,
    probe: Probe | None = None,
    revision: str | None = None,
) -> Metanet:
    """A metanetwork that :func:`save_pretrained` wrote, in evaluation mode.

    Args:
        name: A folder; or, where there is none of that name, a repository ``owner/name`` of the Hugging Face hub
            (needs ``pip install 'weightspace[hub]'``).
        architecture: Trace or view of the networks it is to read; checked against what it was trained for.
        probe: For a metanetwork with probes, what evaluates the networks.
        revision: Branch, tag or commit of the repository.

    Raises:
        CheckpointError: nothing there, damaged, of a newer format, or for networks of another architecture.
        SpecError: the hub is needed and ``huggingface_hub`` is not installed.

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
    try:
        config = json.loads((folder / _CONFIG).read_bytes())
        version, record = config["format"], dict(config["model"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"'{folder}' holds no metanetwork ('{_CONFIG}' is missing or damaged: {type(error).__name__}). Give a "
            "folder that save_pretrained wrote."
        ) from error
    if version != FORMAT_VERSION:
        raise CheckpointError(f"'{folder}' has format {version}, this version reads {FORMAT_VERSION}. Update.")
    try:
        metanet = metanet_from_json(record, probe=probe)
    except (KeyError, StopIteration, TypeError) as error:
        raise CheckpointError(
            f"'{folder / _CONFIG}' does not describe a metanetwork ({type(error).__name__}: {error}). Restore it, or "
            "save the metanetwork again."
        ) from error
    if architecture is not None:
        wanted = view_of(architecture, type(metanet).reads)
        if wanted.fingerprint != metanet.architecture.fingerprint:
            raise CheckpointError(
                f"'{folder}' reads networks of {first_line(metanet.architecture)}, not of {first_line(wanted)}. Take "
                "one that was trained for these networks."
            )
    try:
        metanet.load_state_dict(safetensors.torch.load_file(folder / _TENSORS))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"'{folder / _TENSORS}' is missing, damaged or of another metanetwork ({str(error).splitlines()[0]})."
        ) from error
    return metanet.eval()


def push_to_hub(metanet: Metanet, repository: str, *, private: bool = False, card: str = "") -> str:
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
