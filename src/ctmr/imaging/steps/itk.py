"""Volumes as SimpleITK images and back: RAS and [D, H, W] here, LPS and (x, y, z) there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ctmr.errors import EnvironmentFault, InputError
from ctmr.imaging.plan import refuse_shear
from ctmr.imaging.volume import Volume

if TYPE_CHECKING:
    import SimpleITK

RAS_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Takes RAS millimetres to LPS millimetres, and back."""


def to_itk(volume: Volume, array: NDArray[Any] | None = None) -> SimpleITK.Image:
    """Return a volume as a SimpleITK image.

    Parameters
    ----------
    volume
        Gives the geometry. A picture becomes a two-dimensional image with pixels of 1 mm.
    array
        ``[D, H, W]`` values in place of the volume's own; bool becomes uint8, everything else float32.

    Raises
    ------
    InputError
        A sheared volume.
    """
    sitk = simple_itk()
    values = volume.array if array is None else array
    values = values.astype(np.uint8 if values.dtype == np.bool_ else np.float32)
    if volume.affine is None:
        return sitk.GetImageFromArray(values[0])
    refuse_shear(volume.affine, volume)
    image = sitk.GetImageFromArray(values)
    lps = RAS_LPS @ volume.affine
    axes = lps[:3, [2, 1, 0]]
    spacing = np.linalg.norm(axes, axis=0)
    # ITK takes directions at right angles only; within the tolerance of shear the nearest such frame is taken.
    left, _, right = np.linalg.svd(axes / spacing)
    image.SetSpacing([float(s) for s in spacing])
    image.SetDirection((left @ right).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def simple_itk() -> Any:
    """Return the SimpleITK module, or raise EnvironmentFault saying how to get it."""
    try:
        import SimpleITK
    except ImportError:
        raise EnvironmentFault(
            "a preprocessing step needs SimpleITK, which is not installed; install it with `pip install SimpleITK`, "
            "or take the step out of preprocess.steps"
        ) from None
    return SimpleITK


@contextmanager
def one_thread(sitk: Any) -> Iterator[None]:
    """Run ITK on one thread: sums in threads come in any order, and a rerun must find the same numbers.

    The number of threads of a filter or metric alone is not enough, what it makes inside takes the default.
    """
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


@contextmanager
def named(volume: Volume, what: str) -> Iterator[None]:
    """Turn what ITK raises into one sentence that names the image.

    ITK has no error types of its own: everything is a RuntimeError whose last line says what happened.
    """
    try:
        yield
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[-1][:200] if lines else type(error).__name__
        raise InputError(f"image {volume.uid or volume.subject!r}: {what} failed ({reason})") from error
