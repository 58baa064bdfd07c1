"""Worker processes of the tuning study: each takes slots and trains them; a supervisor starts them again."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctmr.errors import CtmrError, EnvironmentFault
from ctmr.recipe.recipe import Recipe
from ctmr.system.processes import start_time, when_parent_ends
from ctmr.system.progress import Progress
from ctmr.tuning import trial
from ctmr.tuning.evidence import TrialEvidence
from ctmr.tuning.storage import HEARTBEAT_S, DatabaseFault
from ctmr.tuning.study import Claim, LostError, Study
from ctmr.tuning.trial import Slot, SlotState, StoppedError, propose, report_steps, should_prune, trial_recipe

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

IDLE_DEATHS = 3
"""A worker that dies so often in a row before it took a slot cannot work here."""
_POLL_S = 0.2
_LONGEST_POLL_S = 5.0
_STOP_S = 10.0
"""Time a worker has to give its slot back; a training step takes less."""
_ERROR_LENGTH = 500


def run_worker(
    channel: Connection, name: str, address: str, tree: Mapping[str, Any], preprocessed: Path, supervisor: int
) -> None:
    """Work on a study until nothing is left to try; a process of its own.

    SIGTERM, and the end of the supervisor, make it give its slot back and end. What ends it otherwise is told to the
    channel in one sentence.

    Parameters
    ----------
    tree
        The recipe as plain types.
    supervisor
        Its process id.
    """
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    when_parent_ends(stop.set, supervisor)
    try:
        work_on(Study(name, address, Recipe.model_validate(tree), supervisor), preprocessed, stop)
    except Exception as error:
        with contextlib.suppress(OSError):
            channel.send(_text(error))


def work_on(study: Study, preprocessed: Path, stop: threading.Event) -> None:
    """Take and train slots until nothing is left to try, `stop` is set, or a trial broke this process."""
    idle_since = time.monotonic()
    with _Heartbeat(study) as heartbeat:
        while not stop.is_set():
            claim = study.claim()
            if claim is not None:
                with heartbeat.of(claim):
                    usable = _try(study, claim, preprocessed, stop)
                if not usable:
                    return
                idle_since = time.monotonic()
            elif study.over(study.slots()):
                return
            else:
                # Whoever waits for long may notice late; many idle workers then cost the database little.
                stop.wait(min(_LONGEST_POLL_S, max(_POLL_S, (time.monotonic() - idle_since) / 10)))


def _try(study: Study, claim: Claim, preprocessed: Path, stop: threading.Event) -> bool:
    """Train a slot and record how it ended; False when another trial needs a new process."""
    recipe, reports, evidence = study.recipe, dict[int, float](), TrialEvidence()
    try:
        params = propose(recipe, claim.number, claim.slots)
        study.begin(claim, params)
        score = math.nan
        for reported in trial.scores(preprocessed, trial_recipe(recipe, params), stop.is_set):
            score = reported.score
            evidence.add(reported)
            if math.isfinite(score):
                reports[reported.step] = score
                study.report(claim, reported.step, score)
            if should_prune(recipe, claim.number, claim.slots, reports):
                study.keep(claim, evidence.files())
                study.complete(claim, reports[max(reports)], pruned=True)
                return True
        study.keep(claim, evidence.files())
        if math.isfinite(score):
            study.complete(claim, score)
        else:
            study.fail(claim, f"its score is {score}")
    except LostError:
        pass
    except DatabaseFault:
        raise
    except StoppedError:
        with contextlib.suppress(LostError):
            study.release(claim)
    except Exception as error:
        with contextlib.suppress(LostError):
            study.keep(claim, evidence.files())
            study.fail(claim, _text(error))
        # What we did not foresee, as a fault of the GPU, may have left the process unable to train anything.
        return isinstance(error, CtmrError)
    return True


def _text(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return (first if isinstance(error, CtmrError) else f"{type(error).__name__}: {first}")[:_ERROR_LENGTH]


class _Heartbeat:
    """Thread that beats for the slot in work."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._claim: Claim | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    @contextlib.contextmanager
    def of(self, claim: Claim) -> Iterator[None]:
        """Beat for a slot."""
        self._claim = claim
        try:
            yield
        finally:
            self._claim = None

    def _run(self) -> None:
        while not self._end.wait(HEARTBEAT_S):
            claim = self._claim
            if claim is not None:
                self._study.beat(claim)


@dataclass
class _Worker:
    """A worker process, seen by its supervisor."""

    process: BaseProcess
    channel: Connection
    started: int | None
    idle_deaths: int = 0


def supervise(
    study: Study,
    preprocessed: Path,
    *,
    workers: int,
    report: Progress,
    watch: Callable[[Sequence[Slot]], None] = lambda slots: None,
) -> list[Slot]:
    """Keep worker processes at a study until nothing is left to try; return its slots.

    A study that is over starts none. A worker that dies is started again.

    Parameters
    ----------
    workers
        Processes, at most one an unfinished slot.
    report
        Progress of the whole study, whoever works on it.
    watch
        Called whenever slots may have changed.

    Raises
    ------
    EnvironmentFault
        When a worker cannot work here: the database does not answer, or it dies again and again before it takes a
        slot.
    """
    progress = _Progress(study.recipe, report)
    slots = study.slots()
    crew: list[_Worker] = []
    try:
        if not study.over(slots):
            unfinished = sum(not slot.finished for slot in slots)
            crew += [_start(study, preprocessed) for _ in range(min(workers, unfinished))]
        while True:
            progress(slots)
            watch(slots)
            if study.over(slots):
                return slots
            ended = wait([worker.channel for worker in crew], timeout=_POLL_S)
            slots = study.slots()
            if not study.over(slots):
                for worker in [w for w in crew if w.channel in ended]:
                    crew[crew.index(worker)] = _again(worker, study, preprocessed)
    finally:
        _stop(crew)


def _start(study: Study, preprocessed: Path, idle_deaths: int = 0) -> _Worker:
    spawn = get_context("spawn")
    here, there = spawn.Pipe(duplex=False)
    process = spawn.Process(
        target=run_worker,
        args=(there, study.name, study.address, study.recipe.dump(), preprocessed, os.getpid()),
        daemon=True,
    )
    process.start()
    there.close()
    return _Worker(process, here, start_time(process.pid or 0), idle_deaths)


def _again(worker: _Worker, study: Study, preprocessed: Path) -> _Worker:
    """Start a worker again that has ended; what it has said ends the study here."""
    with contextlib.suppress(EOFError, ConnectionResetError):
        raise EnvironmentFault(worker.channel.recv())
    worker.process.join()
    worker.channel.close()
    deaths = 0 if study.has_worked(worker.process.pid or 0, worker.started) else worker.idle_deaths + 1
    if deaths == IDLE_DEATHS:
        raise EnvironmentFault(
            f"a worker of study {study.name} ended {deaths} times before it took a trial, the last time with exit code "
            f"{worker.process.exitcode}; look for what ends it (memory, a broken installation) and start again"
        )
    return _start(study, preprocessed, deaths)


def _stop(crew: Sequence[_Worker]) -> None:
    for worker in crew:
        worker.process.terminate()
    end = time.monotonic() + _STOP_S
    for worker in crew:
        worker.process.join(max(0.0, end - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.channel.close()


class _Progress:
    """Tells reports and failures once."""

    def __init__(self, recipe: Recipe, report: Progress) -> None:
        self._reports = len(report_steps(recipe))
        self._total = recipe.tune.trials * self._reports
        self._report = report
        self._told: set[tuple[int, int | str]] = set()

    def __call__(self, slots: Sequence[Slot]) -> None:
        done = sum(self._reports if slot.finished else len(slot.reports) for slot in slots)
        for slot in slots:
            for step, score in slot.reports.items():
                last = slot.state is SlotState.PRUNED and step == max(slot.reports)
                self._tell(slot, step, f"step {step}, score {score:.4g}{', pruned' if last else ''}", done)
            if slot.error:
                self._tell(slot, "failed", f"failed: {slot.error}", done)

    def _tell(self, slot: Slot, what: int | str, message: str, done: int) -> None:
        if (slot.number, what) not in self._told:
            self._told.add((slot.number, what))
            self._report(f"trial {slot.number}: {message}", min(1.0, done / self._total))
