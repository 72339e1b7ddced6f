"""The tree of commands, and how a command line that goes wrong ends: one sentence and an exit code."""

import logging
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter

import weightspace
from weightspace.commands.command_line import quoted, running
from weightspace.commands.option_values import converted
from weightspace.errors import WeightspaceError

__all__ = ["app", "run"]

_EPILOGUE = "--debug behind any command shows the whole traceback of an error."

app = App(
    name="weightspace",
    help="Learning on the weights of neural networks: trace, build zoos, train metanetworks.",
    help_epilogue=_EPILOGUE,
    version=weightspace.__version__,
    suppress_keyboard_interrupt=False,
    # `--widths 2 32 32 1` instead of one flag per number, and no `--empty-widths`.
    default_parameter=Parameter(consume_multiple=True, negative_iterable=(), converter=converted),
)
zoo = App(name="zoo", help="Build, look at and check populations of trained networks.")
app.command(zoo)

# By import path, so that `weightspace --version` or a typing error does not wait for torch.
_HERE = "weightspace.commands"
app.command(f"{_HERE}.demo:demo", name="demo", help="Build a zoo of digit INRs, train metanetworks, write one page.")
app.command(f"{_HERE}.graph:graph", name="graph", help="Trace a module: its groups, its symmetries, its drawing.")
app.command(f"{_HERE}.train:train", name="train", help="Train a metanetwork on a zoo, score it on unseen images.")
app.command(f"{_HERE}.train:evaluate", name="evaluate", help="Score a trained metanetwork on a split of a zoo.")
app.command(f"{_HERE}.bench:bench", name="bench", help="Step time, memory and best batch size on a zoo.")
zoo.command(f"{_HERE}.build_zoo:build", name="build", help="Train the networks of a recipe; resumes where it stopped.")
zoo.command(f"{_HERE}.check_zoo:info", name="info", help="What is in a zoo.")
zoo.command(f"{_HERE}.check_zoo:verify", name="verify", help="Whether a zoo is complete and unaltered.")


def run(arguments: Sequence[str]) -> int:
    """Parse and run one command line.

    Args:
        arguments: Words behind the program's name. ``--debug`` anywhere lets errors through with their traceback.

    Returns:
        The exit code; see :func:`weightspace.commands.main`.
    """
    debug = "--debug" in arguments
    words = [word for word in arguments if word != "--debug"]
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        with running(words):
            result = app(words, exit_on_error=False, print_error=False, result_action="return_value")
    except KeyboardInterrupt:
        sys.stderr.write(f"\nInterrupted. The same command resumes: {quoted(words)}\n")
        return 130
    except (CycloptsError, WeightspaceError, OSError) as error:
        if debug:
            raise
        sys.stderr.write(f"{_one_sentence(error)}\n")
        return 2
    return result if isinstance(result, int) else 0


def _one_sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, CycloptsError):
        return f"{text.rstrip('.')}. See weightspace --help."
    return text
