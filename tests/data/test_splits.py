"""Splits: no subject in two, unpaired training, pairs in the test, and the same answer every time."""

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctmr.data.splits import make_splits
from ctmr.errors import InputError
from ctmr.recipe.recipe import Data


def inventory(subjects, split_given=""):
    """Subject → modalities."""
    rows = [
        {"image": f"{s}-{m}", "subject": s, "modality": m, "split_given": split_given}
        for s, modalities in subjects.items()
        for m in modalities
    ]
    return pd.DataFrame(rows)


def joined(table, data):
    return table.merge(make_splits(table, data).rename("split"), left_on="image", right_index=True)


cohorts = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=4),
    st.sampled_from([("CT",), ("MR",), ("CT", "MR")]),
    min_size=1,
    max_size=40,
)


@settings(max_examples=40, deadline=None)
@given(cohorts, st.integers(0, 5), st.booleans())
def test_no_subject_is_in_two_splits_and_disjoint_training_gives_one_modality(cohort, seed, disjoint):
    found = joined(inventory(cohort), Data(split_seed=seed, disjoint_training=disjoint))
    assert (found.groupby("subject")["split"].nunique() == 1).all()
    train = found[found["split"] == "train"]
    if disjoint:
        assert (train.groupby("subject")["modality"].nunique() <= 1).all()
    else:
        assert len(found) == len(inventory(cohort))


def test_the_answer_repeats_whatever_the_order_and_changes_with_the_seed():
    table = inventory({f"s{k}": ("CT", "MR") for k in range(30)})
    first = make_splits(table, Data())
    pd.testing.assert_series_equal(first, make_splits(table.sample(frac=1, random_state=1), Data()))
    assert not first.equals(make_splits(table, Data(split_seed=1)))


def test_fractions_are_kept_and_the_test_keeps_its_pairs():
    found = joined(inventory({f"s{k}": ("CT", "MR") for k in range(40)}), Data(val_fraction=0.1, test_fraction=0.15))
    assert found.groupby("split")["subject"].nunique().to_dict() == {"test": 6, "train": 30, "val": 4}
    test = found[found["split"] == "test"]
    assert (test.groupby("subject")["modality"].nunique() == 2).all()
    train = found[found["split"] == "train"]
    assert train["modality"].value_counts().to_dict() == {"CT": 15, "MR": 15}


def test_each_modality_reaches_every_split_when_subjects_have_only_one():
    cohort = {f"c{k}": ("CT",) for k in range(20)} | {f"m{k}": ("MR",) for k in range(5)}
    found = joined(inventory(cohort), Data())
    assert set(zip(found["split"], found["modality"], strict=True)) >= {
        (s, m) for s in ("train", "val", "test") for m in ("CT", "MR")
    }


def test_given_splits_are_honoured_and_validation_is_taken_from_train():
    table = pd.concat(
        [
            inventory({f"a{k}": ("CT", "MR") for k in range(20)}, "train"),
            inventory({f"b{k}": ("CT", "MR") for k in range(7)}, "test"),
        ]
    )
    found = joined(table, Data(val_fraction=0.1))
    assert set(found[found["split"] == "test"]["subject"]) == {f"b{k}" for k in range(7)}
    assert found[found["split"] == "val"]["subject"].nunique() == 2


def test_a_given_validation_is_honoured():
    table = pd.concat([inventory({f"{s}{k}": ("CT",) for k in range(5)}, s) for s in ("train", "val", "test")])
    splits = make_splits(table, Data())
    assert all(image.startswith(split) for image, split in splits.items())


def test_pictures_without_subject_are_subjects_of_their_own():
    table = pd.DataFrame(
        {"image": f"{m}/{k}", "subject": "", "modality": m, "split_given": ""} for m in ("CT", "MR") for k in range(20)
    )
    found = joined(table, Data(val_fraction=0.1, test_fraction=0.2))
    for modality in ("CT", "MR"):
        counts = found[found["modality"] == modality]["split"].value_counts().to_dict()
        assert counts == {"train": 14, "val": 2, "test": 4}


def test_max_images_limits_each_split_and_modality_and_keeps_pairs():
    found = joined(inventory({f"s{k}": ("CT", "MR") for k in range(60)}), Data(max_images=3))
    assert (found.groupby(["split", "modality"]).size() == 3).all()
    test = found[found["split"] == "test"]
    assert (test.groupby("subject")["modality"].nunique() == 2).all()


def test_a_strange_split_is_refused():
    with pytest.raises(InputError, match="split 'holdout'; allowed are train, val and test"):
        make_splits(inventory({"a": ("CT",)}, "holdout"), Data())


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(4, 40),
    links=st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=30),
    seed=st.integers(0, 5),
)
def test_look_alikes_are_never_in_two_drawn_splits(count, links, seed):
    cohort = inventory({f"s{k:02}": ("CT",) for k in range(count)})
    alike = [(f"s{i:02}-CT", f"s{j:02}-CT") for i, j in links if i < count and j < count and i != j]
    splits = make_splits(cohort, Data(split_seed=seed, val_fraction=0.2, test_fraction=0.2), alike)
    assert len(splits) == count and (splits == "train").any()
    assert all(splits[a] == splits[b] for a, b in alike)
    share = max(1, round(0.2 * count))
    assert (splits == "test").sum() <= share and (splits == "val").sum() <= share


def test_a_group_of_look_alikes_counts_by_its_subjects_and_a_large_one_trains():
    cohort = inventory({f"s{k:02}": ("CT",) for k in range(20)})
    alike = [(f"s{k:02}-CT", f"s{k + 1:02}-CT") for k in range(9)]
    for seed in range(6):
        splits = make_splits(cohort, Data(split_seed=seed, val_fraction=0.0, test_fraction=0.25), alike)
        assert splits.value_counts().to_dict() == {"train": 15, "test": 5}
        assert {splits[f"s{k:02}-CT"] for k in range(10)} == {"train"}


def test_look_alikes_of_a_given_split_do_not_move_it():
    cohort = inventory({f"s{k}": ("CT",) for k in range(8)}, "train")
    cohort.loc[0, "split_given"] = "test"
    splits = make_splits(cohort, Data(val_fraction=0.5), [("s0-CT", "s1-CT")])
    assert (splits == "test").sum() == 1 and splits["s0-CT"] == "test"
