"""The tables of the documentation: time and memory of metanetworks, and of the public code beside them."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.case import CASES

__all__ = ["by_allocator", "in_pairs"]

_COLUMNS = (("cpu_s", "default"), ("cpu_s", "kept"), ("growth_mib", "default"), ("growth_mib", "kept"))


def by_allocator(rows: list[dict[str, Any]]) -> str:
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


def in_pairs(rows: list[dict[str, Any]], threads: int) -> str:
    """Each of ours beside each public code of its pair: wall time of both actions, growth of a step.

    ``faster`` is their time over ours, ``memory`` our growth over theirs. Rows of 64 networks, default allocator.
    """
    text = [
        "| networks | sizes | metanetwork | parameters | forward / step, ms | MiB | public code | parameters "
        "| forward / step, ms | MiB | faster | memory |",
        "|---|---|---|--:|--:|--:|---|--:|--:|--:|--:|--:|",
    ]
    rows = [row for row in rows if row["networks"] == 64 and row["threads"] == threads and "step" in row]
    rows = [row for row in rows if row["allocator"] == "default" and "forward" in row]
    for case in ("A", "B"):
        for size in ("published", "equal"):
            here = [row for row in rows if row["case"] == case and row["size"] == size]
            for of in sorted({row["of"] for row in here}):
                group = [row for row in here if row["of"] == of]
                ours = [row for row in group if "name" in row["options"]]
                peers = [row for row in group if row not in ours]
                for number, row in enumerate(ours):
                    # a variant stands beside the public variant of the same place, where there is one
                    text.append(_pair(f"{case} | {size}", row, peers[min(number, len(peers) - 1)] if peers else None))
    return "\n".join(text)


def _pair(title: str, ours: dict[str, Any], peer: dict[str, Any] | None) -> str:
    times = lambda row: " / ".join(f"{1e3 * row[action]['wall_s']:,.0f}" for action in ("forward", "step"))  # noqa: E731
    cells = [title, ours["model"], f"{ours['parameters']:,}", times(ours), f"{ours['step']['growth_mib']:,.0f}"]
    if peer is None:
        return f"| {' | '.join(cells)} | | | | | | |"
    faster = " / ".join(f"{peer[a]['wall_s'] / ours[a]['wall_s']:.1f}" for a in ("forward", "step"))
    share = ours["step"]["growth_mib"] / peer["step"]["growth_mib"]
    cells += [
        peer["model"],
        f"{peer['parameters']:,}",
        times(peer),
        f"{peer['step']['growth_mib']:,.0f}",
        faster,
        f"{share:.2f}",
    ]
    return f"| {' | '.join(cells)} |"
