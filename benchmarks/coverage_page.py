"""The page of the coverage table."""

from __future__ import annotations

from typing import Any

__all__ = ["page"]

TITLES = {
    "nn": "Layers of `torch.nn` with parameters",
    "hand-made": "Hand-made architectures",
    "transformers": "Families of `transformers`",
    "timm": "Families of `timm`",
    "diffusers": "Models of `diffusers`",
}
HEAD = """# Coverage of tracing

Written by `python benchmarks/coverage.py --docs` from `benchmarks/results/coverage.json`;
`python benchmarks/coverage.py` measures what is missing there. Every model is
randomly initialised, small, and traced in a process of its own.

- *groups*, *log order*: permutable groups found, natural logarithm of the order of the symmetry group.
- *by hand*: whether that order equals the one derived by hand (blank: none was derived).
- *deviation*: largest relative change of the output under three random group elements on random weights in float64;
  *moved*: weights that changed place at least.
- *graph*: whether module -> parameter graph -> state dict is bit exact.
- *s*: processor seconds for tracing, solving, checking and the graph.
"""


def page(rows: dict[str, Any], summary: list[tuple[str, dict[str, int]]]) -> str:
    """The page as Markdown."""
    lines = [
        HEAD,
        "| kind | models | traced | wrong | order by hand | equal to it | exact graph |",
        "|---|" + "---:|" * 6,
    ]
    for kind, c in summary:
        counts = (c["models"], c["traced"], c["failed"], c["derived"], c["equal"], c["exact"])
        lines.append(f"| {TITLES[kind]} | " + " | ".join(map(str, counts)) + " |")
    for kind, _ in summary:
        some = [r for r in rows.values() if r["name"].startswith(f"{kind}/")]
        lines += [
            "",
            f"## {TITLES[kind]}",
            "",
            "| model | scalars | groups | log order | by hand | deviation | moved | graph | s |",
        ]
        lines.append("|---|" + "---:|" * 3 + ":-:|" + "---:|" * 2 + "---|---:|")
        lines += [_row(r) for r in some if r["status"] == "traced"]
        refused = [r for r in some if r["status"] != "traced"]
        if refused:
            lines += ["", "Not traced:", ""]
            lines += [f"- {_short(r)}: {r['status']}, {_escape(r['reason'])}" for r in refused]
    return "\n".join(lines) + "\n"


def _short(r: dict[str, Any]) -> str:
    return r["name"].split("/", 1)[1]


def _row(r: dict[str, Any]) -> str:
    by_hand = "" if "equal" not in r else "yes" if r["equal"] else f"**{r['expected']:.2f}**"
    cells = (
        _short(r), f"{r['scalars']:,}", str(r["groups"]), f"{r['log_order']:.2f}", by_hand, f"{r['deviation']:.0e}",
        f"{r['moved']:,}", _escape(r["graph"]), f"{r['seconds']:.1f}",
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
