"""From words of a command line to a module and its example inputs."""

import ast
import importlib
import os
import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from weightspace.errors import SpecError

__all__ = ["example_inputs", "load_module"]


def load_module(target: str) -> nn.Module:
    """The module that ``package.module:name`` or ``package.module:name(arguments)`` stands for.

    The name may be a module, or a class or function that makes one. Arguments are literals (numbers, strings, tuples,
    ...), never code. Files of the working directory can be named, as in ``python -m``.

    Raises:
        SpecError: the text has another form, cannot be imported, or does not give a module.

    Example:
        >>> load_module("torch.nn:Linear(3, out_features=8)")
        Linear(in_features=3, out_features=8, bias=True)
    """
    path, _, call = target.partition(":")
    name, has_arguments, arguments = call.partition("(")
    if not (path and name) or (has_arguments and not arguments.endswith(")")):
        raise SpecError(
            f"'{target}' must have the form package.module:name or package.module:name(arguments), for instance "
            "'torch.nn:Linear(3, 8)'; or give the folder of a zoo."
        )
    args, kwargs = _literals(target, arguments.removesuffix(")"))
    thing = _import(path, name)
    if callable(thing) and not isinstance(thing, nn.Module):
        try:
            thing = thing(*args, **kwargs)
        except TypeError as error:
            raise SpecError(f"Calling '{target}' failed: {error}. Give its arguments in brackets behind it.") from error
    if not isinstance(thing, nn.Module):
        raise SpecError(f"'{target}' must be or return a torch.nn.Module (got {type(thing).__name__}).")
    return thing


def _literals(target: str, arguments: str) -> tuple[list, dict]:
    try:
        call = ast.parse(f"f({arguments})", mode="eval").body
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
            raise ValueError("more than one pair of brackets")
        args = [ast.literal_eval(arg) for arg in call.args]
        return args, {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise SpecError(
            f"The arguments in '{target}' must be literals such as 3, 'relu' or (2, 32) ({error})."
        ) from error


def _import(path: str, name: str) -> object:
    working_directory = os.getcwd()
    sys.path.insert(0, working_directory)
    try:
        return getattr(importlib.import_module(path), name)
    except ImportError as error:
        raise SpecError(
            f"'{path}' cannot be imported ({error}). Is it installed, or in the working directory?"
        ) from error
    except AttributeError as error:
        raise SpecError(
            f"Module '{path}' has no '{name}'. Name a torch.nn.Module or a function that makes one."
        ) from error
    finally:
        sys.path.remove(working_directory)


def example_inputs(shapes: Sequence[str]) -> tuple[Tensor, ...]:
    """Random inputs of the given shapes, each written as ``1,3,32,32``.

    Raises:
        SpecError: a shape is not a list of positive numbers.

    Example:
        >>> [tuple(x.shape) for x in example_inputs(["1,3,32,32", "1,10"])]
        [(1, 3, 32, 32), (1, 10)]
    """
    generator = torch.Generator().manual_seed(0)
    inputs = []
    for text in shapes:
        sizes = text.split(",")
        if not all(size.strip().isdecimal() and int(size) > 0 for size in sizes):
            raise SpecError(f"'--input' must be positive sizes with commas between, such as 1,3,32,32 (got '{text}').")
        inputs.append(torch.randn([int(size) for size in sizes], generator=generator))
    return tuple(inputs)
