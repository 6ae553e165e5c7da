"""Matplotlib figures as themable inline SVG: colours become CSS variables, points carry their values.

Why matplotlib and a small script instead of an inlined plotting library (4 MB): the figures are readable without
JavaScript, follow the page's light or dark look, print as vectors, and the same code can write PNG and PDF for papers.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from megatron_kis.analysis.runs.groups import base_group
from megatron_kis.common.files import atomic_path

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"

# Each colour is a stand-in that the page replaces by a variable of report.css, which knows a light and a dark value.
# The stand-ins are the light values (Okabe and Ito's colour-blind-safe palette, darkened for contrast), all distinct.
COLOURS = {
    "ink": "#1b2430",
    "muted": "#5b6776",
    "grid": "#e3e8ee",
    "panel": "#fefefe",
    "train": "#0b6fa8",
    "held_out": "#c24e00",
    "question": "#8a4f9e",
    "control": "#7b8794",
    "onset": "#0a8a66",
    "infused": "#c24e01",
    "background": "#0b6fa9",
    "tolerance": "#a87400",
    "size-0": "#38a877",
    "size-1": "#1f8f8a",
    "size-2": "#277593",
    "size-3": "#345a94",
    "size-4": "#453c87",
    "size-5": "#4d1a6b",
}
MARKERS = {"train": "s", "held_out": "o", "question": "D", "control": "x"}
DASHES: dict[str, Any] = {"train": (0, (5, 2)), "held_out": "-", "question": (0, (1.5, 1.5)), "control": (0, (1, 2))}
SIZE_MARKERS = ("o", "s", "^", "D", "v", "P")
_SIZES = 6
_SHORT_TITLE, _TITLE = 36, 44
"""Characters of a title that fit over the axes, and in the figure."""

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10.8,
    "axes.titlesize": 11.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlepad": 10,
    "axes.titlecolor": COLOURS["ink"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.edgecolor": COLOURS["control"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.9,
    "lines.markersize": 5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
}


def kind_colour(kind: str, group: str) -> str:
    """Returns the name of the colour for transitions of a kind and group."""
    return kind if kind in ("onset", "tolerance") else base_group(group)


def size_slot(index: int, count: int) -> int:
    """Returns the colour's place in the sequential palette for size ``index`` of ``count``, small to large."""
    return 0 if count < 2 else round(index * (_SIZES - 1) / (count - 1))


def _style(name: str) -> Any:
    """Returns the style with ids salted by the figure's name: ids are reproducible, and no two figures share one."""
    return _STYLE | {"svg.hashsalt": name}


@dataclass
class Panel:
    """A figure with one axes, whose series can be switched off and whose points show their values."""

    name: str
    alt: str
    figure: Figure
    axes: Axes
    tips: dict[str, list[str]] = field(default_factory=dict)

    def make_room(self, *, below: float | None = None, above: float | None = None) -> None:
        """Sets the margins, in inches; the axes keep their height, and the figure grows."""
        margins = self.figure.subplotpars
        height = self.figure.get_figheight()
        inside = height * (margins.top - margins.bottom)
        below = height * margins.bottom if below is None else below
        above = height * (1 - margins.top) if above is None else above
        whole = inside + below + above
        self.figure.set_figheight(whole)
        self.figure.subplots_adjust(bottom=below / whole, top=1 - above / whole)

    @property
    def room_below(self) -> float:
        """The margin below the axes, where ticks and title are, as a share of the axes' height."""
        margins = self.figure.subplotpars
        return float(margins.bottom / (margins.top - margins.bottom))

    def points(
        self, x: Sequence[float], y: Sequence[float], tips: Sequence[str], *, series: str, colour: str, **style: Any
    ) -> None:
        """Draws markers, one per (x, y), each with its text."""
        line = self.axes.plot(x, y, linestyle="none", color=COLOURS[colour], **style)[0]
        key = f"{self.name}:{len(self.tips)}:{series}"
        line.set_gid(key)
        self.tips[key] = list(tips)

    def ranges(
        self, x: Sequence[float], low: Sequence[float], high: Sequence[float], *, series: str, colour: str, **style: Any
    ) -> None:
        """Draws a vertical line from ``low`` to ``high`` at each x, all as one path; faint unless ``style`` differs."""
        across = [value for place in x for value in (place, place, math.nan)]
        up = [value for ends in zip(low, high, strict=True) for value in (*ends, math.nan)]
        style = {"linewidth": 2.2, "alpha": 0.35, "solid_capstyle": "butt"} | style
        self.line(across, up, series=series, colour=colour, **style)

    def line(self, x: Sequence[float], y: Sequence[float], *, series: str, colour: str, **style: Any) -> Line2D:
        """Draws a line that belongs to a series."""
        line = self.axes.plot(x, y, color=COLOURS[colour], **style)[0]
        line.set_gid(f"{self.name}:line{len(self.axes.lines)}:{series}")
        return line


@contextmanager
def panel(name: str, alt: str, *, width: float = 4.6, height: float = 3.4) -> Iterator[Panel]:
    """Opens a panel in the report's style; ``width`` and ``height`` are inches of the drawing, the page scales it."""
    with mpl.rc_context(_style(name)):
        figure = Figure(figsize=(width, height))
        # Fixed margins: axes of neighbouring panels line up, and drawing takes half the time of a layout engine.
        figure.subplots_adjust(left=0.14, right=0.985, bottom=0.155, top=0.91)
        yield Panel(name, alt, figure, figure.add_subplot())


_EXPORT: ContextVar[tuple[Path, int, list[Path]] | None] = ContextVar("export", default=None)


@contextmanager
def exported_to(folder: Path, dpi: int) -> Iterator[list[Path]]:
    """Also writes panels drawn meanwhile to ``folder`` as .svg and .png; yields the growing list of paths."""
    written: list[Path] = []
    token = _EXPORT.set((folder, dpi, written))
    try:
        yield written
    finally:
        _EXPORT.reset(token)


def _export(drawn: Panel) -> None:
    target = _EXPORT.get()
    if target is None:
        return
    folder, dpi, written = target
    # On the page one legend serves a whole section; a file needs its own.
    handles, labels = drawn.axes.get_legend_handles_labels()
    added = None
    if labels and drawn.axes.get_legend() is None:
        added = drawn.axes.legend(
            handles,
            labels,
            loc="upper center",
            bbox_to_anchor=(0.5, -drawn.room_below),
            borderaxespad=0,
            ncols=min(len(labels), 3),
            fontsize=9,
            columnspacing=1.4,
            handletextpad=0.4,
        )
    for kind in ("svg", "png"):
        path = folder / f"{drawn.name}.{kind}"
        with mpl.rc_context(_style(drawn.name)), atomic_path(path) as partial:
            more: dict[str, Any] = {"metadata": {"Date": None}} if kind == "svg" else {"dpi": dpi}
            drawn.figure.savefig(partial, format=kind, facecolor="white", bbox_inches="tight", **more)
        written.append(path)
    if added is not None:
        added.remove()


def to_svg(drawn: Panel) -> str:
    """Returns the panel as an inline ``<svg>``: CSS variables for colours, ``<title>`` on points, no stray ids."""
    _fit_title(drawn)
    _export(drawn)
    buffer = io.StringIO()
    with mpl.rc_context(_style(drawn.name)):
        drawn.figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    root = ET.fromstring(buffer.getvalue())  # noqa: S314 (our own drawing)
    for unused in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(unused)
    text = ET.tostring(root, encoding="unicode")
    for element in root.iter():
        identity = element.get("id")
        if identity is None:
            continue
        if identity in drawn.tips:
            _describe(element, drawn.tips[identity])
        if identity.startswith(f"{drawn.name}:"):
            element.set("class", f"series {identity.rsplit(':', 1)[1]}")
            del element.attrib["id"]
        elif f"#{identity}" not in text:  # matplotlib's names (axes_1, ...) repeat from figure to figure
            del element.attrib["id"]
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    _compact(root)
    root.set("role", "img")
    root.set("aria-label", drawn.alt)
    text = ET.tostring(root, encoding="unicode")
    for name, value in COLOURS.items():
        text = text.replace(value, f"var(--{name})")
    return text


def _fit_title(drawn: Panel) -> None:
    """Breaks a title that is wider than the figure, and lets it begin at the figure's left edge."""
    title = drawn.axes.get_title(loc="left")
    lines = textwrap.wrap(title, _TITLE)
    inside = drawn.figure.subplotpars
    if len(title) > _SHORT_TITLE:
        drawn.axes.set_title("\n".join(lines), loc="left", x=-0.9 * inside.left / (inside.right - inside.left))
    if len(lines) > 1:
        drawn.make_room(above=(1 - inside.top) * drawn.figure.get_figheight() + 0.19 * (len(lines) - 1))


_DIGITS = re.compile(r"(\.\d\d)\d+")  # a hundredth of a point, of a figure 390 points wide
_FONT = re.compile(r"font-family: [^;]*; ")


def _compact(root: ET.Element) -> None:
    """Takes out what matplotlib writes for every mark and could write once, and the page's own font."""
    for element in root.iter():
        for name in ("d", "x", "y", "transform"):
            if name in element.attrib:
                element.set(name, _DIGITS.sub(r"\1", element.attrib[name]).replace("  ", " ").strip())
        if element.get("transform", "").startswith("rotate(-0 "):
            del element.attrib["transform"]
        if element.tag == f"{{{_SVG}}}text" and "style" in element.attrib:
            element.set("style", _FONT.sub("", element.attrib["style"]))
        uses = element.findall(f"{{{_SVG}}}use")
        styles = {use.get("style", "") for use in uses}
        if uses and len(uses) == len(element) and len(styles) == 1 and "style" not in element.attrib:
            element.set("style", styles.pop())
            for use in uses:
                use.attrib.pop("style", None)
        if not (element.tail or "").strip():
            element.tail = None
        if not (element.text or "").strip():
            element.text = None


def _describe(group: ET.Element, tips: list[str]) -> None:
    uses = list(group.iter(f"{{{_SVG}}}use"))
    assert len(uses) == len(tips), (len(uses), len(tips))
    for use, tip in zip(uses, tips, strict=True):
        use.set("class", "pt")
        ET.SubElement(use, f"{{{_SVG}}}title").text = tip
