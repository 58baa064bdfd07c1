"""fetch: a pinned dataset becomes ``raw/`` and an inventory of one row an image."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ctmr.data import images
from ctmr.data.manifest import INVENTORY_COLUMNS, Column
from ctmr.datasets import naming
from ctmr.datasets.deid.dicom import not_an_image, quiet_pydicom
from ctmr.datasets.deid.residual import remaining
from ctmr.datasets.dvc import DatasetSource, materialise
from ctmr.errors import CtmrError, InputError, visible
from ctmr.imaging.origin import SyntheticImage
from ctmr.imaging.plausibility import doubts, modality_fault
from ctmr.imaging.volume import UNEVEN_LIMIT, Unit, Volume
from ctmr.io import FORMATS, Holds, format_named, known_suffixes
from ctmr.io.series_kinds import Kind
from ctmr.pipeline.stage import Context, Stage
from ctmr.system.digest import file_digest
from ctmr.system.pool import in_order
from ctmr.system.walk import files_of_images, is_companion

_WORTH = 8
"""Images that are worth starting a process for."""


def run(context: Context) -> dict[str, Any]:
    """Copy the dataset, read every image once and describe it.

    An image that cannot be read gets a row with `Column.ERROR`; it never ends the run.
    """
    import pandas as pd

    source = DatasetSource.from_option(context.options["dataset"])
    raw = context.out / "raw"
    context.report(f"fetching {source.dataset.name}", 0.0)
    materialise(source, raw, lambda message, fraction=None: context.report(message, 0.2 * (fraction or 0.0)))
    (context.out / "dataset.json").write_text(json.dumps(source.dataset.to_json(), indent=1, sort_keys=True) + "\n")
    entries = find_images(raw)
    if not entries:
        known = f"DICOM series and files ending in {known_suffixes()} are read"
        raise InputError(f"dataset {source.dataset.name} holds no image; {known}")
    rows = []
    section = context.recipe.fetch
    look = partial(describe, raw, uneven_limit=section.uneven_limit, keep=section.keep)
    for k, row in enumerate(in_order(look, entries, worth=_WORTH), start=1):
        rows.append(row)
        if k % 20 == 1 or k == len(entries):
            context.report(f"read {k} of {len(entries)} images", 0.2 + 0.8 * k / len(entries))
    form = naming.one_form({str(row[Column.SUBJECT]) for row in rows})
    rows = [row | {Column.SUBJECT.value: form[str(row[Column.SUBJECT])]} for row in rows]
    table = pd.DataFrame(rows, columns=list(INVENTORY_COLUMNS)).sort_values(Column.IMAGE.value, ignore_index=True)
    table.to_parquet(context.out / "inventory.parquet", index=False)
    unreadable, left_out = (int((table[c] != "").sum()) for c in (Column.ERROR, Column.NO_IMAGE))
    counts = {"images": len(table) - left_out, "unreadable": unreadable, "left_out": left_out}
    return {**source.dataset.to_json(), **counts}


@dataclass(frozen=True)
class Entry:
    """One image that was found; every path is relative to ``raw/``.

    Attributes
    ----------
    path
        Folder of a DICOM series (``folder#key`` where it holds more than that series), file otherwise; as it stands in
        the inventory.
    error
        Why it cannot even be opened; empty for all others.
    key
        Key of a DICOM series, empty for a file.
    """

    path: str
    format: str
    files: tuple[str, ...]
    error: str = ""
    key: str = ""


def find_images(raw: Path) -> list[Entry]:
    """Return every image below `raw`; masks, and files of no known format, are left alone."""
    from ctmr.io import dicom

    found = []
    for file in files_of_images(raw):
        kind = format_named(file.name)
        if kind is not None and FORMATS[kind].holds is not Holds.SERIES and not naming.is_mask(Path(file.name)):
            found.append(_entry(raw, file, kind, [file]))
    series = dicom.group_series(raw)
    parents = {key: {f.parent for f in files} for key, files in series.items()}
    # A folder names its series only when nothing else in it is DICOM.
    used = Counter(folder for folders in parents.values() for folder in folders)
    used.update(file.parent for file in series.unreadable)
    for key, files in sorted(series.items()):
        folder = Path(os.path.commonpath(parents[key]))
        alone = parents[key] == {folder} and used[folder] == 1 and "#" not in folder.relative_to(raw).as_posix()
        entry = _entry(raw, folder, "dicom", files, key="" if alone else key)
        found.append(replace(entry, key=key))
    found += [_entry(raw, file, "dicom", [file]) for file in series.without_pixels]
    for file, reason in sorted(series.unreadable.items()):
        found.append(_entry(raw, file, "dicom", [file], error=reason))
    return found


def _entry(raw: Path, path: Path, kind: str, files: list[Path], *, key: str = "", error: str = "") -> Entry:
    """Return an entry with relative paths; one whose path no table and no terminal can show is an error."""
    relative = path.relative_to(raw).as_posix() + (f"#{key}" if key else "")
    shown = visible(relative).replace("\n", "\\n")
    if shown != relative:
        fault = "holds control characters" if _is_utf8(relative) else "is not UTF-8"
        error = error or f"the name {shown} {fault}, so no table can hold it; rename it"
    return Entry(shown, kind, tuple(f.relative_to(raw).as_posix() for f in files), error)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def describe(
    raw: Path, entry: Entry, uneven_limit: float = UNEVEN_LIMIT, keep: Collection[Kind] = ()
) -> dict[str, Any]:
    """Return the inventory row of one image; what is wrong with it stands in `Column.ERROR`."""
    path, kind, holds = entry.path, entry.format, FORMATS[entry.format].holds
    row: dict[str, Any] = dict.fromkeys(INVENTORY_COLUMNS, "")
    numbers = (Column.SPACING_D_MM, Column.SPACING_H_MM, Column.SPACING_W_MM, Column.MINIMUM, Column.MAXIMUM)
    row.update(dict.fromkeys(numbers, float("nan")))
    row.update({Column.DEPTH: 0, Column.HEIGHT: 0, Column.WIDTH: 0})
    row.update({Column.IMAGE: path, Column.PATH: path, Column.FORMAT: kind, Column.UNEVEN_LIMIT: uneven_limit})
    place = Path(path.rpartition("#")[0] if holds is Holds.SERIES and "#" in path else path)
    folders = place.parts if (raw / place).is_dir() else place.parent.parts
    try:
        row[Column.SPLIT_GIVEN] = naming.split_of(Path(*folders, "image"))
        row[Column.SHA256] = _digest(raw, entry.files)
        if entry.error:
            raise InputError(entry.error)
        if holds is not Holds.SERIES:
            row[Column.MODALITY] = naming.modality_of(place).value
            row[Column.SEQUENCE] = naming.sequence_of(place) or ""
            row[Column.SUBJECT] = naming.subject_of(place, picture=holds is Holds.PICTURE)
        elif reason := _look_at_series(row, raw / entry.files[0], entry.key, keep):
            row[Column.NO_IMAGE] = reason
            return {str(k): v for k, v in row.items()}
        row[Column.MASK] = _mask_of(raw, place) if holds is not Holds.PICTURE else ""
        row[Column.IDENTITY] = ";".join(remaining(kind, [raw / f for f in entry.files]))
        volume = images.read(raw, row)
        if fault := modality_fault(volume):
            raise InputError(f"it is filed as {volume.modality}, but {fault}")
        row.update(_measurements(volume, holds))
    except SyntheticImage as error:
        row[Column.SYNTHETIC] = error.synthetic.words
    except (CtmrError, OSError, MemoryError) as error:
        # One file that a disk or the memory fails on is as bad as a damaged one, and as little a reason to stop.
        reason = str(error) if isinstance(error, CtmrError) else f"{path} cannot be read ({error or 'no memory'})"
        row[Column.ERROR] = reason.replace(str(raw) + "/", "")
    return {str(k): v for k, v in row.items()}


def _look_at_series(row: dict[str, Any], file: Path, key: str, keep: Collection[Kind]) -> str:
    """Note whose series it is and where it lies; return why it is nothing to train on, empty when it is an image."""
    from ctmr.io import dicom

    with quiet_pydicom():
        header = dicom.read_header(file)
        row[Column.SUBJECT], row[Column.UID] = naming.subject_of_series(header), key
        row[Column.FRAME_OF_REFERENCE] = dicom.frame_told(header)
        return not_an_image(header, key, keep)


def _mask_of(raw: Path, place: Path) -> str:
    """Return the mask beside an image: ``<image>_mask``, else ``mask``, which belongs to every image of its folder."""
    folder = raw / place.parent
    suffixes = tuple(s for form in FORMATS.values() if form.holds is Holds.VOLUME for s in form.suffixes)
    beside = sorted(p for p in folder.iterdir() if not is_companion(Path(p.name)))
    masks = [p for p in beside if p.name.lower().endswith(suffixes) and naming.is_mask(Path(p.name))]
    for name in (place.name.partition(".")[0].lower(), ""):
        found = [p for p in masks if re.sub(r"[_-]?mask", "", p.name.partition(".")[0].lower()) == name]
        if len(found) == 1 and visible(found[0].name) == found[0].name:
            return found[0].relative_to(raw).as_posix()
    return ""


def _measurements(volume: Volume, holds: Holds) -> dict[str, Any]:
    out: dict[str, Any] = {
        Column.MODALITY: volume.modality.value,
        Column.UNIT: volume.unit.value,
        Column.DEPTH: volume.array.shape[0],
        Column.HEIGHT: volume.array.shape[1],
        Column.WIDTH: volume.array.shape[2],
        Column.MINIMUM: float(volume.array.min()),
        Column.MAXIMUM: float(volume.array.max()),
        Column.PERCEPTUAL_HASH: perceptual_hash(volume),
        Column.NOTES: "; ".join((*volume.notes, *doubts(volume))),
    }
    if holds is Holds.SERIES:
        out[Column.SEQUENCE] = volume.sequence or ""
    if volume.affine is not None:
        spacing = (Column.SPACING_D_MM, Column.SPACING_H_MM, Column.SPACING_W_MM)
        out.update(dict(zip(spacing, volume.spacing_mm, strict=True)))
        out[Column.ORIENTATION] = volume.orientation
    return out


def perceptual_hash(volume: Volume) -> str:
    """Return the 64-bit DCT hash of the middle slice, hexadecimal."""
    import imagehash
    from PIL import Image

    middle = volume.array[volume.array.shape[0] // 2].astype(np.float64)
    if volume.unit is not Unit.GREY8:
        low, high = float(middle.min()), float(middle.max())
        middle = (middle - low) / (high - low) * 255 if high > low else np.zeros_like(middle)
    return str(imagehash.phash(Image.fromarray(middle.astype(np.uint8))))


def _digest(raw: Path, files: tuple[str, ...]) -> str:
    if len(files) == 1:
        return file_digest(raw / files[0])
    return hashlib.sha256("".join(sorted(file_digest(raw / f) for f in files)).encode()).hexdigest()


def summary_line(summary: Mapping[str, Any]) -> str:
    """Return what was fetched, in half a line."""
    s = summary
    words = {"unreadable": "of them unreadable", "left_out": "series that are no images"}
    more = "".join(f", {s[k]} {what}" for k, what in words.items() if s[k])
    revision = f"revision {s['revision'][:12]}, " if s["revision"] else ""
    return f"{s['images']} image{'s' if s['images'] != 1 else ''}{more}, {revision}md5 {s['md5']}"


STAGE = Stage(
    "fetch",
    help="pin a dataset, copy it, describe every image in an inventory.",
    takes={},
    options={"dataset": "The pinned dataset."},
    sections=("fetch",),
    run=run,
    summary_line=summary_line,
    version=5,
)
