"""``weightspace graph``: trace a module, say what its symmetries are, check them, draw its parameter graph."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from torch import Tensor

from weightspace.commands.console import say
from weightspace.commands.load_module import example_inputs, load_module
from weightspace.commands.report.style import save
from weightspace.errors import SpecError, UnsupportedModuleError
from weightspace.graphs import Trace, trace
from weightspace.graphs import draw as draw_graph
from weightspace.tasks import readable, trace_zoo
from weightspace.zoo import Zoo

__all__ = ["graph"]


def graph(
    target: str,
    *,
    input: Annotated[list[str] | None, Parameter(consume_multiple=False)] = None,
    draw: Path | None = None,
    seed: int = 0,
) -> int:
    """Trace a module and print its weight space, its parameter graph and whether the symmetries hold.

    Ends with exit code 1 if they do not.

    Args:
        target: package.module:name, package.module:name(arguments), or the folder of a zoo.
        input: Shape of an example input, such as 1,3,32,32; once for every argument of forward.
            A zoo whose forward recipe has an input_shape needs none.
        draw: PNG file to draw the parameter graph to.
        seed: Of the weights, inputs and permutations that the check draws.
    """
    traced, weights = (
        _trace_zoo_item(target, input or []) if Path(target).is_dir() else _trace_module(target, input or [])
    )
    say(str(traced.weight_space()))
    try:
        say(str(traced.layout()))
    except UnsupportedModuleError as error:
        say(f"No parameter graph: {error}")
    check = traced.verify(seed=seed)
    say(str(check))
    if draw is not None:
        save(draw_graph(traced.parameter_graph(weights), title=target), draw)
        say(f"Drawn to {draw}.")
    return 0 if check else 1


def _trace_module(target: str, shapes: list[str]) -> tuple[Trace, dict[str, Tensor]]:
    module = load_module(target)
    if not shapes:
        raise SpecError(f"'{target}' needs an example input. Give its shape, batch axis first: --input 1,3,32,32.")
    traced = trace(module, *example_inputs(shapes))
    return traced, traced.example_weights


def _trace_zoo_item(folder: str, shapes: list[str]) -> tuple[Trace, dict[str, Tensor]]:
    zoo = readable(Zoo.open(folder))
    shape = tuple(example_inputs(shapes)[0].shape) if shapes else None
    return trace_zoo(zoo, shape), zoo[0].weights
