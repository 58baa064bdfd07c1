"""Splits: which subjects train, validate and test, reproducibly and without a subject in two."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pandas as pd

from ctmr.data.manifest import Column, Split
from ctmr.data.patients import patient_of
from ctmr.errors import InputError
from ctmr.imaging.volume import Modality
from ctmr.recipe.recipe import Data


def make_splits(inventory: pd.DataFrame, data: Data, alike: Sequence[tuple[str, str]] = ()) -> pd.Series:
    """Give every usable image a split.

    Parameters
    ----------
    inventory
        Readable images only, columns of `ctmr.data.manifest.Column`. An image without subject is its own subject.
    data
        Fractions, seed, `disjoint_training` and `max_images`.
    alike
        Pairs of images that look alike (`ctmr.data.findings.look_alikes`). Where a split is drawn here, their
        subjects stay together, and so do the subjects that theirs are alike with, and the pairs of one patient.

    Returns
    -------
    pandas.Series
        Image → split (``train``, ``val``, ``test``), sorted by image. Images left out (by `disjoint_training` or
        `max_images`) are missing.

    Raises
    ------
    InputError
        When a given split is none of train, val, test.

    Notes
    -----
    Splits that a dataset came with are honoured; what it lacks is taken from its train. Otherwise subjects are drawn
    in the order of a hash of seed and name, so that adding a subject moves no other far; apart for subjects with
    both modalities and with one, so that each split gets its share of pairs. A group of look-alikes is drawn like one
    subject; one that is larger than a split's share stays in train.

    With `disjoint_training`, a subject with CT and MR that falls into train gives only one of them, alternating in
    the drawn order; validation and test keep both, which are their pairs.
    """
    table = inventory[[Column.IMAGE, Column.SUBJECT, Column.MODALITY, Column.SPLIT_GIVEN]].copy()
    table[Column.SPLIT] = table[Column.SPLIT_GIVEN].fillna("").astype(str)
    subjects = table[Column.SUBJECT].fillna("").astype(str)
    # The prefix keeps an image's name from meeting a subject's.
    table["_who"] = ("subject " + subjects).where(subjects != "", "image " + table[Column.IMAGE].astype(str))
    allowed = {s.value for s in Split} | {""}
    strange = sorted(set(table[Column.SPLIT]) - allowed)
    if strange:
        raise InputError(f"the dataset came with split {strange[0]!r}; allowed are train, val and test, or none at all")
    given = set(table[Column.SPLIT]) - {""}
    table.loc[table[Column.SPLIT] == "", Column.SPLIT] = Split.TRAIN.value
    shares = {
        s: fraction
        for s, fraction in ((Split.TEST, data.test_fraction), (Split.VAL, data.val_fraction))
        if s.value not in given
    }
    train = table[table[Column.SPLIT] == Split.TRAIN.value]
    moved = _draw(train, shares, data.split_seed, _groups(train, alike))
    in_train = table[Column.SPLIT] == Split.TRAIN.value
    table.loc[in_train, Column.SPLIT] = table.loc[in_train, "_who"].map(moved).fillna(Split.TRAIN.value)
    if data.disjoint_training:
        table = _disjoint(table, data.split_seed)
    if data.max_images is not None:
        table = _limited(table, data.max_images, data.split_seed)
    chosen = table.sort_values(Column.IMAGE).set_index(Column.IMAGE)[Column.SPLIT]
    return chosen.rename(Column.SPLIT.value)


def _groups(train: pd.DataFrame, alike: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Subject → the first name of those that it is joined with: pairs of one patient, and any number of look-alikes."""
    who = dict(zip(train[Column.IMAGE], train["_who"], strict=True))
    first = {name: name for name in who.values()}

    def root(name: str) -> str:
        while first[name] != name:
            first[name] = name = first[first[name]]
        return name

    of_a_patient: dict[str, str] = {}
    slices = [(of_a_patient.setdefault(patient_of(name), name), name) for name in sorted(first)]
    for one, other in (*slices, *((who[a], who[b]) for a, b in alike if a in who and b in who)):
        low, high = sorted((root(one), root(other)))
        first[high] = low
    return {name: root(name) for name in first}


def _draw(train: pd.DataFrame, shares: dict[Split, float], seed: int, groups: dict[str, str]) -> dict[str, str]:
    """Subject → split for those that leave train."""
    moved: dict[str, str] = {}
    members: dict[str, list[str]] = {}
    for name, group in sorted(groups.items()):
        members.setdefault(group, []).append(name)
    kinds = train.groupby(train["_who"].map(groups))[Column.MODALITY].agg(lambda m: "+".join(sorted(set(m))))
    for kind in sorted(set(kinds)):
        waiting = _shuffled(list(kinds[kinds == kind].index), seed)
        total = left = sum(len(members[group]) for group in waiting)
        for split, fraction in shares.items():
            # One subject at least, as long as train keeps one itself.
            room = max(1, round(fraction * total)) if fraction > 0 else 0
            for group in waiting:
                size = len(members[group])
                if size <= min(room, left - 1):
                    moved |= dict.fromkeys(members[group], split.value)
                    room, left = room - size, left - size
                if room == 0:
                    break
            waiting = [group for group in waiting if group not in moved]
    return moved


def _disjoint(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    train = table[table[Column.SPLIT] == Split.TRAIN.value]
    modalities = train.groupby(train["_who"].map(patient_of))[Column.MODALITY].nunique()
    both = _shuffled(list(modalities[modalities > 1].index), seed)
    gives = {who: (Modality.CT, Modality.MR)[k % 2].value for k, who in enumerate(both)}
    wanted = table["_who"].map(patient_of).map(gives)
    keep = (table[Column.SPLIT] != Split.TRAIN.value) | wanted.isna() | (wanted == table[Column.MODALITY])
    return table[keep]


def _limited(table: pd.DataFrame, most: int, seed: int) -> pd.DataFrame:
    """Whole subjects in the drawn order, as they fit: the same subjects in both modalities, so that pairs survive."""
    kept = []
    for _, group in table.groupby([Column.SPLIT, Column.MODALITY], sort=True):
        sizes = group["_who"].value_counts()
        room = most
        for who in _shuffled(list(sizes.index), seed):
            if sizes[who] <= room:
                kept.append(group[group["_who"] == who])
                room -= int(sizes[who])
            elif room == most:
                kept.append(group[group["_who"] == who].sort_values(Column.IMAGE).head(most))
                room = 0
            if room == 0:
                break
    return pd.concat(kept) if kept else table


def _shuffled(names: Sequence[str], seed: int) -> list[str]:
    return sorted(names, key=lambda n: (hashlib.sha256(f"{seed}/{n}".encode()).hexdigest(), n))
