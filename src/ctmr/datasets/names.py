"""Names that the command line and the library share: layouts of sources, and what happens to dates."""

from __future__ import annotations

from enum import StrEnum


class FolderLayout(StrEnum):
    """Layout of a source."""

    AUTO = "auto"
    PLAIN = "plain"
    """DICOM of any kind, subject by PatientID; files whose path says CT or MR, subject by folder."""
    KAGGLE = "kaggle"
    """Unpaired pictures in ``train|test/CT|MRI`` or ``trainA|trainB|testA|testB`` (A is CT)."""
    CQ500 = "cq500"
    """A folder ``CQ500CT…`` of DICOM a patient."""
    IXI = "ixi"
    """``IXI002-Guys-0828-T1.nii.gz``."""
    SYNTHRAD = "synthrad"
    """``Task1/brain/<id>/{mr,ct,mask}.nii.gz``, of 2025 ``.mha``."""
    ADNI = "adni"
    """``<subject>/<sequence>/<date>/<image id>/…`` with subjects such as ``002_S_0295``."""
    PAIRED = "paired"
    """``CT/x`` and ``MR/x``, or ``A/x`` and ``B/x``, of one subject for every x; never guessed."""


class Dates(StrEnum):
    """Treatment of dates."""

    REMOVE = "remove"
    SHIFT = "shift"
    """All dates of a patient are moved by one secret number of days, so that intervals stay; times are removed."""
