"""PNG and JPEG pictures in, PNG out: 8-bit grey without geometry, which can never yield Hounsfield units."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from ctmr.errors import InputError
from ctmr.imaging.origin import told_by
from ctmr.imaging.volume import Modality, Unit, Volume
from ctmr.system.files import write_file

MAXIMUM_PIXELS = 16 * 2**20
"""More than any slice has; beyond it a file is a decompression bomb."""
_EXIF_DESCRIPTION = 270
_LONGEST_TEXT = 2**16
_WIDE_LEVELS = 65535
WIDE_MINIMUM = 4096
"""A 16-bit picture whose brightest pixel is below this would keep less than 16 of 256 grey levels."""
FEWEST_LEVELS = 24
"""Grey levels that must be left of a 16-bit picture, unless it holds few values anyway. 12 bits, such as Hounsfield
units plus an offset, leave 17."""
VALUES_A_LEVEL = 4
"""Values that one grey level may stand for where so few are left."""
CONTENT = 0.995
"""Share of the pixels that is looked at, the commonest grey levels first: the rest are marks and dead pixels."""
HU_OFFSET = 32768
"""What signed values are moved by to fit into 16 bits without sign."""


def read(path: Path, *, modality: Modality, unit: Unit | None = None, subject: str = "") -> Volume:
    """Read a PNG or JPEG in any pixel mode; `unit` changes nothing, since a picture is in grey8.

    Returns
    -------
    Volume
        uint8 ``[1, H, W]``, unit grey8, no affine. Colour becomes luminance (ITU-R 601-2), 16 bits become 8 by
        255/65535 (the PNG standard's meaning of a 16-bit sample: a share of white, never Hounsfield units), what is
        transparent becomes black, the EXIF orientation is applied.

    Raises
    ------
    InputError
        Naming the file: not a PNG or JPEG, truncated, too large to be a slice, or 16-bit values that use so little of
        their range (scanner values stored as they are, or with an offset) that 8 bits would keep almost nothing of
        them.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns below our limit and raises above it; the size is checked before any pixel is decoded.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG", "JPEG")) as image:
                if image.width * image.height > MAXIMUM_PIXELS:
                    raise InputError(
                        f"{path} claims {image.width}×{image.height} pixels; at most {MAXIMUM_PIXELS} are read"
                    )
                image.load()
                synthetic = told_by(_texts(image))
                grey = _grey8(ImageOps.exif_transpose(image), path)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{path} claims more than {MAXIMUM_PIXELS} pixels; give single slices") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not a PNG or JPEG picture; give one, or remove the file") from error
    except Exception as error:
        # Pillow's decoders and EXIF parser raise many types on damaged files.
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path} cannot be decoded ({reason}); export it again") from error
    return Volume(grey[None], None, modality, Unit.GREY8, subject, synthetic=synthetic)


def write(path: Path, volume: Volume, *, text: Mapping[str, str] | None = None) -> Path:
    """Write one grey8 picture as PNG.

    Parameters
    ----------
    path
        New, ends in ``.png``.
    volume
        ``[1, H, W]`` in unit grey8; other types than uint8 are rounded and clipped to 0…255.
    text
        PNG text chunks, keyword → text, e.g. ``{"Comment": "Synthetic CT"}``.

    Raises
    ------
    InputError
        Another unit, several slices, another suffix, or a path that exists.
    """
    if volume.unit is not Unit.GREY8 or volume.array.shape[0] != 1:
        raise InputError(
            f"a picture holds one slice in unit grey8; this volume has {volume.array.shape[0]} in {volume.unit}, "
            "so write it as DICOM or NIfTI"
        )
    if path.suffix.lower() != ".png":
        raise InputError(f"{path} ends in {path.suffix!r}; pictures are written as .png, because JPEG loses detail")
    chunks = PngImagePlugin.PngInfo()
    for keyword, value in (text or {}).items():
        chunks.add_text(keyword, value)
    stream = io.BytesIO()
    Image.fromarray(np.clip(np.rint(volume.array[0]), 0, 255).astype(np.uint8)).save(stream, "PNG", pnginfo=chunks)
    write_file(path, stream.getvalue())
    return path


def _texts(image: Image.Image) -> dict[str, str]:
    """Return the texts of a decoded picture: PNG's chunks, JPEG's comment, the EXIF description."""
    found = {**image.info, "ImageDescription": image.getexif().get(_EXIF_DESCRIPTION, "")}
    texts = {str(k): v.decode("utf-8", "replace") if isinstance(v, bytes) else v for k, v in found.items()}
    return {k: v[:_LONGEST_TEXT] for k, v in texts.items() if isinstance(v, str)}


def _grey8(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    """Return the luminance of a decoded picture, black where it is transparent."""
    if image.mode.startswith("I"):
        wide: NDArray[Any] = np.asarray(image).astype(np.float64)
        highest = float(wide.max())
        if 0 < highest < WIDE_MINIMUM:
            raise InputError(
                f"{path} holds 16-bit values up to {highest:g} of {_WIDE_LEVELS}, of which 8 bits would keep "
                f"{round(highest * 255 / _WIDE_LEVELS) + 1} grey levels; give the DICOM or NIfTI image, or a picture "
                f"whose values reach {WIDE_MINIMUM} at least"
            )
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            wide = np.where(wide == transparent, 0, wide)
        narrow: NDArray[np.uint8] = np.rint(np.clip(wide, 0, _WIDE_LEVELS) * (255 / _WIDE_LEVELS)).astype(np.uint8)
        _refuse_lost_contrast(wide, narrow, path)
        return narrow
    if image.has_transparency_data:
        pixels = image.convert("RGBA")
        luminance = np.asarray(pixels.convert("RGB").convert("L"), dtype=np.float64)
        opacity = np.asarray(pixels.getchannel("A"), dtype=np.float64) / 255
        dimmed: NDArray[np.uint8] = np.rint(luminance * opacity).astype(np.uint8)
        return dimmed
    if image.mode not in ("L", "1"):
        image = image.convert("RGB")
    return np.array(image.convert("L"), dtype=np.uint8)


def _refuse_lost_contrast(wide: NDArray[np.float64], narrow: NDArray[np.uint8], path: Path) -> None:
    """Raise InputError where 8 bits keep few grey levels of many values: these lie in a small part of the 16 bits."""
    counts = np.bincount(narrow.ravel(), minlength=256)
    order = np.argsort(-counts, kind="stable")
    left = int(np.searchsorted(np.cumsum(counts[order]), CONTENT * narrow.size)) + 1
    inside = wide[np.isin(narrow, order[:left])]
    values = len(np.unique(inside))
    if left >= FEWEST_LEVELS or values <= VALUES_A_LEVEL * left:
        return
    inside = inside[inside > 0]
    by_offset = abs(float(np.median(inside)) - HU_OFFSET) < WIDE_MINIMUM
    looks = f"they look like HU + {HU_OFFSET}, as DeepLesion is stored; " if by_offset else ""
    raise InputError(
        f"{path} holds {values} 16-bit values from {inside.min():g} to {inside.max():g} of {_WIDE_LEVELS}, of which 8 "
        f"bits would keep {left} grey levels; {looks}give the DICOM or NIfTI image, or a picture whose values fill the "
        "range"
    )
