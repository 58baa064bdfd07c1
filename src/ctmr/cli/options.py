"""Options that several commands share: one spelling, one help, one default."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ctmr.errors import InputError
from ctmr.pipeline.parameters import DATASET, OUT, OVERRIDES, PATH, RECIPE, REVISION, assignments

if TYPE_CHECKING:
    from ctmr.pipeline.kfp_local import Runner

RecipeName = Annotated[str, typer.Option(RECIPE.option, help=RECIPE.help)]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        OVERRIDES.option,
        metavar="KEY=VALUE",
        help=OVERRIDES.help,
        callback=lambda texts: assignments(texts or []),
    ),
]
DatasetAddress = Annotated[str, typer.Option(DATASET.option, help=DATASET.help)]
Revision = Annotated[str, typer.Option(REVISION.option, help=REVISION.help)]
DataPath = Annotated[str, typer.Option(PATH.option, help=PATH.help)]
Out = Annotated[
    Path | None,
    typer.Option(OUT.option, metavar="FOLDER", help=OUT.help, parser=lambda text: Path(text) if text else None),
]
RunnerName = Annotated[
    str, typer.Option("--runner", help="kfp: the compiled pipeline under kfp.local; inline: in this process, to debug.")
]
Keep = Annotated[
    str,
    typer.Option(
        metavar="KIND,…",
        help="Kinds of DICOM series to use although they are no anatomical images of a head, such as phase or "
        "angiography; an unknown one is answered with all.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, nothing else.")]


def runner_of(name: str) -> Runner:
    """Return the runner of ``--runner``."""
    from ctmr.pipeline.kfp_local import Runner

    if name not in set(Runner):
        raise InputError(f"--runner {name!r}: allowed are {', '.join(Runner)}")
    return Runner(name)
