"""Rollout: a new version goes live only after it was proven, and the old one stays live when it was not."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ctmr.errors import CtmrError, EnvironmentFault
from ctmr.serving import model_repository as repo
from ctmr.serving.client import TritonClient, probe
from ctmr.serving.model_repository import Release
from ctmr.tracking.names import Part, candidate_name

CANARY_DEADLINE_S = 30.0
DRAIN_TIMEOUT_S = 600.0
"""How long requests of the old version may still run before its generator is taken away."""

_CALLED = (Part.RANGE, Part.GENERATOR)
"""What the volume model calls: these come before it and go after it."""

Prove = Callable[[str, str], None]
"""Called with a model's name and a version; raises when the answers of that version are not what they should be."""


@dataclass(frozen=True)
class RolloutReport:
    """Report of a rollout.

    Attributes
    ----------
    model, version
        What was to go live.
    previous
        The version that was live before, if any.
    live
        The version that is live now, if any.
    reason
        Why it did not go live; empty when it did.
    """

    model: str
    version: str
    previous: str | None
    live: str | None
    reason: str


class RolloutFailed(EnvironmentFault):
    """The version was not good enough to go live; `report` says what is live instead."""

    def __init__(self, report: RolloutReport) -> None:
        stands = f"version {report.live} is still live" if report.live else "nothing is live"
        super().__init__(f"{report.model} version {report.version} did not go live: {report.reason}; {stands}")
        self.report = report


@dataclass(frozen=True)
class Standing:
    """Versions of a model that Triton is to serve: enough to come back to them, also after this process was killed.

    Attributes
    ----------
    versions
        What the version policy names; empty when the model is not there.
    there
        All that lie in the repository.
    configs
        Part → config.pbtxt.
    """

    model: str
    versions: tuple[str, ...]
    there: tuple[str, ...]
    configs: Mapping[str, str]

    @staticmethod
    def of(repository: Path, model: str) -> Standing:
        """Read it from a model repository."""
        there = repo.versions(repository, model)
        versions = tuple(v for v in repo.served_versions(repository, model) if v in there)
        return Standing(model, versions, there, repo.configs(repository, model))

    @staticmethod
    def from_json(tree: Mapping[str, Any]) -> Standing:
        """Return what `to_json` was made of."""
        return Standing(tree["model"], tuple(tree["versions"]), tuple(tree["there"]), tree["configs"])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    def serving(self, version: str) -> Standing:
        """Return the same with one version served alone."""
        return replace(self, versions=(version,))

    def has_other_shape(self, configs: Mapping[str, str]) -> bool:
        """True when configurations differ from its own in more than the versions that they name."""
        return any(
            repo.without_policy(text) != repo.without_policy(configs.get(part, ""))
            for part, text in self.configs.items()
        )


def deploy(
    client: TritonClient,
    repository: Path,
    release: Release,
    prove: Prove,
    *,
    commit: Callable[[], None] = lambda: None,
    reshape: bool = False,
) -> RolloutReport:
    """Bring a version live.

    1. The version is loaded under a candidate name and proven there, so that callers of the model never meet it.
    2. It is loaded beside the old version. (Triton answers calls without a version by the highest number, so a newer
       version takes over here, an older one in step 4.)
    3. It is proven again, under its real name.
    4. The old version retires once its last request is answered: volume model first, then what it calls.
    5. `commit` makes it count; when that fails, the old version comes back.

    Parameters
    ----------
    client
        Of the server that reads `repository`.
    repository
        The server's model repository. The old version's folders stay, so going back is a `deploy` of it.
    release
        What shall go live.
    prove
        Golden inference: raises when the version's answers are wrong.
    commit
        Called when the version is live and proven; raises when it must not stay so.
    reshape
        The release may have another geometry or unit than what is served. Old and new then cannot stand beside each
        other: calls fail between 2 and 3, for as long as a load takes.

    Raises
    ------
    InputError
        The version cannot be written (`ctmr.serving.model_repository.write_version`); nothing was tried.
    EnvironmentFault
        The server cannot be reached; nothing was tried.
    RolloutFailed
        The old version is live as before, and what was written has been removed.
    """
    # What cannot work ends here, before anything is written: other content, another geometry, no server.
    repo.check_version(repository, release, reshape=reshape)
    client.index()
    standing, spec = (
        Standing.of(repository, release.model),
        repo.written_spec(repository, release.model, release.version),
    )
    previous = _live(client, release.model)
    created = touched = False
    try:
        _prove_as_candidate(client, repository, release, prove)
        created = repo.write_version(repository, release, reshape=reshape)
        touched = True
        together = {*standing.versions, release.version}
        if repo.is_reshaped(repository, release):
            together = {release.version}
            repo.write_configs(repository, release.model, repo.new_configs(release))
        _serve(client, repository, release.model, together, *_CALLED)
        _serve(client, repository, release.model, together, Part.VOLUME)
        prove(release.model, release.version)
        _retire_others(client, repository, release.model, {release.version})
        live = client.live_version(release.model)
        if live != release.version:
            raise EnvironmentFault(f"the server answers with version {live}")
        commit()
    except BaseException as error:
        if spec is not None:
            repo.write_spec(repository, release.model, release.version, spec)
        if touched:
            restore(client, repository, standing, release.version)
        if created:
            repo.remove_version(repository, release.model, release.version)
        if not isinstance(error, Exception):
            raise
        reason = str(error) if isinstance(error, CtmrError) else f"{type(error).__name__}: {error}"
        live = _live(client, release.model)
        raise RolloutFailed(RolloutReport(release.model, release.version, previous, live, reason)) from error
    return RolloutReport(release.model, release.version, previous, live, "")


def canary(
    client: TritonClient, model: str, version: str | None = None, *, deadline_s: float = CANARY_DEADLINE_S
) -> str:
    """Translate a small made-up volume by a version, the live one unless it is named, and return that version.

    Triton keeps calling a model ready after the process behind it died; only an inference notices.

    Raises
    ------
    EnvironmentFault
        No answer in time, or an answer that is the same everywhere.
    """
    end = time.monotonic() + deadline_s
    spec, version = client.spec(model, version, deadline_s=deadline_s)
    answer = client.translate_array(model, probe(spec), version, deadline_s=max(0.001, end - time.monotonic()))
    if answer.min() == answer.max():
        raise EnvironmentFault(
            f"{model} version {version} at {client.url} answers {answer.flat[0]} everywhere; deploy another version"
        )
    return version


def canary_proof(client: TritonClient, releases: Sequence[Release]) -> Prove:
    """Return the proof of versions that were proven by a golden case before: they answer, and are what they were."""
    wanted = {release.version: {r.spec.generator_sha256 for r in releases} for release in releases}

    def prove(name: str, version: str) -> None:
        spec, _ = client.spec(name, version)
        if spec.generator_sha256 not in wanted[version]:
            raise EnvironmentFault(f"{name} version {version} is served from another graph than it was registered with")
        canary(client, name, version)

    return prove


def silent_models(client: TritonClient, repository: Path, *, deadline_s: float = CANARY_DEADLINE_S) -> tuple[str, ...]:
    """Return the models that the repository says are live and that no canary gets an answer from."""
    found = []
    for model in repo.served_models(repository):
        try:
            canary(client, model, deadline_s=deadline_s)
        except CtmrError:
            found.append(model)
    return tuple(found)


def revive(client: TritonClient, repository: Path, model: str) -> str:
    """Start the processes behind a served model anew, after `canary` failed; returns the version that answers.

    Triton loads a version again only when its files are newer than what it has.
    """
    for part in Part:
        for version in repo.served_versions(repository, model, part):
            for file in (repository / f"{model}{part}" / version).iterdir():
                file.touch()
    client.load(*(f"{model}{part}" for part in Part))
    return canary(client, model)


def clear_candidates(client: TritonClient | None, repository: Path, model: str) -> tuple[str, ...]:
    """Unload and remove what an interrupted rollout left of a model's candidate; returns the Triton models."""
    found = tuple(left for left in repo.leftover_candidates(repository) if left.startswith(candidate_name(model)))
    for left in found:
        _forget(client, repository, left)
    return found


def _prove_as_candidate(client: TritonClient, repository: Path, release: Release, prove: Prove) -> None:
    clear_candidates(client, repository, release.model)
    candidate = release.as_candidate()
    try:
        repo.write_version(repository, candidate)
        client.load(*(f"{candidate.model}{part}" for part in Part))
        prove(candidate.model, candidate.version)
    finally:
        for part in (Part.VOLUME, *_CALLED):
            _forget(client, repository, f"{candidate.model}{part}")


def _forget(client: TritonClient | None, repository: Path, triton_model: str) -> None:
    # What never loaded cannot be unloaded; a server that is gone has nothing loaded.
    if client is not None:
        with contextlib.suppress(CtmrError):
            client.unload(triton_model)
    shutil.rmtree(repository / triton_model, ignore_errors=True)


def _serve(client: TritonClient, repository: Path, model: str, versions: set[str], *parts: Part) -> None:
    for part in parts:
        repo.set_versions(repository, model, part, versions)
    client.load(*(f"{model}{part}" for part in parts))


def _retire_others(client: TritonClient, repository: Path, model: str, keep: set[str]) -> None:
    """Leave only `keep` loaded: the volume model first, what it calls once its last request is answered."""
    _serve(client, repository, model, keep, Part.VOLUME)
    _wait_until_drained(client, f"{model}{Part.VOLUME}", keep)
    _serve(client, repository, model, keep, *_CALLED)


def _wait_until_drained(client: TritonClient, triton_model: str, keep: set[str]) -> None:
    end = time.monotonic() + DRAIN_TIMEOUT_S
    while any(
        m.model == triton_model and m.version not in keep and m.state in ("READY", "UNLOADING") for m in client.index()
    ):
        if time.monotonic() > end:
            raise EnvironmentFault(
                f"old requests of {triton_model} still run after {DRAIN_TIMEOUT_S:g} s; wait, then deploy again"
            )
        time.sleep(0.05)


def restore(client: TritonClient | None, repository: Path, standing: Standing, tried: str) -> None:
    """Serve again what was served before a version was tried; what the volume model calls comes first and goes last.

    Parameters
    ----------
    client
        ``None`` where no server runs: it finds the old policies when it starts.
    """
    model, before = standing.model, set(standing.versions)
    if client is not None and not before:
        for part in (Part.VOLUME, *_CALLED):
            with contextlib.suppress(CtmrError):
                client.unload(f"{model}{part}")
    if not before:
        return
    reshaped = standing.has_other_shape(repo.configs(repository, model))
    repo.write_configs(repository, model, standing.configs)
    if client is not None:
        # Loading beside a broken version reports that version, and serves the others all the same.
        with contextlib.suppress(CtmrError):
            _serve(client, repository, model, before if reshaped else {*before, tried}, *_CALLED)
        with contextlib.suppress(CtmrError):
            _retire_others(client, repository, model, before)
    # A server that died meanwhile finds the old policies when it starts again.
    for part in Part:
        repo.set_versions(repository, model, part, before)


def withdraw(client: TritonClient | None, repository: Path, standing: Standing, tried: str) -> None:
    """Remove what a rollout that was killed left of a version: its candidate, and its folders where it made them."""
    clear_candidates(client, repository, standing.model)
    if tried not in standing.there:
        repo.remove_version(repository, standing.model, tried)


def confirm(client: TritonClient, repository: Path, standing: Standing) -> None:
    """See that a model answers with the version that is to be served, by a canary inference.

    Raises
    ------
    EnvironmentFault
        Another version answers, or none.
    """
    if not standing.versions:
        return
    try:
        version = canary(client, standing.model)
    except CtmrError:
        version = revive(client, repository, standing.model)
    wanted = max(standing.versions, key=int)
    if version != wanted:
        raise EnvironmentFault(f"{standing.model}: version {version} answers instead of version {wanted}")


def _live(client: TritonClient, model: str) -> str | None:
    """Return the version that answers by default; None also when the model's process died."""
    with contextlib.suppress(CtmrError):
        return client.live_version(model)
    return None
