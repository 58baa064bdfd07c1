"""Findings over an inventory: what is wrong with images and splits, and what happens to them (pure functions)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import pandas as pd

from ctmr.data.look_alikes import hashed, near_pairs
from ctmr.data.manifest import PHANTOM_PREFIX, RECOGNIZABLE_FACES, Column, Outcome, Split
from ctmr.data.measurable import unmeasurable
from ctmr.data.patients import patient_of, unknown_patients
from ctmr.imaging.origin import NO_TRUTH, PHANTOMS_ONLY
from ctmr.imaging.volume import Modality, Unit
from ctmr.io import FORMATS, Holds
from ctmr.io.series_kinds import NEVER_KEPT, Kind, kind_of_reason
from ctmr.recipe.recipe import Validate

KEEP_ORDER = (Split.TEST.value, Split.VAL.value, Split.TRAIN.value, "")
"""Of images that must not occur twice, the one in the first of these splits stays: a leak is mended by dropping from
training, so that the test stays the test that other numbers were measured on."""

_NAMED = 5


class FindingKind(StrEnum):
    """Consequence of a finding."""

    LEFT_OUT = "left_out"
    DROP = "drop"
    WARN = "warn"
    REFUSE = "refuse"


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes
    ----------
    kind
        ``left_out``: no image, so the manifest does not have it and nothing is lost. ``drop``: the images leave the
        manifest. ``warn``: somebody should look. ``refuse``: nothing is used.
    rule
        Name of the rule.
    images
        Images concerned; for a drop exactly those that are dropped.
    sentence
        What was found, what is allowed and what happens.
    """

    kind: FindingKind
    rule: str
    images: tuple[str, ...]
    sentence: str


def inspect(inventory: pd.DataFrame, config: Validate, splits: pd.Series | None = None) -> list[Finding]:
    """Return every finding of an inventory, in a fixed order.

    Parameters
    ----------
    inventory
        One row an image, columns of `ctmr.data.manifest.Column`.
    config
        What an image must fulfil.
    splits
        Image → split, once they are made (`ctmr.data.splits.make_splits`); ``None``: the splits the dataset came
        with. Images that `splits` lacks are unused and not counted.

    Notes
    -----
    An image that one rule drops is unseen by the rules after it, so a broken copy is never the copy that is kept.
    Near duplicates of pictures are dropped; of volumes they are only reported, because middle slices of two patients
    can look alike and a hash of one slice proves nothing about the rest.
    """
    table = _prepared(inventory, splits)
    found: list[Finding] = []
    rules: tuple[Callable[[pd.DataFrame, Validate], list[Finding]], ...] = (
        _no_image,
        _synthetic,
        _unreadable,
        _reader_notes,
        _identity,
        _faces,
        _phantoms,
        _constant,
        _too_small,
        _outside_hu,
        _unmeasurable,
        _modality_conflict,
        _exact_duplicates,
        _uid_duplicates,
        _subject_leaks,
        lambda table, _: _warned("unknown_patients", *unknown_patients(table)),
        _near_duplicates,
        _unlike_frames,
        _unit_disagreement,
        _too_few,
    )
    for rule in rules:
        new = rule(table, config)
        found += new
        table = table[~table[Column.IMAGE].isin(dropped_images(new) | left_out(new))]
    return found


def dropped_images(findings: Iterable[Finding]) -> set[str]:
    """Return the images that leave the manifest because something is wrong with them."""
    return _images(findings, FindingKind.DROP)


def left_out(findings: Iterable[Finding]) -> set[str]:
    """Return what the dataset holds beside images."""
    return _images(findings, FindingKind.LEFT_OUT)


def decide(findings: Sequence[Finding], n: int, max_dropped_fraction: float = 0.25) -> Outcome:
    """Decide over an inventory of `n` rows: refuse, pass with drops or pass.

    More dropped than `max_dropped_fraction` refuses: so many faults are a fault of the dataset, not of images. What was
    left out is no image, and counts on neither side.
    """
    dropped = len(dropped_images(findings))
    n -= len(left_out(findings))
    if any(f.kind is FindingKind.REFUSE for f in findings) or n == 0 or dropped > max_dropped_fraction * n:
        return Outcome.REFUSE
    return Outcome.PASS_WITH_DROPS if dropped else Outcome.PASS


def _prepared(inventory: pd.DataFrame, splits: pd.Series | None) -> pd.DataFrame:
    table = inventory.copy()
    for column in (
        Column.SUBJECT,
        Column.SHA256,
        Column.PERCEPTUAL_HASH,
        Column.UID,
        Column.SPLIT_GIVEN,
        Column.ERROR,
        Column.IDENTITY,
        Column.NOTES,
        Column.NO_IMAGE,
        Column.FRAME_OF_REFERENCE,
        Column.SYNTHETIC,
    ):
        if column not in table:
            table[column] = ""
        table[column] = table[column].fillna("").astype(str)
    if splits is None:
        table[Column.SPLIT] = table[Column.SPLIT_GIVEN]
    else:
        table[Column.SPLIT] = table[Column.IMAGE].map(splits)
        table = table[table[Column.SPLIT].notna()]
    table["_keep"] = table[Column.SPLIT].map({s: k for k, s in enumerate(KEEP_ORDER)}).fillna(len(KEEP_ORDER))
    # The best image to keep comes first everywhere, so rules only need "all but the first".
    return table.sort_values(["_keep", Column.IMAGE], kind="stable").reset_index(drop=True)


def _images(findings: Iterable[Finding], kind: FindingKind) -> set[str]:
    return {image for f in findings if f.kind is kind for image in f.images}


def _drop(rule: str, images: Iterable[str], sentence: str) -> Finding:
    return Finding(FindingKind.DROP, rule, tuple(images), sentence)


def _warned(rule: str, images: tuple[str, ...], sentence: str) -> list[Finding]:
    return [Finding(FindingKind.WARN, rule, images, sentence)] if images else []


def _no_image(table: pd.DataFrame, config: Validate) -> list[Finding]:
    found = []
    for image, reason in zip(table[Column.IMAGE], table[Column.NO_IMAGE], strict=True):
        if reason:
            kind = kind_of_reason(reason)
            kept = kind not in (None, *NEVER_KEPT, Kind.LOCALIZER)
            how = f"; fetch.keep=[{kind}] uses it all the same" if kept else ""
            words = f"{image} is left out, which is no loss: {reason}{how}"
            found.append(Finding(FindingKind.LEFT_OUT, "no_image", (image,), words))
    return found


def _synthetic(table: pd.DataFrame, config: Validate) -> list[Finding]:
    return [
        _drop("synthetic", [image], f"{image} is synthetic ({words}); {NO_TRUTH}; dropped")
        for image, words in zip(table[Column.IMAGE], table[Column.SYNTHETIC], strict=True)
        if words
    ]


def _phantoms(table: pd.DataFrame, config: Validate) -> list[Finding]:
    """Warn of phantoms: a model of theirs says nothing about patients, and they teach a model of patients nothing."""
    phantoms = list(table[Column.IMAGE][table[Column.SUBJECT].str.startswith(PHANTOM_PREFIX)])
    if not phantoms:
        return []
    if len(phantoms) == len(table):
        words = f"every image is of a phantom: a model of this dataset is {PHANTOMS_ONLY}"
    else:
        words = f"{_list(phantoms)} are of phantoms, all others are not; keep phantoms in a dataset of their own"
    return [Finding(FindingKind.WARN, "phantoms", tuple(phantoms), words)]


def _unreadable(table: pd.DataFrame, config: Validate) -> list[Finding]:
    found = []
    for row in table[table[Column.ERROR] != ""].to_dict("records"):
        image = row[Column.IMAGE]
        found.append(_drop("unreadable", [image], f"{image} cannot be read ({row[Column.ERROR]}); dropped"))
    readable = table[table[Column.ERROR] == ""]
    finite = np.isfinite(readable[[Column.MINIMUM, Column.MAXIMUM]].to_numpy(dtype=np.float64)).all(axis=1)
    for image in readable[Column.IMAGE].to_numpy()[~finite]:
        found.append(_drop("not_finite", [image], f"{image} holds values that are not numbers; dropped"))
    return found


def _identity(table: pd.DataFrame, config: Validate) -> list[Finding]:
    """A header that names the patient refuses everything: de-identification was forgotten. A picture is dropped."""
    found, named, attributes = [], [], set[str]()
    for row in table[table[Column.IDENTITY] != ""].to_dict("records"):
        image, names = row[Column.IMAGE], set(row[Column.IDENTITY].split(";")) - {RECOGNIZABLE_FACES}
        if names and FORMATS[row[Column.FORMAT]].holds is Holds.PICTURE:
            words = f"{image} carries text that may identify a person ({', '.join(sorted(names))})"
            found.append(_drop("identity", [image], f"{words}; dropped; `ctmr dataset add` removes it"))
        elif names:
            named.append(image)
            attributes |= names
    if named:
        words = f"{_list(named)} still identif{'ies' if len(named) == 1 else 'y'} the patient in "
        words += f"{_list(sorted(attributes))}; only de-identified images are used: `ctmr dataset add` makes them so"
        found.append(Finding(FindingKind.REFUSE, "identity", tuple(named), words))
    return found


def _reader_notes(table: pd.DataFrame, config: Validate) -> list[Finding]:
    return [
        Finding(FindingKind.WARN, "reader_notes", (row[Column.IMAGE],), f"{row[Column.IMAGE]}: {row[Column.NOTES]}")
        for row in table[table[Column.NOTES] != ""].to_dict("records")
    ]


def _faces(table: pd.DataFrame, config: Validate) -> list[Finding]:
    rows = table[[RECOGNIZABLE_FACES in names.split(";") for names in table[Column.IDENTITY]]]
    if rows.empty:
        return []
    words = f"{_list(list(rows[Column.IMAGE]))} show a face that can be recognised ({RECOGNIZABLE_FACES}); "
    return [
        Finding(FindingKind.WARN, "faces", tuple(rows[Column.IMAGE]), words + "deface before the images are given away")
    ]


def _constant(table: pd.DataFrame, config: Validate) -> list[Finding]:
    rows = table[table[Column.MINIMUM] == table[Column.MAXIMUM]]
    return [
        _drop("constant", [i], f"{i} has the value {v:g} everywhere; an image must have contrast; dropped")
        for i, v in zip(rows[Column.IMAGE], rows[Column.MINIMUM], strict=True)
    ]


def _too_small(table: pd.DataFrame, config: Validate) -> list[Finding]:
    rows = table[table[[Column.HEIGHT, Column.WIDTH]].min(axis=1) < config.min_side]
    return [
        _drop("too_small", [i], f"{i} is {int(h)} × {int(w)} pixels; at least {config.min_side} a side; dropped")
        for i, h, w in zip(rows[Column.IMAGE], rows[Column.HEIGHT], rows[Column.WIDTH], strict=True)
    ]


def _outside_hu(table: pd.DataFrame, config: Validate) -> list[Finding]:
    low, high = config.hu_range
    hu = table[table[Column.UNIT] == Unit.HU.value]
    rows = hu[(hu[Column.MINIMUM] < low) | (hu[Column.MAXIMUM] > high)]
    return [
        _drop("hu_range", [i], f"{i} has {a:g} to {b:g} HU; a patient's CT stays in {low:g} to {high:g}; dropped")
        for i, a, b in zip(rows[Column.IMAGE], rows[Column.MINIMUM], rows[Column.MAXIMUM], strict=True)
    ]


def _unmeasurable(table: pd.DataFrame, config: Validate) -> list[Finding]:
    return [_drop(rule, [image], words) for rule, image, words in unmeasurable(table)]


def _modality_conflict(table: pd.DataFrame, config: Validate) -> list[Finding]:
    known = table[table[Column.SHA256] != ""]
    found = []
    for _, group in known.groupby(Column.SHA256, sort=True):
        if group[Column.MODALITY].nunique() > 1:
            names = list(group[Column.IMAGE])
            words = f"{_list(names)} are one file filed under both modalities; one label is wrong, so all are dropped"
            found.append(_drop("modality_conflict", names, words))
    return found


def _exact_duplicates(table: pd.DataFrame, config: Validate) -> list[Finding]:
    return _all_but_first(table, Column.SHA256, "exact_duplicate", "has the same bytes as")


def _uid_duplicates(table: pd.DataFrame, config: Validate) -> list[Finding]:
    return _all_but_first(table, Column.UID, "uid_duplicate", "has the UID, but not the bytes, of")


def _all_but_first(table: pd.DataFrame, column: Column, rule: str, words: str) -> list[Finding]:
    found = []
    known = table[table[column] != ""]
    repeated = known[known.duplicated(column, keep=False)]
    for _, group in repeated.groupby(column, sort=True):
        kept, kept_split = group[Column.IMAGE].iloc[0], group[Column.SPLIT].iloc[0]
        for image, split in zip(group[Column.IMAGE].iloc[1:], group[Column.SPLIT].iloc[1:], strict=True):
            name = rule if split == kept_split else f"{rule}_across_splits"
            found.append(_drop(name, [image], f"{_in(image, split)} {words} {_in(kept, kept_split)}; dropped"))
    return found


def _subject_leaks(table: pd.DataFrame, config: Validate) -> list[Finding]:
    found = []
    known = table[(table[Column.SUBJECT] != "") & (table[Column.SPLIT] != "")]
    for subject, group in known.groupby(known[Column.SUBJECT].map(patient_of), sort=True):
        kept = group[Column.SPLIT].iloc[0]
        rest = group[group[Column.SPLIT] != kept]
        if len(rest):
            others = " and ".join(sorted(set(rest[Column.SPLIT])))
            words = f"subject {subject} is in {kept} and in {others}; a subject may be in one split, so {len(rest)} "
            words += f"image{'s' if len(rest) > 1 else ''} of {others} {'are' if len(rest) > 1 else 'is'} dropped"
            found.append(_drop("subject_in_two_splits", list(rest[Column.IMAGE]), words))
    return found


def _near_duplicates(table: pd.DataFrame, config: Validate) -> list[Finding]:
    found = []
    for modality in sorted(set(table[Column.MODALITY])):
        known, hashes = hashed(table[(table[Column.MODALITY] == modality) & (table[Column.SPLIT] != "")])
        split = known[Column.SPLIT].to_numpy()
        gone: set[str] = set()
        for i, j in near_pairs(hashes, config.near_duplicate_bits):
            kept, image = known[Column.IMAGE].iloc[i], known[Column.IMAGE].iloc[j]
            if split[i] == split[j] or image in gone or kept in gone:
                continue
            distance = int(np.bitwise_count(hashes[i] ^ hashes[j]))
            words = f"{_in(image, split[j])} looks like {_in(kept, split[i])} ({distance} of 64 hash bits differ, "
            words += f"more than {config.near_duplicate_bits} are needed across splits)"
            if max(known[Column.DEPTH].iloc[i], known[Column.DEPTH].iloc[j]) > 1:
                pair = (image, kept)
                found.append(Finding(FindingKind.WARN, "near_duplicate_across_splits", pair, f"{words}; look at both"))
            else:
                gone.add(image)
                found.append(_drop("near_duplicate_across_splits", [image], f"{words}; dropped"))
    return found


def _unlike_frames(table: pd.DataFrame, config: Validate) -> list[Finding]:
    """Point out subjects whose CT and MR nothing lays over each other."""
    told = table[(table[Column.SUBJECT] != "") & (table[Column.FRAME_OF_REFERENCE] != "")]
    apart = [
        str(subject)
        for subject, own in told.groupby(Column.SUBJECT, sort=True)
        for frames in [own.groupby(Column.MODALITY)[Column.FRAME_OF_REFERENCE].agg(set)]
        if len(frames) > 1 and not set.intersection(*frames)
    ]
    words = f"CT and MR of {_list(apart)} lie in different frames of reference, so they are no registered pair, and no "
    words += "fidelity is measured on them unless preprocess.steps registers them"
    return _warned("frames_of_reference", tuple(sorted(told[told[Column.SUBJECT].isin(apart)][Column.IMAGE])), words)


def _unit_disagreement(table: pd.DataFrame, config: Validate) -> list[Finding]:
    found = []
    for modality, group in table.groupby(Column.MODALITY, sort=True):
        counts = group[Column.UNIT].value_counts()
        if len(counts) > 1:
            words = " and ".join(f"{counts[u]} in {u}" for u in sorted(counts.index))
            sentence = f"{modality} images have {words}; a model reads one unit, so make two datasets of them"
            odd = group[group[Column.UNIT] != sorted(counts.index, key=lambda u: (-counts[u], u))[0]]
            found.append(Finding(FindingKind.REFUSE, "unit_disagreement", tuple(sorted(odd[Column.IMAGE])), sentence))
    return found


def _too_few(table: pd.DataFrame, config: Validate) -> list[Finding]:
    found = []
    splits_known = bool((table[Column.SPLIT] != "").any())
    for modality in Modality:
        own = table[table[Column.MODALITY] == modality.value]
        if own.empty:
            words = f"no usable {modality} image is left; {config.min_images} each are needed in training and test"
            found.append(Finding(FindingKind.REFUSE, "missing_modality", (), words))
            continue
        for split in (Split.TRAIN, Split.TEST) if splits_known else ():
            count = int((own[Column.SPLIT] == split.value).sum())
            if count < config.min_images:
                words = f"{split} keeps {count} {modality} image{'s' if count != 1 else ''}; it needs at least "
                words += f"{config.min_images}; add data, or lower validation.min_images"
                found.append(Finding(FindingKind.REFUSE, "too_few_images", (), words))
    return found


def _in(image: str, split: str) -> str:
    return f"{image} ({split})" if split else str(image)


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"
