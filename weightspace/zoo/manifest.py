"""``zoo.json``: what the zoo is, how its networks were made and how to run one of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from weightspace.errors import SpecError, ZooFormatError
from weightspace.zoo import files

__all__ = ["FORMAT_VERSION", "Manifest"]

FORMAT_VERSION = 1
FILE_NAME = "zoo.json"


@dataclass(frozen=True)
class Manifest:
    """Identity and provenance of a zoo.

    Args:
        recipe: Everything the weights depend on: trainer, grid, data and its hash, seeds. JSON values.
        forward: Everything needed to run a network on inputs as its trainer did: omega, output offset, coordinate
            order and range, pixel range. JSON values.
        title: One line for people.
        licence: Licence of the weights, an SPDX name where there is one.

    Raises:
        SpecError: ``recipe`` or ``forward`` is not JSON.
    """

    recipe: Mapping[str, Any] = field(default_factory=dict)
    forward: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        for name in ("recipe", "forward"):
            try:
                value = json.loads(json.dumps(dict(getattr(self, name)), allow_nan=False))
            except (TypeError, ValueError) as error:
                raise SpecError(
                    f"'{name}' of a zoo must hold JSON values only ({error}). Give numbers, strings, lists and dicts."
                ) from error
            object.__setattr__(self, name, value)

    @cached_property
    def zoo_id(self) -> str:
        """16 hexadecimal digits over recipe and forward: zoos with the same one hold the same population."""
        text = json.dumps([self.recipe, self.forward], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_bytes(self) -> bytes:
        """Contents of ``zoo.json``."""
        data = {"format_version": FORMAT_VERSION, "zoo_id": self.zoo_id, "title": self.title, "licence": self.licence}
        return (json.dumps({**data, "recipe": self.recipe, "forward": self.forward}, indent=2) + "\n").encode()

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of the zoo in ``folder``.

        Raises:
            ZooFormatError: there is none, it is damaged, or a newer version of the package wrote it.
        """
        path = folder / FILE_NAME
        try:
            data = json.loads(files.read(path))
            version, fields = data["format_version"], {name: data[name] for name in cls.__dataclass_fields__}
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ZooFormatError(
                f"'{folder}' is not a zoo (it has no {FILE_NAME}). Give the folder that holds {FILE_NAME}, or make a "
                "zoo there with Zoo.create or `weightspace zoo build`."
            ) from error
        except (ValueError, TypeError, KeyError) as error:
            raise ZooFormatError(
                f"'{path}' is damaged ({type(error).__name__}: {error}). Restore it from a copy, or create a zoo of "
                "the same recipe elsewhere and take its file."
            ) from error
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise ZooFormatError(
                f"The zoo in '{folder}' has format version {version}, this weightspace reads up to {FORMAT_VERSION}. "
                "Upgrade weightspace to read it."
            )
        return cls(**fields)
