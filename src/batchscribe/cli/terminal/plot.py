"""Plots of `--plot`: named points in a plane."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from batchscribe.core.messages import describe_install
from batchscribe.errors import MisconfiguredError

PLOT_FORMATS = (".png", ".svg", ".pdf")
Point = tuple[str, float, float]
"""(name, x, y)."""


def check_plot(file: Path) -> None:
    """Raises MisconfiguredError if a plot cannot be drawn into this file."""
    if file.suffix not in PLOT_FORMATS:
        raise MisconfiguredError(f"cannot draw into {file}: its name must end in {', '.join(PLOT_FORMATS)}")
    if not file.absolute().parent.is_dir():
        raise MisconfiguredError(f"cannot draw into {file}: {file.absolute().parent} does not exist")
    if importlib.util.find_spec("matplotlib") is None:
        raise MisconfiguredError(f"a plot needs its extra: {describe_install('plot')}")


def draw_points(
    file: Path, points: Sequence[Point], *, across: str, up: str, least_height: float = 1e-4
) -> None:
    """Draws the points, with axes from 0 labelled `across` and `up`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.scatter([x for _, x, _ in points], [y for _, _, y in points], color="#1f6f8b", zorder=3)
    for name, x, y in points:
        axes.annotate(name, (x, y), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=9)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.set_xlim(0, 1.3 * max(1e-4, *(x for _, x, _ in points)))
    axes.set_ylim(0, 1.2 * max(least_height, *(y for _, _, y in points)))
    axes.grid(color="#dddddd")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file)
