"""A source becomes a dataset: every image de-identified, named by pseudonym, packed into archives, and counted."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pydicom

from ctmr.data.patients import STUDY
from ctmr.datasets.deid import dicom
from ctmr.datasets.deid.dicom import METHOD, Cleaner
from ctmr.datasets.deid.files import clean
from ctmr.datasets.deid.pseudonyms import Key, Originals
from ctmr.datasets.dvc import pack
from ctmr.datasets.importers import FoundImage, ImportPlan
from ctmr.datasets.names import Dates
from ctmr.errors import InputError
from ctmr.imaging.volume import Modality
from ctmr.io import Holds
from ctmr.io.dicom.headers import opened
from ctmr.system.files import scratch_folder
from ctmr.system.pool import in_order
from ctmr.system.progress import Progress

PICTURES_PER_ARCHIVE = 1000
NOT_STATED = "not stated"
_WORTH = 5
"""Images that are worth starting a process for."""


@dataclass(frozen=True)
class Job:
    """One image to make.

    Attributes
    ----------
    name
        Path in the dataset, without suffix.
    """

    found: FoundImage
    name: str
    folder: Path
    key: Key
    dates: Dates


@dataclass
class Made:
    """Outcome of a job.

    Attributes
    ----------
    refused
        Why the image was not taken in; empty when it was.
    uids
        New → original.
    faces, burned_in
        RecognizableVisualFeatures of the result (`NOT_STATED` of a NIfTI file), BurnedInAnnotation of the source; empty
        where there is no header.
    """

    refused: str = ""
    uids: dict[str, str] = field(default_factory=dict)
    faces: str = ""
    burned_in: str = ""


@dataclass
class Built:
    """A finished dataset.

    Attributes
    ----------
    index
        What it holds, where from and how it was de-identified: plain JSON types without anything that identifies.
    originals
        For the identity file.
    """

    index: dict[str, Any]
    originals: Originals


def build(
    plan: ImportPlan,
    folder: Path,
    *,
    name: str,
    key: Key,
    dates: Dates,
    skip_refused: bool,
    report: Progress,
) -> Built:
    """Write a plan's images below a folder.

    One layout for all sources: ``[<split>/]sub-<pseudonym>/<modality>[_<sequence>][-<n>]``, a DICOM series as zip
    archive, a volume as ``.nii.gz``; pictures are packed by the thousand into ``[<split>/]pictures-<n>.zip``.

    Raises
    ------
    InputError
        An image that cannot be de-identified, unless `skip_refused` leaves it out.
    """
    # Headers stay here: a worker reads the files itself.
    light = [replace(found, item=replace(found.item, header=None)) for found in plan.images]
    jobs = [Job(found, path, folder, key, dates) for found, path in _named(light, key)]
    originals, counts = Originals(), Counter(plan.left_out)
    taken: list[FoundImage] = []
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for k, (job, made) in enumerate(zip(jobs, in_order(make, jobs, worth=_WORTH), strict=True)):
        report(f"de-identified {k + 1} of {len(jobs)} images", 0.9 * (k + 1) / len(jobs))
        if made.refused:
            if not skip_refused:
                raise InputError(f"{made.refused}; nothing was added; with --skip-refused such images are left out")
            counts["refused"] += 1
            continue
        taken.append(job.found)
        originals.subjects[key.pseudonym(job.found.subject, phantom=job.found.phantom)] = job.found.subject
        originals.uids |= made.uids
        originals.files[f"{name}/{job.name}"] = str(job.found.item.relative)
        for what, value in (("faces", made.faces), ("burned_in", made.burned_in)):
            if value:
                seen[what][value] += 1
    if not any(f.modality for f in taken):
        raise InputError("no image of the source could be de-identified; nothing was added")
    # Refused images leave their folders, which other processes may have been about to write into until now.
    for place in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
        if not any(place.iterdir()):
            place.rmdir()
    _pack_pictures(folder)
    index = {
        "name": name,
        "layout": plan.layout.value,
        **_counts(taken),
        "left_out": dict(sorted(counts.items())),
        "deidentification": {
            "method": METHOD,
            "dates": {"remove": "removed", "shift": "shifted by a secret number of days per patient"}[dates.value],
            "burned_in_annotation": dict(sorted(seen["burned_in"].items())),
            "recognizable_visual_features": dict(sorted(seen["faces"].items())),
            "pixels": "not looked at: faces were not removed and text in pixels was not searched",
        },
    }
    return Built(index, originals)


def _named(images: Sequence[FoundImage], key: Key) -> Iterator[tuple[FoundImage, str]]:
    """Yield every image with its path in the dataset; several of a kind are numbered in an order that tells nothing."""
    groups: dict[str, list[FoundImage]] = defaultdict(list)
    for found in images:
        what = "mask" if found.modality is None else found.modality.value.lower()
        stem = what + (f"_{found.sequence}" if found.sequence else "")
        groups["/".join(w for w in (found.split, found.folder(key), stem) if w)].append(found)
    for path in sorted(groups):
        ordered = sorted(groups[path], key=lambda f: key.order(f.item.uid or str(f.item.relative)))
        for k, found in enumerate(ordered):
            yield found, path if len(ordered) == 1 else f"{path}-{k + 1}"


def make(job: Job) -> Made:
    """Write one de-identified image; a `Made` that says why when that is impossible."""
    item = job.found.item
    target = job.folder / job.name
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if item.holds is Holds.SERIES:
            return _make_series(job, target.with_name(target.name + ".zip"))
        clean(item.kind, item.files[0], target)
    except InputError as error:
        return Made(refused=f"{item.relative} {error}")
    # A head in NIfTI may have a face as well, but no header to say so.
    return Made(faces=NOT_STATED if item.holds is Holds.VOLUME and job.found.modality else "")


def _make_series(job: Job, archive: Path) -> Made:
    item, made = job.found.item, Made()
    cleaner = Cleaner(job.key, job.found.subject, item.uid, job.found.sequence, job.dates, job.found.phantom)
    with scratch_folder(archive) as scratch:
        members = []
        for k, file in enumerate(_in_order(item.files), start=1):
            image, uids = cleaner.clean(file, k)
            made.uids |= uids
            made.faces = image.RecognizableVisualFeatures
            made.burned_in = str(image.get("BurnedInAnnotation", NOT_STATED))
            name = f"IM_{k:04d}.dcm"
            pydicom.dcmwrite(scratch / name, image, enforce_file_format=True)
            members.append((name, scratch / name))
        pack(archive, members)
    return made


def _in_order(files: Sequence[Path]) -> list[Path]:
    """Return the files of a series by InstanceNumber."""

    def number(file: Path) -> tuple[int, str]:
        with dicom.quiet_pydicom():
            try:
                with opened(file) as stream:
                    wanted = ["InstanceNumber"]
                    header = pydicom.dcmread(stream, force=True, stop_before_pixels=True, specific_tags=wanted)
                return int(header.get("InstanceNumber") or 0), str(file)
            except Exception:
                # Damaged files are named when they are read in full.
                return 0, str(file)

    return sorted(files, key=number)


def _pack_pictures(folder: Path) -> None:
    """Put the pictures of each split into archives: DVC is slow with many small files."""
    pictures: dict[Path, list[Path]] = defaultdict(list)
    for file in sorted(folder.rglob("*.png")):
        pictures[file.parent.parent].append(file)
    for split, files in pictures.items():
        for k in range(0, len(files), PICTURES_PER_ARCHIVE):
            some = files[k : k + PICTURES_PER_ARCHIVE]
            archive = split / f"pictures-{k // PICTURES_PER_ARCHIVE:03d}.zip"
            pack(archive, [(f.relative_to(split).as_posix(), f) for f in some])
            for file in some:
                file.unlink()
                if not any(file.parent.iterdir()):
                    file.parent.rmdir()


def _counts(taken: Sequence[FoundImage]) -> dict[str, Any]:
    pairs: dict[tuple[str, str], set[Modality]] = defaultdict(set)
    rows: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for found in taken:
        if found.modality is not None:
            pairs[found.subject, found.pair].add(found.modality)
            rows[found.split, found.modality.value, found.sequence].append(found.subject)
    return {
        "images": sum(len(r) for r in rows.values()),
        "subjects": len({who for who, _ in pairs}),
        "pairs": sum(len(m) == len(Modality) for m in pairs.values()),
        "studies_as_subjects": len({who for who, _ in pairs if who.startswith(STUDY)}),
        "phantoms": sum(f.phantom for f in taken if f.modality is not None),
        "masks": sum(f.modality is None for f in taken),
        "counts": [
            {"split": s, "modality": m, "sequence": q, "images": len(who), "subjects": len(set(who))}
            for (s, m, q), who in sorted(rows.items())
        ],
    }
