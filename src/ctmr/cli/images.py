"""Commands about images: phantoms, translations through Triton, and where a synthetic image comes from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ctmr.cli.options import AsJson, Keep
from ctmr.errors import InputError

if TYPE_CHECKING:
    from ctmr.imaging.volume import Modality


def phantom(
    out: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    subjects: Annotated[int, typer.Option(min=1, help="Subjects with CT and MR, all in split test.")] = 3,
    seed: int = 1,
    sequences: Annotated[str, typer.Option(help="MR sequences, comma-separated: T1, T2.")] = "T1,T2",
) -> None:
    """Write phantom heads (CT and MR of each subject) as DICOM series."""
    from ctmr.cli.console import Console
    from ctmr.phantom.cohort import CohortPlan, write_cohort

    if out.exists():
        raise InputError(f"{out} exists already; give a folder that does not")
    wanted = tuple(s.strip().upper() for s in sequences.split(",") if s.strip())
    if not wanted or set(wanted) - {"T1", "T2"}:
        raise InputError(f"--sequences {sequences!r}: allowed are T1 and T2, comma-separated")
    plan = CohortPlan(train_mr=0, train_ct=0, val=0, test=subjects, sequences=wanted, seed=seed)
    console = Console()
    count = write_cohort(out, plan, report=console.report_for("phantom"))
    console.say(f"{count} phantom series in {out} (one zip archive of DICOM files each)")


def synthesize(
    source: Annotated[Path, typer.Argument(metavar="IN", help="DICOM series folder, NIfTI file or picture.")],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder (DICOM), or .nii.gz or .png file; must not exist.")
    ],
    to: Annotated[str, typer.Option("--to", help="Modality to make: CT or MR.")] = "CT",
    from_: Annotated[
        str, typer.Option("--from", help="Modality of IN, where neither header nor file name says it: CT or MR.")
    ] = "",
    model: Annotated[str, typer.Option(help="Registered model's name; default: the only one that is served.")] = "",
    keep: Keep = "",
    url: Annotated[str, typer.Option(help="Triton's gRPC address; default: the embedded server.")] = "",
    uncertainty: Annotated[
        Path | None,
        typer.Option(
            help="File for the uncertainty map: .dcm (Parametric Map) for DICOM, else as OUT; must not exist."
        ),
    ] = None,
    json_: AsJson = False,
) -> None:
    """Translate an image through Triton over gRPC; the result is marked as synthetic and traceable."""
    from ctmr.cli.console import Console
    from ctmr.io.series_kinds import kinds_of
    from ctmr.serving.synthesis import synthesize as translate
    from ctmr.system.home import Home

    shown = _modality_of(source, from_)
    console = Console(as_json=json_)
    written = translate(
        source,
        out,
        to=to,
        model=model,
        url=url,
        home=Home.current(),
        report=console.report_for("synthesize"),
        keep=kinds_of(keep.split(",")),
        source_modality=shown,
        uncertainty=uncertainty,
    )
    console.synthesized(written)


def _modality_of(source: Path, said: str) -> Modality | None:
    """Return what an image shows: as somebody said, else by the file's name; ``None`` where its header will tell."""
    from ctmr.datasets.naming import modality_of
    from ctmr.imaging.volume import Modality
    from ctmr.io import FORMATS, Holds, format_of

    if said.upper() not in ("", *Modality):
        raise InputError(f"--from {said!r}: allowed are CT and MR")
    if said:
        return Modality(said.upper())
    kind = format_of(source)
    if kind is None or FORMATS[kind].holds is Holds.SERIES or not source.exists():
        return None
    try:
        return modality_of(Path(source.name))
    except InputError:
        title = FORMATS[kind].title
        raise InputError(
            f"{source.name} does not say what it shows, nor does a {title} header; say --from CT or --from MR"
        ) from None


def lineage(
    uid: Annotated[str, typer.Argument(help="UID of a series or image, or path of a file of any name.")],
    json_: AsJson = False,
) -> None:
    """From a synthetic image back to the data revision that made it."""
    from ctmr.cli.console import Console
    from ctmr.system.home import Home
    from ctmr.tracking.lineage import trace

    Console(as_json=json_).lineage(trace(uid, Home.current()))
