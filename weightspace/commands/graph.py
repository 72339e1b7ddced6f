"""``weightspace graph``: trace a module, say what its symmetries are, check them, draw its parameter graph."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from weightspace.commands.console import say
from weightspace.commands.load_module import example_inputs, load_module
from weightspace.commands.report.style import save
from weightspace.errors import SpecError
from weightspace.graphs import draw as draw_graph
from weightspace.graphs import trace
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
        draw: PNG file to draw the parameter graph to.
        seed: Of the weights, inputs and permutations that the check draws.
    """
    module = Zoo.open(target).architectures[0].build() if Path(target).is_dir() else load_module(target)
    if not input:
        raise SpecError(f"'{target}' needs an example input. Give its shape, batch axis first: --input 1,3,32,32.")
    inputs = example_inputs(input)
    traced = trace(module, *inputs)
    space, layout = traced.weight_space(), traced.layout()
    check = space.verify(module, *inputs, seed=seed)
    say(f"{space}\n{layout}\n{check}")
    if draw is not None:
        save(draw_graph(traced.parameter_graph(traced.example_weights), title=target), draw)
        say(f"Drawn to {draw}.")
    return 0 if check else 1
