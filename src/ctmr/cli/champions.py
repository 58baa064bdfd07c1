"""`ctmr rollback` and `ctmr reconcile`: the champion before this one, and Triton as the registry says."""

from __future__ import annotations

from typing import Annotated

import typer

from ctmr.cli.options import AsJson


def rollback(
    model: Annotated[str, typer.Argument(help="Registered name; not needed where only one was promoted.")] = "",
    reason: Annotated[str, typer.Option(help="Why; recorded.")] = "",
    json_: AsJson = False,
) -> None:
    """Serve the champion before this one again; it is champion again, and the record says why."""
    from ctmr.cli.console import Console
    from ctmr.pipeline.rollback import roll_back
    from ctmr.system.home import Home

    done = roll_back(Home.current(), model, reason)
    console = Console(as_json=json_)
    if json_:
        console.document(done)
    else:
        console.say(
            f"{done['model']} is back at version {done['version']} after {done['seconds']} s; version "
            f"{done['taken_back']} was taken back: {done['reason']}"
        )


def reconcile(json_: AsJson = False) -> None:
    """Bring Triton and the record to what MLflow's alias says, whatever a killed command left."""
    from ctmr.cli.console import Console
    from ctmr.pipeline.reconcile import reconcile as converge
    from ctmr.system.home import Home

    rows = converge(Home.current())
    console = Console(as_json=json_)
    if json_:
        console.document({"models": rows})
        return
    if not rows:
        console.say("no model was promoted or served from here; there is nothing to bring together")
    for row in rows:
        is_ = f"version {row['champion']} is {row['alias']}" if row["champion"] else f"no version is {row['alias']}"
        console.say(f"{row['model']}: {is_}; {'; '.join(row['did']) or 'registry, Triton and record agree'}")
