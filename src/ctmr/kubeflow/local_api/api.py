"""Operations of the Kubeflow Pipelines API on experiments, pipelines and runs; knows nothing of HTTP."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from ctmr import __version__
from ctmr.kubeflow.lint import lint
from ctmr.kubeflow.local_api import NAME
from ctmr.kubeflow.local_api.faults import ApiError, FaultCode, invalid, not_found
from ctmr.kubeflow.local_api.listing import Page, Query, page
from ctmr.kubeflow.local_api.parameters import check
from ctmr.kubeflow.local_api.queue import RunQueue
from ctmr.kubeflow.local_api.records import Document, RecordKind, Records, RunState, now
from ctmr.kubeflow.local_api.specification import Specification, check_trusted
from ctmr.kubeflow.local_api.tasks import task_details
from ctmr.pipeline.kfp_local import EVENTS, PARAMETERS, PIPELINE
from ctmr.system.files import new_folder

LONGEST_NAME = 256
SHOWN_PROBLEMS = 5
DEFAULT_EXPERIMENT = "Default"
_COMMON = {
    "name": "display_name",
    "display_name": "display_name",
    "description": "description",
    "created_at": "created_at",
}
_EXPERIMENT = {
    **_COMMON,
    "id": "experiment_id",
    "storage_state": "storage_state",
    "last_run_created_at": "last_run_created_at",
}
_PIPELINE = {**_COMMON, "id": "pipeline_id"}
_VERSION = {**_COMMON, "id": "pipeline_version_id"}
_RUN = {
    **_COMMON,
    "id": "run_id",
    "run_id": "run_id",
    "experiment_id": "experiment_id",
    "state": "state",
    "status": "state",
    "storage_state": "storage_state",
    "scheduled_at": "scheduled_at",
    "finished_at": "finished_at",
}


class Api:
    """The calls, each a method that takes what the request holds and returns the answer's JSON.

    Parameters
    ----------
    records, queue
        State, and who executes it.
    trusted
        Compiled file that may run; None lets every pipeline run.
    """

    def __init__(self, records: Records, queue: RunQueue, trusted: Path | None) -> None:
        self._records = records
        self._queue = queue
        self._trusted = trusted

    def health(self) -> Document:
        """Answer that this server lives, and that it is not Kubeflow."""
        return {"multi_user": False, "pipeline_store": NAME, "server": f"{NAME} {__version__}"}

    # Experiments

    def create_experiment(self, body: Document) -> Document:
        """Create an experiment, or return the one of that name when nothing contradicts it."""
        name, description = _name(body, "display_name"), _text(body, "description")
        try:
            return self._add_experiment(name, description)
        except ApiError as error:
            same = [d for _, d in self._records.all(RecordKind.EXPERIMENT) if d["display_name"] == name]
            # Clients look for the name first; two that submit at once would both have to create it.
            if error.code is FaultCode.ALREADY_EXISTS and same and description in ("", same[0].get("description", "")):
                return same[0]
            raise

    def get_experiment(self, key: str) -> Document:
        """Return an experiment."""
        return self._records.get(RecordKind.EXPERIMENT, key)

    def list_experiments(self, query: Mapping[str, str]) -> Document:
        """Return a page of experiments."""
        return _listed("experiments", page(self._records.all(RecordKind.EXPERIMENT), Query.of(query), _EXPERIMENT))

    def store_experiment(self, key: str, storage_state: str) -> Document:
        """Archive an experiment with its runs, or bring the experiment back."""
        self._records.change(RecordKind.EXPERIMENT, key, _stored(storage_state))
        if storage_state == "ARCHIVED":
            for _, run in self._records.all(RecordKind.RUN, key):
                self._records.change(RecordKind.RUN, run["run_id"], _stored(storage_state))
        return {}

    def delete_experiment(self, key: str) -> Document:
        """Delete an experiment; its runs stay."""
        self._records.remove(RecordKind.EXPERIMENT, key)
        return {}

    def _add_experiment(self, name: str, description: str = "") -> Document:
        document = _document("experiment_id", name, description) | {"storage_state": "AVAILABLE"}
        self._records.add(RecordKind.EXPERIMENT, document["experiment_id"], document)
        return document

    # Pipelines

    def upload_pipeline(self, query: Mapping[str, str], content: bytes) -> Document:
        """Add a pipeline with its first version."""
        specification = self._accepted(Specification.of_yaml(content))
        name = query.get("display_name") or query.get("name") or specification.name
        description = query.get("description", "") or specification.description
        document = _document("pipeline_id", _short(name, "name"), description) | {"name": name}
        key = document["pipeline_id"]
        self._records.add(RecordKind.PIPELINE, key, document)
        try:
            self._add_version(key, name, description, specification)
        except BaseException:
            self._records.remove(RecordKind.PIPELINE, key)
            raise
        return document

    def upload_version(self, query: Mapping[str, str], content: bytes) -> Document:
        """Add a version to a pipeline."""
        parent = query.get("pipelineid", "")
        self._records.get(RecordKind.PIPELINE, parent)
        specification = self._accepted(Specification.of_yaml(content))
        name = query.get("display_name") or query.get("name") or ""
        return self._add_version(parent, _short(name, "name"), query.get("description", ""), specification)

    def get_pipeline(self, key: str) -> Document:
        """Return a pipeline."""
        return self._records.get(RecordKind.PIPELINE, key)

    def get_pipeline_by_name(self, name: str) -> Document:
        """Return the pipeline of a name."""
        for _, document in self._records.all(RecordKind.PIPELINE):
            if document["display_name"] == name:
                return document
        raise not_found(RecordKind.PIPELINE, name)

    def list_pipelines(self, query: Mapping[str, str]) -> Document:
        """Return a page of pipelines."""
        return _listed("pipelines", page(self._records.all(RecordKind.PIPELINE), Query.of(query), _PIPELINE))

    def delete_pipeline(self, key: str) -> Document:
        """Delete a pipeline with its versions; runs keep what they were submitted with."""
        self._records.remove(RecordKind.PIPELINE, key)
        return {}

    def get_version(self, pipeline: str, key: str) -> Document:
        """Return a version with its specification."""
        document = self._records.get(RecordKind.VERSION, key)
        if document["pipeline_id"] != pipeline:
            raise not_found(RecordKind.VERSION, key)
        return document | {"pipeline_spec": self._records.specification(RecordKind.VERSION, key)}

    def list_versions(self, pipeline: str, query: Mapping[str, str]) -> Document:
        """Return a page of a pipeline's versions."""
        self._records.get(RecordKind.PIPELINE, pipeline)
        versions = page(self._records.all(RecordKind.VERSION, pipeline), Query.of(query), _VERSION)
        return _listed("pipeline_versions", versions)

    def delete_version(self, pipeline: str, key: str) -> Document:
        """Delete a version."""
        self.get_version(pipeline, key)
        self._records.remove(RecordKind.VERSION, key)
        return {}

    def _add_version(self, pipeline: str, name: str, description: str, specification: Specification) -> Document:
        document = _document("pipeline_version_id", name, description) | {"pipeline_id": pipeline, "name": name}
        text = json.dumps(specification.document)
        self._records.add(
            RecordKind.VERSION, document["pipeline_version_id"], document, parent=pipeline, specification=text
        )
        return document | {"pipeline_spec": specification.document}

    def _accepted(self, specification: Specification) -> Specification:
        """Return a pipeline that may run here, and that runs here as it would on Kubeflow."""
        check_trusted(specification, self._trusted)
        if problems := lint(specification.pipeline):
            said = "; ".join(str(problem) for problem in problems[:SHOWN_PROBLEMS])
            raise invalid(f"the pipeline {specification.name!r} would not run on one machine as on Kubeflow: {said}")
        return specification

    # Runs

    def create_run(self, body: Document) -> Document:
        """Check a run and put it at the end of the queue."""
        name = _name(body, "display_name")
        reference = _object(body, "pipeline_version_reference")
        specification = self._submitted(body, reference)
        settings = _object(body, "runtime_config")
        if settings.get("pipeline_root"):
            raise invalid(f"the {NAME} keeps a run's artifacts in the run's own folder; leave pipeline_root out")
        parameters = check(_object(settings, "parameters"), specification.parameters)
        document = _document("run_id", name, _text(body, "description"))
        moment = document["created_at"]
        document |= {
            "experiment_id": self._experiment_of(_text(body, "experiment_id"), moment),
            "storage_state": "AVAILABLE",
            "runtime_config": {"parameters": parameters},
            "scheduled_at": moment,
            "state": RunState.PENDING,
            "state_history": [{"update_time": moment, "state": RunState.PENDING}],
        }
        if reference:
            document["pipeline_version_reference"] = reference
        self._add_run(document, specification, parameters)
        return self.get_run(document["run_id"])

    def get_run(self, key: str) -> Document:
        """Return a run with its specification and its stages."""
        run = self._records.get(RecordKind.RUN, key)
        details = task_details(run, self._queue.folder / key / EVENTS)
        specification = self._records.specification(RecordKind.RUN, key)
        return run | {"pipeline_spec": specification, "run_details": {"task_details": details}}

    def list_runs(self, query: Mapping[str, str]) -> Document:
        """Return a page of runs, of one experiment or of all, without specifications and stages."""
        runs = self._records.all(RecordKind.RUN, query.get("experiment_id") or None)
        return _listed("runs", page(runs, Query.of(query), _RUN))

    def terminate_run(self, key: str) -> Document:
        """Cancel a run."""
        self._queue.cancel(key)
        return {}

    def store_run(self, key: str, storage_state: str) -> Document:
        """Archive a run, or bring it back."""
        self._records.change(RecordKind.RUN, key, _stored(storage_state))
        return {}

    def delete_run(self, key: str) -> Document:
        """Delete an ended run with its folder."""
        state = RunState(self._records.get(RecordKind.RUN, key)["state"])
        if not state.final:
            raise ApiError(FaultCode.FAILED_PRECONDITION, f"run {key} is {state}; terminate it before it is deleted")
        self._records.remove(RecordKind.RUN, key)
        shutil.rmtree(self._queue.folder / key, ignore_errors=True)
        return {}

    def _submitted(self, body: Document, reference: Document) -> Specification:
        """Return the pipeline of a run: sent along, or uploaded before (its newest version when none is named)."""
        inline = body.get("pipeline_spec")
        if bool(inline) == bool(reference):
            raise invalid("a run needs either pipeline_spec or pipeline_version_reference")
        if inline:
            return self._accepted(Specification.of(inline))
        pipeline, version = _text(reference, "pipeline_id"), _text(reference, "pipeline_version_id")
        if not version:
            versions = self._records.all(RecordKind.VERSION, pipeline)
            if not versions:
                raise not_found(RecordKind.PIPELINE, pipeline)
            version = versions[-1][1]["pipeline_version_id"]
            reference["pipeline_version_id"] = version
        return self._accepted(Specification.of(self._records.specification(RecordKind.VERSION, version)))

    def _experiment_of(self, key: str, moment: str) -> str:
        """Return the id of a run's experiment, the default one where none is named."""
        if not key:
            key = self.create_experiment({"display_name": DEFAULT_EXPERIMENT})["experiment_id"]
        self._records.change(RecordKind.EXPERIMENT, key, lambda document: document.update(last_run_created_at=moment))
        return key

    def _add_run(self, document: Document, specification: Specification, parameters: Document) -> None:
        key = document["run_id"]
        folder = self._queue.folder / key
        with new_folder(folder) as partial:
            (partial / PIPELINE).write_text(specification.yaml(), encoding="utf-8")
            (partial / PARAMETERS).write_text(json.dumps(parameters, indent=1) + "\n", encoding="utf-8")
        try:
            self._records.add(
                RecordKind.RUN,
                key,
                document,
                parent=document["experiment_id"],
                specification=json.dumps(specification.document),
            )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._queue.submitted()


def _document(key: str, name: str, description: str) -> Document:
    document = {key: str(uuid.uuid4()), "display_name": name, "created_at": now()}
    return document | ({"description": description} if description else {})


def _listed(name: str, shown: Page) -> Document:
    answer: Document = {name: shown.documents, "total_size": shown.total}
    return answer | ({"next_page_token": shown.next_token} if shown.next_token else {})


def _stored(storage_state: str) -> Callable[[Document], None]:
    return lambda document: document.update(storage_state=storage_state)


def _name(body: Document, key: str) -> str:
    return _short(_text(body, key), key)


def _short(name: str, key: str) -> str:
    if not name.strip() or len(name) > LONGEST_NAME:
        raise invalid(f"{key} is {name[:80]!r} ({len(name)} characters); allowed are 1 to {LONGEST_NAME}")
    return name


def _text(body: Document, key: str) -> str:
    value = body.get(key) or ""
    if not isinstance(value, str):
        raise invalid(f"{key} is {json.dumps(value)[:80]}; it must be text")
    return value


def _object(body: Document, key: str) -> Document:
    value = body.get(key) or {}
    if not isinstance(value, dict):
        raise invalid(f"{key} is {json.dumps(value)[:80]}; it must be a JSON object")
    return dict(value)
