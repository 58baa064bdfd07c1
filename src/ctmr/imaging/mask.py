"""Head masks of CT, MR and 8-bit pictures, and the depth of every pixel under the skin."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctmr.imaging.hounsfield import SKIN_HU
from ctmr.imaging.volume import Unit

CLOSING_STEPS = 2
"""Voxels that a closing bridges from either side; a single picture, which may be large, gets a 64th of its side."""
DIM_TISSUE_NOISE = 0.2
"""Neighbouring voxels of tissue differ by less than this share of their level; those of air by half of it."""
DIM_TISSUE_CLOSED = 0.75
"""At least this share of a tissue's voxels has its neighbour in the tissue too; speckle of air has fewer."""
DIM_TISSUE_LEVELS = 10.0
"""Steps of an integer image below which its noise cannot be seen any more."""
BOX_SHARE = 0.85
"""A head fills less of its bounding box; the noise of a field of view with a black frame fills more."""
FRAME_SHARE = 0.97
"""No head fills its bounding box to this share; a frame that encloses everything does."""
SMALLEST_HEAD = 0.1
"""Share of its picture below which what lies in a frame is no head."""
TEXT_SHARE_OF_MAXIMUM = 0.75
"""Burned-in text is at least this bright."""
TEXT_SHARE_OF_SIDE = 1 / 12
"""No letter is larger; nasal bones and scalps, which are thin and bright too, are."""
_BINS = 256
_SAMPLE_VOXELS = 250_000

Mask = NDArray[np.bool_]


def head_mask(array: NDArray[Any], unit: Unit) -> Mask:
    """Return the head by Hounsfield units where the image has them, else by grey levels."""
    return head_mask_ct(array) if unit is Unit.HU else head_mask_grey(array)


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
    return _solid(hu > SKIN_HU)


def head_mask_grey(array: NDArray[Any]) -> Mask:
    """Return the head in an MR or an 8-bit picture: Otsu's threshold of the root, largest component, closed, filled.

    Parameters
    ----------
    array
        ``[D, H, W]``, bright tissue on dark air; D = 1 for a picture.

    Returns
    -------
    numpy.ndarray
        bool, same shape; empty for a constant image. What is burned into a picture is left out: a frame around it,
        and thin bright strokes that reach out of the head.

    Notes
    -----
    The threshold is taken of the square root of the values above the minimum. Of the values themselves it often parts
    bright tissue (fat, enhancing vessels, bone in a CT window) from the rest of the head instead of head from air.
    Where one tissue is many times brighter than all others the root parts it too; then the dark class is parted again,
    as long as its upper part is the larger one and looks like tissue and not like the noise of air.
    """
    found = _above_air(array)
    if array.shape[0] > 1 or not found.any():
        return _solid(found)
    whole = largest(fill(found))
    if _box_share(whole) > FRAME_SHARE:
        inner = largest(fill(_without_frame(found, whole)))
        # A head that fills its picture touches every edge as well, and without it little is left.
        whole = inner if inner.mean() > SMALLEST_HEAD else whole
    return fill(_close(_without_text(whole, array)))


def tissue_grey(array: NDArray[Any]) -> Mask:
    """Return the head of an MR or picture without what is dark in it: bone, airways, their noise.

    Parameters and empty results as in `head_mask_grey`.
    """
    return head_mask_grey(array) & _above_air(array)


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


def _above_air(array: NDArray[Any]) -> Mask:
    root = np.sqrt(array.astype(np.float32) - np.float32(array.min()))
    threshold = otsu(root)
    if threshold is None:
        return np.zeros(array.shape, dtype=bool)
    above: Mask = root >= _below_bright_tissue(root, threshold, 0.0 if array.dtype.kind == "f" else 1.0)
    return above


def _below_bright_tissue(root: NDArray[np.float32], threshold: float, rounded_to: float) -> float:
    """Return a threshold below every tissue: a lower one while what lies under it is the larger part of a head."""
    # Whole rows: neighbours along W, by which tissue is told from noise, stay neighbours.
    sample = root.reshape(-1, root.shape[-1])[:: max(1, root.size // _SAMPLE_VOXELS)]
    while True:
        dark = sample[sample < threshold]
        lower = otsu(dark) if dark.size else None
        if lower is None or not _is_dim_tissue(sample, lower, threshold, rounded_to):
            return threshold
        if _box_share(root >= lower) > BOX_SHARE:
            return threshold
        threshold = lower


def _is_dim_tissue(root: NDArray[np.float32], low: float, high: float, rounded_to: float) -> bool:
    """True when the values in between are more than those above, far above rounding, coherent and smooth."""
    dim = (root >= low) & (root < high)
    both = dim[:, 1:] & dim[:, :-1]
    count = int(dim.sum())
    if count <= (root >= high).sum() or both.sum() < DIM_TISSUE_CLOSED * count:
        return False
    values = np.square(root)
    level = float(np.median(values[dim]))
    change = float(np.median(np.abs(np.diff(values, axis=1)[both])))
    return level >= DIM_TISSUE_LEVELS * rounded_to and change <= DIM_TISSUE_NOISE * level


def _box_share(mask: Mask) -> float:
    """Return the share of its bounding box that a mask fills, stray voxels apart."""
    box = 1
    for axis in range(3):
        profile = mask.sum(axis=tuple(a for a in range(3) if a != axis))
        box *= int((profile > profile.max() / 10).sum())
    return float(mask.sum()) / max(1, box)


def _without_frame(found: Mask, whole: Mask) -> Mask:
    """Return what was found in a picture without the parts that lie on the edges of its bounding box."""
    labels, _ = ndimage.label(found, structure=_neighbours(found))
    rows, columns = np.flatnonzero(whole.any((0, 2))), np.flatnonzero(whole.any((0, 1)))
    edges = [labels[0, rows[[0, -1]]].ravel(), labels[0][:, columns[[0, -1]]].ravel()]
    return found & ~np.isin(labels, np.unique(np.concatenate(edges)))


def _without_text(mask: Mask, array: NDArray[Any]) -> Mask:
    """Return the filled mask of a picture without thin bright strokes that reach out of its solid part.

    What an opening takes away stays where it is close to the rest, large or not bright, such as ears and nose.
    """
    stroke = max(1, max(mask.shape) // 128)
    inner = slice(stroke + 1, -stroke - 1)
    # Room around the picture: a head that it cuts is not thin there.
    padded = np.pad(mask[0], stroke + 1, mode="edge")
    core = ndimage.binary_opening(padded, ndimage.generate_binary_structure(2, 1), iterations=stroke)[inner, inner]
    thin = mask[0] & ~core
    if not core.any() or not thin.any():
        return mask
    labels, count = ndimage.label(thin, structure=np.ones((3, 3)))
    index = np.arange(1, count + 1)
    reach = ndimage.maximum(ndimage.distance_transform_edt(~core), labels, index)
    low, high = float(array.min()), float(array.max())
    brightness = ndimage.median(array[0], labels, index)
    extent = [max(s.stop - s.start for s in box) for box in ndimage.find_objects(labels)]
    bright = brightness >= low + TEXT_SHARE_OF_MAXIMUM * (high - low)
    small = np.array(extent) <= TEXT_SHARE_OF_SIDE * max(mask.shape)
    text = np.concatenate([[False], (reach > 3 * stroke) & bright & small])
    strokes = text[labels][None]
    if not strokes.any():
        return mask
    kept = largest(mask & ~strokes)
    # What only hangs on by these strokes would go with them: they are a part of the head then.
    lost = int((mask & ~strokes & ~kept).sum())
    return kept if lost <= int(strokes.sum()) else mask


def _solid(mask: Mask) -> Mask:
    """Largest component, closed, without holes in any plane."""
    if not mask.any():
        return mask
    # Filled first: dark bone parts a scalp from its brain, and either alone would be the largest component.
    return fill(_close(largest(fill(mask))))


def fill(mask: Mask) -> Mask:
    """Return the mask with what it encloses, in 3-D or in any one plane."""
    filled = mask.copy()
    # Across a single slice, every pixel lies on an edge of its plane.
    for axis in (0, 1, 2, None) if mask.shape[0] > 1 else (0,):
        filled |= _holes(filled, axis)
    return filled


def _neighbours(mask: Mask) -> Mask:
    """Return the face neighbourhood: of a volume in 3-D, of a single slice in its plane."""
    structure: Mask = ndimage.generate_binary_structure(3, 1)
    if mask.shape[0] == 1:
        structure = structure.copy()
        structure[[0, 2]] = False
    return structure


def largest(mask: Mask) -> Mask:
    """Return the largest component, by face neighbours."""
    labels, count = ndimage.label(mask, structure=_neighbours(mask))
    if count < 2:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    component: Mask = labels == int(sizes.argmax())
    return component


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
            open_[np.take(labels, end, axis=edge)] = True
    enclosed: Mask = ~open_[labels]
    return enclosed
