"""Importers, on files of the same shape as the published sets'."""

from __future__ import annotations

from collections import Counter
from pathlib import Path, PurePosixPath

import pandas as pd
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import CTImageStorage, MRImageStorage, SecondaryCaptureImageStorage

from ctmr.data.splits import make_splits
from ctmr.datasets import naming
from ctmr.datasets.deid.pseudonyms import Key
from ctmr.datasets.importers import plan
from ctmr.datasets.names import FolderLayout
from ctmr.datasets.scanning import Item, Scan, scanned
from ctmr.errors import InputError
from ctmr.imaging.volume import Modality
from ctmr.io.series_kinds import REASONS, Kind
from ctmr.recipe.recipe import Data


def item(path, *, modality="", patient="", uid="", description="", image_type=("ORIGINAL", "PRIMARY"), kind=None):
    """An item as the scan finds it: DICOM when a modality is given."""
    relative = PurePosixPath(path)
    if not modality:
        kind = kind or ("nifti" if path.endswith((".nii.gz", ".nii", ".mha")) else "raster")
        return Item(relative, kind, (Path(path),))
    header = pydicom.Dataset()
    header.SOPClassUID = {"CT": CTImageStorage, "MR": MRImageStorage}.get(modality, SecondaryCaptureImageStorage)
    header.Modality, header.PatientID, header.SeriesDescription = modality, patient, description
    header.StudyInstanceUID, header.ImageType = "1.2.3", list(image_type)
    return Item(relative, "dicom", (Path(path),), header, uid or path)


def placed(items, layout=FolderLayout.AUTO, **options):
    made = plan(Scan(list(items)), layout, **options)
    rows = {
        str(f.item.relative): (f.subject, f.modality and f.modality.value, f.sequence, f.split) for f in made.images
    }
    return made.layout, rows, made.left_out


# Published sets


@pytest.mark.parametrize(
    "names", [("train/CT", "train/MRI", "test/CT", "test/MRI"), ("trainA", "trainB", "testA", "testB")]
)
@pytest.mark.parametrize("below", ["", "Dataset/images/"])
def test_kaggle_pictures_are_unpaired_whatever_their_names(names, below):
    layout, rows, _ = placed(item(f"{below}{folder}/{k}.png") for folder in names for k in range(3))
    assert layout is FolderLayout.KAGGLE
    assert Counter((m, s) for _, m, _, s in rows.values()) == {
        (m, s): 3 for m in ("CT", "MR") for s in ("train", "test")
    }
    assert rows[f"{below}{names[0]}/0.png"][1] == "CT" and rows[f"{below}{names[1]}/0.png"][1] == "MR"
    assert len({who for who, *_ in rows.values()}) == 12


def test_cq500_has_a_folder_a_patient():
    folders = [
        "CQ500CT0 CQ500CT0/Unknown Study/CT Plain",
        "CQ500CT0 CQ500CT0/Unknown Study/CT 4cc sec 150cc D3D on",
        "CQ500CT17 CQ500CT17/Unknown Study/CT Plain",
    ]
    layout, rows, _ = placed(item(f"{f}/CT000000.dcm", modality="CT", patient="x") for f in folders)
    assert layout is FolderLayout.CQ500
    assert [who for who, *_ in rows.values()] == ["cq500 0", "cq500 0", "cq500 17"]
    assert {m for _, m, _, _ in rows.values()} == {"CT"}


def test_ixi_says_subject_and_sequence_in_the_file_name():
    names = [
        "IXI002-Guys-0828-T1.nii.gz",
        "IXI002-Guys-0828-T2.nii.gz",
        "IXI035-IOP-0873-PD.nii.gz",
        "IXI002-Guys-0828-MRA.nii.gz",
        "IXI002-Guys-0828-DTI-03.nii.gz",
        "IXI.xls",
    ]
    layout, rows, left_out = placed([item(f"IXI-T1/{n}") for n in names[:-1]])
    assert layout is FolderLayout.IXI
    assert rows == {
        f"IXI-T1/{names[0]}": ("ixi IXI002", "MR", "T1", ""),
        f"IXI-T1/{names[1]}": ("ixi IXI002", "MR", "T2", ""),
        f"IXI-T1/{names[2]}": ("ixi IXI035", "MR", "PD", ""),
    }
    assert left_out == {"IXI sequence other than T1, T2, PD": 2}


@pytest.mark.parametrize(
    ("task", "region", "case", "suffix"),
    [
        ("Task1", "brain", "1BA001", ".nii.gz"),
        ("synthRAD2025_Task1_Train/Task1", "HN", "1HNA001", ".mha"),
    ],
)
def test_synthrad_gives_pairs_with_their_masks(task, region, case, suffix):
    names = [f"{task}/{region}/{case}/{w}{suffix}" for w in ("mr", "ct", "mask")]
    others = [f"{task}/pelvis/1PA001/ct{suffix}", f"Task2/{region}/2BA001/cbct{suffix}"]
    overview = f"{task}/{region}/overview/{case}_train.png"
    layout, rows, left_out = placed(item(n) for n in [*names, *others, overview])
    assert layout is FolderLayout.SYNTHRAD
    assert rows == {n: (f"synthrad {case}", m, "", "") for n, m in zip(names, ("MR", "CT", None), strict=True)}
    assert left_out == {"region that is not the head": 1, "CBCT": 1, "not a SynthRAD volume": 1}


def test_adni_nests_subject_sequence_date_and_image():
    base = "ADNI/{}/{}/2006-04-18_08_20_30.0/{}/{}"
    layout, rows, left_out = placed(
        [
            item(base.format("002_S_0295", "MP-RAGE", "I45108", "a.dcm"), modality="MR", description="MP-RAGE"),
            item(
                base.format("002_S_0295", "Axial_PD_T2_FSE", "I45109", "b.dcm"), modality="MR", description="Axial T2"
            ),
            item(base.format("011_S_0003", "MPR__GradWarp__B1_Correction__N3", "I2", "ADNI_x.nii")),
            item(base.format("011_S_0003", "PET", "I3", "p.dcm"), modality="PT"),
        ]
    )
    assert layout is FolderLayout.ADNI
    assert [(who, m, q) for who, m, q, _ in rows.values()] == [
        ("adni 002_S_0295", "MR", "T1"),
        ("adni 002_S_0295", "MR", "T2"),
        ("adni 011_S_0003", "MR", "T1"),
    ]
    assert left_out == {"not CT or MR (Secondary Capture Image Storage)": 1}


@pytest.mark.parametrize(("a", "b", "first"), [("CT", "MR", None), ("A", "B", Modality.CT), ("B", "A", Modality.MR)])
@pytest.mark.parametrize(("form", "suffix"), [("{split}/{side}/{name}", ".png"), ("{side}/{name}", ".nii.gz")])
def test_paired_folders_share_a_subject_for_every_name(a, b, first, form, suffix):
    places = [(s, x, k) for s in ("train", "test") for x in (a, b) for k in (1, 2)]
    names = [form.format(split=s, side=x, name=f"{k}{suffix}") for s, x, k in places]
    _, rows, _ = placed((item(n) for n in sorted(set(names))), FolderLayout.PAIRED, first=first)
    subjects = {}
    for path, (who, modality, _, split) in rows.items():
        subjects.setdefault(who, set()).add(modality)
        assert modality == ("CT" if f"{a}/" in path else "MR")
        assert split in (path.split("/")[0], "")
    assert set(map(frozenset, subjects.values())) == {frozenset({"CT", "MR"})}
    # A number is a picture of its split, a patient's name the patient in whatever split.
    assert len(subjects) == (4 if "split" in form else 2)


@pytest.mark.parametrize("suffix", [".png", ".nii.gz"])
def test_a_patient_is_one_in_all_splits_of_paired_folders(suffix):
    names = [f"{s}/{side}/patient0{k}{suffix}" for s in ("train", "test") for side in ("CT", "MR") for k in (1, 2)]
    _, rows, _ = placed((item(n) for n in names), FolderLayout.PAIRED)
    assert len({who for who, *_ in rows.values()}) == 2


SPELLINGS = [
    "{side}/patient{p:02}_slice_{s:03}.png",
    "{side}/patient{p:02}_slice{s}_{side}.png",
    "{side}/{side}_Patient {p} - {s}.png",
    "{side}/p{p:03}s{s:03}.png",
    "{side}/case-{p}-z{s}.jpg",
    "{side}/sub{p}.slice{s}.png",
    "{side}/slice_{s}_patient{p}.png",
    "{side}/{s:04}_pt{p}.png",
    "{side}/JD{p}x_axial_{s}.png",
    "{side}/patient{p}/{s:03}.png",
    "{side}/patient {p}/slices/{side}_{s}.png",
    "data/patient{p}/{side}/{s}.png",
    "patient{p}/{side}/images/slice_{s}.png",
]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(SPELLINGS),
    st.sets(st.tuples(st.integers(1, 12), st.integers(1, 30)), min_size=2, max_size=40),
    st.integers(0, 3),
    st.booleans(),
)
def test_slices_of_one_patient_pair_one_by_one_and_stay_in_one_split(spelling, slices, seed, disjoint):
    made = plan(
        Scan([item(spelling.format(side=m, p=p, s=s)) for m in ("CT", "MR") for p, s in sorted(slices)]),
        FolderLayout.PAIRED,
    )
    made.name_alike()
    key = Key(b"k" * 32)
    who = dict(zip([f.item.relative.as_posix() for f in made.images], made.images, strict=True))
    rows = [
        {
            "image": path,
            "subject": naming.subject_of(PurePosixPath(found.folder(key), "ct.png"), picture=True),
            "modality": found.modality.value,
            "split_given": "",
        }
        for path, found in who.items()
    ]
    table = pd.DataFrame(rows)
    # Every slice has its own pair, and nothing else is in it.
    both = table.groupby("subject")["modality"].agg(sorted)
    assert len(both) == len(slices) and all(m == ["CT", "MR"] for m in both)
    for p, s in slices:
        one, other = (spelling.format(side=m, p=p, s=s) for m in ("CT", "MR"))
        assert who[one].folder(key) == who[other].folder(key)
    table["patient"] = [
        next(p for p, s in slices if spelling.format(side=m, p=p, s=s) == path)
        for path, m in zip(table["image"], table["modality"], strict=True)
    ]
    table["split"] = table["image"].map(make_splits(table, Data(split_seed=seed, disjoint_training=disjoint)))
    kept = table.dropna()
    assert (kept.groupby("patient")["split"].nunique() == 1).all()
    if disjoint:
        train = kept[kept["split"] == "train"]
        assert (train.groupby("patient")["modality"].nunique() == 1).all()


def test_pictures_whose_partner_cannot_be_told_are_refused():
    names = ["CT/p1_s2.png", "CT/p1_s2_ct.png", "MR/p1_s2.png"]
    with pytest.raises(InputError, match="has the name of another CT picture but for its spelling"):
        placed([item(n) for n in names], FolderLayout.PAIRED)


def test_paired_dicom_folders_are_paired_by_folder():
    items = [item(f"{m}/case{k}/i.dcm", modality=m, patient=f"{m}{k}") for m in ("CT", "MR") for k in (1, 2)]
    _, rows, _ = placed(items, FolderLayout.PAIRED)
    assert {who for who, *_ in rows.values()} == {"paired /case1", "paired /case2"}


# Plain sources


def test_a_plain_source_takes_dicom_by_header_and_files_by_path():
    layout, rows, left_out = placed(
        [
            item("x/1/a", modality="CT", patient="4711"),
            item("y/2/b", modality="MR", patient="4711 ", description="t2_tse"),
            item("z/3/c", modality="MR", patient=""),
            item("sub-7/anat/sub-7_T1w.nii.gz"),
            item("4711/ct.nii.gz"),
            item("4711/mask.nii.gz"),
            item("train/MR/77.png"),
            item("x/1/s", modality="SR"),
            item("x/1/l", modality="CT", image_type=("ORIGINAL", "PRIMARY", "LOCALIZER")),
        ]
    )
    assert layout is FolderLayout.PLAIN
    assert rows == {
        "x/1/a": ("patient 4711", "CT", "", ""),
        "y/2/b": ("patient 4711", "MR", "T2", ""),
        "z/3/c": ("study 1.2.3", "MR", "", ""),
        "sub-7/anat/sub-7_T1w.nii.gz": ("patient 7", "MR", "T1", ""),
        "4711/ct.nii.gz": ("patient 4711", "CT", "", ""),
        "4711/mask.nii.gz": ("patient 4711", None, "", ""),
        "train/MR/77.png": ("picture train/MR/77.png", "MR", "", "train"),
    }
    assert left_out == {"not CT or MR (Secondary Capture Image Storage)": 1, "localizer": 1}


@pytest.mark.parametrize(
    ("paths", "options", "words"),
    [
        ([], {}, "holds no image"),
        (["IXI002-Guys-0828-T1.nii.gz", "trainA/1.png", "trainB/1.png"], {}, "looks like ixi and kaggle"),
        (["CT/1.png", "MR/1.png"], {}, "say --layout paired"),
        (["x/1.png"], {}, "the modality of x/1.png cannot be told"),
        (["x/1.png"], {"layout": FolderLayout.KAGGLE}, r"holds no image of layout kaggle \(1 × not in train or test"),
        (["A/1.png", "B/1.png"], {"layout": FolderLayout.PAIRED}, "say with --first"),
        (
            ["CT/1.png", "MR/1.png", "MR/2.png"],
            {"layout": FolderLayout.PAIRED},
            "1 names are in both folders and 1 in one only",
        ),
        (["CT/1.png", "MR/2.png"], {"layout": FolderLayout.PAIRED}, "0 names are in both folders and 2 in one only"),
    ],
)
def test_a_source_that_cannot_be_understood_is_one_sentence(paths, options, words):
    with pytest.raises(InputError, match=words):
        placed([item(p) for p in paths], **options)


def test_an_image_that_is_neither_ct_nor_mr_by_its_path_can_be_left_out():
    items = [item("x/1.nii.gz"), item("a", modality="CT", patient="1")]
    with pytest.raises(InputError, match=r"the modality of x/1.nii.gz .*leave such images out with --skip-refused"):
        placed(items)
    _, rows, left_out = placed(items, skip_unknown=True)
    assert set(rows) == {"a"} and left_out == {"modality that its path does not tell": 1}


def test_what_a_header_or_file_name_says_never_becomes_a_reason():
    odd = item("x/1/a", modality="SR")
    odd.header.SOPClassUID = "1.2.276.918273645"
    items = [odd, item("IXI002-Guys-0828-T1.nii.gz"), item("IXI002-Guys-0828-Meier.nii.gz")]
    _, _, left_out = placed(items)
    assert "918273645" not in str(left_out) and "Meier" not in str(left_out)


# Names


@pytest.mark.parametrize(
    ("path", "picture", "subject"),
    [
        ("train/sub-ab12/ct.png", True, "ab12"),
        ("train/CT/1.png", True, "train/CT/1.png"),
        ("sub-01/anat/sub-01_T1w.nii.gz", False, "01"),
        ("1BA001/ct.nii.gz", False, "1BA001"),
        ("train/CT/p7.nii.gz", False, "p7"),
        ("a.nii.gz", False, "a"),
    ],
)
def test_the_subject_is_its_folder(path, picture, subject):
    assert naming.subject_of(PurePosixPath(path), picture=picture) == subject


@pytest.mark.parametrize(
    ("name", "is_mask"),
    [
        ("mask.nii.gz", True),
        ("x_mask.nii", True),
        ("Mask-2.nii.gz", True),
        ("unmasked.nii.gz", False),
    ],
)
def test_a_mask_is_known_by_its_name(name, is_mask):
    assert naming.is_mask(PurePosixPath("mask") / name) is is_mask


# Scanning files


def test_archives_are_opened_privately_and_removed(planted, some_tokens, tmp_path):
    import zipfile

    files = planted(tmp_path / "series", some_tokens, "CT", patient="1", series="7", everywhere=False)
    (tmp_path / "source").mkdir()
    with zipfile.ZipFile(tmp_path / "source" / "export.zip", "w") as archive:
        for file in files:
            archive.write(file, f"scan/{file.name}")
    private = tmp_path / "home" / "ids"
    stale = tmp_path / "home" / ".ids.1-0123abcd.partial"
    stale.mkdir(parents=True)
    with scanned(tmp_path / "source", private) as scan:
        (found,) = scan.items
        assert found.relative.parts[:2] == ("export", "scan") and len(found.files) == 3
        (unpacked,) = (tmp_path / "home").iterdir()
        assert unpacked.stat().st_mode & 0o777 == 0o700
    assert list((tmp_path / "home").iterdir()) == []


def test_linked_folders_are_refused_and_damaged_dicom_is_listed(planted, some_tokens, tmp_path):
    files = planted(tmp_path / "source" / "a", some_tokens, "CT", patient="1", series="7", everywhere=False)
    files[1].write_bytes(files[1].read_bytes()[:300])
    with scanned(tmp_path / "source", tmp_path / "ids") as scan:
        assert [p.name for p in scan.unreadable] == [files[1].name]
        assert len(scan.items[0].files) == 2
    (tmp_path / "source" / "b").symlink_to(tmp_path / "source" / "a")
    with pytest.raises(InputError, match="is a link to a folder"), scanned(tmp_path / "source", tmp_path / "ids"):
        pass


# Identity and kinds, as on a plain folder


def test_spellings_of_one_patient_are_one_subject_also_after_earlier_sources():
    items = [item(f"{k}/a", modality="CT", patient=p) for k, p in enumerate(("P01", " p01", "P01 ", "P02"))]
    made = plan(Scan(items), FolderLayout.AUTO)
    made.name_alike(known=["patient p02"])
    assert sorted(f.subject for f in made.images) == ["patient P01"] * 3 + ["patient p02"]


def test_files_and_slices_of_a_patient_are_one_subject():
    _, rows, _ = placed(item(p) for p in ("CT/p01_ct.nii.gz", "MR/p01_mr.nii.gz", "CT/patient03_slice_012.png"))
    assert [who for who, *_ in rows.values()] == ["patient p01", "patient p01", "patient patient03"]


def test_a_kind_that_is_no_anatomy_is_left_out_by_name_and_kept_on_request():
    phase = item("x/p", modality="MR", patient="1", image_type=("ORIGINAL", "PRIMARY", "P", "ND"))
    image = item("x/m", modality="MR", patient="1", description="t1_mprage")
    made = plan(Scan([phase, image]), FolderLayout.AUTO)
    assert made.named == [("x/p", REASONS[Kind.PHASE])] and made.left_out == {REASONS[Kind.PHASE]: 1}
    assert len(plan(Scan([phase, image]), FolderLayout.AUTO, keep={Kind.PHASE}).images) == 2


@pytest.mark.parametrize("folder", ["train_val", "train/test"])
def test_a_folder_of_two_splits_refuses_the_source(folder):
    with pytest.raises(InputError, match=r"the split of .* cannot be told"):
        placed([item(f"{folder}/CT/p1.nii.gz")])


@pytest.mark.parametrize(
    ("a", "b"), [("TrainA", "TrainB"), ("training/CT", "training/MRI"), ("Train_set/ct", "Train/mri")]
)
def test_kaggle_folders_are_known_in_other_spellings(a, b):
    layout, rows, _ = placed(item(f"{side}/{k}.png") for side in (a, b) for k in range(2))
    assert layout is FolderLayout.KAGGLE
    assert {(m, s) for _, m, _, s in rows.values()} == {("CT", "train"), ("MR", "train")}


def test_paired_folders_are_known_in_other_spellings():
    names = [f"{split}{side}/1.png" for split in ("Training", "Test_") for side in "AB"]
    _, rows, _ = placed((item(n) for n in names), FolderLayout.PAIRED, first=Modality.CT)
    assert {s for *_, s in rows.values()} == {"train", "test"}
