"""``weightspace graph``: trace a module, say what its symmetries are, check them, draw it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from torch import Tensor

from weightspace.commands.console import say
from weightspace.commands.example_inputs import example_inputs, pick_output
from weightspace.commands.graph_view import GroupRow, group_rows, group_table, page_content, write_page
from weightspace.commands.load_module import load_module
from weightspace.commands.report.style import save
from weightspace.errors import SpecError
from weightspace.graphs import Trace, Verification, WeightSpace, draw_operators, trace
from weightspace.graphs import draw as draw_neurons
from weightspace.tasks import readable, trace_zoo
from weightspace.zoo import Zoo

__all__ = ["graph"]

_MOST_NEURON_EDGES = 5000
_LARGE = 30_000_000


def graph(
    target: str,
    *,
    input: Annotated[list[str] | None, Parameter(consume_multiple=False)] = None,
    output: str | None = None,
    draw: Path | None = None,
    html: Path | None = None,
    json: bool = False,
    boxes: int = 90,
    trials: int | None = None,
    seed: int = 0,
) -> int:
    """Trace a module, print its neuron groups, check its symmetries, and draw it.

    Ends with exit code 1 if the symmetries do not hold.

    Args:
        target: package.module:name, package.module:name(arguments), file.py:name(arguments), or the folder of a zoo.
            Arguments are literals, or calls of names in the same place: transformers:GPT2LMHeadModel(GPT2Config()).
        input: Example input, once for every argument of forward: 1,3,32,32 is a float tensor of that shape,
            int:1,16@50257 token ids below 50257, bool:1,16 a mask of ones. NAME= in front makes it a keyword input:
            input_ids=int:1,16@50257, use_cache=False. A zoo whose forward recipe has an input_shape needs none.
        output: What of the output counts: a name (logits) or a place (0). By default all tensors in it; those that
            expose the inside of the module hold its neurons where they are.
        draw: PNG file to draw to: every neuron of a small network, boxes of operations of a large one.
        html: HTML file to write: the same to open, close, search and point at, self-contained.
        json: Print everything as JSON instead.
        boxes: About how many boxes the PNG has at most; equal modules in a row are drawn once where there are more.
        trials: How many random group elements the check tries; by default 3, 1 for networks above 30 million scalars.
        seed: Of the weights, inputs and group elements that the check draws.
    """
    if draw is not None and draw.suffix != ".png":
        raise SpecError(f"'--draw' writes PNG files (got '{draw}'); '--html' writes a page that scales.")
    if trials is not None and trials < 1:
        raise SpecError(f"'--trials' must be at least 1 (got {trials}).")
    traced, weights = (_trace_zoo_item if Path(target).is_dir() else _trace_module)(target, input or [], output)
    space = traced.weight_space(check=False)
    rows = group_rows(space)
    try:
        check = traced.verify(trials or (1 if _scalars(traced) > _LARGE else 3), seed)
    except (IndexError, RuntimeError, ValueError) as error:
        raise SpecError(f"'{target}' does not run on these inputs: {str(error).splitlines()[0]}.") from error
    if json:
        say(_as_json(target, traced, space, rows, check))
    else:
        for line in (_title(traced, space), group_table(rows), str(traced.layout()), str(check)):
            say(line)
    small = (draw or html) and traced.layout().num_edges <= _MOST_NEURON_EDGES
    neurons = traced.parameter_graph(weights) if small else None
    if draw is not None and neurons is not None:
        save(draw_neurons(neurons, title=target), draw)
    elif draw is not None:
        save(draw_operators(traced.operator_graph(), max_boxes=boxes, title=target), draw)
    if html is not None:
        write_page(page_content(traced.operator_graph(), space, rows, _facts(traced, check), neurons), html, target)
    for path in (draw, html):
        if path is not None and not json:
            say(f"Written to {path}.")
    return 0 if check else 1


def _scalars(traced: Trace) -> int:
    return sum(t.numel() for t in traced.example_weights.values())


def _title(traced: Trace, space: WeightSpace) -> str:
    return (
        f"{len(traced.example_weights)} tensors, {_scalars(traced):,} scalars, "
        f"{len(space.permutable)} neuron groups that move, log order {space.log_order:.6g}"
    )


def _as_json(target: str, traced: Trace, space: WeightSpace, rows: list[GroupRow], check: Verification) -> str:
    content: dict[str, Any] = {
        "target": target,
        "scalars": _scalars(traced),
        "log_order": space.log_order,
        "groups": [asdict(row) for row in rows],
        "verification": {**asdict(check), "passed": check.ok},
        "nodes": traced.layout().num_nodes,
        "edges": traced.layout().num_edges,
        "operator_graph": traced.operator_graph().to_json(),
    }
    return json.dumps(content)


def _facts(traced: Trace, check: Verification) -> list[tuple[str, str]]:
    """What stands at the top of the page."""
    return [
        ("scalars", f"{_scalars(traced):,}"),
        ("tensors", f"{len(traced.example_weights):,}"),
        ("operations", f"{len(traced.operator_graph()):,}"),
        ("log order of the group", f"{traced.weight_space(check=False).log_order:.6g}"),
        ("largest deviation under it", f"{check.deviation:.1e} ({'passed' if check else 'FAILED'})"),
    ]


def _trace_module(target: str, inputs: list[str], output: str | None) -> tuple[Trace, dict[str, Tensor]]:
    args, kwargs = example_inputs(inputs)
    module = load_module(target)
    if not inputs:
        raise SpecError(f"'{target}' needs an example input. Give its shape, batch axis first: --input 1,3,32,32.")
    traced = trace(module, *args, outputs=None if output is None else pick_output(output), **kwargs)
    return traced, traced.example_weights


def _trace_zoo_item(folder: str, inputs: list[str], output: str | None) -> tuple[Trace, dict[str, Tensor]]:
    if output is not None:
        raise SpecError("'--output' is for modules; the networks of a zoo have one output.")
    zoo = readable(Zoo.open(folder))
    args, kwargs = example_inputs(inputs)
    if kwargs or len(args) > 1 or not all(x.is_floating_point() for x in args):
        raise SpecError(f"'--input' of a zoo must be one shape such as 1,3,32,32 (got {', '.join(inputs)}).")
    return trace_zoo(zoo, tuple(args[0].shape) if args else None), zoo[0].weights
