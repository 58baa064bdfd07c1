"""Importers: which layout a source has, and subject, modality, sequence, split and pair of each of its images."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from ctmr.data.manifest import SUBJECT_PREFIX
from ctmr.data.patients import PAIR_MARK, STUDY
from ctmr.datasets import naming
from ctmr.datasets.deid.dicom import IMAGES, not_an_image, quiet_pydicom
from ctmr.datasets.deid.pseudonyms import Key
from ctmr.datasets.names import FolderLayout
from ctmr.datasets.scanning import Item, Scan
from ctmr.errors import InputError
from ctmr.imaging.origin import PHANTOM_PREFIX
from ctmr.imaging.volume import Modality
from ctmr.io import Holds, known_suffixes
from ctmr.io.dicom.identity import canonical
from ctmr.io.series_kinds import Kind


@dataclass(frozen=True)
class FoundImage:
    """One image and what its place in the source says.

    Attributes
    ----------
    subject
        Identifier of the subject, unique among all sources; it never leaves the identity file.
    modality
        ``None`` for a mask that came with an image.
    sequence
        MR sequence, empty when unknown or none.
    split
        ``train``, ``val``, ``test`` or empty.
    phantom
        Whether header or name say that the subject is a phantom.
    pair
        What a picture has in common with its partner, where a subject has several pairs.
    """

    item: Item
    subject: str
    modality: Modality | None
    sequence: str = ""
    split: str = ""
    phantom: bool = False
    pair: str = ""

    def folder(self, key: Key) -> str:
        """Return the folder of its subject in a dataset; each pair of a subject's pictures has one of its own."""
        subject = f"{SUBJECT_PREFIX}{key.pseudonym(self.subject, phantom=self.phantom)}"
        return f"{subject}{PAIR_MARK}{key.pseudonym(f'{self.subject}/{self.pair}')}" if self.pair else subject


@dataclass
class ImportPlan:
    """A source that was understood.

    Attributes
    ----------
    left_out
        Reason → number of series or files that are not taken in.
    named
        Path and reason of each of them; for the person at the terminal, never for the index.
    """

    layout: FolderLayout
    images: list[FoundImage] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    named: list[tuple[str, str]] = field(default_factory=list)

    def name_alike(self, known: Collection[str] = ()) -> None:
        """Give subjects that differ in spelling alone one name, which is that of earlier sources where there is one."""
        form = naming.one_form({image.subject for image in self.images}, known)
        self.images = [replace(image, subject=form[image.subject]) for image in self.images]


_Place = Callable[[Item], "FoundImage | str"]
_HEADS = ("brain", "hn")
_REGIONS = (*_HEADS, "pelvis", "ab", "th")
_CQ500 = re.compile(r"CQ500[-_ ]?CT[-_ ]?(\d+).*", re.IGNORECASE)
_ADNI = re.compile(r"\d{3}_S_\d{4,5}")
_ADNI_T1 = re.compile(r"MP[-_ ]?R|SPGR", re.IGNORECASE)
"""ADNI's T1 protocols: MP-RAGE, MPRAGE, IR-SPGR, and what is computed from them, such as MPR__GradWarp."""
_IXI = re.compile(r"(IXI\d{3})-[A-Za-z]+-\d+-([A-Za-z0-9]+)(?:-\d+)?\.nii(?:\.gz)?")
_IXI_SEQUENCES = ("T1", "T2", "PD")
_KAGGLE_AB = re.compile(r"(.+?)[-_ ]?([ABab])")
_SIDES = {"ct": Modality.CT, "mr": Modality.MR, "mri": Modality.MR}


def plan(
    scan: Scan,
    layout: FolderLayout,
    *,
    first: Modality | None = None,
    skip_unknown: bool = False,
    keep: Collection[Kind] = (),
) -> ImportPlan:
    """Place every item of a scan.

    Parameters
    ----------
    scan
        What the source holds.
    layout
        ``auto`` looks for the published layouts, and takes the source as plain when it is none.
    first
        With ``paired`` and folders A and B: the modality of A.
    skip_unknown
        Leave out and count images whose modality nothing tells, instead of refusing the source.
    keep
        Kinds of series that are taken in although they are no anatomical images of a head.

    Raises
    ------
    InputError
        Several layouts, a layout that the source does not have, an image whose modality nothing tells, or no image.
    """
    if not scan.items:
        raise InputError(f"the source holds no image; files ending in {known_suffixes(imported=True)} are taken in")
    chosen = _guess(scan) if layout is FolderLayout.AUTO else layout
    place = _paired(first) if chosen is FolderLayout.PAIRED else _PLACES[chosen]
    made = ImportPlan(chosen, left_out=Counter(scan.left_out))
    for item in scan.items:
        header = item.header
        reason = not_an_image(header, item.uid, keep) if header is not None else ""
        try:
            found = reason or place(item)
        except naming.UnknownModality as error:
            if not skip_unknown:
                raise naming.UnknownModality(f"{error}, or leave such images out with --skip-refused") from None
            found = "modality that its path does not tell"
        if isinstance(found, str):
            made.left_out[found] += 1
            made.named.append((str(item.relative), found))
        else:
            made.images.append(replace(found, phantom=_shows_phantom(found)))
    if not any(f.modality for f in made.images):
        reasons = "; ".join(f"{n} × {r}" for r, n in made.left_out.most_common(3))
        raise InputError(f"the source holds no image of layout {chosen} ({reasons}); try another --layout")
    if chosen is FolderLayout.PAIRED:
        _require_pairs(made)
    return made


def _shows_phantom(found: FoundImage) -> bool:
    from ctmr.io.dicom import is_phantom

    name = re.split("[ /]", found.subject)[-1]
    header = found.item.header
    return name.startswith(PHANTOM_PREFIX) or (header is not None and is_phantom(header))


def _guess(scan: Scan) -> FolderLayout:
    paths = [i.relative for i in scan.items]
    kinds = {
        FolderLayout.CQ500: any(_in_folders(_CQ500, p) for p in paths),
        FolderLayout.ADNI: any(_in_folders(_ADNI, p) for p in paths),
        FolderLayout.IXI: any(_IXI.fullmatch(p.name) for p in paths),
        FolderLayout.SYNTHRAD: any(_is_synthrad(p) for p in paths),
        FolderLayout.KAGGLE: {k[1] for i in scan.items if (k := _kaggle(i))} == set(Modality),
    }
    found = [layout for layout, there in kinds.items() if there]
    if len(found) > 1:
        raise InputError(f"the source looks like {' and '.join(found)}; add them one by one, or choose one --layout")
    sides: dict[str, set[str]] = {"ct": set(), "mr": set()}
    for item in scan.items:
        parts = [p.lower() for p in item.relative.parent.parts]
        side = next((p for p in parts if p in sides), "")
        if side and item.holds is Holds.PICTURE and not any(p.startswith(SUBJECT_PREFIX) for p in parts):
            sides[side].add(item.relative.stem)
    shared = sides["ct"] & sides["mr"]
    if not found and shared:
        raise InputError(
            f"{len(shared)} pictures have one name below CT and below MR; say --layout paired if these are one "
            "subject's, or --layout plain if they are not"
        )
    return found[0] if found else FolderLayout.PLAIN


def _dicom(item: Item, subject: str, split: str = "") -> FoundImage:
    from ctmr.io.dicom import guess_sequence

    with quiet_pydicom():
        modality = IMAGES[item.header.SOPClassUID]
        sequence = guess_sequence(item.header) if modality is Modality.MR else None
    return FoundImage(item, subject, modality, sequence or "", split)


def _plain(item: Item) -> FoundImage | str:
    split = naming.split_of(item.relative)
    if item.holds is Holds.SERIES:
        with quiet_pydicom():
            who = naming.subject_of_series(item.header)
        return _dicom(item, who if who.startswith(STUDY) else f"patient {who}", split)
    who = naming.subject_of(item.relative, picture=item.holds is Holds.PICTURE)
    subject = f"picture {who}" if who == item.relative.as_posix() else f"patient {who}"
    if item.holds is Holds.VOLUME and naming.is_mask(item.relative):
        return FoundImage(item, subject, None, split=split)
    modality = naming.modality_of(item.relative)
    sequence = naming.sequence_of(item.relative) if modality is Modality.MR else None
    return FoundImage(item, subject, modality, sequence or "", split)


def _kaggle(item: Item) -> tuple[str, Modality] | None:
    """Return split and modality of a Kaggle picture."""
    if item.holds is not Holds.PICTURE:
        return None
    parts = item.relative.parent.parts
    for part in parts:
        match = _KAGGLE_AB.fullmatch(part)
        if match and (split := naming.split_named(match[1])):
            return split, Modality.CT if match[2].upper() == "A" else Modality.MR
    if len(parts) > 1 and parts[-1].upper() in ("CT", "MRI") and (split := naming.split_named(parts[-2])):
        return split, _SIDES[parts[-1].lower()]
    return None


def _place_kaggle(item: Item) -> FoundImage | str:
    where = _kaggle(item)
    if where is None:
        return "not in train or test, CT or MRI"
    return FoundImage(item, f"kaggle {naming.subject_of(item.relative, picture=True)}", where[1], split=where[0])


def _place_cq500(item: Item) -> FoundImage | str:
    match = _in_folders(_CQ500, item.relative)
    if match is None or item.holds is not Holds.SERIES:
        return "not below a CQ500CT folder"
    return _dicom(item, f"cq500 {int(match[1])}")


def _place_ixi(item: Item) -> FoundImage | str:
    match = _IXI.fullmatch(item.relative.name)
    if match is None:
        return "not an IXI file"
    if match[2] not in _IXI_SEQUENCES:
        return f"IXI sequence other than {', '.join(_IXI_SEQUENCES)}"
    return FoundImage(item, f"ixi {match[1]}", Modality.MR, match[2])


def _place_synthrad(item: Item) -> FoundImage | str:
    if not _is_synthrad(item.relative):
        return "not a SynthRAD volume"
    *_, region, case, name = item.relative.parts
    if region.lower() not in _HEADS:
        return "region that is not the head"
    what = name.lower().split(".")[0]
    if what not in ("ct", "mr", "mask"):
        return what.upper()
    modality = None if what == "mask" else _SIDES[what]
    # "synthRAD2025_Task1_Train" is the name of the archive; its own test set has no CT.
    parts = (p for p in item.relative.parts if not p.lower().startswith("synthrad"))
    return FoundImage(item, f"synthrad {case}", modality, split=naming.split_of(PurePosixPath(*parts)))


def _place_adni(item: Item) -> FoundImage | str:
    match = _in_folders(_ADNI, item.relative)
    if match is None:
        return "not below an ADNI subject"
    subject, parts = f"adni {match[0]}", item.relative.parts
    name = parts[parts.index(match[0]) + 1]
    named = "T1" if _ADNI_T1.search(name) else naming.sequence_of(PurePosixPath(name)) or ""
    if item.holds is Holds.SERIES:
        found = _dicom(item, subject)
        return replace(found, sequence=found.sequence or named)
    if item.holds is not Holds.VOLUME or naming.is_mask(item.relative):
        return "not a volume"
    return FoundImage(item, subject, Modality.MR, named)


def _paired(first: Modality | None) -> _Place:
    sides = dict(_SIDES)
    if first is not None:
        sides |= {"a": first, "b": Modality.MR if first is Modality.CT else Modality.CT}

    def place(item: Item) -> FoundImage | str:
        parts = item.relative.parts
        for k, part in enumerate(parts[:-1]):
            match = re.fullmatch(r"(?:(.+?)[-_ ]?)?(a|b|ct|mr|mri)", part.lower())
            if match is None or (match[1] and not naming.split_named(match[1])):
                continue
            if match[2] not in sides:
                raise InputError(f"folder {part} does not say its modality; say with --first what A holds, CT or MR")
            split = naming.split_named(match[1] or "") or naming.split_of(PurePosixPath(*parts[: k + 1]))
            picture = item.holds is Holds.PICTURE
            pair = naming.pair_of(item.relative, k, whole=picture)
            modality = sides[match[2]]
            sequence = naming.sequence_of(PurePosixPath(*parts[k:])) if modality is Modality.MR else None
            found = FoundImage(item, f"paired {split}/{pair}", modality, sequence or "", split)
            if not picture:
                return replace(found, subject=f"paired /{pair}") if naming.names_patient(pair) else found
            path = PurePosixPath(*parts[:k], *parts[k + 1 :])
            who = naming.subject_of(path, picture=True)
            return found if who == path.as_posix() else replace(found, subject=f"patient {who}", pair=f"{split}/{pair}")
        return "not below CT, MR, A or B"

    return place


def _require_pairs(made: ImportPlan) -> None:
    found = {m: [(f.subject, f.pair) for f in made.images if f.modality is m] for m in Modality}
    sides = {m: {(canonical(who), pair) for who, pair in some} for m, some in found.items()}
    both = sides[Modality.CT] & sides[Modality.MR]
    alone = len(sides[Modality.CT] ^ sides[Modality.MR])
    if not both or alone:
        raise InputError(
            f"{len(both)} names are in both folders and {alone} in one only; with --layout paired every image needs a "
            "partner of the same name"
        )
    pictures = Counter((f.modality, canonical(f.subject), f.pair) for f in made.images if f.item.holds is Holds.PICTURE)
    twice = next((f for f in made.images if pictures[f.modality, canonical(f.subject), f.pair] > 1), None)
    if twice is not None:
        raise InputError(
            f"{twice.item.relative} has the name of another {twice.modality} picture but for its spelling, so its "
            "partner cannot be told; give every pair a name of its own"
        )


def _in_folders(pattern: re.Pattern[str], path: PurePosixPath) -> re.Match[str] | None:
    return next((m for part in path.parent.parts if (m := pattern.fullmatch(part))), None)


def _is_synthrad(path: PurePosixPath) -> bool:
    known = path.name.lower().split(".")[0] in ("ct", "mr", "cbct", "mask")
    return known and len(path.parts) > 2 and path.parts[-3].lower() in _REGIONS


_PLACES: dict[FolderLayout, _Place] = {
    FolderLayout.PLAIN: _plain,
    FolderLayout.KAGGLE: _place_kaggle,
    FolderLayout.CQ500: _place_cq500,
    FolderLayout.IXI: _place_ixi,
    FolderLayout.SYNTHRAD: _place_synthrad,
    FolderLayout.ADNI: _place_adni,
}
