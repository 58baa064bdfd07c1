"""validate: what may be used, decided by findings and held against Great Expectations."""

import csv
import json

import numpy as np
import pandas as pd
import pytest

from ctmr.data.manifest import INVENTORY_COLUMNS, MANIFEST_COLUMNS
from ctmr.pipeline.stage import run_stage
from ctmr.pipeline.stages.validate import STAGE, expect
from ctmr.recipe.loading import override
from ctmr.recipe.recipe import Recipe

pytestmark = pytest.mark.slow


def inventory(changes=()):
    """Eight CT and eight MR volumes of sixteen subjects; `changes` are (row, columns)."""
    hashes = np.random.default_rng(3).integers(0, 2**63, 16, dtype=np.uint64)
    rows = []
    for k in range(16):
        ct = k < 8
        rows.append(
            {
                "image": f"s{k:02}",
                "subject": f"s{k:02}",
                "modality": "CT" if ct else "MR",
                "sequence": "" if ct else "T1",
                "path": f"s{k:02}",
                "format": "dicom",
                "sha256": f"{k:064x}",
                "perceptual_hash": f"{hashes[k]:016x}",
                "depth": 40,
                "height": 64,
                "width": 64,
                "spacing_d_mm": 2.0,
                "spacing_h_mm": 1.0,
                "spacing_w_mm": 1.0,
                "orientation": "SPL",
                "unit": "HU" if ct else "arbitrary",
                "minimum": -1024.0 if ct else 0.0,
                "maximum": 2000.0,
                "uid": f"1.2.{k}",
                "split_given": "test" if k % 8 >= 5 else "train",
                "error": "",
            }
        )
    for row, columns in changes:
        rows[row] |= columns
    return pd.DataFrame(rows, columns=list(INVENTORY_COLUMNS))


@pytest.fixture
def validate(home, tmp_path):
    def run(changes=(), settings=()):
        path = tmp_path / "inventory.parquet"
        inventory(changes).to_parquet(path, index=False)
        recipe = override(Recipe(), [("data.val_fraction", 0.0), *settings])
        return run_stage(STAGE, inputs={"inventory": path}, recipe=recipe, out=tmp_path / "out", home=home)

    return run


def manifest_of(result):
    return pd.read_parquet(result.out / "manifest.parquet")


def findings_of(result):
    return list(csv.DictReader((result.out / "findings.csv").open(encoding="utf-8")))


def test_a_good_dataset_passes_whole_and_keeps_its_own_splits(validate):
    result = validate()
    assert (result.summary["outcome"], result.summary["used"], result.summary["reason"]) == ("pass", 16, "")
    manifest = manifest_of(result)
    assert list(manifest.columns) == list(MANIFEST_COLUMNS)
    assert (manifest["split"] == manifest["split_given"]).all()
    assert findings_of(result) == []
    assert result.summary["counts"] == {
        "train.CT": 5,
        "train.MR": 5,
        "val.CT": 0,
        "val.MR": 0,
        "test.CT": 3,
        "test.MR": 3,
    }
    assert json.loads((result.out / "validation.json").read_text()) == result.summary


def test_a_faulty_image_is_dropped_named_and_the_rest_passes(validate):
    result = validate([(0, {"maximum": 9000.0}), (9, {"error": "truncated"})])
    assert (result.summary["outcome"], result.summary["used"], result.summary["dropped"]) == ("pass_with_drops", 14, 2)
    assert not set(manifest_of(result)["image"]) & {"s00", "s09"}
    assert {(f["kind"], f["rule"], f["images"]) for f in findings_of(result)} == {
        ("drop", "hu_range", "s00"),
        ("drop", "unreadable", "s09"),
    }
    assert json.loads((result.out / "expectations.json").read_text())["success"]


def test_a_subject_in_train_and_test_is_dropped_from_train(validate):
    result = validate([(1, {"subject": "s06"})])
    manifest = manifest_of(result).set_index("image")
    assert "s01" not in manifest.index
    assert manifest.loc["s06", "split"] == "test"


@pytest.mark.parametrize(
    ("changes", "settings", "words"),
    [
        ([(k, {"error": "truncated"}) for k in range(5)], [], "5 of 16 images were dropped"),
        ([(0, {"unit": "grey8"})], [], "a model reads one unit"),
        ([(k, {"modality": "MR", "unit": "arbitrary", "minimum": 0.0}) for k in range(8)], [], "no usable CT image"),
        ([], [("validation.min_images", 4)], "test keeps 3 CT images; it needs at least 4"),
    ],
)
def test_a_dataset_that_cannot_be_used_is_refused_with_its_reason_and_its_findings_stay(
    validate, changes, settings, words
):
    result = validate(changes, settings)
    assert result.summary["outcome"] == "refuse"
    assert words in result.summary["reason"]
    assert (result.out / "findings.csv").is_file()


def test_expectations_hold_nothing_that_changes_from_run_to_run(validate):
    first = validate().out / "expectations.json"
    text = first.read_text()
    first.unlink()
    second = validate()
    assert not second.reused
    assert (second.out / "expectations.json").read_text() == text
    tree = json.loads(text)
    assert set(tree) == {"success", "evaluated", "met", "failed", "results"}
    assert all(set(row) == {"expectation", "column", "success", "observed"} for row in tree["results"])
    assert tree["met"] == tree["evaluated"] == len(tree["results"]) >= 10


@pytest.mark.parametrize(
    ("column", "value", "failed"),
    [
        ("image", "s01", "expect_column_values_to_be_unique(image)"),
        ("sha256", f"{1:064x}", "expect_column_values_to_be_unique(sha256)"),
        ("modality", "PT", "expect_column_values_to_be_in_set(modality)"),
        ("unit", "counts", "expect_column_values_to_be_in_set(unit)"),
        ("split", "holdout", "expect_column_values_to_be_in_set(split)"),
        ("height", 8, "expect_column_values_to_be_between(height)"),
        ("maximum", 9000.0, "expect_column_values_to_be_between(maximum)"),
        ("minimum", -5000.0, "expect_column_values_to_be_between(minimum)"),
    ],
)
def test_great_expectations_itself_finds_a_wrong_manifest(column, value, failed):
    """Independent of our findings: a manifest that should not have got here is stopped here."""
    table = inventory()
    table["split"] = table["split_given"]
    table.loc[0, column] = value
    found = expect(table, Recipe().validation)
    assert not found["success"]
    assert failed in found["failed"]
    assert found["evaluated"] - found["met"] == len(found["failed"])


def test_pictures_that_look_alike_share_a_split_that_is_made_here_and_none_is_lost(validate):
    """The first four CTs look alike, and so do the next four; drawn one by one, neighbours would be dropped."""
    other = np.random.default_rng(1).integers(0, 2**63, 8, dtype=np.uint64)
    hashes = [
        *(f"{0xF0F0 + (1 << k % 4):016x}" for k in range(4)),
        *(f"{0xF0F0 << 32:016x}" for k in range(4)),
        *(f"{h:016x}" for h in other),
    ]
    changes = [(k, {"depth": 1, "split_given": "", "perceptual_hash": hashes[k]}) for k in range(16)]
    for seed in range(4):
        result = validate(changes, [("data.split_seed", seed), ("data.test_fraction", 0.5)])
        assert (result.summary["dropped"], result.summary["used"]) == (0, 16)
        split = manifest_of(result).set_index("image")["split"]
        first, second = split["s00":"s03"], split["s04":"s07"]
        assert first.nunique() == second.nunique() == 1 and first["s00"] != second["s04"]
