"""How every figure of a report looks: one size of type, colours that survive colour blindness, no chart junk."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.figure import Figure

__all__ = ["CATEGORIES", "DPI", "INK", "house_style", "save"]

# Petroff 2021 (arXiv:2107.02270), ten colours told apart under the common colour-vision deficiencies.
CATEGORIES = (
    "#3f90da",
    "#bd1f01",
    "#ffa90e",
    "#832db6",
    "#717581",
    "#a96b59",
    "#e76300",
    "#94a4a2",
    "#b9ac70",
    "#92dadd",
)
INK = "#22272e"
_GRID = "#d8dde3"
DPI = 160

_SETTINGS: dict[Any, Any] = {
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.prop_cycle": cycler(color=CATEGORIES),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "savefig.facecolor": "white",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


@contextmanager
def house_style() -> Iterator[None]:
    """Settings for figures built inside the ``with`` block; outside nothing changes."""
    with matplotlib.rc_context(_SETTINGS):
        yield


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, its folder made if needed; the same figure gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    return path
