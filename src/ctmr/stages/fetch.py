"""fetch: a pinned dataset becomes ``raw/`` and an inventory of one row an image."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from ctmr.digest import file_digest
from ctmr.errors import CtmrError, InputError
from ctmr.manifest import INVENTORY_COLUMNS, Column, Split
from ctmr.stages import images
from ctmr.stages.contract import Context, Stage
from ctmr.storage import Source, materialise
from ctmr.volume import Unit, Volume


def run(context: Context) -> dict[str, Any]:
    """Copy the dataset, read every image once and describe it.

    An image that cannot be read gets a row with `Column.ERROR`; it never ends the run.
    """
    import pandas as pd

    source = Source.from_option(context.options["dataset"])
    raw = context.out / "raw"
    context.report(f"fetching {source.dataset.name}", 0.0)
    materialise(source, raw, lambda message, fraction: context.report(message, 0.2 * (fraction or 0.0)))
    (context.out / "dataset.json").write_text(json.dumps(source.dataset.to_json(), indent=1, sort_keys=True) + "\n")
    entries = find_images(raw)
    if not entries:
        raise InputError(
            f"dataset {source.dataset.name} holds no image; DICOM series, NIfTI files and PNG or JPEG pictures are read"
        )
    rows = []
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1), mp_context=get_context("spawn")) as pool:
        done = pool.map(describe, [raw] * len(entries), entries, chunksize=max(1, min(32, len(entries) // 8)))
        for k, row in enumerate(done):
            rows.append(row)
            if k % 20 == 0 or k + 1 == len(entries):
                context.report(f"read {k + 1} of {len(entries)} images", 0.2 + 0.8 * (k + 1) / len(entries))
    table = pd.DataFrame(rows, columns=list(INVENTORY_COLUMNS)).sort_values(Column.IMAGE.value, ignore_index=True)
    table.to_parquet(context.out / "inventory.parquet", index=False)
    unreadable = int((table[Column.ERROR] != "").sum())
    return {**source.dataset.to_json(), "images": len(table), "unreadable": unreadable}


@dataclass(frozen=True)
class Entry:
    """One image that was found; every path is relative to ``raw/``.

    Attributes
    ----------
    path
        Folder of a DICOM series (``folder#uid`` where a folder holds several), file otherwise.
    error
        Why it cannot even be opened; empty for all others.
    """

    path: str
    format: str
    files: tuple[str, ...]
    error: str = ""


def find_images(raw: Path) -> list[Entry]:
    """Return every image below `raw`; files that are neither DICOM, NIfTI nor picture are left alone."""
    from ctmr.io import FORMATS, dicom

    found = []
    for file in sorted(p for p in raw.rglob("*") if p.is_file()):
        for kind in ("raster", "nifti"):
            if file.name.lower().endswith(FORMATS[kind]):
                relative = file.relative_to(raw).as_posix()
                found.append(Entry(relative, kind, (relative,)))
    series = dicom.group_series(raw)
    folders = Counter(files[0].parent for files in series.values())
    for uid, files in sorted(series.items()):
        where = files[0].parent.relative_to(raw).as_posix()
        path = where if folders[files[0].parent] == 1 else f"{where}#{uid}"
        found.append(Entry(path, "dicom", tuple(f.relative_to(raw).as_posix() for f in files)))
    for file, reason in sorted(series.unreadable.items()):
        relative = file.relative_to(raw).as_posix()
        found.append(Entry(relative, "dicom", (relative,), reason))
    return found


def describe(raw: Path, entry: Entry) -> dict[str, Any]:
    """Return the inventory row of one image."""
    path, kind, files = entry.path, entry.format, entry.files
    row: dict[str, Any] = dict.fromkeys(INVENTORY_COLUMNS, "")
    numbers = (Column.SPACING_D_MM, Column.SPACING_H_MM, Column.SPACING_W_MM, Column.MINIMUM, Column.MAXIMUM)
    row.update(dict.fromkeys(numbers, float("nan")))
    row.update({Column.DEPTH: 0, Column.HEIGHT: 0, Column.WIDTH: 0})
    clean = path.partition("#")[0]
    row.update({Column.IMAGE: path, Column.PATH: path, Column.FORMAT: kind, Column.SHA256: _digest(raw, files)})
    parts = {w for w in Path(clean).parent.parts if w}
    row[Column.SPLIT_GIVEN] = next((s.value for s in Split if s.value in parts), "")
    try:
        if entry.error:
            raise InputError(entry.error)
        if kind != "dicom":
            row[Column.MODALITY] = images.modality_of(Path(clean)).value
            row[Column.SEQUENCE] = images.sequence_of(Path(clean)) or ""
            row[Column.SUBJECT] = clean if kind == "raster" else _nifti_subject(Path(clean))
        row.update(_measurements(images.read(raw, row), kind))
    except CtmrError as error:
        row[Column.ERROR] = str(error).replace(str(raw) + "/", "")
    return {str(k): v for k, v in row.items()}


def _nifti_subject(relative: Path) -> str:
    """The folder names the patient when there is one a patient (SynthRAD's layout), else the file does."""
    folder = relative.parent.name
    generic = {"ct", "mr", "mri", "t1", "t2", "", *(s.value for s in Split)}
    return relative.name.split(".")[0] if folder.lower() in generic else folder


def _measurements(volume: Volume, kind: str) -> dict[str, Any]:
    out: dict[str, Any] = {
        Column.MODALITY: volume.modality.value,
        Column.UNIT: volume.unit.value,
        Column.UID: volume.uid,
        Column.DEPTH: volume.array.shape[0],
        Column.HEIGHT: volume.array.shape[1],
        Column.WIDTH: volume.array.shape[2],
        Column.MINIMUM: float(volume.array.min()),
        Column.MAXIMUM: float(volume.array.max()),
        Column.PERCEPTUAL_HASH: perceptual_hash(volume),
    }
    if kind == "dicom":
        out[Column.SUBJECT] = volume.subject
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


STAGE = Stage("fetch", takes={}, options=("dataset",), sections=(), run=run)
