"""Weighting of an MR image (T1, T2, FLAIR, PD), by its description, the enhanced header or its times."""

from __future__ import annotations

import re

from ctmr.io.dicom.series_kind.attributes import SeriesAttributes

FLAIR, T1, T2, PD = "FLAIR", "T1", "T2", "PD"
_BEFORE = r"(?:(?<![a-z])|(?<=ax)|(?<=axi)|(?<=sag)|(?<=cor)|(?<=tra)|(?<=[23]d)|(?<=iso)|(?<=fs)|(?<=sub)|(?<=fse))"
"""Of a weighting's name: nothing that makes a word of it ("test2", "part1"), but planes and the like."""
_NAMED = (
    (FLAIR, r"(?<!t1)(?<!t1[ _-])(flair|dark[ _-]?fluid|(?<![a-z])da[ _-]?fl(?![a-z]))"),
    (T1, rf"{_BEFORE}t1(?!\d)|mp2?[ _-]?rage|bravo|f?spgr|tfl3d|(?<![a-z])vibe(?![a-z])"),
    (T2, rf"{_BEFORE}t2(?!\d)(?![ _-]?(\*|star))|(?<![a-z])haste(?![a-z])"),
    (PD, r"(?<![a-z])(?:pd|dp)w?(?![a-z])|proton[ _-]?density"),
)
_NO_WEIGHTING = re.compile(
    r"(?<![a-z])(swi|swan|swip|t2[ _-]?(\*|star)w?|t2w?[ _-]?(ffe|gre|fl2d)|hemo|ciss|fiesta|b?ssfp|true?fisp|b-?ffe"
    r"|dir|psir)(?![a-z])"
)
"""Names of contrasts that are none of the four; times would take some of them for T1."""
_FAT_NULLED = re.compile(r"(?<![a-z])stir(?![a-z])")
_CODED = {"T1": T1, "T2": T2, "PROTON_DENSITY": PD, "FLUID_ATTENUATED": FLAIR}
_CODED_OTHER = frozenset({"T2_STAR", "STIR", "TAGGING", "MAGNETIZATION_TRANSFER"})
_SHORT_ECHO_MS, _LONG_ECHO_MS = 30.0, 60.0
_FLUID_INVERSION_MS, _FAT_INVERSION_MS = 1500.0, 300.0


def weighting(found: SeriesAttributes) -> str | None:
    """Return ``T1``, ``T2``, ``FLAIR`` or ``PD``; ``None`` when nothing tells, or when it is something else.

    The description comes first; where it names two (a dual echo) or a T2 whose times are a FLAIR's, the times decide.
    Then what an enhanced header says of its contrast, ProtocolName, and the times.
    """
    for text in (found.name, found.protocol):
        named = _named(text)
        if _NO_WEIGHTING.search(text) and not {FLAIR, T1} & set(named):
            return None
        if named:
            return _settled(named, found)
        if _FAT_NULLED.search(text):
            return None
        if text == found.name and (coded := _coded(found)) is not None:
            return coded or None
    return by_times(found)


def _settled(named: list[str], found: SeriesAttributes) -> str | None:
    """Return which of the weightings that a description names it is, or what else, by the times."""
    timed = by_times(found)
    if named == [T2]:
        # "t2_tirm" is a FLAIR where its inversion nulls fluid; a gradient echo called T2 is T2*.
        return FLAIR if timed == FLAIR else None if found.pulse == "GR" else T2
    return timed if len(named) > 1 and FLAIR not in named and timed in named else named[0]


def by_times(found: SeriesAttributes) -> str | None:
    """Return what pulse sequence, TR, TE, TI and flip angle say, by the usual limits of weighting.

    Spin echo: TR below 1 s and TE below 30 ms is T1, TE above 60 ms T2, TR above 1.5 s and TE below 40 ms PD; with an
    inversion of 1.5 s or more and a long echo FLAIR, with a shorter one that does not null fat T1. Gradient echo: T1
    with TE below 10 ms and either a short TR, an inversion, or a flip angle of 50° and more; never in a steady state
    that is not spoiled.
    """
    tr, te, ti = found.repetition_ms, found.echo_ms, found.inversion_ms or 0.0
    if tr is None or te is None:
        return None
    if ("IR" in found.pulse or ti) and ti > _FLUID_INVERSION_MS and te > _LONG_ECHO_MS:
        return FLAIR
    if "GR" in found.pulse:
        return T1 if te < 10 and _is_t1_gradient_echo(found, tr, ti) else None
    if "SE" not in found.pulse and "IR" not in found.pulse:
        return None
    if "IR" in found.pulse and 0 < ti <= _FAT_INVERSION_MS:
        return None
    if tr < 1000 or ("IR" in found.pulse and ti and ti < _FLUID_INVERSION_MS):
        return T1 if te < _SHORT_ECHO_MS else None
    return T2 if te > _LONG_ECHO_MS else PD if te < 40 and tr > 1500 else None


def _is_t1_gradient_echo(found: SeriesAttributes, tr: float, ti: float) -> bool:
    steady = "SS" in found.variant.split() and "SP" not in found.variant.split()
    inverted = 0 < ti < _FLUID_INVERSION_MS
    wide = (found.flip_deg or 0) >= 50 and tr < 400
    return inverted or wide or (tr < 50 and not steady)


def _named(text: str) -> list[str]:
    return [sequence for sequence, pattern in _NAMED if re.search(pattern, text)]


def _coded(found: SeriesAttributes) -> str | None:
    """Return the contrast that an enhanced header codes; empty for one that is none of the four."""
    terms = {found.contrast_type, *found.image_type}
    coded = next((_CODED[t] for t in _CODED if t in terms), None)
    return "" if coded is None and terms & _CODED_OTHER else coded
