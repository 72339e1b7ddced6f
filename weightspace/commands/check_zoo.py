"""``weightspace zoo info`` and ``weightspace zoo verify``."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from weightspace.commands.console import say
from weightspace.zoo import Zoo

__all__ = ["info", "verify"]


def info(path: Path, *, as_json: Annotated[bool, Parameter(name="--json")] = False) -> None:
    """Say what is in a zoo.

    Args:
        path: Folder of the zoo.
        as_json: Print JSON for programs.
    """
    found = Zoo.open(path).info()
    say(json.dumps(found.to_json(), indent=2) if as_json else str(found))


def verify(path: Path, *, deep: bool = False) -> int:
    """Check that a zoo is complete and unaltered.

    Ends with exit code 1 if it is not.

    Args:
        path: Folder of the zoo.
        deep: Read every byte and compare all checksums, instead of sizes and the index only.
    """
    report = Zoo.open(path).verify(deep=deep)
    say(str(report))
    return 0 if report.ok else 1
