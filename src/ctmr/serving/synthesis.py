"""Synthesis: an image file through Triton into a synthetic image file that says so and can be traced."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctmr.errors import InputError
from ctmr.imaging.origin import PROVENANCE
from ctmr.imaging.plausibility import modality_fault
from ctmr.imaging.volume import Direction, Modality, Unit, Volume
from ctmr.system.home import Home
from ctmr.system.progress import Progress
from ctmr.tracking.names import Part, registered_name, served_name

if TYPE_CHECKING:
    from ctmr.io.dicom import SeriesChoice, SyntheticProvenance
    from ctmr.io.series_kinds import Kind
    from ctmr.serving.client import Translated


def synthesize(
    source: Path,
    out: Path,
    *,
    to: str,
    model: str,
    url: str,
    home: Home,
    report: Progress,
    keep: Collection[Kind] = (),
    source_modality: Modality | None = None,
    uncertainty: Path | None = None,
) -> dict[str, Any]:
    """Translate an image through Triton.

    Parameters
    ----------
    source
        DICOM series folder, NIfTI file or picture.
    out
        Folder for DICOM, file otherwise; must not exist. The format follows its name; a name of none that is written
        means a DICOM series, which needs a DICOM source.
    to
        ``CT`` or ``MR``.
    model
        Registered model's name; empty: the only one that is served in this direction.
    url
        Triton's gRPC address; empty: the embedded server, which is started when it is down.
    home
        Where the ledger is kept.
    keep
        Kinds of DICOM series that are translated although they are no anatomical images of a head.
    source_modality
        What the image shows, where somebody said so; a DICOM header must agree. ``None``: what the translation needs.
    uncertainty
        File for the uncertainty map, which must not exist: a DICOM Parametric Map where a series is written, else in
        the format of `out`.

    Returns
    -------
    dict
        path, modality, model, version, series_uid, files, left_out, notes (the server's findings), warnings (what the
        reader of the files doubts) and, where it was asked for, uncertainty (file, figure and what it means).

    Raises
    ------
    InputError
        The image cannot be read, is synthetic or does not fit the model, `out` exists or cannot be written from it, or
        no or several models fit. All of it is found before anything is translated.
    """
    from ctmr.serving.server import connect
    from ctmr.tracking.lineage import record

    if to.upper() not in set(Modality):
        raise InputError(f"--to {to!r}: allowed are CT and MR")
    direction = Direction.MR2CT if to.upper() == Modality.CT else Direction.CT2MR
    if out.exists():
        raise InputError(f"{out} exists already; name a path that does not, nothing is overwritten")
    if source_modality not in (None, direction.source):
        raise InputError(
            f"{source} shows {source_modality}, and --to {to} needs {direction.source}; give the other image"
        )
    _require_writable(out, source)
    if uncertainty is not None:
        _require_writable_map(uncertainty, out, source)
    report("reading the image", 0.1)
    chosen = _chosen(source, direction.source, keep)
    volume = _read(source, direction.source, chosen)
    with connect(home, url) as client:
        name = served_name(model, direction) if model else _only_model(client, direction)
        report(f"translating with {name}", 0.3)
        answer = client.translate_volume(name, volume, uncertainty=uncertainty is not None)
    report("writing", 0.8)
    provenance = _provenance(answer, registered_name(name, direction))
    files, uid, instances = write_translation(
        out, answer.volume, source if chosen is None else chosen.files, provenance
    )
    record(home, _ledger_entry(out, volume, answer, provenance, (uid, instances)))
    doubt = {} if uncertainty is None else {"uncertainty": _write_map(uncertainty, out, answer, provenance)}
    return {
        "path": str(out),
        "files": files,
        "modality": direction.target.value,
        "model": provenance.model_name,
        "version": answer.version,
        "series_uid": uid,
        "triton": client.url,
        "left_out": [] if chosen is None else list(chosen.left_out),
        "notes": list(answer.volume.notes),
        "warnings": list(volume.notes),
        **doubt,
    }


def _ledger_entry(
    out: Path, source: Volume, answer: Translated, provenance: SyntheticProvenance, identity: tuple[str, list[str]]
) -> dict[str, Any]:
    from ctmr.io.content import content_digest, read_whatever

    uid, instances = identity
    return {
        "series_uid": uid,
        "instance_uids": instances,
        "content_sha256": content_digest(read_whatever(out).array),
        "source_uid": source.uid,
        "notes": list(answer.volume.notes),
        "path": str(out.absolute()),
        **{k: str(v) for k, v in vars(provenance).items()},
    }


def _require_writable_map(path: Path, out: Path, source: Path) -> None:
    """Raise InputError when no uncertainty map can be written beside `out`."""
    from ctmr.io import FORMATS, Holds, format_named

    if path.exists():
        raise InputError(f"{path} exists already; name a file that does not, nothing is overwritten")
    asked = FORMATS.get(format_named(out.name) or "")
    written = asked is not None and asked.written
    if asked is not None and asked.holds is Holds.PICTURE:
        raise InputError(f"{source.name} is a picture, and 8 bits hold no uncertainty map; leave --uncertainty out")
    suffixes = asked.suffixes if asked is not None and written else (".dcm",)
    if not path.name.endswith(suffixes):
        raise InputError(
            f"the uncertainty map of {out.name} is written as {' or '.join(suffixes)}, and {path.name} ends otherwise"
        )


def _write_map(path: Path, out: Path, answer: Translated, provenance: SyntheticProvenance) -> dict[str, Any]:
    """Write the uncertainty map; return where it is and what its figure means."""
    from ctmr.io import FORMATS, dicom, format_named

    found, volume = answer.uncertainty, answer.volume
    assert found is not None, "it was asked for"
    if out.is_dir():
        series = sorted(out.iterdir())
        dicom.write_uncertainty_map(path, volume.with_array(found.map), series, found.words)
    else:
        # Fractions of a Hounsfield unit count here, so it is not written as an image in Hounsfield units.
        shown = replace(volume, array=found.map, unit=Unit.ARBITRARY, modality=Modality.MR)
        words = f"SYNTHETIC {volume.modality} uncertainty in {found.unit}, {dicom.NOT_FOR_DIAGNOSIS}"
        facts = json.dumps(asdict(provenance), sort_keys=True)
        text = {"Description": words, "Comment": found.words, PROVENANCE: facts}
        FORMATS[format_named(out.name) or ""].reader.write(path, shown, text=text)
    kept = ("figure", "expected_error", "rank_correlation", "cases", "words")
    return {"path": str(path), "unit": found.unit.value, **{key: getattr(found, key) for key in kept}}


def _chosen(source: Path, modality: Modality, keep: Collection[Kind]) -> SeriesChoice | None:
    """Return the series of a DICOM source that is meant; ``None`` for any other format."""
    from ctmr.io import dicom, format_of

    return dicom.choose_series(source, modality, keep) if source.exists() and format_of(source) == "dicom" else None


def _read(source: Path, modality: Modality, chosen: SeriesChoice | None) -> Volume:
    """Read the image; refuse what a model made, and values that speak against the modality."""
    from ctmr.io import dicom, read_image

    if chosen is None:
        volume = read_image(source, modality=modality)
    else:
        volume = dicom.read_series(chosen.files, modality=modality)
    if volume.synthetic is not None:
        raise InputError(
            f"{source} is synthetic ({volume.synthetic.words}); a translation of it would show what two models made, "
            "so give the image that a scanner acquired"
        )
    fault = modality_fault(volume)
    if fault:
        raise InputError(f"{source} was taken for {modality}, but {fault}; give the {modality}, or the other --to")
    return volume


def _require_writable(out: Path, source: Path) -> None:
    """Raise InputError when no translation of `source` can be written as `out` asks; `source` may be missing."""
    from ctmr.io import FORMATS, Holds, dicom, format_named, format_of
    from ctmr.io.dicom.frames import is_enhanced

    kind = format_of(source)
    if kind is None or not source.exists():
        return
    asked = FORMATS.get(format_named(out.name) or "")
    if asked is None or not asked.written:
        if kind != "dicom":
            raise _no_series_of(source)
        if source.is_file() and not is_enhanced(dicom.read_header(source)):
            raise InputError(
                f"{source} is one slice of a DICOM series; give the folder of the series, or a NIfTI file as OUT"
            )
    elif (FORMATS[kind].holds is Holds.PICTURE) is not (asked.holds is Holds.PICTURE):
        rows = [row for row in FORMATS.values() if row.written]
        wanted = [row.written for row in rows if (row.holds is Holds.PICTURE) is not (asked.holds is Holds.PICTURE)]
        raise InputError(
            f"{out.name} cannot hold the translation of {source.name}: a picture has grey levels and no geometry, a "
            f"volume has both its unit and its geometry; name OUT {' or '.join(wanted)}"
        )


def _no_series_of(source: Path) -> InputError:
    from ctmr.io import FORMATS

    suffixes = " or ".join(row.written for row in FORMATS.values() if row.written)
    return InputError(f"{source.name} is not DICOM, so no DICOM series can be derived from it; name OUT {suffixes}")


def _only_model(client: Any, direction: Direction) -> str:
    ending = served_name("", direction) + Part.VOLUME
    found = sorted(
        {m.model.removesuffix(Part.VOLUME) for m in client.index() if m.model.endswith(ending) and m.state == "READY"}
    )
    if len(found) != 1:
        names = ", ".join(registered_name(f, direction) for f in found) or "none"
        raise InputError(
            f"{len(found)} models are served for {direction} ({names}); choose one with --model, or deploy one"
        )
    return str(found[0])


def _provenance(answer: Translated, name: str) -> SyntheticProvenance:
    from ctmr.io.dicom import SyntheticProvenance

    lineage = answer.spec.lineage
    return SyntheticProvenance(
        model_name=lineage.get("model_name", name),
        model_version=answer.version,
        onnx_sha256=answer.spec.generator_sha256,
        run_id=lineage.get("run_id", ""),
        dataset_revision=lineage.get("dataset_revision", ""),
        dataset_md5=lineage.get("dataset_md5", ""),
        code_revision=lineage.get("code_revision", ""),
        direction=answer.spec.direction,
    )


def write_translation(
    out: Path, volume: Volume, source: Path | Sequence[Path], provenance: SyntheticProvenance
) -> tuple[int, str, list[str]]:
    """Write in the format that the name asks for; return files, series UID and instance UIDs."""
    from ctmr.io import FORMATS, dicom, format_named, format_of

    words = f"SYNTHETIC {volume.modality} by {provenance.model_name} version {provenance.model_version}"
    identity = dicom.seeded_uid(words, provenance.onnx_sha256, str(out.absolute()))
    asked = FORMATS.get(format_named(out.name) or "")
    if asked is not None and asked.written:
        facts = json.dumps({**asdict(provenance), "series_uid": identity}, sort_keys=True)
        comment = "; ".join((f"ctmr lineage {identity}", *volume.notes))
        asked.reader.write(out, volume, text={"Description": words, "Comment": comment, PROVENANCE: facts})
        return 1, identity, []
    if isinstance(source, Path) and format_of(source) != "dicom":
        raise _no_series_of(source)
    series = source if isinstance(source, Path) else [dicom.read_header(p) for p in source if dicom.is_dicom(p)]
    files = dicom.write_synthetic_series(out, volume, series, provenance)
    headers = [dicom.read_header(f) for f in files]
    return len(files), str(headers[0].SeriesInstanceUID), [str(h.SOPInstanceUID) for h in headers]
