"""The tuning study: slots in a database that any number of worker processes take, finish or lose."""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctmr.errors import InputError
from ctmr.recipe.recipe import Recipe
from ctmr.system.processes import Process, start_time
from ctmr.tuning.naming import space_changes
from ctmr.tuning.storage import PATIENCE_S, Database
from ctmr.tuning.trial import Slot, SlotState, distributions, inside

if TYPE_CHECKING:
    from optuna import Study as OptunaStudy
    from optuna.trial import FrozenTrial

RETRIES = 1
"""Times a slot is tried again after its process died."""
HOPELESS_WAVES = 2
"""When every slot of so many first waves failed, the others are not tried."""

SLOT, ATTEMPT, PARAMS, ERROR, WORKER, RELEASED = "slot", "attempt", "params", "error", "worker", "released"
"""User attributes of trials."""
UID, TOLD, SPACE = "uid", "told", "space"
"""User attributes of the study: what tells it from another of its name; the attempt whose failure was told; what it
searches."""


class LostError(Exception):
    """The trial was taken from this worker, which was thought dead; nobody waits for its result."""


@dataclass(frozen=True)
class Claim:
    """A slot that this process has taken.

    Attributes
    ----------
    trial
        Optuna's id of the trial.
    number
        The slot.
    slots
        The study when it was taken; earlier waves are finished.
    """

    trial: int
    number: int
    slots: Sequence[Slot]


def is_over(slots: Sequence[Slot], wave: int) -> bool:
    """True when nothing is left to try.

    Parameters
    ----------
    wave
        Slots a wave: ``tune.workers``.
    """
    first = slots[: HOPELESS_WAVES * wave]
    return all(s.state is SlotState.FAILED for s in first) or all(s.finished for s in slots)


class Study:
    """A study that processes share.

    The database is the store of record. A slot is the Optuna trials with its number in the user attribute ``slot``:
    the first, and one more for every time it was given back. Who changes the queue (creates, takes, gives back a dead
    worker's slot) holds the study's lock.

    Parameters
    ----------
    name
        Of the study in the database.
    address
        Of the database.
    recipe
        Its ``tune`` section says how many slots there are and what they search.
    supervisor
        Of a worker: process id of whoever starts it again. Who is no worker takes no slots, and is told at once of a
        database that does not answer.
    """

    def __init__(self, name: str, address: str, recipe: Recipe, supervisor: int | None = None) -> None:
        self.name, self.address, self.recipe = name, address, recipe
        self._database = Database(address, patience_s=0.0 if supervisor is None else PATIENCE_S)
        self._storage = self._database.storage
        self._me = _identity(os.getpid(), os.getppid() if supervisor is None else supervisor)
        self._study: OptunaStudy | None = None

    def create(self) -> None:
        """Create the study with all its slots; complete what a kill or another process left.

        A study in which every trial failed, and whose failure somebody was told of, is begun anew.

        Raises
        ------
        InputError
            When it searches another space.
        """
        import optuna

        def attempt() -> None:
            with self._database.lock(self.name):
                optuna.create_study(
                    study_name=self.name, storage=self._storage, direction="minimize", load_if_exists=True
                )
                if UID not in self._loaded().user_attrs:
                    self._loaded().set_user_attr(SPACE, self._space)
                    self._loaded().set_user_attr(UID, uuid.uuid4().hex)
                self.require_same_space()
                begun = _Rows(self._trials()).attempt
                self._mend(begun + 1 if self._loaded().user_attrs.get(TOLD) == begun else begun)

        self._database.retry(attempt)

    def require_same_space(self) -> None:
        """Compare the recipe's search space with that which the study was created with.

        Raises
        ------
        InputError
            When they differ, or nobody has created the study.
        """
        before = self._database.retry(lambda: dict(self._loaded().user_attrs.get(SPACE, self._space)))
        changed = space_changes(before, self._space)
        if changed:
            raise InputError(
                f"the study {self.name} at {self._database.where} searches another space: {'; '.join(changed)}; put it "
                "back to go on with that study, or give tune.study a name that begins another"
            )

    @property
    def _space(self) -> dict[str, Any]:
        space: dict[str, Any] = self.recipe.dump()["tune"]["space"]
        return space

    @property
    def uid(self) -> str:
        """Mark that tells this study from one of the same name in another database."""
        return self._database.retry(lambda: str(self._loaded().user_attrs[UID]))

    def slots(self) -> list[Slot]:
        """Return all slots in order."""
        return self._database.retry(lambda: _Rows(self._trials()).slots(self.recipe))

    def over(self, slots: Sequence[Slot]) -> bool:
        """True when nothing is left to try."""
        return is_over(slots, self.recipe.tune.workers)

    def tell_failure(self) -> None:
        """Remember that somebody was told that every trial failed; the next `create` begins anew."""
        self._database.retry(lambda: self._loaded().set_user_attr(TOLD, _Rows(self._trials()).attempt))

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold a lock under which one process at a time writes about this study elsewhere."""
        from sqlalchemy.exc import SQLAlchemyError

        held = contextlib.ExitStack()
        self._database.retry(lambda: held.enter_context(self._database.lock(f"{self.name} elsewhere")))
        try:
            yield
        finally:
            # A server that went down meanwhile has released it.
            with contextlib.suppress(SQLAlchemyError):
                held.close()

    def claim(self) -> Claim | None:
        """Take the lowest waiting slot whose earlier waves are finished; ``None`` when there is none now.

        Before that, slots of dead workers are queued again.
        """
        return self._database.retry(self._claim)

    def begin(self, claim: Claim, params: Mapping[str, Any]) -> None:
        """Record what a slot tries."""
        self._write(self._storage.set_trial_user_attr, claim.trial, PARAMS, dict(params))
        for key, space in distributions(self.recipe).items():
            # A view for Optuna's own tools, which know no value outside the search range.
            if inside(space, params[key]):
                self._write(self._storage.set_trial_param, claim.trial, key, space.to_internal_repr(params[key]), space)

    def report(self, claim: Claim, step: int, score: float) -> None:
        """Record a validation score."""
        self._write(self._storage.set_trial_intermediate_value, claim.trial, step, score)

    def keep(self, claim: Claim, files: Mapping[str, bytes]) -> None:
        """Record what a trial leaves to look at."""
        self._write(self._database.keep, claim.trial, files)

    def kept(self, slot: Slot) -> dict[str, bytes]:
        """Return what the trial of a slot left."""
        trial = slot.trial
        return {} if trial is None else self._database.retry(lambda: self._database.kept(trial))

    def complete(self, claim: Claim, score: float, *, pruned: bool = False) -> None:
        """Finish a slot with its score."""
        state = _states().PRUNED if pruned else _states().COMPLETE
        self._write(self._storage.set_trial_state_values, claim.trial, state, [score])

    def fail(self, claim: Claim, error: str) -> None:
        """Finish a slot that has no score; it is not tried again."""
        self._write(self._storage.set_trial_user_attr, claim.trial, ERROR, error)
        self._write(self._storage.set_trial_state_values, claim.trial, _states().FAIL)

    def release(self, claim: Claim) -> None:
        """Give a slot back as if it had not been taken."""
        self._write(self._storage.set_trial_user_attr, claim.trial, RELEASED, True)
        self._write(self._storage.set_trial_state_values, claim.trial, _states().FAIL)

    def beat(self, claim: Claim) -> None:
        """Say that this process lives; a database that does not answer now is told at the next beat."""
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError

        with contextlib.suppress(StorageInternalError, SQLAlchemyError):
            self._storage.record_heartbeat(claim.trial)

    def has_worked(self, pid: int, started: int | None) -> bool:
        """True when a process of this machine has ever taken a slot."""
        process = {"host": self._me["host"], "pid": pid, "started": started}
        trials = self._database.retry(self._trials)
        return any(process.items() <= t.user_attrs.get(WORKER, {}).items() for t in trials)

    def _loaded(self) -> OptunaStudy:
        import optuna

        if self._study is None:
            try:
                self._study = optuna.load_study(study_name=self.name, storage=self._storage)
            except KeyError:
                raise InputError(
                    f"there is no study {self.name} at {self._database.where}; create it before its workers start, in "
                    "a database that they all reach (CTMR_STUDY_STORAGE)"
                ) from None
        return self._study

    def _trials(self) -> list[FrozenTrial]:
        # What somebody added by hand is none of our slots.
        return [trial for trial in self._loaded().get_trials(deepcopy=False) if SLOT in trial.user_attrs]

    def _claim(self) -> Claim | None:
        trials = self._trials()
        if self._next(trials) is None and not self._lost(trials):
            return None
        with self._database.lock(self.name):
            self._mend()
            trials = self._trials()
            trial = self._next(trials)
            if trial is None:
                return None
            # Worker and heartbeat first: then no trial ever runs without them.
            self._storage.record_heartbeat(trial._trial_id)
            self._storage.set_trial_user_attr(trial._trial_id, WORKER, self._me)
            if not self._storage.set_trial_state_values(trial._trial_id, _states().RUNNING):
                return None
            return Claim(trial._trial_id, trial.user_attrs[SLOT], _Rows(trials).slots(self.recipe))

    def _next(self, trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
        """Return the waiting trial of the lowest slot of the first wave that is not finished."""
        rows, wave = _Rows(trials), self.recipe.tune.workers
        slots = rows.slots(self.recipe)
        if self.over(slots):
            return None
        first = next(slot.number for slot in slots if not slot.finished) // wave * wave
        waiting = (rows.waiting(s.number) for s in slots[first : first + wave] if s.state is SlotState.WAITING)
        return next((trial for trial in waiting if trial is not None), None)

    def _mend(self, attempt: int | None = None) -> None:
        """Fail the trials of dead workers; queue every slot that is neither queued, running nor finished."""
        import optuna

        for trial_id, counts in self._lost(self._trials()).items():
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                if not counts:
                    self._storage.set_trial_user_attr(trial_id, RELEASED, True)
                self._storage.set_trial_state_values(trial_id, _states().FAIL)
        rows = _Rows(self._trials(), attempt)
        slots = rows.slots(self.recipe)
        if self.over(slots):
            return
        for slot in slots:
            if slot.state is SlotState.WAITING and rows.waiting(slot.number) is None:
                attributes = {SLOT: slot.number, ATTEMPT: rows.attempt}
                self._loaded().add_trial(optuna.trial.create_trial(state=_states().WAITING, user_attrs=attributes))

    def _lost(self, trials: Sequence[FrozenTrial]) -> dict[int, bool]:
        """Return the running trials whose worker is gone, and whether that counts against their slots.

        On this machine a process is there or not. Its death counts when its supervisor lives on: then the trial may
        have been the reason; else somebody ended both. Of other machines only the heartbeat is known, and its end
        counts, unless the server itself was away: then nobody could be heard.
        """
        lost, elsewhere = dict[int, bool](), set[int]()
        for trial in trials:
            if trial.state is not _states().RUNNING:
                continue
            worker = trial.user_attrs[WORKER]
            if worker["host"] != self._me["host"]:
                elsewhere.add(trial._trial_id)
            elif worker == self._me:
                # Taken by a call whose answer got lost; this process does one trial at a time, and is taking the next.
                lost[trial._trial_id] = False
            elif start_time(worker["pid"]) != worker["started"]:
                lost[trial._trial_id] = start_time(worker["supervisor"]) == worker["supervisor_started"]
        if elsewhere and not self._database.is_young:
            stale = self._storage._get_stale_trial_ids(self._loaded()._study_id)
            lost.update(dict.fromkeys(elsewhere.intersection(stale), True))
        return lost

    def _write(self, call: Callable[..., Any], *values: Any) -> None:
        from optuna.exceptions import UpdateFinishedTrialError

        try:
            self._database.retry(lambda: call(*values))
        except UpdateFinishedTrialError:
            raise LostError from None


class _Rows:
    """The trials of a study's newest attempt, by slot."""

    def __init__(self, trials: Sequence[FrozenTrial], attempt: int | None = None) -> None:
        newest = max((t.user_attrs[ATTEMPT] for t in trials), default=0)
        self.attempt = newest if attempt is None else attempt
        self._trials: dict[int, list[FrozenTrial]] = {}
        for trial in sorted(trials, key=lambda t: t.number):
            if trial.user_attrs[ATTEMPT] == self.attempt:
                self._trials.setdefault(trial.user_attrs[SLOT], []).append(trial)

    def slots(self, recipe: Recipe) -> list[Slot]:
        return [self._slot(number) for number in range(recipe.tune.trials)]

    def waiting(self, number: int) -> FrozenTrial | None:
        return next((t for t in self._trials.get(number, []) if t.state is _states().WAITING), None)

    def _slot(self, number: int) -> Slot:
        trials, states = self._trials.get(number, []), _states()
        for trial in trials:
            if trial.state in (states.COMPLETE, states.PRUNED):
                state = SlotState.COMPLETE if trial.state is states.COMPLETE else SlotState.PRUNED
                return _slot(number, state, trial)
        failed = [t for t in trials if t.state is states.FAIL]
        for trial in failed:
            if ERROR in trial.user_attrs:
                return _slot(number, SlotState.FAILED, trial, trial.user_attrs[ERROR])
        died = [t for t in failed if not t.user_attrs.get(RELEASED)]
        if len(died) > RETRIES:
            host = died[-1].user_attrs[WORKER]["host"].split("/")[0]
            error = f"its process died {len(died)} times, the last time on {host}"
            return _slot(number, SlotState.FAILED, died[-1], error)
        for trial in trials:
            if trial.state is states.RUNNING:
                return _slot(number, SlotState.RUNNING, trial)
        return Slot(number)


def _slot(number: int, state: SlotState, trial: FrozenTrial, error: str = "") -> Slot:
    reports = dict(sorted(trial.intermediate_values.items()))
    score = None if error else trial.value
    return Slot(number, state, trial.user_attrs.get(PARAMS, {}), reports, score, error, trial._trial_id)


def _states() -> Any:
    from optuna.trial import TrialState

    return TrialState


def _identity(pid: int, supervisor: int) -> dict[str, Any]:
    """Return what tells a process from every other one: machine, process id, start; and of its supervisor."""
    return {
        "host": _machine(),
        "pid": pid,
        "started": start_time(pid),
        "supervisor": supervisor,
        "supervisor_started": start_time(supervisor),
    }


@cache
def _machine() -> str:
    """Return host name, boot and process-id namespace: only within all three does a process id mean something."""
    boot = Process.of(os.getpid()).boot
    return f"{socket.gethostname()}/{boot}/{Path('/proc/self/ns/pid').readlink()}"
