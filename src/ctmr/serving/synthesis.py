"""Synthesis: an image file through Triton into a synthetic image file that says so and can be traced."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctmr.errors import InputError
from ctmr.imaging.volume import Direction, Modality, Volume
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

    Returns
    -------
    dict
        path, modality, model, version, series_uid, files, left_out, and notes: what is missing of the head, or was made
        background.

    Raises
    ------
    InputError
        The image cannot be read or does not fit the model, `out` exists, or no or several models fit.
    """
    from ctmr.io import read_image
    from ctmr.serving.server import connect
    from ctmr.tracking.lineage import record

    if to.upper() not in set(Modality):
        raise InputError(f"--to {to!r}: allowed are CT and MR")
    direction = Direction.MR2CT if to.upper() == Modality.CT else Direction.CT2MR
    if out.exists():
        raise InputError(f"{out} exists already; name a path that does not, nothing is overwritten")
    report("reading the image", 0.1)
    chosen = _chosen(source, direction.source, keep)
    volume = read_image(source, modality=direction.source) if chosen is None else _read_chosen(chosen, direction.source)
    with connect(home, url) as client:
        name = served_name(model, direction) if model else _only_model(client, direction)
        report(f"translating with {name}", 0.3)
        answer = client.translate_volume(name, volume)
    report("writing", 0.8)
    provenance = _provenance(answer, registered_name(name, direction))
    files, uid, instances = write_translation(
        out, answer.volume, source if chosen is None else chosen.files, provenance
    )
    entry = {
        "series_uid": uid,
        "instance_uids": instances,
        "source_uid": volume.uid,
        "notes": list(answer.volume.notes),
        "path": str(out.absolute()),
        **{k: str(v) for k, v in vars(provenance).items()},
    }
    record(home, entry)
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
    }


def _chosen(source: Path, modality: Modality, keep: Collection[Kind]) -> SeriesChoice | None:
    """Return the series of a DICOM source that is meant; ``None`` for any other format."""
    from ctmr.io import dicom, format_of

    return dicom.choose_series(source, modality, keep) if source.exists() and format_of(source) == "dicom" else None


def _read_chosen(chosen: SeriesChoice, modality: Modality) -> Volume:
    from ctmr.io import dicom

    return dicom.read_series(chosen.files, modality=modality)


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
        comment = "; ".join((f"ctmr lineage {identity}", *volume.notes))
        asked.reader.write(out, volume, text={"Description": words, "Comment": comment})
        return 1, identity, []
    if isinstance(source, Path) and format_of(source) != "dicom":
        suffixes = " or ".join(row.written for row in FORMATS.values() if row.written)
        raise InputError(f"{source.name} is not DICOM, so no DICOM series can be derived from it; name OUT {suffixes}")
    series = source if isinstance(source, Path) else [dicom.read_header(p) for p in source if dicom.is_dicom(p)]
    files = dicom.write_synthetic_series(out, volume, series, provenance)
    headers = [dicom.read_header(f) for f in files]
    return len(files), str(headers[0].SeriesInstanceUID), [str(h.SOPInstanceUID) for h in headers]
