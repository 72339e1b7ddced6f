"""What a user meets first: importing is silent, quick and needs no extra; every public name says what it is."""

import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import weightspace

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = [
    info.name
    for info in pkgutil.walk_packages(weightspace.__path__, "weightspace.")
    if info.ispkg or info.name.count(".") == 1
]
MODULES = [info.name for info in pkgutil.walk_packages(weightspace.__path__, "weightspace.")]


def _python(code: str, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_import_is_silent_and_loads_nothing_heavy():
    result = _python("import weightspace, sys; assert 'torch' not in sys.modules, 'torch was loaded'", "-W", "error")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_an_unknown_part_is_named():
    with pytest.raises(AttributeError, match="has no attribute 'grafs'. Its parts are .*graphs"):
        weightspace.grafs  # noqa: B018


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is(name):
    module = importlib.import_module(name)
    source = Path(module.__file__ or "").read_text()
    assert not source.strip() or (module.__doc__ or "").strip(), f"{name} has no docstring"


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_exists_and_is_documented(name):
    module = importlib.import_module(name)
    for public in getattr(module, "__all__", []):
        thing = getattr(module, public)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert (thing.__doc__ or "").strip(), f"{name}.{public} has no docstring"


def test_nothing_is_imported_under_the_name_of_a_link():
    wrong = [name for name in sys.modules if name.split(".")[0] in {"graphs", "hypernets", "zoo"}]
    assert not wrong, f"imported past the package: {wrong}"


_WITHOUT_EXTRAS = """
import sys
for name in ("cyclopts", "matplotlib"):  # jinja2 is there without the extra: torch itself needs it
    sys.modules[name] = None
"""


def test_a_plain_install_imports_every_part_and_traces():
    code = """
import importlib, pkgutil, torch, weightspace
for info in pkgutil.walk_packages(weightspace.__path__, "weightspace."):
    if not info.name.startswith("weightspace.commands."):
        importlib.import_module(info.name)
from weightspace.graphs import trace
net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
traced = trace(net, torch.zeros(1, 2))
traced.weight_space(), traced.parameter_graph(dict(net.named_parameters()))
"""
    result = _python(_WITHOUT_EXTRAS + code)
    assert result.returncode == 0, result.stderr


def test_the_command_without_its_extra_says_how_to_get_it():
    result = _python(_WITHOUT_EXTRAS + "from weightspace.commands import main; sys.exit(main(['demo']))")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "pip install 'weightspace[cli]'" in result.stderr
