"""Learning on the weights of neural networks.

The parts are ``weightspace.graphs`` (trace a module, see its symmetries and its parameter graph), ``weightspace.zoo``
(populations of trained networks on disk), ``weightspace.layers`` and ``weightspace.metanets`` (networks that read
networks), ``weightspace.training`` and ``weightspace.tasks`` (what to do with them). They are loaded when first used,
so that ``import weightspace`` costs nothing.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"

__all__ = ["__version__"]

_PARTS = (
    "commands",
    "errors",
    "graphs",
    "hypernets",
    "layers",
    "metanets",
    "optim",
    "tasks",
    "testing",
    "training",
    "zoo",
)


def __getattr__(name: str) -> ModuleType:
    if name in _PARTS:
        return importlib.import_module(f"weightspace.{name}")
    raise AttributeError(f"Module 'weightspace' has no attribute '{name}'. Its parts are {', '.join(_PARTS)}.")


def __dir__() -> list[str]:
    return [*__all__, *_PARTS]
