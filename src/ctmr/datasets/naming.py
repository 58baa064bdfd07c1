"""Meaning of folder and file names: modality, sequence, subject, split; and who a subject is, behind every door."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import PurePath

import pydicom

from ctmr.data.manifest import SUBJECT_PREFIX, Split
from ctmr.data.patients import STUDY
from ctmr.errors import InputError
from ctmr.imaging.volume import Modality
from ctmr.io.dicom.identity import canonical

_MR_WORDS = frozenset({"mr", "mri", "t1", "t2", "t1c", "t1w", "t2w", "flair", "pd"})
_SEQUENCES = {"t1": "T1", "t1w": "T1", "t2": "T2", "t2w": "T2", "flair": "FLAIR", "pd": "PD", "t1c": "T1C"}
_SPLIT_WORDS = {
    Split.TRAIN: ("training", "train", "trn", "tr"),
    Split.VAL: ("validation", "validate", "valid", "val", "dev"),
    Split.TEST: ("testing", "test", "tst", "ts", "holdout", "evaluation", "eval"),
}
_SPLIT_OF = {word: split for split, some in _SPLIT_WORDS.items() for word in some}
_LONG_WORDS = "|".join(w for w in _SPLIT_OF if len(w) > 2)
_JOINED = re.compile(rf"({_LONG_WORDS})(?:sets?|data|images?|imgs?|s?daten|split|fold|[ab]|ct|mri?|\d+)?")
"""Split names that run together with another word: "trainA", "testset", "val2"."""
_ENTITIES = ("sub-", "ses-", "acq-", "run-", "task-")
"""Beginnings of BIDS names: the "test" of a session is no split."""
_GENERIC = frozenset(
    {
        *("ct", "cts", "mr", "mrs", "mri", "mris", *_SEQUENCES, "images", "image", "img", "imgs", "data", "dataset"),
        *("nifti", "nii", "dicom", "dcm", "png", "jpg", "scans", "scan", "volumes", "volume", "vol", "raw", "a", "b"),
        *(
            "anat",
            "head",
            "brain",
            "set",
            "split",
            "all",
            "files",
            "imagestr",
            "imagests",
            "imagesva",
            "reg",
            "registered",
            "resampled",
        ),
    }
)
"""Words of folders and files that name no subject."""
_PATIENT = r"(?:patients?|pat|subjects?|subj|sub|case|pt|id|p)[ _-]*\d+"
_SLICE = r"(?:slices?|slc|sl|s|layer|level|frame|axial|sagittal|coronal|ax|sag|cor|tra|z)"
_A_PATIENTS_SLICE = (
    re.compile(rf"(?P<who>{_PATIENT})(?:[ _-].*)?", re.IGNORECASE),
    re.compile(rf"(?:{_SLICE}[ _-]*)?\d+[ _-]+(?P<who>{_PATIENT})(?:[ _-].*)?", re.IGNORECASE),
    re.compile(rf"(?P<who>.+?)[ _-]*(?<![a-z]){_SLICE}[ _-]*\d+", re.IGNORECASE),
)
"""Names of pictures that are slices of a patient; a picture of any other name stands for itself."""
_PLACEHOLDER = re.compile(
    r"0+|x+|anon(ymous|ymi[sz]ed|ymisiert|ym|yme)?(patient|subject|id)?|(patient|subject)?(un|not)(known|named|defined|"
    r"available|specified|provided)|none|null|nil|na|nan|no(name|id|patientid)|(patient|subject)(id)?|id|pid|unbekannt|"
    r"inconnu|desconocido|deidenti[a-z]*|removed|redacted|test|dummy|default|empty|tbd"
)
"""PatientIDs, without signs, that anonymisers and careless hands give to everybody."""


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

    A picture is a slice of the patient that a folder or its name tells ("patient03_slice_012"), and without either a
    subject of its own. For a volume, the folder names the patient when there is one a patient (SynthRAD's layout), else
    the file does, without the words for modality and sequence: "p01_ct" and "p01_mr" are one subject.
    """
    named = next((p for p in relative.parent.parts if p.lower().startswith(SUBJECT_PREFIX)), "")
    if named:
        return _normal(named[len(SUBJECT_PREFIX) :])
    stem = _normal(relative.name).split(".")[0]
    if picture:
        return _subject_of_picture(relative, stem)
    own = [_normal(p) for p in reversed(relative.parent.parts)]
    # nnU-Net's file names end in the channel.
    nnunet = bool(own) and own[0].lower() in ("imagestr", "imagests")
    file = _without_generic(re.sub(r"_\d{4}$", "", stem) if nnunet else stem)
    if file and (not own or _is_generic(own[0])):
        return file
    return next((folder for folder in own if not _is_generic(folder)), stem)


def subject_of_series(header: pydicom.Dataset) -> str:
    """Return the subject of a DICOM series: PatientID without padding, else its study; empty without both.

    A PatientID that everybody has (0, ANONYMOUS, unknown) is none, where the study is known.
    """
    patient = _normal(str(header.get("PatientID") or ""))
    study = str(header.get("StudyInstanceUID") or "").strip()
    bare = re.sub(r"[\W_]+", "", canonical(patient))
    return f"{STUDY}{study}" if study and (not bare or _PLACEHOLDER.fullmatch(bare)) else patient


def one_form(subjects: Iterable[str], known: Iterable[str] = ()) -> dict[str, str]:
    """Return subject → the form in which every door names it.

    Subjects that differ in case, blanks or Unicode composition alone are one (`ctmr.io.dicom.identity.canonical`); it
    is named as in `known`, else as the first of them in order.
    """
    subjects = list(subjects)
    form: dict[str, str] = {}
    for subject in (*sorted(known), *sorted(subjects)):
        form.setdefault(canonical(subject), subject)
    return {subject: form[canonical(subject)] for subject in subjects}


def names_patient(name: str) -> bool:
    """True for names such as ``patient03`` and ``case_3``: one person, in whatever split they occur."""
    return bool(re.fullmatch(_PATIENT, _normal(name), re.IGNORECASE))


def pair_of(relative: PurePath, side: int, *, whole: bool) -> str:
    """Return what the two images of a pair have in common: their path without side, split and generic folders.

    Parameters
    ----------
    relative
        Path of an image below a folder CT or MR, A or B.
    side
        Position of that folder in the path.
    whole
        The whole path below it; else its first name, which is a patient's folder or file.

    Examples
    --------
    >>> pair_of(PurePath("JD/CT/slice_12_ct.png"), 1, whole=True), pair_of(PurePath("CT/P01/a.nii.gz"), 0, whole=False)
    ('jd/slice_12', 'p01')
    """
    above = [p for p in relative.parts[:side] if not _is_generic(p)]
    below = relative.parts[side + 1 :] if whole else relative.parts[side + 1 : side + 2]
    *folders, name = (*above, *below)
    stem = re.sub(r"\.(nii\.gz|[^.]+)$", "", name)
    bare = re.sub(r"^(?:ct|mri?)[ _-]+(?=.)|(?<=.)[ _-]+(?:ct|mri?)$", "", _normal(stem), flags=re.IGNORECASE)
    return canonical("/".join((*folders, bare)))


def split_of(relative: PurePath) -> str:
    """Return the split that a folder above the file names, empty when none does.

    Spellings such as ``Train``, ``training``, ``TrainA``, ``validation``, ``Test_set`` and ``imagesTs`` are understood.

    Raises
    ------
    InputError
        Folders that name several splits: nobody can tell whether such an image may be trained on.
    """
    folders = [(p, found) for p in relative.parent.parts if (found := _splits_of(p))]
    clear = {split for _, found in folders if len(found) == 1 for split in found}
    if len(clear) > 1 or (folders and not clear):
        names = " and ".join(dict.fromkeys(p for p, _ in folders))
        meant = " or ".join(s for s in Split if any(s in found for _, found in folders))
        raise InputError(
            f"the split of {relative} cannot be told: its folder{'s' if len(folders) > 1 else ''} {names} may mean "
            f"{meant}; name folders train, val or test"
        )
    return next(iter(clear)).value if clear else ""


def split_named(folder: str) -> str:
    """Return the one split that a folder's name means, empty when it means none or several."""
    found = _splits_of(folder)
    return next(iter(found)).value if len(found) == 1 else ""


def is_mask(relative: PurePath) -> bool:
    """Return whether a file is a mask that came with an image (SynthRAD's ``mask.nii.gz``), not an image."""
    return "mask" in words(PurePath(relative.name))


def _normal(text: str) -> str:
    """Return an identifier in one Unicode form and without padding; case stays for people to read."""
    return " ".join(unicodedata.normalize("NFC", text.replace("\0", " ")).split())


def _pieces(name: str) -> list[str]:
    """Return the words of one name, lower case; "imagesTr" and "TestSet" are two each."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", re.sub(r"(?i)hold[ _-]out", "holdout", name))
    return [w for w in re.split(r"[^0-9a-zA-Z]+", parted.lower()) if w]


def _splits_of(folder: str) -> set[Split]:
    if folder.lower().startswith(_ENTITIES):
        return set()
    found = set()
    pieces = _pieces(folder)
    for piece in pieces:
        joined = _JOINED.fullmatch(piece)
        # "tr" and "ts" alone are anything; behind another word ("imagesTr") they are nnU-Net's.
        if joined or (piece in _SPLIT_OF and len(pieces) > 1):
            found.add(_SPLIT_OF[joined[1] if joined else piece])
    return found


def _is_generic(folder: str) -> bool:
    return bool(_splits_of(folder)) or all(w in _GENERIC for w in _pieces(folder))


def _without_generic(stem: str) -> str:
    """Return a file's stem without the words for modality, sequence and kind at its ends."""
    pieces = re.split(r"([ _-]+)", stem)
    while pieces and (not pieces[-1].strip(" _-") or pieces[-1].lower() in _GENERIC):
        pieces.pop()
    while pieces and (not pieces[0].strip(" _-") or pieces[0].lower() in _GENERIC):
        pieces.pop(0)
    return "".join(pieces)


def _subject_of_picture(relative: PurePath, stem: str) -> str:
    folder = next((_normal(p) for p in reversed(relative.parent.parts) if re.fullmatch(_PATIENT, p, re.IGNORECASE)), "")
    if folder:
        return folder
    bare = _without_generic(stem)
    found = (pattern.fullmatch(bare) for pattern in _A_PATIENTS_SLICE)
    named = next((who for m in found if m and (who := _without_generic(m["who"]))), "")
    return named or relative.as_posix()
