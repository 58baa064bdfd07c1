"""Meaning of folder and file names: modality, sequence, subject, split."""

from __future__ import annotations

from pathlib import PurePath

from ctmr.data.manifest import Split
from ctmr.errors import InputError
from ctmr.imaging.volume import Modality

SUBJECT_PREFIX = "sub-"
"""A folder that begins so names the subject, as in BIDS and in every dataset that `ctmr dataset add` makes."""

_MR_WORDS = frozenset({"mr", "mri", "t1", "t2", "t1c", "t1w", "t2w", "flair", "pd"})
_SEQUENCES = {"t1": "T1", "t1w": "T1", "t2": "T2", "t2w": "T2", "flair": "FLAIR", "pd": "PD", "t1c": "T1C"}
_NO_SUBJECT = frozenset({"ct", "mr", "mri", "t1", "t2", "", *(s.value for s in Split)})


class UnknownModality(InputError):
    """A path that does not tell whether an image is CT or MR."""


def words(relative: PurePath) -> list[str]:
    """Return the lower-case words of a path's folders and file name."""
    text = relative.as_posix().lower()
    for mark in "/-. ":
        text = text.replace(mark, "_")
    return [w for w in text.split("_") if w]


def modality_of(relative: PurePath) -> Modality:
    """Guess the modality from folder and file names, or raise InputError saying which names are understood."""
    found = words(relative)
    is_ct, is_mr = "ct" in found, bool(_MR_WORDS & set(found))
    if is_ct == is_mr:
        raise UnknownModality(
            f"the modality of {relative} cannot be told from its path; put CT images below a folder CT and MR below MR"
        )
    return Modality.CT if is_ct else Modality.MR


def sequence_of(relative: PurePath) -> str | None:
    """Guess the MR sequence from folder and file names."""
    return next((_SEQUENCES[w] for w in reversed(words(relative)) if w in _SEQUENCES), None)


def subject_of(relative: PurePath, *, picture: bool) -> str:
    """Return the subject of a file: its ``sub-`` folder, else by habit.

    A picture without such a folder is a subject of its own. For a volume, the folder names the patient when there is
    one a patient (SynthRAD's layout), else the file does.
    """
    named = next((p for p in relative.parent.parts if p.lower().startswith(SUBJECT_PREFIX)), "")
    if named:
        return named[len(SUBJECT_PREFIX) :]
    if picture:
        return relative.as_posix()
    folder = relative.parent.name
    return relative.name.split(".")[0] if folder.lower() in _NO_SUBJECT else folder


def split_of(relative: PurePath) -> str:
    """Return the split that a folder above the file names, empty when none does."""
    return next((s.value for s in Split if s.value in relative.parent.parts), "")


def is_mask(relative: PurePath) -> bool:
    """Return whether a file is a mask that came with an image (SynthRAD's ``mask.nii.gz``), not an image."""
    return "mask" in words(PurePath(relative.name))
