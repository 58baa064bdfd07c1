"""Guessing an MR sequence (T1, T2, FLAIR, PD) from a header."""

from __future__ import annotations

import re

import pydicom

from ctmr.io.dicom.frames import FunctionalGroups, is_enhanced
from ctmr.io.dicom.headers import number_of

# "rest1" and "test2" are no weightings.
_NAMED_SEQUENCE = (
    ("FLAIR", r"(?<!t1)(?<!t1[ _-])(flair|dark[ _-]?fluid)"),
    ("T1", r"(?<!es)t1|mp2?rage|bravo|spgr|tfl3d|fspgr"),
    ("T2", r"(?<!es)t2(?![ _-]?(\*|star))"),
    ("PD", r"(?<![a-z])pd(?![a-z])|proton[ _-]?density"),
)
_ENHANCED_PULSE = {"SPIN": "SE", "GRADIENT": "GR", "BOTH": "SE GR"}


def guess_sequence(header: pydicom.Dataset) -> str | None:
    """Guess ``T1``, ``T2``, ``FLAIR`` or ``PD`` from an MR header; ``None`` when nothing tells.

    Names (ProtocolName, SeriesDescription) come first; otherwise ScanningSequence with TR, TE and TI in ms, by the
    usual limits of spin-echo weighting (short TR < 1000 and TE < 30: T1; long TR and TE > 60: T2). Enhanced files say
    the same in their first frame.
    """
    try:
        return _guess(header)
    except Exception:
        # pydicom converts values when they are asked for; a damaged one tells nothing.
        return None


def _guess(header: pydicom.Dataset) -> str | None:
    for keyword in ("ProtocolName", "SeriesDescription"):
        name = str(header.get(keyword, "")).lower()
        for sequence, pattern in _NAMED_SEQUENCE:
            if re.search(pattern, name):
                return sequence
    kind, tr, te, ti = _enhanced_parameters(header) if is_enhanced(header) else _parameters(header)
    if tr is None or te is None:
        return None
    if "IR" in kind and ti is not None and ti > 1500 and te > 60:
        return "FLAIR"
    if "GR" in kind:
        return "T1" if te < 10 and (tr < 50 or (ti is not None and ti < 1500)) else None
    if "SE" not in kind:
        return None
    if tr < 1000:
        return "T1" if te < 30 else None
    return "T2" if te > 60 else "PD" if te < 40 and tr > 1500 else None


_Parameters = tuple[str, float | None, float | None, float | None]


def _parameters(header: pydicom.Dataset) -> _Parameters:
    times = (number_of(header, k) for k in ("RepetitionTime", "EchoTime", "InversionTime"))
    return str(header.get("ScanningSequence", "")).upper(), *times  # type: ignore[return-value]


def _enhanced_parameters(header: pydicom.Dataset) -> _Parameters:
    groups = FunctionalGroups(header, 0)
    modifier = groups.group("MRModifierSequence")
    kind = _ENHANCED_PULSE.get(str(header.get("EchoPulseSequence", "")).upper(), "")
    if str(modifier.get("InversionRecovery", "")).upper() == "YES":
        kind += " IR"
    return (
        kind,
        number_of(groups.group("MRTimingAndRelatedParametersSequence"), "RepetitionTime"),
        number_of(groups.group("MREchoSequence"), "EffectiveEchoTime"),
        number_of(modifier, "InversionTimes"),
    )
