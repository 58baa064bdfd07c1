"""Promotion: a model becomes champion inside one lock, once its rollout was proven, or nothing has changed.

Going back to an earlier champion (`ctmr.pipeline.rollback`) is the same transaction.

The registry's alias says who is champion. A journal, written before Triton is touched, lets the next command that takes
the lock finish or undo what a killed one left: where the alias has moved the version is served, else the old one is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctmr.errors import CtmrError, EnvironmentFault, InputError
from ctmr.system.files import append_line, write_file
from ctmr.system.home import Home
from ctmr.system.locks import locked

if TYPE_CHECKING:
    from ctmr.serving.client import TritonClient
    from ctmr.serving.model_repository import Release
    from ctmr.serving.rollout import Prove, RolloutReport, Standing
    from ctmr.tracking.mlflow import Tracking, Version

REPLACE_UNCOMPARED = "replace_uncompared"
"""Stage option of deploy: why a champion that a model could not be compared with is replaced all the same."""
OPTION = "--" + REPLACE_UNCOMPARED.replace("_", "-")
_A_PERSON_DECIDES = f"; a person decides: `ctmr deploy {OPTION} REASON`"
REPLACES = "replaces"
"""Tag of a champion: the version before it, or `NONE`."""
NONE = "none"
ROLLED_BACK = "rolled_back"
"""Tag of a version that was champion and was taken back: why; empty once a person has promoted it again."""


_TAG = 4000
_OF_A_LINE = {"model", "version", "digest"}
"""Characters that a tag of MLflow may have, and a few to spare."""


@dataclass(frozen=True)
class Contender:
    """A registered version and what the gate decided about it.

    Attributes
    ----------
    digest
        Content digest of the model.
    alias
        The champion's alias.
    replaces_champion
        It was compared with the champion (or there was none) and may take its place.
    compared_with
        The champion then: name, version and digest; ``None`` when there was none.
    uncompared
        There was one, and nothing could compare them.
    stays
        Why it does not replace the champion, in a sentence.
    """

    name: str
    version: str
    digest: str
    alias: str
    replaces_champion: bool
    compared_with: Mapping[str, str] | None
    uncompared: bool
    stays: str

    def why_not(self, champion: Version | None, reason: str, rolled_back: str = "") -> str:
        """Return why the version must not become champion, empty when it may, or is.

        Parameters
        ----------
        champion
            Today's.
        reason
            A person's, for replacing a champion that it could not be compared with; empty when nobody gave one.
        rolled_back
            Why the version was rolled back before; only a person promotes it again.

        Raises
        ------
        InputError
            `reason` was given though the two were compared.
        EnvironmentFault
            The champion is no longer the one that the model was compared with.
        """
        if champion is not None and champion.digest == self.digest:
            return ""
        if reason and not self.replaces_champion and not self.uncompared:
            raise InputError(
                f"{OPTION} is for a model that could not be compared with the champion, and {self.name} version "
                f"{self.version} was judged: {self.stays}"
            )
        if not self.replaces_champion and not (self.uncompared and reason):
            return self.stays + (_A_PERSON_DECIDES if self.uncompared else "")
        if rolled_back and not reason:
            return f"version {self.version} was rolled back ({rolled_back}){_A_PERSON_DECIDES}"
        self.require(champion)
        return ""

    def require(self, champion: Version | None) -> None:
        """Raise EnvironmentFault unless the champion is the one that the model was compared with."""
        if identity(champion) != self.compared_with:
            was = f"version {self.compared_with['version']}" if self.compared_with else "no champion"
            now = f"version {champion.version} is the champion" if champion else "there is no champion"
            raise EnvironmentFault(
                f"{self.name} version {self.version} was compared with {was}, and now {now}; nothing was changed, run "
                "it again (or `ctmr evaluate`, `register` and `deploy`) to compare them"
            )


def identity(champion: Version | None) -> dict[str, str] | None:
    """Return what tells one champion from another."""
    if champion is None:
        return None
    return {"name": champion.name, "version": champion.version, "digest": champion.digest}


@contextmanager
def registry_lock(home: Home, *, busy: str = "") -> Iterator[None]:
    """Hold the lock in which versions are registered, rolled out and promoted; without `busy`, wait for it."""
    home.root.mkdir(parents=True, exist_ok=True)
    with locked(home.registry_lock, busy=busy, mode=0o600):
        yield


def promote(
    candidate: Contender,
    releases: Sequence[Release],
    prove: Prove,
    *,
    home: Home,
    tracking: Tracking,
    client: TritonClient,
    url: str = "",
    repository: str = "",
    reason: str = "",
    rollback: str = "",
) -> list[RolloutReport]:
    """Roll out every direction of a version, then make it champion; the caller holds `registry_lock`.

    What fails leaves Triton, alias and record as they were. That cannot be done while the registry does not answer;
    then the journal stays for `recover`.

    Parameters
    ----------
    candidate
        For which `Contender.why_not` said nothing.
    prove
        Golden inference, called with a served model's name and a version.
    url
        Address of a Triton that is not the embedded one.
    repository
        Where that one loads from, unless from the home.
    reason
        Recorded: why a champion is replaced uncompared.
    rollback
        Recorded: why the champion is taken back; empty when this is no rollback.

    Raises
    ------
    CtmrError
        The rollout, the registry, or another machine that changed the champion meanwhile.
    """
    from ctmr.serving.rollout import Standing, deploy

    before = tracking.champion(candidate.name, candidate.alias)
    entry = {
        "model": candidate.name,
        "alias": candidate.alias,
        "version": candidate.version,
        "digest": candidate.digest,
        "previous": before.version if before else "",
        "uncompared": reason,
        "rollback": rollback,
    }
    where = {"url": url, "repository": repository}
    standings = [Standing.of(home.model_repository, release.model) for release in releases]
    _write_journal(home, {"entry": entry, **where, "standings": [s.to_json() for s in standings]})
    # Whoever is champion already is to be served, whatever stands in its place.
    reshape = bool(reason or rollback) or (before is not None and before.version == candidate.version)

    def move() -> None:
        _move(candidate, tracking, before, entry)

    reports = []
    try:
        for release in releases:
            commit = move if release is releases[-1] else _nothing
            reports.append(deploy(client, home.model_repository, release, prove, commit=commit, reshape=reshape))
        _settle(home, tracking, entry, where)
    except BaseException:
        with suppress(CtmrError):
            recover(home, tracking)
        raise
    _journal(home).unlink(missing_ok=True)
    return reports


def _nothing() -> None:
    """Commit nothing: further directions follow."""


def _move(candidate: Contender, tracking: Tracking, before: Version | None, entry: Mapping[str, str]) -> None:
    """Point the alias at the version if it still points where it did, and see that it does.

    Another machine that moves the alias between the look and the move is found out only afterwards: MLflow has no
    conditional write.
    """
    name, alias, version = candidate.name, candidate.alias, candidate.version
    now = tracking.champion(name, alias)
    if now is not None and now.version == version:
        return
    if identity(now) != identity(before):
        candidate.require(now)
    if not entry["rollback"]:
        tracking.tag_version(name, version, {REPLACES: entry["previous"] or NONE})
    if entry["uncompared"]:
        tracking.tag_version(name, version, {"replaced_uncompared": entry["uncompared"][:_TAG], ROLLED_BACK: ""})
    failed: CtmrError | None = None
    try:
        tracking.alias(name, alias, version)
    except CtmrError as error:
        failed = error  # The alias may have moved all the same: an answer can be lost.
    now = tracking.champion(name, alias)
    if now is None or now.version != version:
        stands = f"version {now.version}" if now else "no version"
        raise failed or EnvironmentFault(
            f"the alias {alias} of {name} points at {stands} after it was moved to version {version}; another machine "
            "promotes too, run it again"
        )


def recover(home: Home, tracking: Tracking | None = None) -> str:
    """Finish or undo a promotion that did not end; the caller holds `registry_lock`.

    The registry decides: where its alias points at the version, the version is served and recorded; otherwise what was
    served before is served again.

    Returns
    -------
    str
        What was done, in a sentence; empty when there was nothing to do.

    Raises
    ------
    EnvironmentFault
        The registry, or a Triton that should answer, does not; the journal stays.
    """
    journal = _read_journal(home)
    if journal is None:
        return ""
    from ctmr.serving.rollout import Standing
    from ctmr.serving.server import EmbeddedTriton, connect
    from ctmr.tracking.mlflow import Tracking

    entry, url = journal["entry"], journal["url"]
    where = server_of(journal)
    tracking = tracking or Tracking(home)
    now = tracking.champion(entry["model"], entry["alias"])
    forward = now is not None and now.version == entry["version"]
    answers = url or EmbeddedTriton(home.triton).status()
    with connect(home, **where) if answers else nullcontext() as client:
        for standing in (Standing.from_json(tree) for tree in journal["standings"]):
            _serve(home, client, standing, entry["version"], forward)
    if forward:
        _settle(home, tracking, entry, where)
    _journal(home).unlink(missing_ok=True)
    did = "finished" if forward else "undone"
    return f"the promotion of {entry['model']} version {entry['version']} had not ended; it was {did}"


def _serve(home: Home, client: TritonClient | None, standing: Standing, version: str, forward: bool) -> None:
    from ctmr.serving.model_repository import versions
    from ctmr.serving.rollout import Standing, confirm, restore, withdraw

    repository = home.model_repository
    if forward and version in versions(repository, standing.model):
        standing = Standing.of(repository, standing.model).serving(version)
    restore(client, repository, standing, version)
    withdraw(client, repository, standing, version)
    if client is not None:
        confirm(client, repository, standing)


def _settle(home: Home, tracking: Tracking, entry: Mapping[str, str], where: Mapping[str, str]) -> None:
    """Say of a version that was rolled back that it was, and record; doing it twice changes nothing."""
    if entry.get("rollback"):
        tracking.tag_version(entry["model"], entry["previous"], {ROLLED_BACK: entry["rollback"][:_TAG]})
    record(home, {**entry, **where})


def record(home: Home, entry: Mapping[str, str]) -> None:
    """Append a promotion to the home's record, unless it is the model's latest one already."""
    lines = [line for line in promotions(home) if line["model"] == entry["model"]]
    if lines and all(
        lines[-1].get(key) == value for key, value in entry.items() if key in ("version", "alias", "digest")
    ):
        return
    line = {**entry, "time": datetime.now(UTC).isoformat(timespec="seconds")}
    append_line(home.promotions, json.dumps(line, sort_keys=True), mode=0o600)


def promotions(home: Home) -> list[dict[str, Any]]:
    """Return the home's record of promotions, oldest first; a line that was torn, or says nothing, is passed over."""
    found: list[Any] = []
    for line in home.promotions.read_text(errors="replace").splitlines() if home.promotions.is_file() else []:
        with suppress(ValueError, RecursionError):
            found.append(json.loads(line))
    return [entry for entry in found if isinstance(entry, dict) and entry.keys() >= _OF_A_LINE]


def require_recorded(home: Home, champion: Mapping[str, str]) -> None:
    """Raise EnvironmentFault when the home recorded the champion's version with another digest than the registry has.

    Parameters
    ----------
    champion
        As of `identity`.
    """
    known = [p for p in promotions(home) if (p["model"], p["version"]) == (champion["name"], champion["version"])]
    if known and known[-1]["digest"] != champion["digest"]:
        raise EnvironmentFault(
            f"the registry calls {champion['name']} version {champion['version']} the model "
            f"{champion['digest'][:12]}…, and {home.promotions} says that it was promoted as "
            f"{known[-1]['digest'][:12]}…; nothing of it was loaded, ask who changed it"
        )


def latest_promotions(home: Home) -> dict[str, dict[str, Any]]:
    """Return registered model → its latest line in the home's record."""
    return {line["model"]: line for line in promotions(home)}


def server_of(line: Mapping[str, Any]) -> dict[str, str]:
    """Return what `ctmr.serving.server.connect` needs to reach the server that a line of the record speaks of."""
    return {key: str(line.get(key, "")) for key in ("url", "repository")}


def is_unfinished(home: Home) -> bool:
    """True when a promotion has begun and not ended; it may be under way."""
    return _journal(home).is_file()


def _journal(home: Home) -> Path:
    return home.root / "promotion.json"


def _write_journal(home: Home, tree: Mapping[str, Any]) -> None:
    write_file(_journal(home), json.dumps(tree, sort_keys=True).encode(), replace=True, mode=0o600)


def _read_journal(home: Home) -> dict[str, Any] | None:
    from ctmr.serving.rollout import Standing

    try:
        tree: dict[str, Any] = json.loads(_journal(home).read_text())
        whole = tree["entry"].keys() >= {*_OF_A_LINE, "alias"} and isinstance(tree["url"], str)
        for standing in tree["standings"]:
            Standing.from_json(standing)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise EnvironmentFault(f"{_journal(home)} is damaged ({error}); remove it, then deploy again") from error
    if not whole:
        raise EnvironmentFault(f"{_journal(home)} is damaged (it is no journal); remove it, then deploy again")
    return tree
