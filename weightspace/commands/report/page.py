"""One HTML file that holds a whole report: numbers, tables and figures, readable without a network."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

import weightspace
from weightspace.commands.report.style import DPI

__all__ = ["Number", "Page", "Picture", "Table", "write_page"]

_CSS_PIXELS_PER_INCH = 96


@dataclass(frozen=True)
class Number:
    """A figure that stands large at the top, as text with its unit, and what it counts."""

    name: str
    value: str


@dataclass(frozen=True)
class Table:
    """A table of texts; numbers are already formatted with their units in the header."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A PNG on disk, its title, and a caption that says what it shows."""

    title: str
    caption: str
    path: Path


@dataclass(frozen=True)
class Page:
    """What a report page says.

    Args:
        title, lead: Heading and the one paragraph under it.
        numbers, tables, pictures: In the order they are shown.
        commands: Command lines that make the page again.
        date: Day of the run, as text.
    """

    title: str
    lead: str
    numbers: Sequence[Number]
    tables: Sequence[Table]
    pictures: Sequence[Picture]
    commands: Sequence[str]
    date: str


def write_page(page: Page, path: Path) -> Path:
    """Write the page as one self-contained file; all text is escaped, images are inlined.

    Raises:
        FileNotFoundError: a picture is not on disk.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("weightspace.commands.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    pictures = [_inlined(picture) for picture in page.pictures]
    text = environment.get_template("page.html").render(page=page, pictures=pictures, version=weightspace.__version__)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _inlined(picture: Picture) -> dict[str, Any]:
    data = picture.path.read_bytes()
    pixels = int.from_bytes(data[16:20], "big")  # the PNG header holds the width there
    width = round(pixels / DPI * _CSS_PIXELS_PER_INCH)
    return {
        "title": picture.title,
        "caption": picture.caption,
        "width": width,
        "data": base64.b64encode(data).decode(),
    }
