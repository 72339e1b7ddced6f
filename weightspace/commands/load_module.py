"""From words of a command line to a module."""

import ast
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from weightspace.errors import SpecError

__all__ = ["load_module"]


def load_module(target: str) -> nn.Module:
    """The module that ``package.module:name`` or ``file.py:name`` stands for, with arguments in brackets behind it.

    The name may be a module, or a class or function that makes one. Arguments are literals (numbers, strings, tuples,
    ...), or calls of other names of the same file with literals in them (``GPT2LMHeadModel(GPT2Config(n_layer=2))``);
    never code. Files of the working directory can be named as packages are, as in ``python -m``.

    Raises:
        SpecError: the text has another form, cannot be imported, or does not give a module.

    Example:
        >>> load_module("torch.nn:Linear(3, out_features=8)")
        Linear(in_features=3, out_features=8, bias=True)
    """
    path, _, call = target.partition(":")
    name, has_arguments, _ = call.partition("(")
    if not (path and name) or (has_arguments and not call.endswith(")")):
        raise SpecError(
            f"'{target}' must have the form package.module:name, package.module:name(arguments) or file.py:name, for "
            "instance 'torch.nn:Linear(3, 8)'; or give the folder of a zoo."
        )
    source = _import_file(Path(path)) if path.endswith(".py") else _import(path)
    if has_arguments:
        thing = _call(target, source, call)
    else:
        thing = _attribute(source, name)
        thing = thing if isinstance(thing, nn.Module) or not callable(thing) else _called(target, thing, [], {})
    if not isinstance(thing, nn.Module):
        raise SpecError(f"'{target}' must be or return a torch.nn.Module (got {type(thing).__name__}).")
    return thing


def _call(target: str, source: ModuleType, text: str) -> Any:
    try:
        call = ast.parse(text, mode="eval").body
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
            raise ValueError("more than one pair of brackets")
        return _evaluated(target, source, call)
    except SpecError:
        raise
    except (SyntaxError, ValueError) as error:
        raise SpecError(
            f"The arguments in '{target}' must be literals such as 3, 'relu' or (2, 32), or calls of names in the same "
            f"file with literals in them ({error})."
        ) from error


def _evaluated(target: str, source: ModuleType, node: ast.expr) -> Any:
    """A literal, or the result of calling a name of the file."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        return ast.literal_eval(node)
    args = [_evaluated(target, source, arg) for arg in node.args]
    kwargs = {str(keyword.arg): _evaluated(target, source, keyword.value) for keyword in node.keywords}
    if "None" in kwargs:
        raise ValueError("arguments cannot be unpacked with **")
    return _called(target, _attribute(source, node.func.id), args, kwargs)


def _called(target: str, thing: Any, args: list, kwargs: dict) -> Any:
    try:
        return thing(*args, **kwargs)
    except Exception as error:  # it may be anybody's code
        raise SpecError(
            f"Calling '{target}' failed ({type(error).__name__}: {error}). Give its arguments in brackets behind it, "
            "such as it takes."
        ) from error


def _attribute(source: ModuleType, name: str) -> Any:
    try:
        return getattr(source, name)
    except AttributeError as error:
        raise SpecError(
            f"Module '{source.__name__}' has no '{name}'. Name a torch.nn.Module or a function that makes one."
        ) from error
    except ImportError as error:  # packages that import their parts when asked for them
        raise SpecError(f"'{source.__name__}' cannot give '{name}' ({error}).") from error


def _import(path: str) -> ModuleType:
    if path.startswith(".") or Path(path).name != path:
        raise SpecError(f"'{path}' is no name of a package. A file is named with its ending: '{path}.py:...'.")
    working_directory = os.getcwd()
    sys.path.insert(0, working_directory)
    try:
        return importlib.import_module(path)
    except ImportError as error:
        raise SpecError(
            f"'{path}' cannot be imported ({error}). Is it installed, or in the working directory?"
        ) from error
    finally:
        sys.path.remove(working_directory)


def _import_file(path: Path) -> ModuleType:
    """Import a file by its path; what it imports may stand beside it."""
    spec = importlib.util.spec_from_file_location(path.stem, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise SpecError(f"There is no file '{path}'. Give the path of a Python file, as in 'nets/small.py:Net'.")
    source = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(source)
    except ImportError as error:
        raise SpecError(f"'{path}' cannot be imported ({error}). Is what it imports installed?") from error
    finally:
        sys.path.remove(folder)
    return source
