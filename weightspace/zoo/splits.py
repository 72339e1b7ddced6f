"""Train, validation and test rows by a threshold on a hash of the split key, never by the order of a list.

All rows that share a split key (all INRs of one image, all states of one run) land in the same split, and a row keeps
its split when others are added or removed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

from weightspace.errors import SpecError

__all__ = ["DEFAULT_FRACTIONS", "DEFAULT_SALT", "split_of"]

DEFAULT_SALT = "0"

DEFAULT_FRACTIONS: Mapping[str, float] = {"train": 0.72, "val": 0.11, "test": 0.17}


def split_of(split_key: str, salt: str = DEFAULT_SALT, fractions: Mapping[str, float] = DEFAULT_FRACTIONS) -> str:
    """Name of the split that rows with this key belong to.

    Args:
        split_key: What must not be torn apart, e.g. ``"digits/17"`` for all INRs of image 17.
        salt: Any string; another salt gives another, independent division.
        fractions: Expected share of the keys per split, summing to 1; the order of the names matters.

    Raises:
        SpecError: ``fractions`` has a negative share or does not sum to 1.

    Example:
        >>> split_of("digits/17")
        'train'
    """
    if min(fractions.values(), default=-1.0) < 0 or not math.isclose(sum(fractions.values()), 1.0, abs_tol=1e-6):
        raise SpecError(f"'fractions' must be shares of at least 0 that sum to 1 (got {dict(fractions)}).")
    digest = hashlib.sha256(f"{salt}\0{split_key}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64  # uniform in [0, 1)
    bound = 0.0
    for name, fraction in fractions.items():
        bound += fraction
        if position < bound:
            return name
    return next(name for name in reversed(list(fractions)) if fractions[name] > 0)  # bound rounded to just below 1
