"""Choice of the one series of a folder that is an anatomical head image, beside localizers, maps and the like."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ctmr.errors import InputError
from ctmr.imaging.volume import Modality
from ctmr.io.dicom.grouping import group_series
from ctmr.io.dicom.headers import printable, read_header
from ctmr.io.dicom.identity import IMAGE_CLASSES
from ctmr.io.dicom.series_kind.classify import SeriesAnswer, classify
from ctmr.io.series_kinds import NEVER_KEPT, Kind

_NAMED = 8


@dataclass(frozen=True)
class SeriesChoice:
    """The series of a folder that is meant.

    Attributes
    ----------
    files
        Its files.
    left_out
        Name and reason of every other series.
    """

    files: list[Path]
    left_out: tuple[str, ...] = ()


def choose_series(source: Path, modality: Modality, keep: Collection[Kind] = ()) -> SeriesChoice:
    """Return the one series of a modality that is an anatomical image of a head.

    Parameters
    ----------
    source
        Folder, or one file.
    modality
        What is wanted; series of others are left out.
    keep
        Kinds that are wanted all the same.

    Raises
    ------
    InputError
        One sentence with every series and what it is: none is such an image, or several are. A damaged file.
    """
    if not source.is_dir():
        answer = classify(read_header(source))
        _require(source, {source.name: answer} if answer.kind and answer.kind not in keep else {}, found=0)
        return SeriesChoice([source])
    meant: dict[str, tuple[list[Path], SeriesAnswer]] = {}
    others: dict[str, str] = {}
    refused: dict[str, SeriesAnswer] = {}
    groups = group_series(source)
    for reason in groups.unreadable.values():
        # It may be a slice of what is meant.
        raise InputError(reason)
    for key, files in groups.items():
        header = read_header(files[0])
        name = _name(source, files)
        if header.SOPClassUID not in IMAGE_CLASSES:
            others[name] = "no CT or MR image"
        elif str(header.Modality) != modality:
            others[name] = f"{printable(str(header.Modality), 16)}, not {modality}"
        else:
            answer = classify(header, key)
            if answer.kind is None or answer.kind in keep:
                meant[name] = files, answer
            else:
                refused[name] = answer
    if len(meant) > 1:
        shown = ", ".join(f"{name} ({answer.sequence or 'no known sequence'})" for name, (_, answer) in meant.items())
        raise InputError(f"{source} holds {len(meant)} {modality} series ({shown}); give the folder of one of them")
    if not meant:
        _require(source, refused, found=len(others))
        shown = "; ".join(f"{name}: {reason}" for name, reason in list(others.items())[:_NAMED])
        wrong = f" (wrong modality or class: {shown})" if others else ""
        raise InputError(
            f"{source} holds no {modality} image{wrong}; give a folder with the files of one {modality} series"
        )
    ((files, _),) = meant.values()
    left_out = others | {name: answer.reason for name, answer in refused.items()}
    return SeriesChoice(files, tuple(f"{name} is left out: {reason}" for name, reason in left_out.items()))


def _require(source: Path, refused: dict[str, SeriesAnswer], found: int) -> None:
    """Raise InputError that names what is left out, where nothing else is there."""
    if not refused:
        return
    shown = "; ".join(f"{name}: {answer.reason}" for name, answer in list(refused.items())[:_NAMED])
    kinds = sorted({a.kind for a in refused.values() if a.kind is not None and a.kind not in NEVER_KEPT})
    how = f", or --keep {kinds[0]} to use it all the same" if kinds else ""
    more = f" beside {found} of another modality or class" if found else ""
    raise InputError(
        f"{source} holds no anatomical image of a head{more} ({shown}); give a T1, T2, FLAIR, PD or CT series{how}"
    )


def _name(source: Path, files: list[Path]) -> str:
    first = printable(files[0].relative_to(source).as_posix(), 80)
    return first if len(files) == 1 else f"{first} and {len(files) - 1} more"
