"""What commands say on standard output: lines and small tables."""

import sys
from collections.abc import Collection, Sequence

__all__ = ["say", "text_table"]


def say(text: str) -> None:
    """Write one message, now (a pipe sees it before the next long step)."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Columns under their names.

    Args:
        header: Names of the columns.
        rows: Cells.
        left: Columns that are flush left, the others are flush right.

    Example:
        >>> print(text_table(["model", "test %"], [["operator", "93.9"], ["mlp", "12.1"]]))
        model     test %
        operator    93.9
        mlp         12.1
    """
    widths = [max(len(row[k]) for row in [header, *rows]) for k in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = zip(row, widths, strict=True)
        return "  ".join(x.ljust(w) if k in left else x.rjust(w) for k, (x, w) in enumerate(cells)).rstrip()

    return "\n".join(line(row) for row in [header, *rows])
