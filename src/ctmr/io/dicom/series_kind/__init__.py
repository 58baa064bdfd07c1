"""Kind of a series, told from its header: an anatomical head image of a sequence, or why it is none."""

from ctmr.io.dicom.series_kind.classify import SeriesAnswer, classify, guess_sequence

__all__ = ["SeriesAnswer", "classify", "guess_sequence"]
