"""Figures of the pages in two forms: panels side by side for wide screens, and under each other for telephones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib.figure import Figure

DOCS = Path(__file__).parents[1] / "docs"


def write(
    name: str, draw: Callable[[Figure, bool], None], wide: tuple[float, float], narrow: tuple[float, float]
) -> None:
    """Writes ``docs/<name>.png`` and ``docs/<name>-narrow.png``.

    Args:
        name: Name of the figure.
        draw: Draws onto a figure; the second argument says whether its panels go under each other.
        wide: Width and height in inches, panels side by side.
        narrow: The same, panels under each other. With a width of about 4.4 inches, the text is legible on a telephone.
    """
    for form, size, dpi in (("", wide, 130), ("-narrow", narrow, 180)):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure, bool(form))
        figure.savefig(DOCS / f"{name}{form}.png", dpi=dpi, metadata={"Software": None})
