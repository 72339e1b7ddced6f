"""The tables of the documentation: time and memory of metanetworks, and of the public code beside them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.peers.case import CASES
from benchmarks.peers.kinds import KINDS

__all__ = ["by_allocator", "in_pairs", "limits"]

_COLUMNS = (("cpu_s", "default"), ("cpu_s", "kept"), ("growth_mib", "default"), ("growth_mib", "kept"))


def by_allocator(rows: list[dict[str, Any]], threads: int = 1) -> str:
    """Steps at published sizes, both allocators side by side.

    Shares are of the first model of a group. A star is a first call that had no second: nothing was kept before it.
    """
    text = [
        "| networks | model | step, ms | pages kept | growth of a step, MiB | pages kept |",
        "|---|---|--:|--:|--:|--:|",
    ]
    rows = [row for row in rows if row["size"] == "published" and row["threads"] == threads]
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


def _together(rows: list[dict[str, Any]], threads: int) -> Iterator[tuple[str, dict[str, Any], dict[str, Any] | None]]:
    """Case and size, one of ours, public code beside it: rows of 64 networks, default allocator."""
    rows = [row for row in rows if row["networks"] == 64 and row["threads"] == threads and "step" in row]
    rows = [row for row in rows if row["allocator"] == "default" and "forward" in row]
    for case in ("A", "B"):
        for size in ("published", "equal"):
            here = [row for row in rows if row["case"] == case and row["size"] == size]
            for of in sorted({row["of"] for row in here}):
                group = [row for row in here if row["of"] == of]
                ours = [row for row in group if "name" in row["options"]]
                peers = [row for row in group if row not in ours]
                # a variant stands beside the public variant of the same place, where there is one; one alone beside all
                for number in range(max(len(ours), len(peers) if len(ours) == 1 else 0)):
                    peer = peers[min(number, len(peers) - 1)] if peers else None
                    yield f"{case} | {size}", ours[min(number, len(ours) - 1)], peer


def in_pairs(rows: list[dict[str, Any]], threads: int) -> str:
    """Each of ours beside each public code of its pair: wall time of both actions, growth of a step.

    ``faster`` is their time over ours, ``memory`` our growth over theirs.
    """
    text = [
        "| networks | sizes | metanetwork | parameters | forward / step, ms | MiB | public code | parameters "
        "| forward / step, ms | MiB | faster | memory |",
        "|---|---|---|--:|--:|--:|---|--:|--:|--:|--:|--:|",
    ]
    return "\n".join(text + [_pair(*found) for found in _together(rows, threads)])


def limits(rows: list[dict[str, Any]], threads: int) -> str:
    """Shares of a step by kind of operation, and how far leaving out all but the products would go.

    ``faster`` is public time over ours; ``products alone`` public time over that of our products under the profiler.
    """
    text = [
        f"| networks | sizes | metanetwork | step, ms | {' | '.join(KINDS)} | faster | products alone |",
        f"|---|---|---|{'--:|' * (len(KINDS) + 3)}",
    ]
    for title, ours, peer in _together(rows, threads):
        if "step_parts_s" in ours and peer:
            parts = ours["step_parts_s"]
            shares = {kind: parts[kind] / sum(parts.values()) for kind in KINDS}
            faster = peer["step"]["wall_s"] / ours["step"]["wall_s"]
            cells = [
                title,
                ours["model"],
                f"{1e3 * ours['step']['wall_s']:,.0f}",
                *(f"{s:.0%}" for s in shares.values()),
            ]
            text.append(f"| {' | '.join(cells)} | {faster:.1f} | {peer['step']['wall_s'] / parts['products']:.1f} |")
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
