"""Run a compiled pipeline on this machine: one child process a run, because kfp.local is one of a kind a process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from ctmr.datasets.dvc import DatasetSource
from ctmr.errors import CtmrError, EnvironmentFault, GateFailed, InputError
from ctmr.pipeline import events
from ctmr.pipeline.inline import Run, run_pipeline
from ctmr.pipeline.stage import Result
from ctmr.recipe.loading import is_file_name, load, recipe_path
from ctmr.system import environment, processes
from ctmr.system.files import write_file
from ctmr.system.home import Home
from ctmr.system.locks import locked
from ctmr.system.processes import Process, end_session
from ctmr.system.progress import Progress, silent
from ctmr.tracking.mlflow import whole_run

PIPELINE, PARAMETERS, EVENTS, LOG, OUTCOME = "pipeline.yaml", "params.json", "events.jsonl", "log.txt", "outcome.json"
SUCCEEDED, FAILED = "SUCCEEDED", "FAILED"
KEPT_RUNS = 20
"""Folders of finished runs (log, events, parameters; no images) that `run_compiled` leaves."""
STOP_S = 10.0
POLL_S = 0.1


@dataclass(frozen=True)
class RunOutcome:
    """End of a run.

    Attributes
    ----------
    state
        ``SUCCEEDED`` or ``FAILED``.
    error
        One sentence; empty when it succeeded.
    exit_code, kind
        Of the `ctmr.errors.CtmrError` that ended it; 0 and empty when it succeeded.
    """

    state: str
    error: str = ""
    exit_code: int = 0
    kind: str = ""

    def write(self, folder: Path) -> None:
        """Record it in a run's folder."""
        write_file(folder / OUTCOME, (json.dumps(asdict(self), indent=1) + "\n").encode())


def shipped_pipeline() -> Path:
    """Return the compiled pipeline of this checkout."""
    return Path(__file__).resolve().parents[3] / "pipelines" / "ct_mr.yaml"


def start(folder: Path, more: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start the child process of a run; its group holds all that it starts, and it ends when this process does.

    Parameters
    ----------
    folder
        Holds ``pipeline.yaml`` and ``params.json``; gets log, events and outcome.
    more
        Environment variables for the tasks. Without `WORKSPACE` among them, outputs are kept below the home's ``runs``.
    """
    command = [sys.executable, "-W", "ignore", "-m", "ctmr.pipeline.kfp_child", str(folder)]
    ours = {
        environment.HOME: str(Home.current().root),
        environment.WORKSPACE: str(Home.current().runs / environment.RUN_NAME),
        environment.EVENTS: str(folder / EVENTS),
        "PYTHONUNBUFFERED": "1",
    }
    variables = {**os.environ, **ours, **(more or {})}
    with (folder / LOG).open("ab") as log:
        return processes.start(command, session=True, stdout=log, stderr=log, env=variables)


def outcome(folder: Path) -> RunOutcome:
    """Return how an ended run ended; one whose process died without a word is FAILED."""
    try:
        return RunOutcome(**json.loads((folder / OUTCOME).read_text()))
    except (OSError, ValueError, TypeError):
        return RunOutcome(FAILED, f"the run's process was killed; its log is {folder / LOG}", 3, "EnvironmentFault")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a run with everything that it started: politely, then by force."""
    with suppress(ProcessLookupError):
        end_session(Process.of(process.pid), STOP_S)
    process.wait()


class Runner(StrEnum):
    """Way to execute a whole run on this machine."""

    KFP = "kfp"
    """The compiled pipeline under kfp.local: what a cluster runs."""
    INLINE = "inline"
    """The stages in this process, for a debugger."""


def run(
    source: DatasetSource,
    recipe: str,
    settings: Sequence[str],
    *,
    folder: Path,
    home: Home,
    runner: Runner = Runner.KFP,
    report_for: Callable[[str], Progress] = lambda name: silent,
    on_result: Callable[[Result], None] = lambda result: None,
) -> Run:
    """Run the whole pipeline; both runners leave the same content.

    Parameters
    ----------
    source
        Pinned dataset.
    recipe, settings
        Name or YAML file, and ``key=value`` overrides.
    folder
        Keeps the stages' outputs.

    Raises
    ------
    CtmrError
        What ended the run.
    """
    with _alone(folder):
        if runner is Runner.INLINE:
            return run_pipeline(
                source, load(recipe, settings), folder=folder, home=home, report_for=report_for, on_result=on_result
            )
        return run_compiled(
            parameters_of(source, recipe, settings),
            folder=folder,
            home=home,
            report_for=report_for,
            on_result=on_result,
        )


def parameters_of(source: DatasetSource, recipe: str, settings: Sequence[str]) -> dict[str, Any]:
    """Return the pipeline's parameters for a pinned dataset; a recipe file goes along as text."""
    text = recipe_path(recipe).read_text(encoding="utf-8") + "\n" if is_file_name(recipe) else recipe
    return {
        "dataset_repo": source.address,
        "dataset_rev": source.dataset.revision,
        "dataset_path": source.path,
        "recipe": text,
        "overrides": list(settings),
    }


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a run's folder, or say that another run has it."""
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"another run is writing to {folder}; wait until it has ended, or name another folder with --out"
    with locked(folder / ".lock", busy=busy):
        yield


def run_compiled(
    parameters: Mapping[str, Any],
    *,
    folder: Path,
    home: Home,
    pipeline: Path | None = None,
    report_for: Callable[[str], Progress] = lambda name: silent,
    on_result: Callable[[Result], None] = lambda result: None,
) -> Run:
    """Run the compiled pipeline and return what its stages left.

    Parameters
    ----------
    parameters
        Of the pipeline; others are at their defaults.
    folder
        Keeps the stages' outputs; what has not changed since the last run there is reused.
    pipeline
        Compiled pipeline; default: that of this checkout.

    Raises
    ------
    CtmrError
        The error that ended the run, of its own kind.
    """
    here = _new_folder(home)
    shutil.copyfile(pipeline or shipped_pipeline(), here / PIPELINE)
    (here / PARAMETERS).write_text(json.dumps(dict(parameters), indent=1, sort_keys=True) + "\n")
    done = Run(folder)
    with whole_run(home, done.summaries):
        _follow(here, done, home, report_for, on_result)
        how = outcome(here)
        if how.state != SUCCEEDED:
            raise error_of(how)
    return done


def _follow(
    here: Path,
    done: Run,
    home: Home,
    report_for: Callable[[str], Progress],
    on_result: Callable[[Result], None],
) -> None:
    """Execute a run's folder, passing on what its tasks tell until it has ended."""
    folder, offset, began = done.folder, 0, dict[str, float]()
    process = start(here, {environment.WORKSPACE: str(folder.absolute()), environment.HOME: str(home.root)})
    leader = Process.of(process.pid)
    try:
        while True:
            ended = process.poll() is not None
            for after, event in events.read(here / EVENTS, offset):
                offset = after
                if "started" in event:
                    began.setdefault(event["stage"], time.monotonic())
                elif "message" in event:
                    report_for(event["stage"])(event["message"], event.get("fraction"))
                elif "result" in event:
                    result = events.result_of(event)
                    if not result.reused:
                        # A stage may be several tasks: tune's workers come before the task that has its result.
                        result = replace(result, seconds=time.monotonic() - began.get(result.name, time.monotonic()))
                    done.results[result.name] = result
                    on_result(result)
            if ended:
                # Whatever ended it, what it started must not work on beside the next run.
                end_session(leader, STOP_S)
                break
            time.sleep(POLL_S)
    except BaseException:
        stop(process)
        raise


def error_of(how: RunOutcome) -> CtmrError:
    """Return the error that ended a run, of the kind it had."""
    if how.kind == GateFailed.__name__:
        return GateFailed(how.error)
    # An error of another module, such as a failed rollout, keeps the exit code of its kind.
    kind = {InputError.exit_code: InputError, EnvironmentFault.exit_code: EnvironmentFault}.get(
        how.exit_code, CtmrError
    )
    return kind(how.error)


def _new_folder(home: Home) -> Path:
    runs = home.root / "pipelines" / "local"
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    here = runs / f"{now}-{os.getpid()}-{time.monotonic_ns() % 1_000_000:06d}"
    here.mkdir(parents=True, mode=0o700)
    ended = sorted(p for p in runs.iterdir() if (p / OUTCOME).is_file())
    for old in ended[:-KEPT_RUNS]:
        shutil.rmtree(old, ignore_errors=True)
    return here
