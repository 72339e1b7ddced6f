"""The table of the documentation: steps and memory of metanetworks, and of the public code beside them."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.case import CASES

__all__ = ["markdown"]

_COLUMNS = (("cpu_s", "default"), ("cpu_s", "kept"), ("growth_mib", "default"), ("growth_mib", "kept"))


def markdown(rows: list[dict[str, Any]]) -> str:
    """Steps at published sizes, both allocators side by side.

    Shares are of the first model of a group. A star is a first call that had no second: nothing was kept before it.
    """
    text = [
        "| networks | model | step, ms | pages kept | growth of a step, MiB | pages kept |",
        "|---|---|--:|--:|--:|--:|",
    ]
    rows = [row for row in rows if row["size"] == "published" and row["threads"] == 1]
    for case in CASES:
        for networks in sorted({row["networks"] for row in rows if row["case"] == case}):
            here = [row for row in rows if row["case"] == case and row["networks"] == networks]
            title = f"{networks} {CASES[case].title}"
            for of in dict.fromkeys(row["of"] for row in here):
                group = [row for row in here if row["of"] == of]
                for model in dict.fromkeys(row["model"] for row in group):
                    text.append(f"| {title} | {model} | {_cells(group, of, model)} |")
                    title = ""
    return "\n".join(text)


def _cells(group: list[dict[str, Any]], of: str, model: str) -> str:
    by_key = {(row["model"], row["allocator"]): row for row in group}
    default = by_key.get((model, "default"), {})
    if "step" not in default:
        return f"{default.get('cannot', {}).get('step', '')} | | |"
    cells = []
    for figure, allocator in _COLUMNS:
        row, first = (by_key.get((name, allocator), {}) for name in (model, of))
        if "step" not in row:
            cells.append("")
            continue
        value = row["step"][figure]
        times = f" ({value / first['step'][figure]:.1f} x)" if model != of and "step" in first else ""
        star = "*" if allocator == "kept" and figure == "cpu_s" and row["step"]["first_call_counted"] else ""
        cells.append(f"{value * (1e3 if figure == 'cpu_s' else 1):,.0f}{star}{times}")
    return " | ".join(cells)
