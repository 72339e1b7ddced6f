"""Every Python block of the guides runs, at toy size, in a process of its own."""

import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GUIDES = [
    path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] if "```python" in path.read_text()
]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LINK = re.compile(r"\[[^\]]*\]\(([^)#:]+?)(?:#[^)]*)?\)")


def _run(code: str, folder: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_the_code_of_a_guide_runs(path, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)
    _run("\n".join(blocks), tmp_path)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs(path, tmp_path):
    _run(f"import runpy; runpy.run_path({str(path)!r}, run_name='__main__')", tmp_path)


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_links_between_files_lead_somewhere(path):
    dead = [target for target in LINK.findall(path.read_text()) if not (path.parent / target).exists()]
    assert not dead


@pytest.mark.parametrize("part", ["graphs", "layers", "metanets", "training"])
def test_the_reference_lists_every_public_class_and_function(part):
    module = importlib.import_module(f"weightspace.{part}")
    public = {
        n for n in module.__all__ if inspect.isclass(getattr(module, n)) or inspect.isfunction(getattr(module, n))
    }
    page = (ROOT / "docs" / "reference.md").read_text()
    listed = re.findall(rf"^::: weightspace\.{part}\.(\w+)$", page, re.MULTILINE)
    assert len(public) > 10
    assert sorted(listed) == sorted(public)
