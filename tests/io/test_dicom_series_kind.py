"""Series told apart by their headers: a table of headers as scanners write them, with the answer beside each."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import image, save

from ctmr.errors import InputError
from ctmr.imaging.volume import Modality
from ctmr.io.dicom import choose_series, classify, guess_sequence
from ctmr.io.series_kinds import REASONS, Kind, kinds_of

TABLE = Path(__file__).with_name("series_headers.csv")
"""One made-up header a line, after real ones. `form` is classic or enhanced; `more` holds keywords with values, and
region (coded), b (of a frame), time (point of the last frame), ge_component (private). `expected` is the sequence,
unknown for an image of none of the four, or the kind as which it is left out."""
with TABLE.open(encoding="utf-8", newline="") as stream:
    ROWS = list(csv.DictReader(stream))
TIMES = {"tr": "RepetitionTime", "te": "EchoTime", "ti": "InversionTime", "flip": "FlipAngle"}


def header_of(row: Mapping[str, str]) -> pydicom.Dataset:
    """Return the header that a line of the table describes."""
    header = pydicom.Dataset()
    header.Modality, header.Manufacturer = row["modality"], row["maker"]
    for column, keyword in {"description": "SeriesDescription", "protocol": "ProtocolName"}.items():
        setattr(header, keyword, row[column])
    header.ContrastBolusAgent, header.BodyPartExamined = row["contrast"], row["body_part"]
    if row["scanning"]:
        header.ScanningSequence = row["scanning"].split("\\")
        header.SequenceVariant = row["variant"].split("\\")
    more = dict(pair.split("=") for pair in row["more"].split(";") if pair)
    special = {k: more.pop(k, "") for k in ("region", "b", "time", "ge_component")}
    for keyword, value in more.items():
        setattr(header, keyword, value)
    if special["ge_component"]:
        block = header.private_block(0x0043, "GEMS_PARM_01", create=True)
        block.add_new(0x2F, "SS", int(special["ge_component"]))
    times = {keyword: float(row[column]) for column, keyword in TIMES.items() if row[column]}
    header.ImageType = row["image_type"].split("\\")
    if "enhanced" in row["form"]:
        _enhance(header, times, special)
    else:
        header.update(times)
    return header


def _enhance(header: pydicom.Dataset, times: Mapping[str, float], special: Mapping[str, str]) -> None:
    frame, frame_type = pydicom.Dataset(), pydicom.Dataset()
    frame_type.FrameType = header.ImageType
    frame.MRImageFrameTypeSequence = [frame_type]
    names = {
        "RepetitionTime": ("MRTimingAndRelatedParametersSequence", "RepetitionTime"),
        "FlipAngle": ("MRTimingAndRelatedParametersSequence", "FlipAngle"),
        "EchoTime": ("MREchoSequence", "EffectiveEchoTime"),
        "InversionTime": ("MRModifierSequence", "InversionTimes"),
    }
    found = {keyword: (*names[keyword], value) for keyword, value in times.items()}
    if special["b"]:
        found["b"] = ("MRDiffusionSequence", "DiffusionBValue", float(special["b"]))
    if special["time"]:
        found["time"] = ("FrameContentSequence", "TemporalPositionIndex", int(special["time"]))
    for sequence, keyword, value in found.values():
        item = frame.get(sequence, [pydicom.Dataset()])[0]
        setattr(item, keyword, value)
        setattr(frame, sequence, [item])
    if special["region"]:
        region, anatomy = pydicom.Dataset(), pydicom.Dataset()
        region.CodeMeaning = special["region"]
        anatomy.AnatomicRegionSequence = [region]
        frame.FrameAnatomySequence = [anatomy]
    header.PerFrameFunctionalGroupsSequence = [frame]


def answer(row: Mapping[str, str]) -> str:
    found = classify(header_of(row))
    return found.kind.value if found.kind else found.sequence or "unknown"


@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r['maker'].split()[0]}-{r['modality']}-{r['description']}")
def test_a_header_has_the_answer_of_the_table(row: Mapping[str, str]) -> None:
    assert answer(row) == row["expected"]


def test_the_table_holds_all_makers_forms_and_kinds() -> None:
    assert len(ROWS) >= 60
    assert {"SIEMENS", "GE", "Philips", "CANON_MEC", "UIH"} <= {r["maker"].split()[0] for r in ROWS}
    assert {"classic", "enhanced", "XA classic", "XA enhanced"} == {r["form"] for r in ROWS}
    told = {r["expected"] for r in ROWS}
    assert {"T1", "T1C", "T2", "FLAIR", "PD", "unknown"} <= told
    assert set(Kind) <= told


def test_anatomy_is_found_and_nothing_else_is_taken_for_it() -> None:
    """Recall and precision of "anatomical head image" over the table."""
    anatomy = {k for k, r in enumerate(ROWS) if r["expected"] not in set(Kind)}
    found = {k for k, r in enumerate(ROWS) if answer(r) not in set(Kind)}
    assert len(anatomy & found) / len(anatomy) >= 0.98
    assert len(anatomy & found) / len(found) >= 0.98


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_has_a_reason_without_a_word_of_a_header(kind: Kind) -> None:
    assert REASONS[kind] and "{" not in REASONS[kind]


def test_the_parts_of_a_time_series_are_known_by_their_key() -> None:
    header = header_of(ROWS[0])
    assert classify(header, "1.2/TemporalPositionIdentifier=2").kind is Kind.TIME_SERIES
    assert classify(header, "1.2/time 1 of 5").kind is Kind.TIME_SERIES
    assert classify(header, "1.2/EchoTime=5").sequence == "T1"


def test_what_is_left_out_has_no_sequence() -> None:
    assert all(guess_sequence(header_of(r)) is None for r in ROWS if r["expected"] in set(Kind))


@pytest.mark.parametrize("name", ["synthetic", "everything"])
def test_a_kind_that_cannot_be_kept_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"'{name}' is no kind of series that can be kept; allowed are localizer"):
        kinds_of([name])
    assert kinds_of(["Phase", "time-series", ""]) == {Kind.PHASE, Kind.TIME_SERIES}


def test_a_damaged_header_tells_nothing() -> None:
    header = header_of(ROWS[0])
    header.PerFrameFunctionalGroupsSequence = []
    assert classify(header).kind is None


PIXELS = np.arange(20, dtype=np.uint16).reshape(4, 5)


def study(folder: Path, **descriptions: str) -> None:
    for number, (name, description) in enumerate(descriptions.items()):
        slices = [
            image(
                PIXELS,
                (0, 0, 3.0 * k),
                Modality="CT" if name == "ct" else "MR",
                SeriesInstanceUID=f"1.2.{number}",
                SeriesDescription=description,
            )
            for k in range(3)
        ]
        save(folder, slices, prefix=name)


def test_the_one_anatomical_series_of_a_study_is_chosen_and_the_others_are_named(tmp_path: Path) -> None:
    study(tmp_path, anat="t1_mprage", scout="AAHead_Scout", tof="tof_fl3d", ct="Head")
    chosen = choose_series(tmp_path, Modality.MR)
    assert [p.name[:4] for p in chosen.files] == ["anat"] * 3
    assert sorted(chosen.left_out) == [
        "ct0001.dcm and 2 more is left out: CT, not MR",
        "scout0001.dcm and 2 more is left out: localizer",
        "tof0001.dcm and 2 more is left out: angiography, vessels and not tissue",
    ]


def test_several_or_no_anatomical_series_are_one_sentence(tmp_path: Path) -> None:
    study(tmp_path / "two", a="t1_mprage", b="t2_tse")
    with pytest.raises(InputError, match=r"holds 2 MR series \(a0001.dcm and 2 more \(T1\), b0001.dcm and 2 more \(T2"):
        choose_series(tmp_path / "two", Modality.MR)
    study(tmp_path / "none", tof="tof_fl3d")
    with pytest.raises(InputError, match=r"no anatomical image of a head \(tof0001.dcm .*or --keep angiography"):
        choose_series(tmp_path / "none", Modality.MR)
    with pytest.raises(InputError, match="or --keep angiography"):
        choose_series(tmp_path / "none" / "tof0001.dcm", Modality.MR)
    assert len(choose_series(tmp_path / "none", Modality.MR, keep={Kind.ANGIOGRAPHY}).files) == 3


def test_a_folder_without_the_modality_is_named_with_what_it_holds(tmp_path: Path) -> None:
    study(tmp_path, ct="Head")
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(
        InputError, match=r"holds no MR image \(wrong modality or class: ct0001.dcm and 2 more: CT, not MR"
    ):
        choose_series(tmp_path, Modality.MR)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty holds no MR image; give a folder"):
        choose_series(tmp_path / "empty", Modality.MR)


def test_a_damaged_file_is_not_passed_over(tmp_path: Path) -> None:
    study(tmp_path, anat="t1_mprage")
    (tmp_path / "slice.dcm").write_bytes(b"cut off")
    with pytest.raises(InputError, match=r"slice\.dcm is not a DICOM file"):
        choose_series(tmp_path, Modality.MR)


@pytest.mark.parametrize(
    ("body_part", "description", "is_head"),
    [
        ("NECK", "", False),
        ("NECK", "t1 tse tra", False),
        ("NECK", "CT Head 5.0", True),
        ("HEAD", "Neck 3.0 B30f", False),
        *(
            (part, "Standard 3.0", True)
            for part in ("HEADNECK", "HEAD AND NECK", "HEADANDNECK", "HEAD_NECK", "HEAD/NECK")
        ),
        *(
            (part, "Standard 3.0", True)
            for part in ("SKULLBASE", "SKULL BASE", "BRAINSTEM", "CEREBELLUM", "TMJ", "FACE")
        ),
        ("CSPINE", "Standard 3.0", False),
        ("", "Neck and brain", True),
        ("", "CTA carotids and head", True),
        ("", "carotids", False),
        ("", "nasopharynx ax", True),
    ],
)
@pytest.mark.parametrize("modality", Modality)
def test_a_neck_is_no_head_and_head_and_neck_is_one(
    body_part: str, description: str, is_head: bool, modality: Modality
) -> None:
    header = pydicom.Dataset()
    header.Modality, header.BodyPartExamined, header.SeriesDescription = modality, body_part, description
    header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    assert (classify(header).kind is not Kind.BODY_PART) == is_head


@pytest.mark.parametrize(
    ("description", "image_type", "is_map"),
    [
        ("seg3D", "M", True),
        ("t1_mprage_seg3d", "M", True),
        ("Auto-Segmentation", "M", True),
        ("brain mask", "M", True),
        ("", "SEGMENTATION", True),
        ("t1_fl2d_seg", "M", False),
        ("t1_mprage_segmented", "M", False),
    ],
)
def test_a_segmentation_that_was_saved_as_mr_is_left_out(description: str, image_type: str, is_map: bool) -> None:
    header = pydicom.Dataset()
    header.Modality, header.SeriesDescription = "MR", description
    header.ImageType = ["DERIVED", "PRIMARY", image_type]
    assert (classify(header).kind is Kind.MAP) == is_map
