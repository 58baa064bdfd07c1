"""Commands about images: phantoms, translations through Triton, and where a synthetic image comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctmr.cli.options import AsJson, Keep
from ctmr.errors import InputError


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
    model: Annotated[str, typer.Option(help="Registered model's name; default: the only one that is served.")] = "",
    keep: Keep = "",
    url: Annotated[str, typer.Option(help="Triton's gRPC address; default: the embedded server.")] = "",
    json_: AsJson = False,
) -> None:
    """Translate an image through Triton over gRPC; the result is marked as synthetic and traceable."""
    from ctmr.cli.console import Console
    from ctmr.io.series_kinds import kinds_of
    from ctmr.serving.synthesis import synthesize as translate
    from ctmr.system.home import Home

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
    )
    console.synthesized(written)


def lineage(
    uid: Annotated[str, typer.Argument(help="Series or SOP instance UID, or path, of a synthetic image.")],
    json_: AsJson = False,
) -> None:
    """From a synthetic image back to the data revision that made it."""
    from ctmr.cli.console import Console
    from ctmr.system.home import Home
    from ctmr.tracking.lineage import trace

    Console(as_json=json_).lineage(trace(uid, Home.current()))
