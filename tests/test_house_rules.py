"""What holds for every file of the package: import direction, size, forbidden calls, no paths of somebody's machine."""

import ast
import re
import subprocess
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from itertools import combinations
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "weightspace"
FILES = sorted(PACKAGE.rglob("*.py"))

# What each part may import of the others; a part may always import itself.
MAY_IMPORT = {
    "errors": set(),
    "graphs": {"errors"},
    "zoo": {"errors", "graphs"},
    "layers": {"errors", "graphs"},
    "metanets": {"errors", "graphs", "layers"},
    "hypernets": {"errors", "graphs", "layers", "zoo"},
    "optim": {"errors", "graphs", "layers", "metanets", "zoo"},
    "training": {"errors", "graphs", "layers", "metanets", "zoo"},
    "tasks": {"errors", "graphs", "layers", "metanets", "hypernets", "optim", "training", "zoo"},
    "commands": {"errors", "graphs", "layers", "metanets", "hypernets", "optim", "training", "zoo", "tasks"},
    "testing": {"errors", "graphs"},
}
EXTRAS = {"cyclopts", "matplotlib", "jinja2"}
MAY_IMPORT_EXTRAS = (
    "weightspace/commands/",
    "weightspace/graphs/drawing/drawing.py",
    "weightspace/graphs/matching/merging.py",
    "weightspace/zoo/report.py",
)
FORBIDDEN_CALLS = {"eval", "exec", "print", "breakpoint", "input"}
FORBIDDEN_MODULES = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
# Asks whether an exception can cross from a worker to its parent, as multiprocessing will send it; no data is read.
GLOBAL_SEEDS = {"torch.manual_seed", "np.random.seed", "numpy.random.seed", "random.seed"}
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|Users|root|work|mnt|tmp)/\w|[A-Z]:\\\\")
MAX_FILE_LINES, MAX_FUNCTION_LINES = 600, 60


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _imports(tree: ast.Module) -> list[str]:
    """Every imported module, wherever in the file; ``from weightspace import zoo`` counts as ``weightspace.zoo``."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that the direction can be read"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def _direction_errors(part: str, imports: list[str]) -> list[str]:
    targets = {name.split(".")[1] for name in imports if name.startswith("weightspace.")}
    return sorted(targets - MAY_IMPORT[part] - {part, "__version__"})


def _functions(tree: ast.Module) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def _body(function: ast.FunctionDef) -> list[ast.stmt]:
    """Statements of a function behind its docstring."""
    return function.body[1:] if ast.get_docstring(function) else function.body


def _lines(function: ast.FunctionDef) -> int:
    body = _body(function)
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def _dotted(node: ast.expr) -> str:
    return f"{_dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _restored_calls(tree: ast.Module) -> set[int]:
    """Ids of the nodes inside ``with torch.random.fork_rng(...)``: what is seeded there is put back."""
    blocks = [w for w in ast.walk(tree) if isinstance(w, ast.With) and "fork_rng" in ast.dump(w.items[0])]
    return {id(node) for block in blocks for node in ast.walk(block)}


def _forbidden(tree: ast.Module) -> list[str]:
    restored = _restored_calls(tree)
    found = [name for name in _imports(tree) if name.split(".")[0] in FORBIDDEN_MODULES]
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append("bare except")
        if isinstance(node, ast.Raise) and "NotImplementedError" in ast.dump(node):
            found.append("NotImplementedError")
        if isinstance(node, ast.Call):
            call, keywords = _dotted(node.func), {k.arg: k.value for k in node.keywords}
            if call in FORBIDDEN_CALLS | {"torch.load", "torch.save"} or (
                call in GLOBAL_SEEDS and id(node) not in restored
            ):
                found.append(call)
            if call.endswith(("np.load", "numpy.load")) and getattr(keywords.get("allow_pickle"), "value", False):
                found.append(f"{call}(allow_pickle=True)")
    return found


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_imports_go_one_way(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts[0] == "__init__":
        assert _imports(_tree(path)) == ["importlib", "types.ModuleType"]
        return
    wrong = _direction_errors(parts[0], _imports(_tree(path)))
    assert not wrong, f"{_name(path)} may import {sorted(MAY_IMPORT[parts[0]])}, not {wrong}"


def test_the_direction_check_sees_a_wrong_import():
    assert _direction_errors("graphs", _imports(ast.parse("def f():\n    from weightspace import zoo"))) == ["zoo"]
    assert _direction_errors("zoo", ["weightspace.graphs.trace", "torch", "weightspace.tasks"]) == ["tasks"]


def _taken_from(imports: list[str], modules: dict[str, Path]) -> set[Path]:
    """Files of the package that imports name: a module, or what is in one."""
    named = (name if name in modules else name.rpartition(".")[0] for name in imports)
    return {modules[name] for name in named if name in modules}


def test_no_file_imports_itself_by_way_of_others():
    """Imports inside functions count: what needs them to load is a circle all the same."""
    dotted = {f: ".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for f in FILES}
    modules = {name: f for f, name in dotted.items()}
    TopologicalSorter({f: _taken_from(_imports(_tree(f)), modules) - {f} for f in FILES}).prepare()


def test_the_circle_check_sees_an_import_inside_a_function():
    a, b = Path("a.py"), Path("b.py")
    sources = {a: "from weightspace.b import x", b: "def f():\n    import weightspace.a"}
    modules = {"weightspace.a": a, "weightspace.b": b}
    with pytest.raises(CycleError):
        TopologicalSorter({f: _taken_from(_imports(ast.parse(t)), modules) for f, t in sources.items()}).prepare()


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_extras_stay_optional(path):
    used = {name.split(".")[0] for name in _imports(_tree(path))} & EXTRAS
    assert not used or _name(path).startswith(MAY_IMPORT_EXTRAS), f"{_name(path)} imports {used}"


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_nothing_forbidden_is_called(path):
    assert not _forbidden(_tree(path))


@pytest.mark.parametrize(
    "source",
    ["import pickle", "eval('1')", "print(1)", "torch.load('x')", "torch.manual_seed(0)", "try: f()\nexcept: g()",
     "raise NotImplementedError", "numpy.load('x', allow_pickle=True)"],
)  # fmt: skip
def test_the_forbidden_check_sees(source):
    assert _forbidden(ast.parse(source))


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_files_and_functions_are_short(path):
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES
    long = {f.name: _lines(f) for f in _functions(_tree(path)) if _lines(f) > MAX_FUNCTION_LINES}
    assert not long, f"functions of {_name(path)} longer than {MAX_FUNCTION_LINES} lines: {long}"


def _shape(function: ast.FunctionDef) -> Counter[str]:
    """The lines of a function with names taken out; equal counters are the same code under other names."""
    renamed = ast.parse("\n".join(ast.unparse(s) for s in _body(function)))
    for node in ast.walk(renamed):
        if isinstance(node, ast.Name):
            node.id = "_"
    return Counter(ast.unparse(renamed).splitlines())


def _near_duplicates(trees: dict[str, ast.Module], min_lines: int = 8, limit: float = 0.85) -> list[str]:
    shapes = [
        (f"{name}:{f.name}", _shape(f))
        for name, tree in trees.items()
        for f in _functions(tree)
        if _lines(f) >= min_lines
    ]
    return [
        f"{a} ~ {b}"
        for (a, x), (b, y) in combinations(shapes, 2)
        if (x & y).total() > limit * (x | y).total() and not (a.endswith(":__init__") and b.endswith(":__init__"))
    ]


def test_no_two_functions_are_near_duplicates():
    assert not _near_duplicates({_name(path): _tree(path) for path in FILES})


def test_the_duplicate_check_sees_a_renamed_copy():
    body = "\n".join(f"    {{0}}{i} = {{0}}.take({i}, other={i * i})" for i in range(9))
    tree = ast.parse(f"def f(x):\n{body.format('x')}\ndef g(y):\n{body.format('y')}")
    assert _near_duplicates({"file": tree}) == ["file:f ~ file:g"]


def _tracked_text_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout, so there is no list of tracked files")
    suffixes = {".py", ".md", ".toml", ".yml", ".html", ".json", ".csv", ""}
    paths = [ROOT / name for name in listed.stdout.splitlines()]
    return [p for p in paths if p.is_file() and not p.is_symlink() and p.suffix in suffixes]


def test_no_file_names_a_path_of_somebodys_machine():
    this = Path(__file__).resolve()
    found = {_name(p): MACHINE_PATH.findall(p.read_text(errors="replace")) for p in _tracked_text_files() if p != this}
    assert not {name: hits for name, hits in found.items() if hits}


def test_the_parts_stand_at_the_top_as_links():
    for name in ("graphs", "hypernets", "zoo"):
        link = ROOT / name
        assert link.is_symlink()
        assert link.resolve() == PACKAGE / name
