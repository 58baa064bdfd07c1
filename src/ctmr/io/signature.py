"""Recognising a DICOM file by its first bytes, with or without the preamble of PS3.10."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
PREFIX = b"DICM"
PREFIX_AT = 128
START_BYTES = 512
"""How much of a file is looked at."""
_Order = Literal["little", "big"]
_FIRST_GROUPS = (0x0002, 0x0008)
_LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_SHORT_VRS = frozenset(
    {
        b"AE",
        b"AS",
        b"AT",
        b"CS",
        b"DA",
        b"DS",
        b"DT",
        b"FD",
        b"FL",
        b"IS",
        b"LO",
        b"LT",
        b"PN",
        b"SH",
        b"SL",
        b"SS",
        b"ST",
        b"TM",
        b"UI",
        b"UL",
        b"US",
    }
)


def is_dicom(path: Path) -> bool:
    """True when the file begins as DICOM does, whatever its name; OSError when it cannot be opened."""
    with path.open("rb") as stream:
        start = stream.read(START_BYTES)
    return has_prefix(start) or begins_as_dataset(start)


def has_prefix(start: bytes) -> bool:
    """True when ``DICM`` follows a preamble of 128 bytes (PS3.10 section 7.1)."""
    return start[PREFIX_AT : PREFIX_AT + len(PREFIX)] == PREFIX


def begins_as_dataset(start: bytes) -> bool:
    """True when the bytes begin with two data elements in ascending order, the first of group 0002 or 0008.

    Old exports leave the preamble out (and often the file meta information with it). Two well-formed elements in a row
    keep other binary files out.
    """
    return _two_elements(start, "little") or _two_elements(start, "big")


def _two_elements(start: bytes, order: _Order) -> bool:
    first = _tag(start, 0, order)
    if first[0] not in _FIRST_GROUPS or first[1] > 0x0100:
        return False
    vr = start[4:6]
    if vr in _LONG_VRS:
        after = 12 + int.from_bytes(start[8:12], order)
    elif vr in _SHORT_VRS:
        after = 8 + int.from_bytes(start[6:8], order)
    else:
        after = 8 + int.from_bytes(start[4:8], order)
    second = _tag(start, after, order)
    return after % 2 == 0 and first < second <= (0x0020, 0xFFFF)


def _tag(start: bytes, at: int, order: _Order) -> tuple[int, int]:
    """Return group and element; what lies beyond the bytes gives a tag that no element has."""
    if at + 4 > len(start):
        return (0xFFFF, 0xFFFF)
    return int.from_bytes(start[at : at + 2], order), int.from_bytes(start[at + 2 : at + 4], order)
