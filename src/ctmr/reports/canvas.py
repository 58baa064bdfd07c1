"""Canvas: what all figures share. Charts for paper and dark screens alike, pictures on a light box, equal bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 110
INK = "#1f2933"
MUTED = "#67717c"
GRID = "#e4e7eb"
AXIS = "#cbd2d9"
PAPER = "#ffffff"
PALETTE = ("#2f6f9f", "#d9822b", "#3f8f5f", "#a4508b", "#b8433f", "#6b7280")
BLUE, ORANGE, GREEN, PURPLE, RED, GREY = PALETTE
PHANTOM_NOTE = "PHANTOM: not a patient"

BOX = "#0d1116"
BOX_INK = "#e6eaee"
BOX_MUTED = "#9aa7b3"

CSS_COLOURS: dict[str, str] = {
    INK: "ink",
    MUTED: "muted",
    GRID: "line",
    AXIS: "axis",
    PAPER: "paper",
    **{colour: f"c{k}" for k, colour in enumerate(PALETTE, start=1)},
}
"""Colour of a chart → custom property of the page that shows it, so that a chart follows the page's theme."""

_POINT_PX = 4 / 3
_ID = re.compile(r' id="(?![pm][0-9a-f]{10})[^"]*"')
_FONT = re.compile(r"font: ([\d.]+px|(?:bold|\d{3}) [\d.]+px) [^;\"]*")


@dataclass(frozen=True)
class Chart:
    """One chart twice.

    Attributes
    ----------
    png
        On white, for files and MLflow.
    svg
        For a page: text is text, and colours are the page's custom properties of `CSS_COLOURS`.
    """

    png: bytes
    svg: str


@dataclass
class Drawing:
    """A figure while it is drawn; `png` and `svg` are there after the ``with`` block."""

    figure: Figure
    axes: NDArray[Any]
    png: bytes = b""
    svg: str = ""

    @property
    def chart(self) -> Chart:
        """The finished chart."""
        return Chart(self.png, self.svg)


@contextmanager
def chart(
    size: tuple[float, float], rows: int = 1, columns: int = 1, *, title: str = "", **subplots: Any
) -> Iterator[Drawing]:
    """A chart on paper. Equal data give equal bytes.

    Parameters
    ----------
    size
        Inches.
    rows, columns, subplots
        As of matplotlib's ``Figure.subplots``.
    title
        Above everything.
    """
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ctmr", "font.family": "sans-serif"}):
        drawing = _open(size, rows, columns, title, PAPER, INK, subplots)
        yield drawing
        drawing.png = _png(drawing.figure)
        out = io.StringIO()
        drawing.figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        drawing.svg = themed(out.getvalue())


@contextmanager
def light_box(
    size: tuple[float, float], rows: int = 1, columns: int = 1, *, title: str = "", **subplots: Any
) -> Iterator[Drawing]:
    """Pictures on black, as radiologists look at them; PNG only. See `chart`."""
    drawing = _open(size, rows, columns, title, BOX, BOX_INK, subplots)
    yield drawing
    drawing.png = _png(drawing.figure)


def themed(svg: str, colours: Mapping[str, str] | None = None) -> str:
    """Return an SVG of matplotlib for embedding: no prologue, fluid width, colours and font of the page around it."""
    body = svg[svg.index("<svg") :]
    body = _ID.sub("", re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL))
    width = re.search(r'<svg[^>]*? width="([\d.]+)pt"', body)
    body = re.sub(r'(<svg[^>]*?) (?:width|height)="[\d.]+pt"', r"\1", body, count=1)
    body = re.sub(r'(<svg[^>]*?) (?:width|height)="[\d.]+pt"', r"\1", body, count=1)
    if width:
        body = body.replace("<svg", f'<svg style="max-width: {float(width.group(1)) * _POINT_PX:.0f}px"', 1)
    body = _FONT.sub(r"font: \1 system-ui, sans-serif", body)
    for colour, name in (CSS_COLOURS if colours is None else colours).items():
        body = re.sub(rf"{colour}\b", f"var(--{name})", body, flags=re.IGNORECASE)
    return body


def plain_axes(ax: Axes, x: str, y: str) -> None:
    """Quiet axes: a grid, two spines, small labels."""
    ax.set_xlabel(x, fontsize=9, color=MUTED)
    ax.set_ylabel(y, fontsize=9, color=MUTED)
    ax.tick_params(labelsize=8, colors=MUTED)
    ax.grid(color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    for name, spine in ax.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(AXIS)


def legend(ax: Axes, **options: Any) -> None:
    """A legend without a frame, in the ink of charts."""
    made = ax.legend(frameon=False, fontsize=8, **options)
    for text in made.get_texts():
        text.set_color(INK)


def bare(ax: Axes) -> None:
    """No ticks and no frame, for a picture."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_facecolor(BOX)
    for spine in ax.spines.values():
        spine.set_visible(False)


def colour_bar(fig: Figure, shown: Any, axes: Any, label: str, **options: Any) -> None:
    """A colour bar on the light box, with its unit."""
    bar = fig.colorbar(shown, ax=axes, **options)
    bar.set_label(label, fontsize=8, color=BOX_MUTED)
    bar.ax.tick_params(labelsize=7, colors=BOX_MUTED)
    bar.outline.set_visible(False)


def colours(count: int) -> list[str]:
    """Return as many colours, repeated from the seventh on."""
    return [PALETTE[k % len(PALETTE)] for k in range(count)]


def marked(title: str, phantom: bool) -> str:
    """Return a title that says so when the images are phantoms."""
    return " · ".join(part for part in (PHANTOM_NOTE if phantom else "", title) if part)


def _open(
    size: tuple[float, float], rows: int, columns: int, title: str, back: str, ink: str, subplots: Mapping[str, Any]
) -> Drawing:
    """A figure without pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as MatplotlibFigure

    fig = MatplotlibFigure(figsize=size, dpi=DPI, facecolor=back, layout="constrained")
    FigureCanvasAgg(fig)
    axes = fig.subplots(rows, columns, squeeze=False, **subplots)
    if title:
        fig.suptitle(title, fontsize=11, color=ink, fontweight="bold")
    return Drawing(fig, np.asarray(axes))


def _png(fig: Figure) -> bytes:
    out = io.BytesIO()
    fig.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def running_median(values: Sequence[float] | NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Median over a window around every value."""
    half = width // 2
    return np.array([np.median(values[max(0, k - half) : k + half + 1]) for k in range(len(values))])
