"""DICOM series in and out: reading with geometry, writing, synthetic series with provenance."""

from ctmr.io.dicom.grouping import SeriesGroups, group_series
from ctmr.io.dicom.headers import read_header
from ctmr.io.dicom.parametric_map import NOT_FOR_DIAGNOSIS, write_uncertainty_map
from ctmr.io.dicom.provenance import SyntheticProvenance, is_phantom, origin_of, read_provenance
from ctmr.io.dicom.reading import read_series
from ctmr.io.dicom.series_kind import SeriesAnswer, classify, guess_sequence
from ctmr.io.dicom.series_kind.choice import SeriesChoice, choose_series
from ctmr.io.dicom.synthetic import write_synthetic_series
from ctmr.io.dicom.writing import MrParameters, frame_told, seeded_uid, write_series
from ctmr.io.signature import is_dicom

__all__ = [
    "NOT_FOR_DIAGNOSIS",
    "MrParameters",
    "SeriesAnswer",
    "SeriesChoice",
    "SeriesGroups",
    "SyntheticProvenance",
    "choose_series",
    "classify",
    "frame_told",
    "group_series",
    "guess_sequence",
    "is_dicom",
    "is_phantom",
    "origin_of",
    "read_header",
    "read_provenance",
    "read_series",
    "seeded_uid",
    "write_series",
    "write_synthetic_series",
    "write_uncertainty_map",
]
