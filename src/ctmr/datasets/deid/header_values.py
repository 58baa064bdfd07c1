"""Values of attributes that stay: numbers that are numbers, defined terms, moved dates, dummies."""

from __future__ import annotations

import math
import re
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

import pydicom
from pydicom.multival import MultiValue
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.valuerep import DSfloat

from ctmr.datasets.deid import multiframe, profile

DUMMY = {
    "DA": "19000101",
    "TM": "000000",
    "DT": "19000101000000",
    "LO": "REMOVED",
    "SH": "REMOVED",
    "ST": "REMOVED",
}
"""Values by VR that take the place of what may neither stay nor be empty."""
_DECIMAL = re.compile(r"[+-]?\d{0,5}(\.\d{0,14})?([eE][+-]?\d{1,2})?")
_SINGLE_FRAME_TYPES = 3
_ENHANCED_TYPES = 4
_SOMEWHERE = Code("123037004", "SCT", "Body structure")


def values_of(value: Any) -> list[Any]:
    """Return the values of an attribute, none when it is empty."""
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, MultiValue | list | tuple) else [value]


def numbers(keyword: str, vr: str, value: Any) -> Any:
    """Return the numbers as their VR has them; None unless all are finite and below `profile.LARGEST`."""
    new: list[Any] = []
    for v in values_of(value):
        try:
            number = float(v)
        except (TypeError, ValueError):
            return None
        step = multiframe.COARSE.get(keyword)
        if step and profile.LARGEST <= number < multiframe.LONGEST:
            new.append(round(number / step) * step)
            continue
        if not math.isfinite(number) or abs(number) >= profile.LARGEST:
            return None
        if vr == "DS":
            text = str(v).strip()
            new.append(DSfloat(text) if len(text) <= 16 and _DECIMAL.fullmatch(text) else DSfloat(number, True))
        else:
            new.append(number if vr in ("FD", "FL") else int(number))
    return new[0] if len(new) == 1 else new or None


def terms(keyword: str, value: Any, *, enhanced: bool) -> Any:
    """Return the values that are defined terms, ``None`` without any.

    An image type counts positions, so that OTHER takes the place of others. What an enhanced image must have with a
    value gets the term for what is not told.
    """
    allowed = profile.TERMS[keyword]
    given = [str(v).strip().upper() for v in values_of(value)]
    if keyword in ("ImageType", "FrameType"):
        counted = _ENHANCED_TYPES if enhanced else _SINGLE_FRAME_TYPES
        given = [v if v in allowed else "OTHER" for v in given[:counted]] + [v for v in given[counted:] if v in allowed]
        allowed = allowed | {"OTHER"}
    new = [v for v in given if v in allowed]
    if given and not new and enhanced and keyword in multiframe.REQUIRED:
        return multiframe.UNKNOWN.get(keyword, "OTHER")
    return new[0] if len(new) == 1 else new or None


def maker(value: Any, *, enhanced: bool) -> str:
    """Return the first word of Manufacturer when it is one that is known; else nothing, or a dummy."""
    first = str(value or "").upper().split(maxsplit=1)[:1]
    if first and first[0] in profile.MAKERS:
        return first[0]
    return DUMMY["LO"] if first and enhanced else ""


def region(items: Any) -> list[pydicom.Dataset]:
    """Return the code of an anatomic region, with the meaning that the standard gives it (PS3.16 CID 4).

    Of any other code it stays that it is a part of the body.
    """
    if not items:
        return []
    value, scheme = (str(items[0].get(k) or "") for k in ("CodeValue", "CodingSchemeDesignator"))
    return [coded(_region(value, scheme))]


@lru_cache(maxsize=64)
def _region(value: str, scheme: str) -> Code:
    # Equality knows the codes that SNOMED had before.
    given = Code(value, scheme, "")
    return next((known for known in codes.CID4.concepts.values() if known == given), _SOMEWHERE)


def coded(code: Any) -> pydicom.Dataset:
    """Return the item of a code sequence."""
    item = pydicom.Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item


def moved(vr: str, text: str, days: int) -> str | None:
    """Return a date moved into the past; None when it is no date, or a time."""
    if vr not in ("DA", "DT") or not re.fullmatch(r"\d{8}", text[:8]):
        return None
    try:
        date = datetime.strptime(text[:8], "%Y%m%d") - timedelta(days=days)
    except (ValueError, OverflowError):
        return None
    return f"{date:%Y%m%d}"
