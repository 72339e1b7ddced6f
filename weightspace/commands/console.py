"""What commands say on standard output: lines and small tables."""

import sys
from collections.abc import Sequence

__all__ = ["say", "text_table"]


def say(text: str) -> None:
    """Write one message, now (a pipe sees it before the next long step)."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under their names, the first one flush left, the others flush right.

    Example:
        >>> print(text_table(["model", "test %"], [["operator", "93.9"], ["mlp", "12.1"]]))
        model     test %
        operator    93.9
        mlp         12.1
    """
    widths = [max(len(row[k]) for row in [header, *rows]) for k in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        return "  ".join(cells).rstrip()

    return "\n".join(line(row) for row in [header, *rows])
