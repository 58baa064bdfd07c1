"""The queue of runs: a child process each, in order of submission; cancelling, stopping, and what a kill left."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ctmr.kubeflow.local_api.faults import OF_EXIT_CODE, ApiError, FaultCode
from ctmr.kubeflow.local_api.records import RecordKind, Records, RunState
from ctmr.pipeline.kfp_local import FAILED, SUCCEEDED, RunOutcome
from ctmr.system.processes import Process, end_session

GRACE_S = 10.0
"""Between SIGTERM and SIGKILL for a run that is cancelled."""
RETRY_S = 5.0
"""Until a state that could not be written (the disk is full) is tried again."""
STOPPED = "the local runner was stopped while this run was running; submit it again: finished stages are reused"
log = logging.getLogger(__name__)


class _Begun(NamedTuple):
    """A run that was taken from the queue, with its process, or why it has none."""

    run: str
    how: subprocess.Popen[bytes] | RunOutcome


class RunQueue:
    """Executes the pending runs of `Records`.

    Parameters
    ----------
    records
        Where runs and their states are.
    folder
        Holds a folder a run, named by its id.
    start
        Starts the child process of a run's folder, as the leader of a session of its own.
    outcome
        Says how an ended run ended.
    at_once
        How many runs may run side by side.
    grace_s
        Seconds that a run has to end in when it is cancelled or the server stops.
    """

    def __init__(
        self,
        records: Records,
        folder: Path,
        start: Callable[[Path], subprocess.Popen[bytes]],
        outcome: Callable[[Path], RunOutcome],
        *,
        at_once: int = 1,
        grace_s: float = GRACE_S,
    ) -> None:
        self.folder = folder
        self._records = records
        self._start_child = start
        self._outcome = outcome
        self._grace_s = grace_s
        self._children: dict[str, Process] = {}
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._workers = [threading.Thread(target=self._work, name=f"runs-{k}", daemon=True) for k in range(at_once)]

    def recover(self) -> None:
        """Settle what a server that was killed left: runs, their processes, folders without a record."""
        known = set()
        for _, run in self._records.all(RecordKind.RUN):
            key = run["run_id"]
            known.add(key)
            if run["state"] not in (RunState.RUNNING, RunState.CANCELING):
                continue
            if orphan := self._records.process(key):
                end_session(orphan, self._grace_s)
            self._settle(key, RunOutcome(FAILED), stopped=True)
        for left in self.folder.iterdir():
            if left.name not in known:
                shutil.rmtree(left, ignore_errors=True)

    def start(self) -> None:
        """Begin to execute runs."""
        for worker in self._workers:
            worker.start()

    def stop(self) -> None:
        """End the running runs as failed and leave the pending ones for the next start."""
        with self._changed:
            self._stopping.set()
            self._changed.notify_all()
            children = list(self._children.values())
        enders = [threading.Thread(target=end_session, args=(child, self._grace_s)) for child in children]
        for thread in enders:
            thread.start()
        for thread in [*enders, *self._workers]:
            thread.join()

    def submitted(self) -> None:
        """Say that a run was added."""
        with self._changed:
            self._changed.notify()

    def cancel(self, run: str) -> None:
        """Cancel a run: a pending one never starts, a running one is ended.

        Raises
        ------
        ApiError
            There is no such run, or it has ended.
        """
        with self._changed:
            if self._records.move(run, RunState.PENDING, RunState.CANCELED):
                return
            if self._records.move(run, RunState.RUNNING, RunState.CANCELING):
                if child := self._children.get(run):
                    threading.Thread(target=end_session, args=(child, self._grace_s), daemon=True).start()
                return
            state = RunState(self._records.get(RecordKind.RUN, run)["state"])
        if state is not RunState.CANCELING:
            raise ApiError(
                FaultCode.FAILED_PRECONDITION, f"run {run} is {state} already; what has ended cannot be canceled"
            )

    def _work(self) -> None:
        while not self._stopping.is_set():
            try:
                if (run := self._begin()) is not None:
                    self._finish(run)
            except Exception:
                # Whatever happens to one run, the next ones must not wait for ever.
                log.exception("a run could not be executed as it should")
                self._stopping.wait(RETRY_S)

    def _begin(self) -> _Begun | None:
        """Start the run that waits longest, or wait until there may be one."""
        with self._changed:
            if self._stopping.is_set():
                return None
            run = self._records.first_pending()
            if run is None:
                self._changed.wait()
                return None
            if not self._records.move(run, RunState.PENDING, RunState.RUNNING):
                return None
            try:
                process = self._start_child(self.folder / run)
                self._children[run] = Process.of(process.pid)
            except OSError as error:
                log.exception("the process of run %s cannot be started", run)
                return _Begun(run, RunOutcome(FAILED, f"the process of the run cannot be started: {error}", 3))
            try:
                self._records.set_process(run, self._children[run])
            except sqlite3.Error:
                log.exception("the process of run %s cannot be recorded", run)
            log.info("run %s started, process %d", run, process.pid)
        return _Begun(run, process)

    def _finish(self, begun: _Begun) -> None:
        """Wait for a run and record how it ended."""
        run, how = begun.run, begun.how
        if not isinstance(how, RunOutcome):
            # The ended process keeps its number until it is reaped, so the rest of its session can be told apart.
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, how.pid, os.WEXITED | os.WNOWAIT)
            end_session(self._children[run], self._grace_s)
            how = self._how(run, how.wait())
        while True:
            try:
                with self._changed:
                    self._settle(run, how, stopped=self._stopping.is_set())
                    self._children.pop(run, None)
                return
            except sqlite3.Error:
                log.exception("the end of run %s cannot be recorded; it is tried again", run)
                if self._stopping.wait(RETRY_S):
                    return

    def _how(self, run: str, status: int) -> RunOutcome:
        try:
            return self._outcome(self.folder / run)
        except Exception as error:
            why = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
            log.exception("run %s ended with %s and left no outcome", run, why)
            return RunOutcome(FAILED, f"the run's process ended with {why} and left no word why ({error})", 3)

    def _settle(self, run: str, how: RunOutcome, *, stopped: bool = False) -> None:
        """Record the last state of a run."""
        if how.state == SUCCEEDED:
            after, more = RunState.SUCCEEDED, dict[str, Any]()
        elif stopped:
            after, more = RunState.FAILED, {"error": {"code": int(FaultCode.ABORTED), "message": STOPPED}}
        else:
            code = OF_EXIT_CODE.get(how.exit_code, FaultCode.INTERNAL)
            after, more = RunState.FAILED, {"error": {"code": int(code), "message": how.error}}
        if not self._records.move(run, RunState.RUNNING, after, **more):
            # What succeeded before the signal reached it has succeeded.
            canceled = RunState.SUCCEEDED if after is RunState.SUCCEEDED else RunState.CANCELED
            self._records.move(run, RunState.CANCELING, canceled)
        log.info("run %s: %s", run, self._records.get(RecordKind.RUN, run)["state"])
