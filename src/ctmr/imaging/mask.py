"""Head masks of CT, MR and 8-bit pictures, and the depth of every pixel under the skin."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

HEAD_THRESHOLD_HU = -500.0
"""Half-way between air and water: where a CT shows the skin."""
CLOSING_STEPS = 2
"""Voxels that a closing bridges from either side; a single picture, which may be large, gets a 64th of its side."""
_BINS = 256

Mask = NDArray[np.bool_]


def head_mask_ct(hu: NDArray[Any]) -> Mask:
    """Return the head in a CT: the largest component above -500 HU, closed, filled.

    Parameters
    ----------
    hu
        ``[D, H, W]`` Hounsfield units; D = 1 for a single slice.

    Returns
    -------
    numpy.ndarray
        bool, same shape; airways and sinuses inside the head are inside. Empty when nothing is above the threshold.
    """
    return _solid(hu > HEAD_THRESHOLD_HU)


def head_mask_grey(array: NDArray[Any]) -> Mask:
    """Return the head in an MR or an 8-bit picture: Otsu's threshold of the root, largest component, closed, filled.

    Parameters
    ----------
    array
        ``[D, H, W]``, bright tissue on dark air; D = 1 for a picture.

    Returns
    -------
    numpy.ndarray
        bool, same shape; empty for a constant image.

    Notes
    -----
    The threshold is taken of the square root of the values above the minimum. Of the values themselves it often parts
    bright tissue (fat, enhancing vessels, bone in a CT window) from the rest of the head instead of head from air.
    """
    root = np.sqrt(array.astype(np.float32) - np.float32(array.min()))
    threshold = otsu(root)
    return np.zeros(array.shape, dtype=bool) if threshold is None else _solid(root >= threshold)


def head_depth(mask: Mask) -> NDArray[np.float32]:
    """Return how deep every pixel lies under the skin, slice by slice.

    Parameters
    ----------
    mask
        ``[N, H, W]`` bool, True inside the head.

    Returns
    -------
    numpy.ndarray
        float32, same shape: distance in pixels to the nearest pixel outside the head in the same slice, 0 outside.
        The border of the picture is no skin; in a slice that is all head the depth is the slice's diagonal.
    """
    depth = np.zeros(mask.shape, dtype=np.float32)
    for n, slice_ in enumerate(mask):
        depth[n] = np.hypot(*slice_.shape) if slice_.all() else ndimage.distance_transform_edt(slice_)
    return depth


def otsu(array: NDArray[Any]) -> float | None:
    """Return the threshold that separates two classes best, or ``None`` for a constant image.

    N. Otsu, A threshold selection method from gray-level histograms, 1979: the upper edge of the one of 256 bins at
    which the variance between the classes is largest. Values at or above it are the brighter class.
    """
    low, high = float(array.min()), float(array.max())
    if not high > low:
        return None
    values = array.ravel().astype(np.float64)
    counts, edges = np.histogram(values, bins=_BINS, range=(low, high))
    sums, _ = np.histogram(values, bins=_BINS, range=(low, high), weights=values)
    dark, dark_sum = np.cumsum(counts)[:-1], np.cumsum(sums)[:-1]
    # The extremes are in the first and the last bin, so neither class is ever empty.
    bright, bright_sum = values.size - dark, sums.sum() - dark_sum
    variance = dark * bright * (dark_sum / dark - bright_sum / bright) ** 2
    return float(edges[int(np.argmax(variance)) + 1])


def _solid(mask: Mask) -> Mask:
    """Largest component, closed, without holes in any plane."""
    if not mask.any():
        return mask
    # Filled first: dark bone parts a scalp from its brain, and either alone would be the largest component.
    return _fill(_close(_largest(_fill(mask))))


def _fill(mask: Mask) -> Mask:
    filled = mask.copy()
    for axis in (0, 1, 2, None):
        filled |= _holes(filled, axis)
    return filled


def _neighbours(mask: Mask) -> Mask:
    """Return the face neighbourhood: of a volume in 3-D, of a single slice in its plane."""
    structure: Mask = ndimage.generate_binary_structure(3, 1)
    if mask.shape[0] == 1:
        structure = structure.copy()
        structure[[0, 2]] = False
    return structure


def _largest(mask: Mask) -> Mask:
    labels, count = ndimage.label(mask, structure=_neighbours(mask))
    if count < 2:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    largest: Mask = labels == int(sizes.argmax())
    return largest


def _close(mask: Mask) -> Mask:
    steps = CLOSING_STEPS if mask.shape[0] > 1 else max(CLOSING_STEPS, max(mask.shape) // 64)
    # Room around the image: a closing must not eat the head where the field of view cuts it.
    margin = [(steps if n > 1 else 0,) * 2 for n in mask.shape]
    closed = ndimage.binary_closing(np.pad(mask, margin), _neighbours(mask), iterations=steps)
    inner = tuple(slice(m, n + m) for (m, _), n in zip(margin, mask.shape, strict=True))
    result: Mask = closed[inner] | mask
    return result


def _holes(mask: Mask, axis: int | None) -> Mask:
    """Return background that the mask encloses, in every plane across `axis` by itself or, for None, in 3-D.

    Labelling the background once is far quicker than scipy's ``binary_fill_holes``, which dilates step by step.
    """
    structure = ndimage.generate_binary_structure(3, 1)
    edges = [a for a in range(3) if a != axis]
    if axis is not None:
        structure = structure.copy()
        structure[(slice(None),) * axis + ([0, 2],)] = False
    labels, count = ndimage.label(~mask, structure=structure)
    open_ = np.zeros(count + 1, dtype=bool)
    open_[0] = True
    for edge in edges:
        for end in (0, -1):
            open_[np.unique(np.take(labels, end, axis=edge))] = True
    enclosed: Mask = ~open_[labels]
    return enclosed
