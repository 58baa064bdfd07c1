"""Series of a plain folder, as fetch finds and describes them: what is left out, whose each is, where it lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from dicom_files import image, save

from ctmr.data.findings import FindingKind, inspect
from ctmr.data.manifest import INVENTORY_COLUMNS, Column
from ctmr.io.series_kinds import Kind
from ctmr.pipeline.stages.fetch import describe, find_images
from ctmr.recipe.recipe import Validate

PIXELS = np.random.default_rng(0).integers(0, 900, (4, 40, 40)).astype(np.int16)


def series(folder: Path, uid: str, seed: int = 0, **attributes: Any) -> None:
    """Save a series of four slices."""
    slices = [
        image(p + seed, (0, 0, 3.0 * k), SeriesInstanceUID=uid, PatientIdentityRemoved="YES", **attributes)
        for k, p in enumerate(PIXELS)
    ]
    save(folder, slices, prefix=f"{uid}_{seed}_")


def inventory(raw: Path, keep: tuple[Kind, ...] = ()) -> pd.DataFrame:
    rows = [describe(raw, entry, keep=keep) for entry in find_images(raw)]
    return pd.DataFrame(rows, columns=list(INVENTORY_COLUMNS))


def test_what_is_no_anatomical_head_is_left_out_by_name_and_can_be_kept(tmp_path: Path) -> None:
    series(tmp_path / "t1", "1.1", Modality="MR", SeriesDescription="t1_mprage")
    series(tmp_path / "phase", "1.2", Modality="MR", ImageType=["ORIGINAL", "PRIMARY", "P", "ND"])
    series(tmp_path / "chest", "1.3", SeriesDescription="Thorax 5.0")
    series(tmp_path / "mosaic", "1.4", Modality="MR", ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"])
    found = inventory(tmp_path)
    reasons = dict(zip(found[Column.IMAGE], found[Column.NO_IMAGE], strict=True))
    assert reasons["t1"] == "" and "phase" in reasons["phase"] and "mosaic" in reasons["mosaic"]
    assert reasons["chest"] == "other body part than the head"
    findings = [f for f in inspect(found, Validate()) if f.kind is FindingKind.LEFT_OUT]
    assert sorted(f.images[0] for f in findings) == ["chest", "mosaic", "phase"]
    sentences = {f.images[0]: f.sentence for f in findings}
    assert "fetch.keep=[phase] uses it all the same" in sentences["phase"]
    assert "fetch.keep=[mosaic] uses it all the same" in sentences["mosaic"]
    kept = inventory(tmp_path, keep=(Kind.PHASE,)).set_index(Column.IMAGE.value)
    assert kept.loc["phase", Column.NO_IMAGE] == "" and kept.loc["phase", Column.DEPTH] == 4
    # These tiles have no private header: kept, they are an error in words and never slices.
    kept = inventory(tmp_path, keep=(Kind.MOSAIC,)).set_index(Column.IMAGE.value)
    assert "says how its tiles lie" in kept.loc["mosaic", Column.ERROR]


def test_the_echoes_of_a_series_are_images_of_their_own(tmp_path: Path) -> None:
    for echo in (5, 90):
        series(tmp_path / "mr", "1.1", seed=echo, Modality="MR", EchoTime=echo, RepetitionTime=3000)
    found = inventory(tmp_path)
    assert found[Column.UID].nunique() == 2 and (found[Column.ERROR] == "").all()
    assert not [f for f in inspect(found, Validate()) if "duplicate" in f.rule]


def test_a_time_series_is_named_as_one(tmp_path: Path) -> None:
    for point in range(1, 4):
        series(tmp_path / "mr", "1.1", seed=point, Modality="MR", TemporalPositionIdentifier=point)
    assert set(inventory(tmp_path)[Column.NO_IMAGE]) == {"time point of a time series"}


def test_a_series_without_patient_is_its_studys_and_padding_is_none(tmp_path: Path) -> None:
    series(tmp_path / "a", "1.1", PatientID="", StudyInstanceUID="1.9")
    series(tmp_path / "b", "1.2", seed=3, PatientID="", StudyInstanceUID="1.9")
    series(tmp_path / "c", "1.3", seed=5, PatientID=" P7 ", FrameOfReferenceUID="1.8")
    found = inventory(tmp_path).set_index(Column.IMAGE.value)
    assert found.loc["a", Column.SUBJECT] == found.loc["b", Column.SUBJECT] == "study 1.9"
    assert found.loc["c", Column.SUBJECT] == "P7" and found.loc["c", Column.FRAME_OF_REFERENCE] == "1.8"


def test_an_image_below_a_folder_of_two_splits_is_an_error_and_never_trains(tmp_path: Path) -> None:
    series(tmp_path / "train_val" / "a", "1.1")
    series(tmp_path / "Testing" / "b", "1.2", seed=2)
    found = inventory(tmp_path).set_index(Column.IMAGE.value)
    assert "cannot be told" in found.loc["train_val/a", Column.ERROR]
    assert found.loc["Testing/b", Column.SPLIT_GIVEN] == "test"


def test_two_patients_of_one_placeholder_are_two_subjects_and_it_is_said(tmp_path: Path) -> None:
    for k in (1, 2):
        series(tmp_path / str(k), f"1.{k}", seed=k, PatientID="ANONYMOUS", StudyInstanceUID=f"1.9.{k}")
    found = inventory(tmp_path)
    assert set(found[Column.SUBJECT]) == {"study 1.9.1", "study 1.9.2"}
    (finding,) = [f for f in inspect(found, Validate()) if f.rule == "unknown_patients"]
    assert finding.images == ("1", "2") and "each of their 2 studies counts as a subject" in finding.sentence
