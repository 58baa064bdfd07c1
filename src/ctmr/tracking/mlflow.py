"""MLflow: one run a model, one child run a trial, registered versions with lineage tags, aliases."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctmr.errors import CtmrError, EnvironmentFault, InputError
from ctmr.system.digest import flatten
from ctmr.system.environment import PARENT_RUN
from ctmr.system.home import Home, quiet_libraries
from ctmr.tracking import database, models
from ctmr.tracking.attended import close_left
from ctmr.tracking.moved import lead_home

EXPERIMENT = "ctmr"
_KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Makes the MLflow UI open with curves and models rather than with traces of language models."""
TAG = "ctmr."
"""Prefix of every tag we set."""
GIVEN = "MLFLOW_RUN_ID"
"""Environment variable of a run that somebody opened for us, as `mlflow run` does."""


@contextmanager
def whole_run(home: Home, summaries: Callable[[], Mapping[str, Mapping[str, Any]]]) -> Iterator[None]:
    """Make a given MLflow run the parent of all runs that a pipeline's stages open, and tell it the outcome.

    Inside, this process and those that it starts see `PARENT_RUN` in place of `GIVEN`: two stages must not write into
    one run. Without a given run nothing happens.

    Parameters
    ----------
    summaries
        Returns stage name → summary of the stages that have ended; asked at the end, also that of an error.
    """
    given = os.environ.get(GIVEN)
    if not given:
        yield
        return
    before = os.environ.get(PARENT_RUN)
    os.environ[PARENT_RUN] = given
    del os.environ[GIVEN]
    try:
        yield
    except BaseException:
        # What ended the run is what a person must read, not that its outcome could not be logged as well.
        with suppress(CtmrError):
            Tracking(home).outcome(given, summaries())
        raise
    else:
        Tracking(home).outcome(given, summaries())
    finally:
        os.environ[GIVEN] = given
        if before is None:
            del os.environ[PARENT_RUN]
        else:
            os.environ[PARENT_RUN] = before


@dataclass(frozen=True)
class Version:
    """One registered version.

    Attributes
    ----------
    digest
        Content digest of its model folder (tag ``ctmr.model_digest``).
    """

    name: str
    version: str
    run_id: str
    digest: str
    tags: Mapping[str, str]


class Tracking:
    """Our few words with an MLflow server or database.

    Parameters
    ----------
    home
        Gives the address, and the artifact folder when tracking is local.

    Raises
    ------
    EnvironmentFault
        When the store does not answer.
    """

    def __init__(self, home: Home) -> None:
        quiet_libraries()
        import logging

        import mlflow

        # After the import, which sets levels of its own.
        for name in ("mlflow", "mlflow.store.db.utils", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self.home = home
        self.uri = home.tracking_uri
        with faults(self.uri):
            if file := database.file_of(self.uri):
                database.make(file)
                lead_home(home.root / "mlflow.db", home.artifacts, EXPERIMENT)
            # Not set_tracking_uri: it writes the address into the environment, where another home would find it.
            self.client = mlflow.MlflowClient(self.uri, os.environ.get("MLFLOW_REGISTRY_URI") or self.uri)
            self.experiment_id = self._experiment()
        close_left(self)

    def _experiment(self) -> str:
        """Return the experiment of a given run, beside which MLflow shows its children, else our own."""
        from mlflow.exceptions import MlflowException

        given = os.environ.get(PARENT_RUN) or os.environ.get(GIVEN)
        if given:
            return str(self.client.get_run(given).info.experiment_id)
        found = self.client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            location = self.home.artifacts.as_uri() if self.uri.startswith("sqlite:") else None
            try:
                return str(self.client.create_experiment(EXPERIMENT, artifact_location=location, tags=_KIND))
            except MlflowException:
                found = self.client.get_experiment_by_name(EXPERIMENT)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def start(self, name: str, *, tags: Mapping[str, str], parent: str | None = None) -> str:
        """Open a run and return its id.

        Without `parent`, the run becomes a child of `PARENT_RUN`; where only `GIVEN` is set, that run is used.
        """
        parent = parent or os.environ.get(PARENT_RUN)
        given = os.environ.get(GIVEN)
        with faults(self.uri):
            all_tags = {**{TAG + k: v for k, v in tags.items()}, "mlflow.runName": name}
            if parent:
                all_tags["mlflow.parentRunId"] = parent
            if given and not parent:
                self.tag(given, tags)
                return given
            return str(self.client.create_run(self.experiment_id, tags=all_tags, run_name=name).info.run_id)

    def run_of(self, model_digest: str) -> str | None:
        """Return the newest run that trained the model of this content digest, or ``None``."""
        with faults(self.uri):
            everywhere = [e.experiment_id for e in self.client.search_experiments()]
            wanted = f"tags.`{TAG}model_digest` = '{model_digest}'"
            found = self.client.search_runs(everywhere, wanted, max_results=1)
        return str(found[0].info.run_id) if found else None

    def outcome(self, run_id: str, summaries: Mapping[str, Mapping[str, Any]]) -> None:
        """Log what stages came to, so that whole runs can be compared: test metrics, verdict, registered version.

        Parameters
        ----------
        summaries
            Stage name → summary.
        """
        evaluated, registered = summaries.get("evaluate"), summaries.get("register")
        if evaluated:
            self.metrics(run_id, held_out_metrics(evaluated["metrics"]))
            self.tag(run_id, {"verdict": evaluated["verdict"], "verdict_reason": str(evaluated["reason"])[:4000]})
        if registered:
            self.tag(run_id, {"model_name": registered["name"], "model_version": registered["version"]})

    def exists(self, run_id: str) -> bool:
        """True when the run is there and not deleted; a store that does not answer is a fault, not a no."""
        with faults(self.uri):
            found = _or_none(lambda: self.client.get_run(run_id))
        return found is not None and bool(found.info.lifecycle_stage == "active")

    def is_open(self, run_id: str) -> bool:
        """True when the run is there, and called RUNNING."""
        with faults(self.uri):
            found = _or_none(lambda: self.client.get_run(run_id))
        return found is not None and found.info.status == "RUNNING"

    def reopen(self, run_id: str) -> None:
        """Call a run RUNNING again that was closed."""
        with faults(self.uri):
            self.client.update_run(run_id, "RUNNING")

    def end(self, run_id: str, status: str = "FINISHED") -> None:
        """Close a run as FINISHED, FAILED or KILLED."""
        with faults(self.uri):
            self.client.set_terminated(run_id, status)

    def logged(self, run_id: str) -> set[tuple[str, int]]:
        """Return (metric, step) of every value that a run holds."""
        with faults(self.uri):
            names = self.client.get_run(run_id).data.metrics
            return {(name, int(m.step)) for name in names for m in self.client.get_metric_history(run_id, name)}

    def params(self, run_id: str, tree: Mapping[str, Any]) -> None:
        """Log a recipe's leaves as dotted parameters; a parameter that is there stays."""
        from mlflow.entities import Param

        with faults(self.uri):
            have = self.client.get_run(run_id).data.params
            leaves = [Param(k, str(v)[:6000]) for k, v in flatten(tree).items() if k not in have]
            for k in range(0, len(leaves), 100):
                self.client.log_batch(run_id, params=leaves[k : k + 100])

    def metrics(self, run_id: str, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of one step; values that are not finite are left out, MLflow cannot plot them."""
        import math
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        batch = [Metric(k, float(v), now, step) for k, v in values.items() if math.isfinite(v)]
        with faults(self.uri):
            self.client.log_batch(run_id, metrics=batch)

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set ``ctmr.*`` tags."""
        with faults(self.uri):
            for k, v in tags.items():
                self.client.set_tag(run_id, TAG + k, v)

    def artifact(self, run_id: str, path: Path, folder: str = "") -> None:
        """Store a file, or a folder's content, under the run's artifact folder."""
        with faults(self.uri):
            if path.is_dir():
                self.client.log_artifacts(run_id, str(path), folder or None)
            else:
                self.client.log_artifact(run_id, str(path), folder or None)

    def download(self, run_id: str, folder: str, target: Path) -> Path:
        """Copy an artifact folder of a run below `target` and return it."""
        with faults(self.uri):
            return Path(self.client.download_artifacts(run_id, folder, str(target)))

    def champion(self, name: str, alias: str) -> Version | None:
        """Return the version an alias points at; ``None`` when the store says that there is no such model or alias.

        Any other answer than the store's own "does not exist" is a fault: a model that nothing could be compared with
        would else take the champion's place whenever MLflow is down.
        """
        with faults(self.uri):
            model = _or_none(lambda: self.client.get_registered_model(name))
            if model is None or alias not in model.aliases:
                return None
            return _version(self.client.get_model_version(name, str(model.aliases[alias])))

    def version(self, name: str, version: str) -> Version:
        """Return a registered version; InputError when the store says that there is none."""
        with faults(self.uri):
            found = _or_none(lambda: self.client.get_model_version(name, version))
        if found is None:
            raise InputError(f"MLflow at {self.uri} has no version {version} of model {name}")
        return _version(found)

    def versions(self, name: str) -> list[Version]:
        """Return all versions of a model, newest first."""
        with faults(self.uri):
            found = [_version(v) for v in self.client.search_model_versions(f"name='{name}'")]
        return sorted(found, key=lambda v: int(v.version), reverse=True)

    def register(self, name: str, run_id: str, release: Path, model: Path, card: Path, tags: Mapping[str, str]) -> str:
        """Log a released model to its run (flavour onnx, safetensors beside it) and register it; return the version.

        Parameters
        ----------
        release
            ``<direction>/{generator.onnx, range.onnx, spec.json}``.
        model
            The model folder: safetensors and description.
        """
        import logging

        import mlflow
        import onnx

        logging.getLogger("mlflow").setLevel(logging.ERROR)
        with faults(self.uri):
            self.artifact(run_id, release, "release")
            models.keep(self, run_id, model)
            self.artifact(run_id, card)
            first = sorted(p for p in release.iterdir() if p.is_dir())[0]
            with self._current(), mlflow.start_run(run_id=run_id):
                logged = mlflow.onnx.log_model(
                    onnx.load(str(first / "generator.onnx")),
                    name=f"{name}-{first.name}",
                    pip_requirements=["onnxruntime"],
                    metadata=dict(tags),
                )
            from mlflow.exceptions import MlflowException

            try:
                self.client.create_registered_model(name, description="Written by ctmr; synthetic images only.")
            except MlflowException:
                self.client.get_registered_model(name)
            made = self.client.create_model_version(
                name,
                source=logged.model_uri,
                run_id=run_id,
                tags={TAG + k: v for k, v in tags.items()},
                description=card.read_text(encoding="utf-8"),
                model_id=getattr(logged, "model_id", None),
            )
        return str(made.version)

    @contextmanager
    def _current(self) -> Iterator[None]:
        """Make this store MLflow's current one, as its model flavours need, and put back what was there."""
        import mlflow

        before = {k: os.environ.get(k) for k in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")}
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(before["MLFLOW_REGISTRY_URI"] or self.uri)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def alias(self, name: str, alias: str, version: str) -> None:
        """Point an alias at a version."""
        with faults(self.uri):
            self.client.set_registered_model_alias(name, alias, version)

    def tag_version(self, name: str, version: str, tags: Mapping[str, str]) -> None:
        """Set ``ctmr.*`` tags of a registered version."""
        with faults(self.uri):
            for k, v in tags.items():
                self.client.set_model_version_tag(name, version, TAG + k, v)


def _or_none(call: Callable[[], Any]) -> Any:
    """Return what MLflow answers, ``None`` when it says that the thing does not exist; all else is raised."""
    from mlflow.exceptions import MlflowException

    try:
        return call()
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _version(found: Any) -> Version:
    tags = {str(k).removeprefix(TAG): str(v) for k, v in found.tags.items() if str(k).startswith(TAG)}
    return Version(found.name, str(found.version), str(found.run_id), tags.get("model_digest", ""), tags)


def held_out_metrics(means: Mapping[str, Mapping[str, float | None]]) -> dict[str, float]:
    """Return MLflow's names and values of protocol → metric → mean; means that are not finite are left out."""
    return {f"test.{name}.{m}": v for name, metrics in means.items() for m, v in metrics.items() if v is not None}


@contextmanager
def faults(uri: str) -> Iterator[None]:
    """Turn a store that does not answer into one sentence."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, OSError, SQLAlchemyError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EnvironmentFault(f"MLflow at {uri} failed: {first[:300]}") from error
    except ModuleNotFoundError as error:
        raise EnvironmentFault(
            f"MLflow at {uri} needs the Python package {error.name}, which is not installed; install it, or name the "
            "driver that is (postgresql+psycopg2://…)"
        ) from error
