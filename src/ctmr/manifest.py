"""Manifest and inventory: the column names that stages agree on, and splits."""

from __future__ import annotations

from enum import StrEnum


class Split(StrEnum):
    """What a subject's images may be used for."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


class Column(StrEnum):
    """Columns of ``inventory.parquet``; ``manifest.parquet`` has them all and adds `Column.SPLIT`.

    One row is one image: a series, a NIfTI file or a picture.
    """

    IMAGE = "image"
    """Identifier, unique in the dataset."""
    SUBJECT = "subject"
    MODALITY = "modality"
    SEQUENCE = "sequence"
    """MR sequence, empty when none or unknown."""
    PATH = "path"
    """Relative to ``raw/``: a folder for a DICOM series, a file otherwise."""
    FORMAT = "format"
    """``dicom``, ``nifti`` or ``raster``."""
    SHA256 = "sha256"
    """Of the file, or over the sorted files of a series."""
    PERCEPTUAL_HASH = "perceptual_hash"
    """64-bit, hexadecimal, of the middle slice."""
    DEPTH = "depth"
    HEIGHT = "height"
    WIDTH = "width"
    SPACING_D_MM = "spacing_d_mm"
    SPACING_H_MM = "spacing_h_mm"
    SPACING_W_MM = "spacing_w_mm"
    ORIENTATION = "orientation"
    UNIT = "unit"
    MINIMUM = "minimum"
    MAXIMUM = "maximum"
    UID = "uid"
    SPLIT_GIVEN = "split_given"
    """Split the dataset came with (a folder's name), empty when it has none."""
    ERROR = "error"
    """Why the image could not be read, empty when it could."""
    SPLIT = "split"


INVENTORY_COLUMNS: tuple[str, ...] = tuple(c.value for c in Column if c is not Column.SPLIT)
MANIFEST_COLUMNS: tuple[str, ...] = tuple(c.value for c in Column)


class Outcome(StrEnum):
    """What validation decided."""

    PASS = "pass"
    PASS_WITH_DROPS = "pass_with_drops"
    REFUSE = "refuse"
