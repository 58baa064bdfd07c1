"""Trials of the tuning study in processes of their own, and the supervisor that takes slots and starts them again."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ctmr.errors import CtmrError, EnvironmentFault
from ctmr.recipe.recipe import Recipe
from ctmr.system.processes import when_parent_ends
from ctmr.system.progress import Progress
from ctmr.tuning import trial
from ctmr.tuning.evidence import TrialEvidence
from ctmr.tuning.study import Claim, Study
from ctmr.tuning.trial import Reported, Slot, SlotState, report_steps, should_prune, trial_recipe

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

IDLE_DEATHS = 3
"""A worker that dies so often in a row before it got a trial cannot work here."""
_POLL_S = 0.2
_LONGEST_POLL_S = 5.0
_END_S = 10.0
_ERROR_LENGTH = 500


class Ready(NamedTuple):
    """Word of a worker that it can train a trial, or how its last one ended.

    Attributes
    ----------
    error
        Of the trial; empty where there was none.
    usable
        False when another trial needs a new process.
    """

    error: str = ""
    usable: bool = True


def run_worker(channel: Connection, preprocessed: Path) -> None:
    """Train trials, one after the other: a process of its own, which ends with its parent.

    Parameters
    ----------
    channel
        Brings the `Recipe` of a trial, and after each `Reported` whether to go on; takes `Reported` and `Ready`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    when_parent_ends(partial(os._exit, 1), os.getppid())
    ready = Ready()
    with contextlib.suppress(EOFError, OSError):
        while True:
            channel.send(ready)
            ready = _train(channel, channel.recv(), preprocessed)


def _train(channel: Connection, recipe: Recipe, preprocessed: Path) -> Ready:
    try:
        for reported in trial.scores(preprocessed, recipe):
            channel.send(reported)
            if not channel.recv():
                break
    except Exception as error:
        # What ctmr does not raise itself, as a fault of the GPU, may have left the process unable to train anything.
        return Ready(_text(error), isinstance(error, CtmrError))
    return Ready()


def _text(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return (first if isinstance(error, CtmrError) else f"{type(error).__name__}: {first}")[:_ERROR_LENGTH]


def supervise(
    study: Study,
    preprocessed: Path,
    *,
    workers: int,
    report: Progress,
    watch: Callable[[Sequence[Slot]], None] = lambda slots: None,
) -> list[Slot]:
    """Train slots in worker processes until nothing is left to try; return all slots.

    A study that is over starts none. A worker that dies is started again. SIGTERM ends this process as an interrupt
    does: with its trials given back.

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
        When the database does not answer, or a worker dies again and again before it got a trial.
    """
    crew, told = _Crew(study, preprocessed), set[str]()
    try:
        with _sigterm_raises():
            while True:
                slots = study.slots()
                _tell_news(study.recipe, slots, report, told)
                watch(slots)
                if study.over(slots):
                    return slots
                study.attend()
                crew.work(min(workers, sum(not slot.finished for slot in slots)))
    finally:
        crew.end()
        study.leave()


@dataclass
class _Worker:
    """A worker process, seen by its supervisor; `claim` is what it trains, `ready` that it waits for something."""

    process: BaseProcess
    channel: Connection
    idle_deaths: int
    ready: bool = False
    claim: Claim | None = None
    evidence: TrialEvidence = field(default_factory=TrialEvidence)

    def send(self, what: Recipe | bool) -> None:
        """Tell it something; that it has died will be heard."""
        with contextlib.suppress(OSError):
            self.channel.send(what)


class _Crew:
    """The workers of a supervisor, which speaks to the study for them."""

    def __init__(self, study: Study, preprocessed: Path) -> None:
        self._study, self._preprocessed = study, preprocessed
        self._workers: list[_Worker] = []
        self._quiet_since = time.monotonic()

    def work(self, count: int) -> None:
        """Hear what the workers say, or wait for a while, and give trials to those that have none."""
        if not self._workers:
            self._workers = [self._start() for _ in range(count)]
        # Whoever waits for long may notice late; many that wait then cost the database little.
        pause = min(_LONGEST_POLL_S, max(_POLL_S, (time.monotonic() - self._quiet_since) / 10))
        heard = wait([worker.channel for worker in self._workers], timeout=pause)
        for worker in [w for w in self._workers if w.channel in heard]:
            self._quiet_since = time.monotonic()
            try:
                said = worker.channel.recv()
            except (EOFError, OSError):
                self._bury(worker)
                continue
            if isinstance(said, Reported):
                worker.send(self._goes_on(worker, said))
            else:
                self._finish(worker, said)
        for worker in self._workers:
            if worker.ready:
                self._assign(worker)

    def end(self) -> None:
        """Stop all workers and give back what they train."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.channel.close()
            if worker.claim is not None:
                self._study.release(worker.claim)

    def _start(self, idle_deaths: int = 0) -> _Worker:
        spawn = get_context("spawn")
        here, there = spawn.Pipe()
        process = spawn.Process(target=run_worker, args=(there, self._preprocessed), daemon=True)
        process.start()
        there.close()
        return _Worker(process, here, idle_deaths)

    def _replace(self, worker: _Worker, idle_deaths: int = 0) -> None:
        worker.process.kill()
        worker.process.join()
        worker.channel.close()
        self._workers[self._workers.index(worker)] = self._start(idle_deaths)

    def _bury(self, worker: _Worker) -> None:
        """Count the death of a worker against its trial, or against itself if it had none, and start another."""
        worker.process.join(_END_S)
        claim, worker.claim, deaths = worker.claim, None, 0
        if claim is None:
            deaths = worker.idle_deaths + 1
        elif worker.process.exitcode == -signal.SIGTERM:
            self._study.release(claim)
        else:
            self._study.count_death(claim)
        if deaths == IDLE_DEATHS:
            raise EnvironmentFault(
                f"a worker of study {self._study.name} ended {deaths} times before it took a trial, the last time with "
                f"exit code {worker.process.exitcode}; look for what ends it (memory, a broken installation) and start "
                "again"
            )
        self._replace(worker, deaths)

    def _assign(self, worker: _Worker) -> None:
        """Give a worker the next trial, if there is one."""
        claim = self._study.claim(worker.process.pid or 0)
        if claim is None:
            return
        try:
            recipe = trial_recipe(self._study.recipe, claim.params)
        except CtmrError as error:
            self._study.fail(claim, _text(error))
            return
        worker.ready, worker.claim, worker.idle_deaths, worker.evidence = False, claim, 0, TrialEvidence()
        worker.send(recipe)

    def _goes_on(self, worker: _Worker, said: Reported) -> bool:
        """Record a report; False when that was the trial's last."""
        claim, evidence = worker.claim, worker.evidence
        if claim is None:
            return False
        evidence.add(said)
        if math.isfinite(said.score) and not self._study.report(claim, said.step, said.score):
            worker.claim = None
        elif should_prune(self._study.recipe, claim.number, claim.slots, evidence.finite):
            self._study.keep(claim, evidence.files())
            self._study.prune(claim)
            worker.claim = None
        return worker.claim is not None

    def _finish(self, worker: _Worker, said: Ready) -> None:
        """Record how a trial ended, if it is not known yet."""
        if worker.claim is not None:
            score = worker.evidence.score
            self._study.keep(worker.claim, worker.evidence.files())
            if said.error or not math.isfinite(score):
                self._study.fail(worker.claim, said.error or f"its score is {score}")
            else:
                self._study.complete(worker.claim, score)
        worker.claim, worker.ready = None, said.usable
        if not said.usable:
            self._replace(worker)


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Let SIGTERM raise where it would end this process at once; only the main thread can have that."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _tell_news(recipe: Recipe, slots: Sequence[Slot], report: Progress, told: set[str]) -> None:
    """Tell reports and failures once."""
    most = len(report_steps(recipe))
    done = sum(most if slot.finished else len(slot.reports) for slot in slots) / (most * len(slots))
    for slot in slots:
        news = [f"step {step}, score {score:.4g}" for step, score in slot.reports.items()]
        if slot.state is SlotState.PRUNED:
            news[-1] += ", pruned"
        if slot.error:
            news.append(f"failed: {slot.error}")
        for new in [f"trial {slot.number}: {what}" for what in news]:
            if new not in told:
                told.add(new)
                report(new, min(1.0, done))
