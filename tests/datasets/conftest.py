"""Images that carry names: DICOM with a token in every attribute that can hold text, NIfTI and pictures with texts."""

from __future__ import annotations

import contextlib
import gzip
import io
import shutil
import sqlite3
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pytest
from data_repository import PAIRS, pictures
from hypothesis import strategies as st
from pydicom import config
from pydicom.datadict import DicomDictionary
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

from ctmr.datasets.deid.profile import TERMS
from ctmr.datasets.names import FolderLayout
from ctmr.datasets.operations import AddOptions, add, push

NEEDED = {
    "SpecificCharacterSet",
    "SOPClassUID",
    "SOPInstanceUID",
    "Modality",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PixelData",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "NumberOfFrames",
    "ImageType",
    "BurnedInAnnotation",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "FloatPixelData",
    "DoubleFloatPixelData",
    "PixelDataProviderURL",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "ProtocolName",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "InstanceNumber",
}
"""Attributes without which the file is no image, or another one."""


@dataclass(frozen=True)
class Tokens:
    """What must not be found again."""

    name: str
    given: str
    address: str
    date: str
    time: str
    number: str
    uid: str

    def every(self) -> list[bytes]:
        texts = [self.name, self.given, self.address, self.date, self.time, self.number, self.uid]
        texts += [t.upper() for t in texts] + [t.lower() for t in texts]
        return sorted({t.encode(e) for t in texts for e in ("utf-8", "latin-1", "utf-16-le")})

    def of(self, vr: str) -> str | bytes | None:
        texts = {
            "PN": f"{self.name}^{self.given}",
            "DA": self.date,
            "DT": self.date + self.time[:6],
            "TM": self.time,
            "IS": self.number,
            "DS": self.number,
            "UI": self.uid,
        }
        if vr in texts:
            return texts[vr]
        if vr in ("AE", "CS", "SH"):
            return self.name.upper()[:16] if vr == "CS" else self.name[:16]
        if vr in ("LO", "LT", "ST", "UT", "UC", "UR"):
            return f"{self.given} {self.address}"[:64]
        if vr in ("UN", "OB", "OW", "OF", "OD", "OL", "OV"):
            return (self.name + self.given).encode("utf-8").ljust(48)[:48]
        return None


LETTERS = st.characters(codec="latin-1", categories=("Lu", "Ll"), exclude_characters="ßÿµªº")
KNOWN = {word for words in TERMS.values() for term in words for word in (term, *term.split("_"))}
WORD = st.text(LETTERS, min_size=8, max_size=11).filter(lambda w: len(set(w.lower())) > 5 and w.upper() not in KNOWN)
"""No word of few letters: such are found in any binary file. No defined term either: hypothesis tries words of the
code, and such stay in a file."""
TOKENS = st.builds(
    Tokens,
    name=WORD,
    given=WORD,
    address=st.builds("{}gasse {}".format, WORD, st.integers(100, 999)),
    date=st.dates().map(lambda d: f"{1900 + d.year % 100}{d:%m%d}"),
    time=st.builds("{:%H%M%S}.{:06d}".format, st.times(), st.integers(100_000, 999_999)),
    number=st.integers(100_000_000, 2_000_000_000).map(str).filter(lambda n: len(set(n)) > 5),
    uid=st.integers(10**12, 10**13).map("1.2.276.0.7230010.3.{}".format),
)


def plant(image: pydicom.Dataset, tokens: Tokens, depth: int = 2, keep: set[str] = NEEDED) -> None:
    """Put a token into every attribute of the dictionary that can hold text, and private ones, and items."""
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        if keyword in keep or tag >> 16 in (0, 2, 4, 0xFFFE) or tag & 0xFFFF == 0 or not keyword:
            continue
        if vr == "SQ":
            if depth:
                item = pydicom.Dataset()
                wanted = ("PatientName", "PatientID", "StudyDate", "ReferencedSOPInstanceUID", "TextValue", "StackID")
                for inner in wanted:
                    setattr(item, inner, tokens.of(pydicom.datadict.dictionary_VR(inner)))
                if depth > 1 and keyword in ("PixelMeasuresSequence", "ReferencedImageSequence"):
                    plant(item, tokens, 0, {"SpecificCharacterSet"})
                image.add_new(tag, "SQ", [item])
            continue
        value = tokens.of(vr)
        if value is not None:
            image.add_new(tag, vr, value)
    for group in (0x0009, 0x0029, 0x0051):
        block = image.private_block(group, f"{tokens.name[:10]} PRIV", create=True)
        block.add_new(0x01, "LO", tokens.name)
        block.add_new(0x02, "UN", tokens.of("UN"))
        block.add_new(0x03, "SQ", [pydicom.Dataset()])
    image.add_new(0x60004000, "LT", tokens.address)
    image.add_new(0x50000040, "LT", tokens.address)
    image.add_new(0x60003000, "OW", tokens.of("OW"))


TELLING = (
    "NumberOfTemporalPositions",
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "DiffusionBValue",
    "BodyPartExamined",
)


def write_planted(
    folder: Path, tokens: Tokens, modality: str, *, patient: str, series: str, slices: int = 3, everywhere: bool = True
) -> list[Path]:
    """Write a small series with tokens in everything; file names carry them too."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(series))
    files = []
    before = config.settings.writing_validation_mode
    config.settings.writing_validation_mode = config.IGNORE
    try:
        image = pydicom.Dataset()
        image.SpecificCharacterSet = "ISO_IR 192"
        if everywhere:
            plant(image, tokens)
        for k in range(slices):
            image.SOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
            image.Modality = modality
            image.PatientID = patient
            image.StudyInstanceUID = f"{tokens.uid}.1"
            image.SeriesInstanceUID = f"{tokens.uid}.{series}"
            image.SOPInstanceUID = f"{tokens.uid}.{series}.{k + 1}"
            image.InstanceNumber = k + 1
            image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL" if modality == "CT" else "M"]
            image.ProtocolName = f"T1 {tokens.name}"
            # What tells a head from a point of a time series and the like; planted numbers would tell nonsense.
            for keyword in TELLING:
                if keyword in image:
                    delattr(image, keyword)
            image.ImagePositionPatient = [0, 0, 2.5 * k]
            image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
            image.PixelSpacing = [1, 1]
            image.RescaleSlope, image.RescaleIntercept = 1, -1024
            image.RescaleType = "HU" if modality == "CT" else "US"
            image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
            image.Rows = image.Columns = 48
            image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
            pixels = rng.integers(0, 3000, (48, 48), dtype=np.uint16)
            image.add_new("PixelData", "OW", pixels.astype("<u2").tobytes() + tokens.of("OW"))
            image.preamble = (tokens.name + tokens.given).encode("latin-1", "replace").ljust(128, b"\0")[:128]
            image.file_meta = FileMetaDataset()
            image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            image.file_meta.SourceApplicationEntityTitle = tokens.name[:16]
            image.file_meta.PrivateInformationCreatorUID = tokens.uid
            image.file_meta.PrivateInformation = tokens.of("OB")
            path = folder / f"{tokens.name}_{tokens.date}_{series}_{k}.dcm"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pydicom.dcmwrite(path, image, enforce_file_format=True)
            files.append(path)
    finally:
        config.settings.writing_validation_mode = before
    return files


def members(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the members of a zip archive."""
    if data[:4] != b"PK\x03\x04":
        return
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for member in archive.infolist():
            yield f"{name}:{member.filename}", member.filename.encode() + b"\n" + archive.read(member)


def contents(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield a file's name and bytes, and what is compressed in it: members, streams, values of databases, tables."""
    data = path.read_bytes()
    yield str(path), str(path).encode() + b"\n" + data
    yield from members(str(path), data)
    if data[:16] == b"SQLite format 3\0":
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            for table in tables:
                for row in database.execute(f'SELECT * FROM "{table}"'):  # noqa: S608
                    for value in row:
                        if isinstance(value, bytes):
                            yield from members(f"{path}, {table}", value)
    if data[:2] == b"\x1f\x8b":
        yield f"{path} (gzip)", gzip.decompress(data)
    if data[:1] == b"\x78":
        # Perhaps a loose object of git.
        with contextlib.suppress(zlib.error):
            yield f"{path} (zlib)", zlib.decompress(data)
    if data[:4] == b"PAR1":
        import pandas as pd

        yield f"{path} (table)", pd.read_parquet(path).to_csv().encode()


@pytest.fixture(scope="session")
def leaks() -> Callable[[Tokens, Path], list[str]]:
    """Return every place below a folder where a token is found."""

    def search(tokens: Tokens, *folders: Path) -> list[str]:
        found = []
        for folder in folders:
            for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()):
                for where, data in contents(path):
                    found += [f"{where}: {t!r}" for t in tokens.every() if t in data]
        return found

    return search


@pytest.fixture(scope="session")
def planted() -> Callable[..., list[Path]]:
    """Return the writer of planted series."""
    return write_planted


@pytest.fixture(scope="session")
def tokens_of() -> st.SearchStrategy[Tokens]:
    """Return the strategy of tokens."""
    return TOKENS


@pytest.fixture(scope="session")
def some_tokens() -> Tokens:
    """Return one set of tokens."""
    return Tokens(
        name="Zwölfjährig",
        given="Quastenflos",
        address="Xylophongasse 413",
        date="19470823",
        time="071943.918273",
        number="918273645",
        uid="1.2.276.0.7230010.3.8172635449182",
    )


def silent(message: str, fraction: float | None = None) -> None:
    """Report nothing."""


@pytest.fixture(scope="session")
def said() -> Callable[..., None]:
    """Return a reporter that says nothing."""
    return silent


@pytest.fixture(scope="session")
def made(tmp_path_factory, said):
    """A repository with one pushed dataset of pairs, and the options it was made with."""
    root = tmp_path_factory.mktemp("made")
    options = AddOptions(FolderLayout.PAIRED, identity_file=root / "ids", description="pairs", license="CC0")
    done = add("pairs", pictures(root / "source", PAIRS), root / "repo", options, said)
    push("pairs", root / "repo", said)
    return root, options, done


@pytest.fixture
def copy(made, tmp_path):
    """A copy of repository, remote, source and identity file that a test may break."""
    root, options, _ = made
    for name in ("repo", "repo-remote", "source"):
        shutil.copytree(root / name, tmp_path / name, symlinks=True)
    shutil.copy2(root / "ids", tmp_path / "ids")
    return tmp_path, AddOptions(options.layout, identity_file=tmp_path / "ids")
