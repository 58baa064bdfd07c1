"""DICOM series in and out: reading with geometry, writing, synthetic series with provenance."""

from ctmr.io.dicom.reading import SeriesGroups, group_series, guess_sequence, is_dicom, read_header, read_series
from ctmr.io.dicom.synthetic import SyntheticProvenance, read_provenance, write_synthetic_series
from ctmr.io.dicom.writing import MrParameters, seeded_uid, write_series

__all__ = [
    "MrParameters",
    "SeriesGroups",
    "SyntheticProvenance",
    "group_series",
    "guess_sequence",
    "is_dicom",
    "read_header",
    "read_provenance",
    "read_series",
    "seeded_uid",
    "write_series",
    "write_synthetic_series",
]
