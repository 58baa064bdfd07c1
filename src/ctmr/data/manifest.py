"""Manifest and inventory: the column names that stages agree on, and splits."""

from __future__ import annotations

from enum import StrEnum

from ctmr.imaging.origin import PHANTOM_PREFIX as PHANTOM_PREFIX

SUBJECT_PREFIX = "sub-"
"""A folder that begins so names the subject, as in BIDS and in every dataset that `ctmr dataset add` makes."""


class Split(StrEnum):
    """Use that a subject's images may be put to."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


class Column(StrEnum):
    """Columns of ``inventory.parquet``; ``manifest.parquet`` has them all and adds `Column.SPLIT`.

    One row is one image: a series, a volume or a picture.
    """

    IMAGE = "image"
    """Identifier, unique in the dataset."""
    SUBJECT = "subject"
    MODALITY = "modality"
    SEQUENCE = "sequence"
    """MR sequence, empty when none or unknown."""
    PATH = "path"
    """Relative to ``raw/``: a file, or the folder of a DICOM series, with ``#`` and the key of
    `ctmr.io.dicom.group_series` when it holds more than that series."""
    FORMAT = "format"
    """A key of `ctmr.io.FORMATS`."""
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
    FRAME_OF_REFERENCE = "frame_of_reference"
    """FrameOfReferenceUID of a DICOM series, empty where there is none, or one that `ctmr dataset add` made
    up: images of unlike ones are not registered."""
    SPLIT_GIVEN = "split_given"
    """Split the dataset came with (a folder's name), empty when it has none."""
    ERROR = "error"
    """Why the image could not be read, empty when it could."""
    NO_IMAGE = "no_image"
    """Why there is nothing here to train on (a localizer, a dose report), empty for images. It is no fault."""
    SYNTHETIC = "synthetic"
    """What the file says when a model made the image, so that it is neither training nor truth; empty for others."""
    MASK = "mask"
    """Relative to ``raw/``: the file of the mask that came with the image (SynthRAD's), empty when none did."""
    UNEVEN_LIMIT = "uneven_limit"
    """`ctmr.recipe.recipe.Fetch.uneven_limit` with which the image was read, so that it is read alike later."""
    NOTES = "notes"
    """What the reader did to the image (a gantry tilt straightened) or doubts about it; empty when nothing."""
    IDENTITY = "identity"
    """Names of attributes that still identify the patient, separated by ``;`` and never with their values; and
    `RECOGNIZABLE_FACES`."""
    SPLIT = "split"


RECOGNIZABLE_FACES = "RecognizableVisualFeatures"
"""DICOM attribute (0028,0302): YES where a face can be rebuilt from the voxels."""
INVENTORY_COLUMNS: tuple[str, ...] = tuple(c.value for c in Column if c is not Column.SPLIT)
MANIFEST_COLUMNS: tuple[str, ...] = tuple(c.value for c in Column)


class Outcome(StrEnum):
    """Decision of the validation."""

    PASS = "pass"
    PASS_WITH_DROPS = "pass_with_drops"
    REFUSE = "refuse"
