"""Learning on the weights of neural networks.

The parts are ``weightspace.graphs`` (trace a module, see its symmetries and its parameter graph), ``weightspace.zoo``
(populations of trained networks on disk), ``weightspace.layers`` and ``weightspace.metanets`` (networks that read
networks), ``weightspace.training`` and ``weightspace.tasks`` (what to do with them). They are loaded when first used,
so that ``import weightspace`` costs nothing.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "commands",
    "errors",
    "graphs",
    "hypernets",
    "layers",
    "metanets",
    "optim",
    "tasks",
    "training",
    "zoo",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"weightspace.{name}")
    raise AttributeError(f"Module 'weightspace' has no attribute '{name}'. Its parts are {', '.join(__all__[1:])}.")


def __dir__() -> list[str]:
    return __all__
