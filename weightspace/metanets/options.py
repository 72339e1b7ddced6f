"""Checks of the options of metanetworks, the same for all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from weightspace.errors import SpecError

__all__ = ["check_answer", "check_config", "config_from", "is_number"]

_LEAST: dict[str, int] = {
    **dict.fromkeys(("width", "edge_width", "attention_width", "heads", "head_width", "function_units"), 1),
    **dict.fromkeys(("edge_units", "node_hidden", "edge_hidden", "expansion", "token", "max_free"), 1),
    **dict.fromkeys(("layers", "depth", "head_layers", "frequencies", "probes", "wide_from", "chunk", "set_heads"), 0),
}
"""Smallest whole number that an option can be."""
_KINDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", NoneType: "None"}


def is_number(value: Any) -> bool:
    """Whether this is a whole number; ``True`` is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_answer(out_features: Any, copies: Any) -> None:
    """Refuse what is neither a number of answers nor a number of versions of the weights.

    Raises:
        SpecError: ``out_features`` or ``copies`` is out of range, or there are several copies of vectors.
    """
    if out_features is not None and (not is_number(out_features) or out_features < 1):
        raise SpecError(f"'out_features' must be a positive number, or None for weights (got {out_features!r}).")
    if not is_number(copies) or copies < 1 or (copies > 1 and out_features is not None):
        raise SpecError(f"'copies' must be at least 1, and 1 where vectors are returned (got {copies!r}).")


def check_config(config: Any, owner: str) -> None:
    """Refuse options of the wrong type or outside their range, by name.

    Args:
        config: Dataclass of options.
        owner: Whose options, for the messages.

    Raises:
        SpecError: ``config`` is no dataclass, or an option has a value that its type or its range excludes.
    """
    if not is_dataclass(config) or isinstance(config, type):
        raise SpecError(f"'config' of {owner} must be its config class (got {config!r}). Pass {owner}Config(...).")
    _check_values(type(config), {field.name: getattr(config, field.name) for field in fields(config)}, owner)


def config_from(kind: type[Any], options: Mapping[str, Any], owner: str) -> Any:
    """Options as the config class ``kind``.

    Raises:
        SpecError: an option is unknown, or has a value that its type or its range excludes.
    """
    known = sorted(field.name for field in fields(kind))
    if unknown := sorted(set(map(str, options)) - set(known)):
        raise SpecError(f"'config' of {owner} has no option {unknown}. It has {known}.")
    _check_values(kind, options, owner)
    return kind(**options)


def _check_values(kind: type[Any], values: Mapping[str, Any], owner: str) -> None:
    hints = get_type_hints(kind)
    for name, value in values.items():
        if not _fits(hints[name], value):
            raise SpecError(f"'{name}' of {owner} must be {_words(hints[name])} (got {value!r}).")
        if is_number(value) and value < _LEAST.get(name, value):
            raise SpecError(f"'{name}' of {owner} must be at least {_LEAST[name]} (got {value}).")
        if name.endswith("dropout") and not 0 <= value <= 1:
            raise SpecError(f"'{name}' of {owner} must be a rate between 0 and 1 (got {value}).")
        if isinstance(value, float) and not math.isfinite(value):
            raise SpecError(f"'{name}' of {owner} must be finite (got {value}).")


def _fits(hint: Any, value: Any) -> bool:
    origin = get_origin(hint)
    if origin is Literal:
        return any(value == known and type(value) is type(known) for known in get_args(hint))
    if origin in (Union, UnionType):
        return any(_fits(part, value) for part in get_args(hint))
    if hint in (int, float):
        return is_number(value) or (hint is float and isinstance(value, float))
    return hint not in _KINDS or isinstance(value, hint)


def _words(hint: Any) -> str:
    origin = get_origin(hint)
    if origin is Literal:
        return f"one of {list(get_args(hint))}"
    if origin in (Union, UnionType):
        return " or ".join(map(_words, get_args(hint)))
    return _KINDS.get(hint, str(hint))
