"""Pictures that look alike: their perceptual hashes differ in a few bits."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ctmr.data.manifest import Column
from ctmr.recipe.recipe import Validate

_CHUNK = 1024


def look_alikes(inventory: pd.DataFrame, config: Validate) -> list[tuple[str, str]]:
    """Return pairs of pictures of one modality that look alike, which one split should hold.

    Volumes are left alone, as the findings leave them.
    """
    pictures = inventory[inventory[Column.DEPTH] == 1]
    return [
        (str(known[Column.IMAGE].iloc[i]), str(known[Column.IMAGE].iloc[j]))
        for modality in sorted(set(pictures[Column.MODALITY]))
        for known, hashes in [hashed(pictures[pictures[Column.MODALITY] == modality])]
        for i, j in near_pairs(hashes, config.near_duplicate_bits)
    ]


def near_pairs(hashes: NDArray[np.uint64], bits: int) -> NDArray[np.int64]:
    """Return ``[P, 2]`` index pairs (i < j) of 64-bit hashes that differ in at most `bits` bits, in order."""
    pairs = []
    for start in range(0, len(hashes), _CHUNK):
        block = hashes[start : start + _CHUNK]
        distance = np.bitwise_count(block[:, None] ^ hashes[None, start:])
        i, j = np.nonzero(distance <= bits)
        later = j > i
        pairs.append(np.stack([i[later] + start, j[later] + start], axis=1))
    return np.concatenate(pairs) if pairs else np.empty((0, 2), dtype=np.int64)


def hashed(table: pd.DataFrame) -> tuple[pd.DataFrame, NDArray[np.uint64]]:
    """Return the rows that have a perceptual hash, and the hashes."""
    known = table[table[Column.PERCEPTUAL_HASH].fillna("") != ""]
    return known, np.array([int(h, 16) for h in known[Column.PERCEPTUAL_HASH]], dtype=np.uint64)
