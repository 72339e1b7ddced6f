"""The page and the table of ``weightspace graph``."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

from weightspace.commands import main
from weightspace.commands.graph_view import GroupRow, group_rows, group_table, page_content, write_page
from weightspace.graphs import trace
from weightspace.graphs.drawing.diagram import Diagram
from weightspace.graphs.drawing.diagram_layout import lay_out


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        h = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(h.transpose(1, 2).flatten(2))


class Net(nn.Module):
    """Two attention blocks between an embedding and a head."""

    def __init__(self):
        super().__init__()
        self.embed, self.blocks, self.head = nn.Embedding(11, 8), nn.Sequential(Block(), Block()), nn.Linear(8, 3)

    def forward(self, ids, scale=1.0):
        return {"logits": self.head(self.blocks(self.embed(ids))) * scale, "inside": self.embed(ids)}


@pytest.fixture(scope="module")
def traced():
    return trace(Net(), torch.zeros(1, 5, dtype=torch.int64), outputs=lambda out: out["logits"])


@pytest.fixture(scope="module")
def content(traced):
    space = traced.weight_space(check=False)
    return page_content(traced.operator_graph(), space, group_rows(space), [("scalars", "1")], traced.parameter_graph())


class _Page(HTMLParser):
    """Tags with their attributes, and the text of every script."""

    def __init__(self):
        super().__init__()
        self.tags, self.scripts = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script":
            self.scripts[-1] += data


def _parsed(path):
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def test_the_page_is_self_contained_and_says_everything(content, tmp_path):
    title = '</script><b>it\'s me & "you"'
    path = write_page(content, tmp_path / "new" / "page.html", title)
    text, page = path.read_text(encoding="utf-8"), _parsed(path)
    assert not [tag for tag, attrs in page.tags if {"src", "href"} & set(attrs) or tag in ("link", "iframe")]
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert title not in text
    assert json.loads(page.scripts[0]) == json.loads(json.dumps(content))


def test_groups_know_where_they_act(content, traced):
    operations = {o["name"]: o for o in content["operations"]}
    assert [t[0] for t in operations["embed"]["tensors"]] == ["embed.weight"]
    # the residual stream moves what is written to it and read from it
    stream = operations["embed"]["tensors"][0][3]
    assert len(stream) == 1
    assert all(
        stream[0] in operations[f"blocks.{k}.{part}"]["tensors"][0][3] for k in (0, 1) for part in ("qkv", "out")
    )
    rows = {row.name: row for row in group_rows(traced.weight_space(check=False))}
    assert rows[stream[0]].size == 8
    assert "embed.weight[1]" in rows[stream[0]].axes
    # heads, and inside each query/key and value dimensions
    nested = [row for row in rows.values() if row.parent]
    assert sorted(row.size for row in nested) == [4, 4, 4, 4]


def test_neurons_of_the_page_are_those_of_the_graph(content, traced):
    graph, neurons = traced.parameter_graph(), content["neurons"]
    assert len(neurons["places"]) == graph.num_nodes
    assert [neurons["source"], neurons["target"]] == graph.edge_index.tolist()
    assert torch.tensor(neurons["value"]).allclose(graph.edge_value, rtol=1e-4)


_NODE = """
const vm = require("vm"), fs = require("fs"), page = JSON.parse(fs.readFileSync(0));
const document = {getElementById: () => ({textContent: page.data}), createElementNS: null};
const out = vm.runInNewContext(page.code + ";JSON.stringify(layOut(0))", {document, JSON});
process.stdout.write(out);
"""


def _same(frame, other):
    assert len(frame.inner) == len(other.get("inner", []))
    for ours, theirs in zip(frame.inner, other.get("inner", []), strict=True):
        assert (ours.left, ours.top) == pytest.approx((theirs["x"], theirs["y"]))
        assert ours.height == pytest.approx(theirs["h"])
        _same(ours, theirs)
    for ours, theirs in zip(frame.lines, other.get("ways", []), strict=True):
        assert (*ours.start, ours.bend) == pytest.approx((theirs["x"], theirs["y"], theirs["bend"]))
        assert (*ours.end, ours.arrive) == pytest.approx((theirs["to"], theirs["end"], theirs["arrive"]))
        assert ours.has_arrow == theirs["arrow"]


def test_the_page_places_boxes_as_the_library_does(traced, content, tmp_path):
    if shutil.which("node") is None:
        pytest.skip("needs node to run the script of the page")
    page = _parsed(write_page(content, tmp_path / "page.html", "net"))
    code = page.scripts[1].partition("// -- drawing")[0].replace("world = $", "world = null && $")
    for closed in (True, False):
        data = json.loads(page.scripts[0])
        data["lengths"]["sign"] = 0.0  # pictures have no sign that opens a module
        for box in data["boxes"][1:]:
            box["closed"] = closed
        result = subprocess.run(
            ["node", "-e", _NODE], input=json.dumps({"code": code, "data": json.dumps(data)}),
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        diagram = Diagram.from_operators(traced.operator_graph())
        names = [name for name, box in diagram.boxes.items() if box.children and name]
        _same(lay_out(diagram, names if closed else ()), json.loads(result.stdout))


def test_long_tables_are_cut():
    rows = [GroupRow(f"g{k}", k, "permutable", "", ("permutation",), tuple(f"w{i}[0]" for i in range(30)))
            for k in range(100)]  # fmt: skip
    lines = group_table(rows, most=10, width=20).splitlines()
    assert len(lines) == 1 + 11
    assert lines[1].split() == ["g0", "0", "permutable", "permutation", "w0[0]", "...", "(30", "axes)"]
    assert lines[6] == "... 90 more, all with --json ..."
    assert group_table([]) == "No neuron group moves."
    assert len(group_table(rows[:3]).splitlines()) == 4


def test_the_command_takes_tokens_keywords_and_outputs(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = (
        "from torch import nn\nclass Config:\n    def __init__(self, width): self.width = width\n"
        "class Net(nn.Module):\n    def __init__(self, config):\n        super().__init__()\n"
        "        self.embed, self.head = nn.Embedding(7, config.width), nn.Linear(config.width, 2)\n"
        "    def forward(self, ids, deep=True):\n        h = self.embed(ids)\n"
        "        return {'logits': self.head(h), 'h': h} if not deep else None\n"
    )
    (tmp_path / "net.py").write_text(source)
    words = ["graph", "net.py:Net(Config(width=5))", "--input", "ids=int:1,4@7", "--input", "deep=False", "--json"]
    assert main([*words, "--output", "logits", "--html", "net.html"]) == 0
    found = json.loads(capsys.readouterr().out)
    # 5! orders of the embedding's features; those are exposed where the whole output counts
    assert found["log_order"] == pytest.approx(4.787491742782046)
    assert [g["axes"] for g in found["groups"]] == [["embed.weight[1]", "head.weight[1]"]]
    assert found["verification"]["passed"]
    assert [o["type"] for o in found["operator_graph"]["operations"]] == ["input", "embedding", "linear", "output"]
    assert "embedding 7→5" in (tmp_path / "net.html").read_text(encoding="utf-8")
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["groups"] == []


def test_a_zoo_has_one_output(tmp_path, capsys):
    assert main(["graph", str(tmp_path), "--output", "logits"]) == 2
    assert "'--output' is for modules" in capsys.readouterr().err
