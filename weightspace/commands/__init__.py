"""The command line: thin words over the library.

``weightspace --help`` lists them. The words need the extra ``cli``; everything they do is in the library without it.
"""

import importlib.util
import sys
from collections.abc import Sequence

__all__ = ["main"]

_EXTRA = ("cyclopts", "matplotlib", "jinja2")


def _is_missing(module: str) -> bool:
    if module in sys.modules:
        return sys.modules[module] is None
    return importlib.util.find_spec(module) is None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; what the console script ``weightspace`` calls.

    Args:
        arguments: Words behind the program's name; those of the process if ``None``.

    Returns:
        The exit code: 0 done, 1 the answer is no (a broken zoo), 2 the input cannot be used, 130 interrupted.
    """
    missing = [module for module in _EXTRA if _is_missing(module)]
    if missing:
        sys.stderr.write(
            f"The command line needs {', '.join(missing)}, which a plain install leaves out: "
            "pip install 'weightspace[cli]'.\n"
        )
        return 2
    from weightspace.commands.app import run

    return run(sys.argv[1:] if arguments is None else arguments)
