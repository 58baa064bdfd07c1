"""The stages of a run as task details of the Kubeflow Pipelines API, read from what its tasks report."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from ctmr.kubeflow.local_api.faults import OF_EXIT_CODE, FaultCode
from ctmr.kubeflow.local_api.records import RunState
from ctmr.pipeline import events

Document = dict[str, Any]


def task_details(run: Mapping[str, Any], path: Path) -> list[Document]:
    """Return one task a stage, in the order in which they started.

    A stage may start several tasks (tuning does); it has succeeded once it left a result, or once the next stage
    has started, and shares the run's fate if it was running when that ended.

    Parameters
    ----------
    run
        Record of the run.
    path
        Its events, as `ctmr.pipeline.events` writes them.
    """
    tasks: dict[str, Document] = {}
    for _, event in events.read(path):
        stage = str(event["stage"])
        if "started" in event:
            _begin(tasks, run, stage, str(event["started"]))
        elif stage in tasks and "result" in event:
            _end(tasks[stage], RunState.SUCCEEDED, _ended(tasks[stage], event["result"]))
        elif stage in tasks and "error" in event:
            code = OF_EXIT_CODE.get(event.get("exit_code", 1), FaultCode.INTERNAL)
            tasks[stage]["error"] = {"code": int(code), "message": str(event["error"])}
            _end(tasks[stage], RunState.FAILED, run.get("finished_at"))
    for task in tasks.values():
        if task["state"] == RunState.RUNNING and RunState(run["state"]).final:
            _end(task, RunState(run["state"]), run.get("finished_at"))
    return list(tasks.values())


def _begin(tasks: dict[str, Document], run: Mapping[str, Any], stage: str, moment: str) -> None:
    for name, task in tasks.items():
        if name != stage and task["state"] == RunState.RUNNING:
            _end(task, RunState.SUCCEEDED, moment)
    if stage not in tasks:
        tasks[stage] = {
            "run_id": run["run_id"],
            "task_id": f"{run['run_id']}-{stage}",
            "display_name": stage,
            "create_time": moment,
            "start_time": moment,
            "state": RunState.RUNNING,
        }


def _end(task: Document, state: RunState, moment: str | None) -> None:
    task["state"] = state
    if moment:
        task["end_time"] = moment


def _ended(task: Mapping[str, Any], result: Mapping[str, Any]) -> str | None:
    """Return when a stage left its result; a reused one has the seconds of the time it ran."""
    try:
        seconds = 0.0 if result.get("reused") else float(result["seconds"])
        return (datetime.fromisoformat(task["start_time"]) + timedelta(seconds=seconds)).isoformat()
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
