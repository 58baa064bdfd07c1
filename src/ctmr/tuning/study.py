"""The tuning study: slots in a database that any number of processes take, finish or lose."""

from __future__ import annotations

import contextlib
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from ctmr.errors import InputError
from ctmr.recipe.recipe import Recipe
from ctmr.system.environment import STUDY_STORAGE
from ctmr.tuning.naming import space_changes
from ctmr.tuning.storage import Database, DatabaseFault
from ctmr.tuning.trial import Slot, SlotState, distributions, inside, propose

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

P = ParamSpec("P")
T = TypeVar("T")

RETRIES = 1
"""Times a slot is tried again after its process died."""
HOPELESS_WAVES = 2
"""When every slot of so many first waves failed, the others are not tried."""

SLOT, PARAMS, WORKER, ERROR = "slot", "params", "worker", "error"
"""User attributes of trials; of the worker: host, process id, and the supervisor, while which lives the trial does."""
UID, SPACE, DEATHS, TOLD, SINCE = "uid", "space", "deaths", "told", "since"
"""User attributes of the study: what tells it from another of its name; what it searches; numbers of the trials whose
process died; how many trials there were when somebody was told that all failed; how many of the first no longer count.
"""


@dataclass(frozen=True)
class Claim:
    """A slot that this process has taken.

    Attributes
    ----------
    trial
        Optuna's, running.
    number
        The slot.
    slots
        The study when it was taken; earlier waves are finished.
    params
        Dotted recipe key → value that it tries.
    """

    trial: optuna.Trial
    number: int
    slots: Sequence[Slot]
    params: Mapping[str, Any]


def retried(method: Callable[Concatenate[Study, P], T]) -> Callable[Concatenate[Study, P], T]:
    """Call a method again while the database does not answer; so it may do what it does twice."""

    @wraps(method)
    def call(study: Study, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return study.database.retry(lambda: method(study, *args, **kwargs))

    return call


class Study:
    """A study that processes share.

    The database is the store of record. A slot is the Optuna trials with its number in the user attribute ``slot``:
    none while it waits, one for every time it was taken. Who takes a slot, or gives back those of the dead, holds the
    study's lock. Whoever takes slots is present: the database knows until when, by a lock that ends with its holder.

    Parameters
    ----------
    name
        Of the study in the database.
    address
        Of the database.
    recipe
        Its ``tune`` section says how many slots there are and what they search.
    host
        Name of this machine, in place of the system's.
    """

    def __init__(self, name: str, address: str, recipe: Recipe, host: str = "") -> None:
        self.name, self.recipe = name, recipe
        self.database = Database(address)
        self._host, self._me = host or socket.gethostname(), uuid.uuid4().hex
        self._taken: set[int] = set()
        self._presence = contextlib.ExitStack()
        self._check_presence: Callable[[], object] | None = None

    @retried
    def create(self) -> None:
        """Create the study, unless it is there.

        A study in which every trial failed, and whose failure somebody was told of, is begun anew.

        Raises
        ------
        InputError
            When it searches another space.
        """
        import optuna

        with self.database.lock(self.name):
            study = optuna.create_study(
                study_name=self.name, storage=self.database.storage, direction="minimize", load_if_exists=True
            )
            if UID not in study.user_attrs:
                study.set_user_attr(SPACE, self._space)
                study.set_user_attr(UID, uuid.uuid4().hex)
            self.require_same_space()
            study.set_user_attr(SINCE, study.user_attrs.get(TOLD, 0))

    @retried
    def require_same_space(self) -> None:
        """Compare the recipe's search space with that which the study was created with.

        Raises
        ------
        InputError
            When they differ, or nobody has created the study.
        """
        changed = space_changes(self._loaded.user_attrs.get(SPACE, self._space), self._space)
        if changed:
            raise InputError(
                f"the study {self.name} at {self.database.where} searches another space: {'; '.join(changed)}; put it "
                "back to go on with that study, or give tune.study a name that begins another"
            )

    @cached_property
    @retried
    def uid(self) -> str:
        """Return what tells this study from one of the same name in another database."""
        return str(self._loaded.user_attrs[UID])

    @retried
    def slots(self) -> list[Slot]:
        """Return all slots in order."""
        return self._slots()

    def over(self, slots: Sequence[Slot]) -> bool:
        """True when nothing is left to try."""
        first = slots[: HOPELESS_WAVES * self.recipe.tune.workers]
        return all(s.state is SlotState.FAILED for s in first) or all(s.finished for s in slots)

    @retried
    def tell_failure(self) -> None:
        """Remember that somebody was told that every trial failed; the next `create` begins anew."""
        self._loaded.set_user_attr(TOLD, len(self._loaded.get_trials(deepcopy=False)))

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold a lock under which one process at a time writes about this study elsewhere."""
        with contextlib.ExitStack() as held:
            self.database.retry(lambda: held.enter_context(self.database.lock(f"{self.name} elsewhere")))
            yield

    @retried
    def attend(self) -> None:
        """Be present, so that nobody gives back what this process takes; to be said again at every poll."""
        from sqlalchemy.exc import SQLAlchemyError

        if self._check_presence is not None:
            with contextlib.suppress(SQLAlchemyError):
                self._check_presence()
                return
            self.leave()
        life = self.database.sign_of_life(f"{self.name} {self._me}")
        self._check_presence = self._presence.enter_context(life)

    def leave(self) -> None:
        """End the presence: what this process still has is given back by the next that takes a slot."""
        self._presence.close()
        self._check_presence = None

    @retried
    def claim(self, pid: int) -> Claim | None:
        """Take the lowest waiting slot whose earlier waves are finished; ``None`` when there is none now.

        Before that, slots of processes that ended are given back.

        Parameters
        ----------
        pid
            Process that will train it.
        """
        if self._next(self._slots()) is None and not self._lost():
            return None
        with self.database.lock(self.name):
            self._give_back(self._lost())
            slots = self._slots()
            number = self._next(slots)
            if number is None:
                return None
            params = propose(self.recipe, number, slots)
            worker = {"host": self._host, "pid": pid, "supervisor": self._me}
            self._loaded.enqueue_trial(params, user_attrs={SLOT: number, PARAMS: params, WORKER: worker})
            # A view for Optuna's own tools, which know no value outside the search range.
            space = {key: d for key, d in distributions(self.recipe).items() if inside(d, params[key])}
            trial = self._loaded.ask(space)
            while (trial.user_attrs.get(SLOT), trial.user_attrs.get(WORKER)) != (number, worker):
                # Enqueued by somebody who ended before asking.
                self._tell(trial, state=_states().FAIL)
                trial = self._loaded.ask(space)
            self._taken.add(trial.number)
            return Claim(trial, number, slots, params)

    @retried
    def report(self, claim: Claim, step: int, score: float) -> bool:
        """Record a validation score; False when the slot was given back, since this process was thought to be gone."""
        from optuna.exceptions import UpdateFinishedTrialError

        try:
            claim.trial.report(score, step)
        except UpdateFinishedTrialError:
            return False
        return True

    @retried
    def keep(self, claim: Claim, files: Mapping[str, bytes]) -> None:
        """Record what a trial leaves to look at."""
        self.database.keep(self.uid, claim.trial.number, files)

    @retried
    def kept(self, slot: Slot) -> dict[str, bytes]:
        """Return what the trial of a slot left."""
        return {} if slot.trial is None else self.database.kept(self.uid, slot.trial)

    @retried
    def complete(self, claim: Claim, score: float) -> None:
        """Finish a slot with its score."""
        self._tell(claim.trial, values=score)

    @retried
    def prune(self, claim: Claim) -> None:
        """Finish a slot before its end, with its last report as its score."""
        self._tell(claim.trial, state=_states().PRUNED)

    @retried
    def fail(self, claim: Claim, error: str) -> None:
        """Finish a slot that has no score; it is not tried again."""
        from optuna.exceptions import UpdateFinishedTrialError

        with contextlib.suppress(UpdateFinishedTrialError):
            claim.trial.set_user_attr(ERROR, error)
        self._tell(claim.trial, state=_states().FAIL)

    @retried
    def count_death(self, claim: Claim) -> None:
        """Give a slot back whose process died; it fails when that happened too often."""
        with self.database.lock(self.name):
            self._give_back({claim.trial.number: True})

    def release(self, claim: Claim) -> None:
        """Give a slot back as if it had not been taken; without a database, whoever takes the next one does that."""
        self._taken.discard(claim.trial.number)
        with contextlib.suppress(DatabaseFault):
            self.database.retry(lambda: self._tell(claim.trial, state=_states().FAIL), 0.0)

    @property
    def _space(self) -> dict[str, Any]:
        space: dict[str, Any] = self.recipe.dump()["tune"]["space"]
        return space

    @cached_property
    def _loaded(self) -> optuna.Study:
        import optuna

        try:
            return optuna.load_study(study_name=self.name, storage=self.database.storage)
        except KeyError:
            raise InputError(
                f"there is no study {self.name} at {self.database.where}; create it before its workers start, in "
                f"a database that they all reach ({STUDY_STORAGE})"
            ) from None

    def _slots(self) -> list[Slot]:
        # Without a retry: a lock that was held meanwhile would be lost.
        known, trials = self._loaded.user_attrs, self._loaded.get_trials(deepcopy=False)
        of_slot: dict[int, list[FrozenTrial]] = {}
        for trial in trials[known.get(SINCE, 0) :]:
            # What somebody added by hand is none of our slots.
            if SLOT in trial.user_attrs:
                of_slot.setdefault(trial.user_attrs[SLOT], []).append(trial)
        deaths = set(known.get(DEATHS, ()))
        return [_slot(number, of_slot.get(number, ()), deaths) for number in range(self.recipe.tune.trials)]

    def _next(self, slots: Sequence[Slot]) -> int | None:
        """Return the lowest waiting slot of the first wave that is not finished."""
        if self.over(slots):
            return None
        wave = self.recipe.tune.workers
        first = next(slot.number for slot in slots if not slot.finished) // wave * wave
        return next((s.number for s in slots[first : first + wave] if s.state is SlotState.WAITING), None)

    def _lost(self) -> dict[int, bool]:
        """Return the numbers of running trials whose supervisor ended, and whether that counts against their slots.

        On this machine it does not: somebody ended the supervisor. Where a whole other machine ended, as a pod that
        needs too much memory does, the trial may have been the reason.
        """
        lost = dict[int, bool]()
        for trial in self._loaded.get_trials(deepcopy=False, states=(_states().RUNNING,)):
            worker = trial.user_attrs.get(WORKER, {})
            supervisor = worker.get("supervisor")
            if supervisor == self._me:
                # Taken by a call whose answer got lost.
                ended = trial.number not in self._taken
            else:
                ended = SLOT in trial.user_attrs and not self.database.lives(f"{self.name} {supervisor}")
            if ended:
                lost[trial.number] = supervisor != self._me and worker.get("host") != self._host
        return lost

    def _give_back(self, trials: Mapping[int, bool]) -> None:
        """Close trials whose process is gone: number → whether that counts against its slot."""
        counted = [number for number, counts in trials.items() if counts]
        if counted:
            self._loaded.set_user_attr(DEATHS, [*self._loaded.user_attrs.get(DEATHS, ()), *counted])
        for number in trials:
            self._tell(number, state=_states().FAIL)

    def _tell(self, trial: optuna.Trial | int, **outcome: Any) -> None:
        self._loaded.tell(trial, skip_if_finished=True, **outcome)
        self._taken.discard(trial if isinstance(trial, int) else trial.number)


def _slot(number: int, trials: Sequence[FrozenTrial], deaths: set[int]) -> Slot:
    """Return how far a slot is, from its trials in the order in which it was taken."""
    states = _states()
    scored = {states.COMPLETE: SlotState.COMPLETE, states.PRUNED: SlotState.PRUNED}
    for trial in trials:
        if trial.state in scored:
            return _told(number, scored[trial.state], trial)
    failed = [trial for trial in trials if trial.state is states.FAIL]
    for trial in failed:
        if ERROR in trial.user_attrs:
            return _told(number, SlotState.FAILED, trial, trial.user_attrs[ERROR])
    died = [trial for trial in failed if trial.number in deaths]
    if len(died) > RETRIES:
        last = died[-1]
        error = f"its process died {len(died)} times, the last time on {last.user_attrs[WORKER]['host']}"
        return _told(number, SlotState.FAILED, last, error)
    running = [trial for trial in trials if trial.state is states.RUNNING]
    return _told(number, SlotState.RUNNING, running[0]) if running else Slot(number)


def _told(number: int, state: SlotState, trial: FrozenTrial, error: str = "") -> Slot:
    reports = dict(sorted(trial.intermediate_values.items()))
    score = None if error else trial.value
    return Slot(number, state, trial.user_attrs.get(PARAMS, {}), reports, score, error, trial.number)


def _states() -> Any:
    from optuna.trial import TrialState

    return TrialState
