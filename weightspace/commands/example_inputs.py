"""Example inputs of a module, as they are written on a command line."""

import ast
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from weightspace.errors import SpecError

__all__ = ["example_inputs", "pick_output"]

_FORM = "[NAME=][int:|bool:]SIZES[@BELOW], such as 1,3,32,32 or int:1,16@50257 or input_ids=int:1,16@50257"


def example_inputs(texts: Sequence[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword inputs.

    ``1,3,32,32`` is a float tensor of that shape, normally distributed; ``int:1,16@50257`` integers from 0 to 50256 (0
    and 1 without ``@``); ``bool:1,16`` all true. ``NAME=`` in front makes it a keyword input, whose value may also be a
    literal (``use_cache=False``).

    Raises:
        SpecError: a text has another form.

    Example:
        >>> args, kwargs = example_inputs(["1,3,32,32", "mask=bool:1,10", "deep=False"])
        >>> tuple(args[0].shape), tuple(kwargs["mask"].shape), kwargs["deep"]
        ((1, 3, 32, 32), (1, 10), False)
    """
    generator = torch.Generator().manual_seed(0)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for text in texts:
        name, has_name, value = text.rpartition("=")
        if not has_name:
            args.append(_tensor(value, generator))
        elif not name.strip().isidentifier() or name.strip() in kwargs:
            raise SpecError(f"'--input {text}' must name a keyword of forward, once (got '{name}').")
        else:
            kwargs[name.strip()] = _literal_or_tensor(value, generator)
    return tuple(args), kwargs


def _literal_or_tensor(text: str, generator: torch.Generator) -> Any:
    if text.strip() in ("True", "False", "None") or text.strip()[:1] in ("'", '"'):
        return ast.literal_eval(text.strip())
    return _tensor(text, generator)


def _tensor(text: str, generator: torch.Generator) -> Tensor:
    kind, has_kind, rest = text.strip().rpartition(":")
    sizes, has_limit, limit = rest.partition("@")
    numbers = [size.strip() for size in sizes.split(",")]
    good = all(size.isdecimal() and int(size) > 0 for size in numbers)
    good &= (has_kind, kind) in (("", ""), (":", "int"), (":", "float"), (":", "bool"))
    good &= not has_limit or (kind == "int" and limit.strip().isdecimal() and int(limit) > 0)
    if not good:
        raise SpecError(f"'--input' must be positive sizes with commas between: {_FORM} (got '{text}').")
    shape = [int(size) for size in numbers]
    if kind == "int":
        return torch.randint(int(limit) if has_limit else 2, shape, generator=generator)
    return torch.ones(shape, dtype=torch.bool) if kind == "bool" else torch.randn(shape, generator=generator)


def pick_output(name: str) -> Callable[[Any], Any]:
    """What to take of a module's output: an attribute or key (``logits``), or a place in a tuple (``0``).

    Raises:
        SpecError: when called on an output that has no such thing.
    """

    def pick(output: Any) -> Any:
        if name.lstrip("-").isdecimal() and isinstance(output, (tuple, list)) and int(name) < len(output):
            return output[int(name)]
        if isinstance(output, dict) and name in output:
            return output[name]
        if hasattr(output, name):
            return getattr(output, name)
        raise SpecError(f"'--output {name}' is not in the output of the module (a {type(output).__name__}).")

    return pick
