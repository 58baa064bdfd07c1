"""Speed of reading and preprocessing beside bare loops and MONAI's loaders: `python benchmarks/ingest.py [--json]`.

Readers take turns in one run, each turn in a process of its own, so that none warms a cache for another. All do equal
work: a DICOM series becomes one array of physical values; a picture becomes one of 256². `whole` is what `preprocess`
does besides: sorting out geometry, the model's grid, the head mask, packing.

MONAI stands in no requirement: `pip install monai` first, or its rows say that it is not there.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ctmr.system.pool import PROCESSES

SLICES, SIDE, PICTURE = 200, 512, 256
TURNS = 3


def write_series(folder: Path, slices: int) -> None:
    """Write an axial CT series, Explicit VR Little Endian, 0.45 × 0.45 × 1 mm."""
    import pydicom
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    series, study, frame = generate_uid(), generate_uid(), generate_uid()
    for k in range(slices):
        level = abs(k / slices - 0.5)
        inside = x**2 + y**2 < 0.7 - level**2
        stored = np.where(inside, 1064, 24) + rng.integers(-20, 21, (SIDE, SIDE))
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, generate_uid()
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = series, study, frame
        dataset.Modality, dataset.PatientID, dataset.InstanceNumber = "CT", "benchmark", k + 1
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.Rows = dataset.Columns = SIDE
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, -1024, "HU"
        dataset.PixelSpacing, dataset.SliceThickness = [0.45, 0.45], 1
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient = [-115, -115, float(k)]
        dataset.PixelData = stored.astype(np.uint16).tobytes()
        pydicom.dcmwrite(folder / f"{k:04}.dcm", dataset, enforce_file_format=True)


def write_pictures(folder: Path, count: int) -> None:
    """Write 8-bit PNG pictures of 512², smooth with some noise, as CT screenshots are."""
    from PIL import Image

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    for k in range(count):
        grey = np.where(x**2 + (1 + 0.01 * k % 1) * y**2 < 0.7, 120, 0) + rng.integers(0, 12, (SIDE, SIDE))
        Image.fromarray(grey.astype(np.uint8)).save(folder / f"{k:04}.png")


def series_bare(folder: Path) -> None:
    import pydicom

    np.stack([pydicom.dcmread(p).pixel_array for p in sorted(folder.iterdir())])


def series_ours(folder: Path) -> None:
    from ctmr.io import dicom

    dicom.read_series(folder)


def series_monai(folder: Path) -> None:
    from monai.data import PydicomReader
    from monai.transforms import LoadImage

    LoadImage(reader=PydicomReader(), image_only=True)(folder)


def pictures_bare(folder: Path) -> None:
    from PIL import Image

    for path in pictures_of(folder):
        np.asarray(Image.open(path).convert("L").resize((PICTURE, PICTURE), Image.Resampling.BILINEAR))


def pictures_ours(folder: Path) -> None:
    from ctmr.imaging.grid import picture_grid
    from ctmr.imaging.inference_path import prepare
    from ctmr.imaging.volume import Modality
    from ctmr.io import raster

    grid = picture_grid((PICTURE, PICTURE))
    for path in pictures_of(folder):
        prepare([raster.read(path, modality=Modality.CT, subject=path.stem)], grid)


def pictures_monai(folder: Path) -> None:
    from monai.data import PILReader
    from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Resize

    load = Compose(
        [
            LoadImage(reader=PILReader(converter=lambda image: image.convert("L")), image_only=True),
            EnsureChannelFirst(channel_dim="no_channel"),
            Resize((PICTURE, PICTURE)),
        ]
    )
    for path in pictures_of(folder):
        load(path)


def whole(folder: Path, *, pictures: bool) -> int:
    """Prepare everything in a folder as the stage does; return how many files were read."""
    from ctmr.data.manifest import MANIFEST_COLUMNS, Column
    from ctmr.data.preparation import Preparer, Unusable, Work
    from ctmr.imaging.grid import Plane, picture_grid, volume_grid
    from ctmr.imaging.volume import UNEVEN_LIMIT
    from ctmr.system.pool import in_order

    if pictures:
        found = [(p.relative_to(folder), "raster") for p in pictures_of(folder)]
        grid = picture_grid((PICTURE, PICTURE))
    else:
        found = [(p.relative_to(folder), "dicom") for p in sorted(folder.iterdir())]
        grid = volume_grid(Plane.AXIAL, (256, 256), (1.0, 1.0))
    rows = []
    for path, kind in found:
        row = dict.fromkeys(map(str, MANIFEST_COLUMNS), "")
        row |= {Column.IMAGE: str(path), Column.PATH: str(path), Column.SUBJECT: path.stem, Column.FORMAT: kind}
        rows.append(row | {Column.SPLIT: "train", Column.MODALITY: "CT", Column.UNEVEN_LIMIT: UNEVEN_LIMIT})
    for done in in_order(Preparer(folder, grid, rows), [Work((row,)) for row in rows], worth=1):
        if isinstance(done, Unusable):
            raise SystemExit(done.reason)
    return len(found) * (1 if pictures else SLICES)


def pictures_of(folder: Path) -> list[Path]:
    """All pictures of a folder, in order."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg"))


READERS: dict[str, Callable[[Path], Any]] = {
    "series bare pydicom": series_bare,
    "series ours": series_ours,
    "series MONAI": series_monai,
    "pictures bare PIL": pictures_bare,
    "pictures ours": pictures_ours,
    "pictures MONAI": pictures_monai,
}


def turn(name: str, folder: Path, processes: int = 1) -> dict[str, float]:
    """Measure one reader in this process: seconds of the second pass, and peak memory; imports do not count."""
    os.environ[PROCESSES] = str(processes)
    run: Callable[[], Any]
    if name.startswith("whole"):
        run = lambda: whole(folder, pictures="pictures" in name)  # noqa: E731
    else:
        run = lambda: READERS[name](folder)  # noqa: E731
        run()
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {"seconds": seconds, "peak_mib": peak / 1024}


def apart(name: str, folder: Path, processes: int = 1) -> dict[str, float]:
    """Measure one reader in a process of its own."""
    command = [sys.executable, __file__, "--turn", name, "--folder", str(folder), "--processes", str(processes)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(pictures: Path | None) -> dict[str, Any]:
    """Measure everything; every ratio is the median over turns beside its own floor."""
    monai = importlib.util.find_spec("monai") is not None
    table: dict[str, Any] = {"monai": monai, "cores": len(os.sched_getaffinity(0)), "rows": [], "processes": []}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        write_series(root / "one" / "s0", SLICES)
        if pictures is None:
            write_pictures(root / "pictures", 600)
            pictures = root / "pictures"
        counts = {"series": SLICES, "pictures": len(pictures_of(pictures))}
        folders = {"series": root / "one" / "s0", "pictures": pictures}
        for kind, floor in (("series", "series bare pydicom"), ("pictures", "pictures bare PIL")):
            names = [n for n in READERS if n.startswith(kind) and (monai or "MONAI" not in n)]
            turns = [{n: apart(n, folders[kind]) for n in names} for _ in range(TURNS)]
            for name in names:
                table["rows"].append(
                    {
                        "what": name,
                        "files_per_s": round(counts[kind] / statistics.median(t[name]["seconds"] for t in turns), 1),
                        "of_floor": round(
                            statistics.median(t[floor]["seconds"] / t[name]["seconds"] for t in turns), 2
                        ),
                        "peak_mib": round(statistics.median(t[name]["peak_mib"] for t in turns)),
                    }
                )
        for k in range(1, 8):
            (root / "one" / f"s{k}").symlink_to(root / "one" / "s0")
        (root / "two").mkdir()
        for k in range(2):
            (root / "two" / f"s{k}").symlink_to(root / "one" / "s0")
        table["files"] = {"series": 8 * SLICES, "pictures": counts["pictures"]}
        for kind, folder in (("series", root / "one"), ("pictures", pictures)):
            turns = [{n: apart(f"whole {kind}", folder, n) for n in (1, 2)} for _ in range(TURNS)]
            table["processes"].append(
                {
                    "what": f"whole {kind}",
                    "files_per_s": {
                        n: round(table["files"][kind] / statistics.median(t[n]["seconds"] for t in turns), 1)
                        for n in (1, 2)
                    },
                    "speed_up": round(statistics.median(t[1]["seconds"] / t[2]["seconds"] for t in turns), 2),
                    "peak_mib": {n: round(statistics.median(t[n]["peak_mib"] for t in turns)) for n in (1, 2)},
                }
            )
        table["peak_mib_of_2_and_8_series"] = [
            round(apart("whole series", root / name)["peak_mib"]) for name in ("two", "one")
        ]
    return table


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--pictures", type=Path, help="folder of pictures instead of drawn ones")
    arguments.add_argument("--json", action="store_true")
    for hidden in ("--turn", "--folder"):
        arguments.add_argument(hidden, help=argparse.SUPPRESS)
    arguments.add_argument("--processes", type=int, default=1, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.turn:
        print(json.dumps(turn(given.turn, Path(given.folder), given.processes)))
        return
    table = measure(given.pictures)
    if given.json:
        print(json.dumps(table, indent=1))
        return
    print(f"{'reader':24}{'files/s':>10}{'of bare':>10}{'MiB':>8}")
    for row in table["rows"]:
        print(f"{row['what']:24}{row['files_per_s']:10}{row['of_floor']:10}{row['peak_mib']:8}")
    if not table["monai"]:
        print("MONAI is not installed; `pip install monai` adds its rows")
    for row in table["processes"]:
        one, two = row["files_per_s"][1], row["files_per_s"][2]
        print(f"{row['what']}: {one} files/s in one process, {two} in two ({row['speed_up']} times)")
    two, eight = table["peak_mib_of_2_and_8_series"]
    print(f"peak memory of 2 series {two} MiB, of 8 series {eight} MiB")


if __name__ == "__main__":
    main()
