"""Rollback: the champion before this one is served again, and is champion again, with a person's reason."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from ctmr.errors import InputError
from ctmr.pipeline.promotion import (
    NONE,
    REPLACES,
    Contender,
    identity,
    latest_promotions,
    promote,
    recover,
    registry_lock,
    server_of,
)
from ctmr.pipeline.registered import releases_of
from ctmr.system.home import Home


def roll_back(home: Home, model: str, reason: str) -> dict[str, Any]:
    """Go back to the version that the champion replaced, inside the lock and journal of a promotion.

    The earlier version was proven by its golden case when it went live; here it has to answer a canary inference, and
    to be the graph that was registered. Where it is proven, how callers lose nothing and what is undone on a failure is
    `ctmr.serving.rollout.deploy`'s.

    Parameters
    ----------
    model
        Registered name; empty where this home has promoted one model only.
    reason
        Why; recorded in the version's tags and in the home's record.

    Returns
    -------
    dict
        Model, version that is live now, version that was taken back, reason, seconds.

    Raises
    ------
    InputError
        There is no earlier champion, no such model, or no reason.
    EnvironmentFault
        Triton or MLflow failed; everything is as before.
    """
    from ctmr.serving.rollout import canary_proof
    from ctmr.serving.server import connect
    from ctmr.tracking.mlflow import Tracking

    if not reason.strip():
        raise InputError("a rollback without a reason helps nobody who reads the record; give one with --reason TEXT")
    began, tracking = time.monotonic(), Tracking(home)
    with registry_lock(home), tempfile.TemporaryDirectory(prefix="ctmr-") as folder:
        recover(home, tracking)
        line = _line_of(home, model)
        name, alias, where = line["model"], line["alias"], server_of(line)
        champion = tracking.champion(name, alias)
        if champion is None:
            raise InputError(f"{name} has no champion, so there is nothing to go back from; deploy a version")
        before = champion.tags.get(REPLACES, "")
        if before in ("", NONE):
            why = "is the first champion" if before else "does not say which version it replaced"
            raise InputError(
                f"{name} version {champion.version} {why}, so there is no earlier one to go back to; deploy another "
                "version"
            )
        version = tracking.version(name, before)
        releases = releases_of(home, tracking, version, Path(folder))
        earlier = Contender(name, version.version, version.digest, alias, True, identity(champion), False, "")
        with connect(home, **where) as client:
            promote(
                earlier,
                releases,
                canary_proof(client, releases),
                home=home,
                tracking=tracking,
                client=client,
                **where,
                rollback=reason.strip(),
            )
    return {
        "model": name,
        "version": version.version,
        "taken_back": champion.version,
        "reason": reason.strip(),
        "seconds": round(time.monotonic() - began, 1),
    }


def _line_of(home: Home, model: str) -> dict[str, Any]:
    """Return the latest line of the home's record of a model, or of the only one."""
    known = latest_promotions(home)
    named = ", ".join(sorted(known)) or "none"
    if model:
        if model not in known:
            raise InputError(f"this home has promoted no model {model!r}; it has promoted: {named}")
        return known[model]
    if len(known) != 1:
        raise InputError(f"say which model goes back: `ctmr rollback MODEL --reason TEXT`; promoted here: {named}")
    return next(iter(known.values()))
