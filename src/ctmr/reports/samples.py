"""Sample sheets: what a training makes of a few slices, each modality on one grey scale with its unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from ctmr.reports.canvas import BOX_INK, BOX_MUTED, bare, colour_bar, light_box, marked

_SIDE_IN = 1.7


@dataclass(frozen=True)
class SampleGroup:
    """The columns of one modality, which share a grey scale.

    Attributes
    ----------
    titles
        Of the columns.
    images
        ``[R, H, W]`` for each column.
    names
        Of the rows, beside the first column.
    window
        Black and white, in the images' values.
    unit
        Of these values, below the grey scale.
    """

    titles: tuple[str, ...]
    images: tuple[NDArray[Any], ...]
    names: tuple[str, ...]
    window: tuple[float, float]
    unit: str


def sample_sheet(groups: Sequence[SampleGroup], *, title: str = "", phantom: bool = False) -> bytes:
    """Draw groups of columns beside each other, one sample a row; returns PNG. Equal data give equal bytes.

    Raises
    ------
    ValueError
        When groups differ in rows, or columns in titles.
    """
    rows = {len(image) for group in groups for image in group.images} | {len(group.names) for group in groups}
    if len(rows) != 1 or any(len(g.titles) != len(g.images) for g in groups):
        raise ValueError(f"a sheet takes as many rows in every column and a title for each, found {sorted(rows)} rows")
    count, columns = rows.pop(), sum(len(g.images) for g in groups)
    height, width = groups[0].images[0].shape[1:]
    size = (_SIDE_IN * columns + 0.7, _SIDE_IN * count * height / width + 1.3)
    with light_box(size, count, columns, title=marked(title, phantom)) as drawing:
        first = 0
        for group in groups:
            axes = drawing.axes[:, first : first + len(group.images)]
            for c, (name, images) in enumerate(zip(group.titles, group.images, strict=True)):
                for ax, image in zip(axes[:, c], images, strict=True):
                    bare(ax)
                    shown = ax.imshow(
                        image, cmap="gray", vmin=group.window[0], vmax=group.window[1], interpolation="nearest"
                    )
                axes[0, c].set_title(name, fontsize=9, color=BOX_INK)
            for ax, caption in zip(axes[:, 0], group.names, strict=True):
                ax.set_ylabel(caption, fontsize=7.5, color=BOX_MUTED)
            colour_bar(drawing.figure, shown, axes, group.unit, location="bottom", fraction=0.03, pad=0.015, aspect=45)
            first += len(group.images)
    return drawing.png
