"""The phantom cohort as files: DICOM series in one archive a series, split into train, val and test."""

from __future__ import annotations

import io
import tempfile
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ctmr.data.manifest import PHANTOM_PREFIX, Split
from ctmr.imaging.volume import Modality, Unit, Volume
from ctmr.system.pool import in_order
from ctmr.system.progress import Progress, silent

Subject: TypeAlias = tuple[int, Split, tuple[Modality, ...]]
"""Seed, split and modalities."""


@dataclass(frozen=True)
class CohortPlan:
    """Numbers of phantom heads, by split and modality.

    Attributes
    ----------
    train_mr, train_ct
        Training subjects of each modality; they are different subjects.
    val, test
        Subjects that have both, so that paired truth in HU exists.
    shape, spacing_mm
        Voxels [D, H, W] and their isotropic size.
    sequences
        MR sequences written for each MR subject.
    seed
        First subject's seed; subject k has seed + k.
    """

    train_mr: int = 12
    train_ct: int = 12
    val: int = 2
    test: int = 4
    shape: tuple[int, int, int] = (96, 112, 96)
    spacing_mm: float = 2.0
    sequences: tuple[str, ...] = ("T1",)
    seed: int = 2000

    def subjects(self) -> list[Subject]:
        """Return every subject."""
        kinds = (
            [(Split.TRAIN, (Modality.MR,))] * self.train_mr
            + [(Split.TRAIN, (Modality.CT,))] * self.train_ct
            + [(Split.VAL, (Modality.CT, Modality.MR))] * self.val
            + [(Split.TEST, (Modality.CT, Modality.MR))] * self.test
        )
        return [(self.seed + k, split, modalities) for k, (split, modalities) in enumerate(kinds)]


def write_cohort(
    folder: Path,
    plan: CohortPlan,
    *,
    report: Progress = silent,
) -> int:
    """Write the cohort below `folder` and return the number of series.

    One archive a series, ``<split>/<modality>/<subject>[_<sequence>].zip``, of DICOM files; equal plans give equal
    bytes on one machine. Every series says PHANTOM in its description.
    """
    subjects = plan.subjects()
    count = 0
    for k, written in enumerate(in_order(partial(_write_subject, folder, plan), subjects, worth=1), start=1):
        count += written
        report(f"phantom head {k} of {len(subjects)}", k / len(subjects))
    return count


def affine_of(shape: tuple[int, int, int], spacing_mm: float) -> NDArray[np.float64]:
    """Return the RAS affine of an axial phantom (orientation SPL) centred on the origin."""
    affine = np.zeros((4, 4))
    affine[2, 0] = spacing_mm
    affine[1, 1] = affine[0, 2] = -spacing_mm
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    affine[3, 3] = 1
    return affine


def _write_subject(folder: Path, plan: CohortPlan, subject: Subject) -> int:
    from ctmr.io.dicom import seeded_uid
    from ctmr.phantom import make_head

    seed, split, modalities = subject
    head = make_head(seed, shape=plan.shape, spacing_mm=plan.spacing_mm)
    known_as = f"{PHANTOM_PREFIX}{seed}"
    affine = affine_of(plan.shape, plan.spacing_mm)
    study, frame = (seeded_uid(f"{known_as} {what}") for what in ("study", "frame of reference"))
    written = 0
    for modality in modalities:
        if modality is Modality.CT:
            images: list[tuple[str | None, NDArray[Any]]] = [(None, head.ct)]
        else:
            images = [(s, {"T1": head.t1, "T2": head.t2}[s]) for s in plan.sequences]
        for sequence, array in images:
            unit = Unit.HU if modality is Modality.CT else Unit.ARBITRARY
            volume = Volume(array, affine, modality, unit, known_as, sequence)
            name = known_as if sequence is None else f"{known_as}_{sequence}"
            _write_archive(
                folder / split.value / modality.value / f"{name}.zip", volume, f"{name} {modality}", study, frame
            )
            written += 1
    return written


def _write_archive(path: Path, volume: Volume, uid_seed: str, study_uid: str, frame_uid: str) -> None:
    from ctmr.io.dicom import write_series

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ctmr-phantom-") as scratch:
        label = "PHANTOM CT head" if volume.modality is Modality.CT else f"PHANTOM {volume.sequence} head"
        files = write_series(
            Path(scratch) / "series",
            volume,
            uid_seed=uid_seed,
            study_uid=study_uid,
            frame_of_reference_uid=frame_uid,
            description=label,
            synthetic_data=True,
        )
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
            for file in sorted(files):
                archive.writestr(zipfile.ZipInfo(file.name, (2026, 1, 1, 0, 0, 0)), file.read_bytes())
        path.write_bytes(packed.getvalue())
