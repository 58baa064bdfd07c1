"""Datasets: where images come from (a DVC repository or a plain folder), pinned to a revision and an md5."""

from ctmr.datasets.dvc.archives import MAX_ARCHIVE_BYTES, MAX_ARCHIVE_RATIO, pack, unpack
from ctmr.datasets.dvc.folders import files_below, folder_md5, refuse_link
from ctmr.datasets.dvc.sources import Dataset, DatasetSource, materialise, resolve

__all__ = [
    "MAX_ARCHIVE_BYTES",
    "MAX_ARCHIVE_RATIO",
    "Dataset",
    "DatasetSource",
    "files_below",
    "folder_md5",
    "materialise",
    "pack",
    "refuse_link",
    "resolve",
    "unpack",
]
