"""Images that no metric could measure, found before anything is trained on the dataset."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from ctmr.data.manifest import Column, Split
from ctmr.imaging.hounsfield import SKIN_HU
from ctmr.imaging.volume import Modality, Unit
from ctmr.io import FORMATS, Holds
from ctmr.metrics.protocol import VOLUME_WINDOW_SIDE


def unmeasurable(table: pd.DataFrame) -> Iterator[tuple[str, str, str]]:
    """Give the rule, the image and a sentence for CTs without a head and test pairs thinner than a metric's window.

    Parameters
    ----------
    table
        Inventory with the column ``split``; where it is empty, splits are not made yet.
    """
    hu = table[table[Column.UNIT] == Unit.HU.value]
    for image, highest in zip(hu[Column.IMAGE], hu[Column.MAXIMUM], strict=True):
        if highest <= SKIN_HU:
            words = f"{image} holds nothing above {highest:g} HU, and a head's skin is above {SKIN_HU:g} HU"
            yield "no_head", image, f"{words}; dropped"
    volumes = table[Column.FORMAT].map(lambda name: FORMATS[name].holds is not Holds.PICTURE).astype(bool)
    test = table[volumes & (table[Column.SPLIT] == Split.TEST.value) & (table[Column.SUBJECT] != "")]
    for _, pair in test.groupby(Column.SUBJECT, sort=True):
        if set(pair[Column.MODALITY]) != {m.value for m in Modality}:
            continue
        for row in pair.to_dict("records"):
            shape = [int(row[c]) for c in (Column.DEPTH, Column.HEIGHT, Column.WIDTH)]
            if min(shape) < VOLUME_WINDOW_SIDE:
                words = f"{row[Column.IMAGE]} of the test has {' × '.join(map(str, shape))} voxels, and SSIM needs"
                words += f" {VOLUME_WINDOW_SIDE} along each axis to compare a pair"
                yield "too_thin", str(row[Column.IMAGE]), f"{words}; dropped; keep thin images for training"
