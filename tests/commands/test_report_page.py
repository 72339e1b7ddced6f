"""The page holds everything itself and shows text as text."""

import base64
import re

import pytest
from matplotlib.figure import Figure

from weightspace.commands.report.page import Number, Page, Picture, Table, write_page
from weightspace.commands.report.style import save


@pytest.fixture
def page(tmp_path):
    picture = tmp_path / "figure.png"
    save(Figure(figsize=(5, 2)), picture)
    return Page(
        title="Zoo & <models>",
        lead="What it is.",
        numbers=[Number("test accuracy", "93.9 %")],
        tables=[Table("Results", ["model", "test"], [["operator", "93.9"]], note="One run.")],
        pictures=[Picture("Curves", "What they show.", picture)],
        commands=["weightspace demo"],
        date="2026-01-01",
    )


def test_the_page_needs_nothing_else(page, tmp_path):
    text = write_page(page, tmp_path / "new" / "index.html").read_text()
    assert base64.b64encode(page.pictures[0].path.read_bytes()).decode() in text
    assert f'width="{5 * 96}"' in text, "figures keep the size they were drawn for"
    assert not re.findall(r"(?:src|href)=\"(?!data:)", text), "nothing is loaded from elsewhere"
    assert "http" not in text
    for shown in ("93.9 %", "What they show.", "One run.", "weightspace demo", "2026-01-01"):
        assert shown in text


def test_text_is_escaped(page, tmp_path):
    text = write_page(page, tmp_path / "index.html").read_text()
    assert "<title>Zoo &amp; &lt;models&gt;</title>" in text


def test_light_and_dark(page, tmp_path):
    text = write_page(page, tmp_path / "index.html").read_text()
    assert "prefers-color-scheme: dark" in text


def test_a_missing_picture_is_an_error(page, tmp_path):
    page.pictures[0].path.unlink()
    with pytest.raises(FileNotFoundError, match=r"figure\.png"):
        write_page(page, tmp_path / "index.html")
