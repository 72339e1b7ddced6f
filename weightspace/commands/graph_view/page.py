"""Writes the page: one HTML file with everything inside, which needs no server and no network."""

from pathlib import Path
from typing import Any

import jinja2

import weightspace

__all__ = ["write_page"]


def write_page(content: dict[str, Any], path: Path, title: str) -> Path:
    """Write the page of a traced network.

    Args:
        content: From :func:`weightspace.commands.graph_view.page_content`.
        path: Where to; its folder is made if needed.
        title: Heading.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("weightspace.commands.graph_view"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    # Without spaces: a large network has some thousand lines.
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False}
    text = environment.get_template("graph.html").render(
        content=content, title=title, facts=content["facts"], version=weightspace.__version__
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
