"""Findings over inventories made for the purpose: every fault is named, and the right image is dropped."""

import time

import numpy as np
import pandas as pd
import pytest

from ctmr.data.findings import FindingKind, decide, dropped_images, inspect, left_out
from ctmr.data.look_alikes import look_alikes, near_pairs
from ctmr.data.manifest import INVENTORY_COLUMNS, Outcome
from ctmr.recipe.recipe import Validate

CONFIG = Validate(near_duplicate_bits=4)


def far_hashes(count):
    return [f"{h:016x}" for h in np.random.default_rng(7).integers(0, 2**63, count, dtype=np.uint64)]


def inventory(rows=()):
    """Eight good pictures a modality (four train, four test), then `rows` on top."""
    hashes = iter(far_hashes(200))
    table = []
    for modality in ("CT", "MR"):
        for split in ("train", "test"):
            for k in range(4):
                table.append({"image": f"{split}/{modality}/{k}", "modality": modality, "split_given": split})
    table += [dict(r) for r in rows]
    for row in table:
        row.setdefault("modality", "CT")
        row.setdefault("split_given", "train")
        row.setdefault("sha256", f"sha {row['image']}")
        row.setdefault("perceptual_hash", next(hashes))
        for key, value in {
            "subject": "",
            "uid": "",
            "error": "",
            "unit": "grey8",
            "minimum": 0.0,
            "maximum": 255.0,
            "depth": 1,
            "height": 64,
            "width": 64,
            "format": "raster",
        }.items():
            row.setdefault(key, value)
    return pd.DataFrame(table).reindex(columns=list(INVENTORY_COLUMNS))


def rules(findings):
    return {f.rule for f in findings}


def test_what_the_reader_did_to_an_image_is_a_warning():
    note = "a gantry tilt of 18.5° was straightened"
    (finding,) = inspect(inventory([{"image": "train/CT/tilted", "notes": note}]), CONFIG)
    assert (finding.kind, finding.rule, finding.images) == (FindingKind.WARN, "reader_notes", ("train/CT/tilted",))
    assert finding.sentence == f"train/CT/tilted: {note}"


def test_a_good_inventory_has_no_findings():
    assert inspect(inventory(), CONFIG) == []
    assert decide([], 16) is Outcome.PASS


@pytest.mark.parametrize(
    ("row", "rule", "words"),
    [
        ({"error": "truncated file"}, "unreadable", "truncated file"),
        ({"minimum": 3.0, "maximum": 3.0}, "constant", "3 everywhere"),
        ({"height": 20}, "too_small", "20 × 64"),
        ({"maximum": float("nan")}, "not_finite", "not numbers"),
    ],
)
def test_a_faulty_image_is_dropped_with_a_sentence_that_names_it(row, rule, words):
    findings = inspect(inventory([{"image": "train/CT/bad", **row}]), CONFIG)
    assert [f.rule for f in findings] == [rule]
    assert findings[0].images == ("train/CT/bad",) and words in findings[0].sentence
    assert decide(findings, 17) is Outcome.PASS_WITH_DROPS


def test_an_unreadable_image_without_any_numbers_is_one_finding():
    empty = {
        "image": "x",
        "error": "not an image",
        "minimum": None,
        "maximum": None,
        "height": None,
        "width": None,
        "unit": None,
        "depth": None,
    }
    assert [f.rule for f in inspect(inventory([empty]), CONFIG)] == ["unreadable"]


def test_values_beyond_hounsfield_units_are_dropped():
    rows = [{"image": f"v{k}", "unit": "HU", "minimum": -1024, "maximum": m} for k, m in enumerate((3000, 9000))]
    found = [f for f in inspect(inventory(rows), CONFIG) if f.rule == "hu_range"]
    assert [f.images for f in found] == [("v1",)]


def test_of_two_equal_files_in_train_and_test_the_one_in_train_goes():
    rows = [{"image": "test/CT/a", "split_given": "test", "sha256": "x"}, {"image": "train/CT/a", "sha256": "x"}]
    findings = inspect(inventory(rows), CONFIG)
    assert dropped_images(findings) == {"train/CT/a"} and rules(findings) == {"exact_duplicate_across_splits"}


def test_of_two_equal_files_in_one_split_the_first_by_name_stays():
    rows = [{"image": "b", "sha256": "x"}, {"image": "a", "sha256": "x"}, {"image": "c", "sha256": "x"}]
    findings = inspect(inventory(rows), CONFIG)
    assert dropped_images(findings) == {"b", "c"} and rules(findings) == {"exact_duplicate"}


def test_a_broken_copy_is_never_the_copy_that_is_kept():
    rows = [
        {"image": "test/CT/a", "split_given": "test", "sha256": "x", "error": "unreadable"},
        {"image": "train/CT/a", "sha256": "x"},
    ]
    assert dropped_images(inspect(inventory(rows), CONFIG)) == {"test/CT/a"}


def test_one_file_filed_under_both_modalities_is_dropped_from_both():
    rows = [{"image": "CT/z", "sha256": "x"}, {"image": "MR/z", "sha256": "x", "modality": "MR"}]
    findings = inspect(inventory(rows), CONFIG)
    assert dropped_images(findings) == {"CT/z", "MR/z"} and rules(findings) == {"modality_conflict"}


def near(bits, **common):
    a = 0x0123456789ABCDEF
    b = a ^ sum(1 << (9 * k) for k in range(bits))
    return [
        {"image": "test/n", "split_given": "test", "perceptual_hash": f"{a:016x}", **common},
        {"image": "train/n", "perceptual_hash": f"{b:016x}", **common},
    ]


def test_a_picture_seen_in_train_that_looks_like_one_in_test_is_dropped_from_train():
    findings = inspect(inventory(near(4)), CONFIG)
    assert dropped_images(findings) == {"train/n"} and "4 of 64" in findings[0].sentence
    assert inspect(inventory(near(5)), CONFIG) == []


def test_near_duplicates_within_a_split_are_no_leak():
    assert inspect(inventory([dict(r, split_given="train") for r in near(0)]), CONFIG) == []


def test_volumes_that_look_alike_are_only_reported():
    findings = inspect(inventory(near(1, depth=30)), CONFIG)
    assert [f.kind for f in findings] == [FindingKind.WARN] and decide(findings, 18) is Outcome.PASS


def test_a_subject_in_two_splits_leaves_train():
    rows = [
        {"image": "a1", "subject": "anna", "split_given": "test"},
        {"image": "a2", "subject": "anna"},
        {"image": "a3", "subject": "anna", "modality": "MR"},
    ]
    findings = inspect(inventory(rows), CONFIG)
    assert rules(findings) == {"subject_in_two_splits"} and dropped_images(findings) == {"a2", "a3"}


def test_one_uid_with_two_contents_is_found():
    rows = [{"image": "u1", "uid": "1.2.3"}, {"image": "u2", "uid": "1.2.3"}]
    assert rules(inspect(inventory(rows), CONFIG)) == {"uid_duplicate"}


def test_two_units_in_one_modality_refuse_the_dataset():
    findings = inspect(inventory([{"image": "hu", "unit": "HU"}]), CONFIG)
    assert [f.kind for f in findings] == [FindingKind.REFUSE] and "1 in HU and 8 in grey8" in findings[0].sentence
    assert decide(findings, 17) is Outcome.REFUSE


def test_a_missing_modality_and_a_thin_test_refuse():
    table = inventory()
    assert rules(inspect(table[table["modality"] == "CT"], CONFIG)) == {"missing_modality"}
    thin = table[(table["split_given"] == "train") | table["image"].str.endswith("0")]
    findings = inspect(thin, CONFIG)
    assert rules(findings) == {"too_few_images"} and "test keeps 1 CT image;" in findings[0].sentence


def test_splits_made_later_are_the_ones_that_are_checked():
    table = inventory(near(0)).assign(split_given="")
    assert inspect(table, CONFIG) == []
    splits = pd.Series({i: "test" if i.startswith("test") else "train" for i in table["image"]})
    assert dropped_images(inspect(table, CONFIG, splits)) == {"train/n"}


def test_too_many_drops_refuse_the_dataset():
    rows = [{"image": f"bad{k}", "error": "broken"} for k in range(6)]
    findings = inspect(inventory(rows), CONFIG)
    assert decide(findings, 22, 0.25) is Outcome.REFUSE and decide(findings, 22, 0.3) is Outcome.PASS_WITH_DROPS


def test_findings_do_not_depend_on_the_order_of_rows():
    table = inventory([*near(2), {"image": "b", "sha256": "x"}, {"image": "a", "sha256": "x"}])
    assert inspect(table, CONFIG) == inspect(table.sample(frac=1, random_state=3), CONFIG)


def test_two_thousand_images_are_compared_in_under_two_seconds():
    rows = [{"image": f"{k:04d}", "split_given": "test" if k % 4 == 0 else "train"} for k in range(2000)]
    table = inventory(rows[:180]).pipe(lambda t: pd.concat([t] * 11, ignore_index=True))
    table["image"] = [f"i{k}" for k in range(len(table))]
    table["sha256"] = table["image"]
    table["perceptual_hash"] = far_hashes(len(table))
    start = time.perf_counter()
    assert inspect(table, CONFIG) == []
    assert len(table) > 2000 and time.perf_counter() - start < 2


def test_near_pairs_equal_a_plain_double_loop():
    hashes = np.random.default_rng(0).integers(0, 64, 60).astype(np.uint64)
    loop = [[i, j] for i in range(60) for j in range(i + 1, 60) if int(hashes[i] ^ hashes[j]).bit_count() <= 1]
    assert near_pairs(hashes, 1).tolist() == loop


def test_pictures_of_one_modality_that_look_alike_are_paired_and_volumes_are_not():
    assert look_alikes(inventory(), CONFIG) == []
    assert look_alikes(inventory(near(4)), CONFIG) == [("test/n", "train/n")]
    assert look_alikes(inventory(near(5)), CONFIG) == []
    assert look_alikes(inventory(near(1, depth=30)), CONFIG) == []
    one, other = near(1)
    assert look_alikes(inventory([one, other | {"modality": "MR"}]), CONFIG) == []


def test_what_is_no_image_is_left_out_and_counts_as_no_loss():
    scouts = [{"image": f"scout{k}", "no_image": "localizer", "minimum": None, "depth": 0} for k in range(20)]
    findings = inspect(inventory(scouts), CONFIG)
    assert {(f.kind, f.rule) for f in findings} == {(FindingKind.LEFT_OUT, "no_image")} and len(findings) == 20
    assert findings[0].sentence == "scout0 is left out, which is no loss: localizer"
    assert dropped_images(findings) == set() and len(left_out(findings)) == 20
    assert decide(findings, 36) is Outcome.PASS
    assert decide(findings, 20) is Outcome.REFUSE
    bad = inspect(inventory([*scouts, *({"image": f"bad{k}", "error": "broken"} for k in range(6))]), CONFIG)
    assert decide(bad, 42, 0.25) is Outcome.REFUSE


def volumes(depth, split, subjects=("s1",), modalities=("CT", "MR"), **more):
    return [
        {"image": f"{split}/{m}/{s}", "modality": m, "split_given": split, "subject": s, "depth": depth}
        | {"format": "dicom", "unit": "HU" if m == "CT" else "arbitrary", "minimum": -1000.0, "maximum": 900.0, **more}
        for s in subjects
        for m in modalities
    ]


def images_of(findings, rule):
    return {i for f in findings if f.rule == rule for i in f.images}


def test_a_test_pair_that_is_thinner_than_the_window_of_a_metric_is_dropped_before_training():
    table = inventory(volumes(6, "test") + volumes(6, "train", ("s2",)) + volumes(7, "test", ("s3",)))
    found = inspect(table, CONFIG)
    assert images_of(found, "too_thin") == {"test/CT/s1", "test/MR/s1"}
    sentence = next(f.sentence for f in found if f.rule == "too_thin")
    assert sentence.startswith("test/CT/s1 of the test has 6 × 64 × 64 voxels, and SSIM needs 7 along each axis")
    alone = inventory(volumes(6, "test", modalities=("MR",)))
    assert images_of(inspect(alone, CONFIG), "too_thin") == set()


def test_splits_that_are_made_later_drop_thin_pairs_too():
    table = inventory(volumes(6, ""))
    assert images_of(inspect(table, CONFIG), "too_thin") == set()
    splits = pd.Series(dict.fromkeys(table["image"], "test"))
    assert images_of(inspect(table, CONFIG, splits), "too_thin") == {"/CT/s1", "/MR/s1"}


def test_a_ct_of_air_shows_no_head_and_is_dropped():
    found = inspect(inventory(volumes(20, "train", modalities=("CT",), maximum=-700.0)), CONFIG)
    assert [f.rule for f in found if f.kind is FindingKind.DROP] == ["no_head"]
    assert "train/CT/s1 holds nothing above -700 HU" in found[0].sentence
