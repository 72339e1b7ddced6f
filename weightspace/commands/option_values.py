"""Values of options: text as the literal it spells, and whole numbers that are not rounded."""

import ast
from collections.abc import Mapping
from typing import Any

from cyclopts import CoercionError, convert

__all__ = ["converted", "literals"]


def literals(options: Mapping[str, str] | None) -> dict[str, Any]:
    """Numbers, ``True``, ``False`` and ``None`` where a text spells one; the text itself otherwise.

    Example:
        >>> literals({"dropout": "0.5", "width": "32", "gain": "None", "symmetry": "sign"})
        {'dropout': 0.5, 'width': 32, 'gain': None, 'symmetry': 'sign'}
    """
    return {name: _literal(text) for name, text in (options or {}).items()}


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def converted(hint: Any, tokens: Any) -> Any:
    """As cyclopts converts, which alone would round 64.7 to a whole number."""
    return convert(hint, tokens, _unrounded)


def _unrounded(kind: type, text: str) -> Any:
    try:
        value = convert(kind, (text,))
    except CoercionError as error:
        raise ValueError(text) from error  # the call of convert around this one knows the name of the option
    if kind is int and "." in text and value != float(text):
        raise ValueError(text)
    return value
