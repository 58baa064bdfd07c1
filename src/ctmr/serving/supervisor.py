"""Supervisor of the embedded Triton: ``python -m ctmr.serving.supervisor STATE REPOSITORY LOCK SECONDS``.

Triton never starts a Python backend's process again, and keeps calling its model ready, so models are asked to
translate a small made-up volume, at intervals and at once when a process of the server has ended. What does not answer
is started again: a model by a new load, the server as a whole when its process ended or nothing else helps.

It acts in the lock of promotions alone, never beside a rollout, and ends when its record is gone: after `ctmr down`
nothing comes back. Being killed harms nothing; the next `ctmr up` or `deploy` starts it again.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path

from ctmr.errors import CtmrError, EnvironmentFault
from ctmr.serving.client import NO_PROXY, QueueFull, TritonClient
from ctmr.serving.model_repository import served_models
from ctmr.serving.rollout import canary, revive
from ctmr.serving.server import EmbeddedTriton, Endpoint, answers
from ctmr.serving.supervision import Supervision
from ctmr.system.daemon import Running
from ctmr.system.locks import locked
from ctmr.system.processes import Process
from ctmr.tracking.names import Part

LOOK_S = 1.0
"""Between looks whether the server's processes live."""
CANARY_DEADLINE_S = 30.0
SILENT_S = 60.0
"""So long a server that lives may leave the simplest question unanswered before it is started again."""
STUCK_S = 600.0
"""So long a model that does not answer may make no progress with what others asked, before the same."""
LONGEST_PAUSE_S = 300.0
"""Between attempts to start again what does not come up; the first pause is `LOOK_S`, each further one twice that."""


class Look(Enum):
    """Outcome of a canary."""

    ANSWERS = auto()
    BUSY = auto()
    """No answer in time, or a full queue: others are being answered."""
    DEAD = auto()


@dataclass
class Supervisor:
    """One embedded server under watch.

    Attributes
    ----------
    triton, repository
        What is watched.
    lock
        Of promotions.
    every_s
        Between canaries.
    """

    triton: EmbeddedTriton
    repository: Path
    lock: Path
    every_s: float
    _alive: set[Process] = field(default_factory=set)
    _canary_at: float = 0.0
    _heard_at: float = field(default_factory=time.monotonic)
    _progress: dict[str, tuple[int, float]] = field(default_factory=dict)
    _pause_s: float = LOOK_S
    _next_try: float = 0.0

    def watch(self) -> None:
        """Watch until the record names another supervisor, or none."""
        said = ""
        while self._is_recorded():
            # Whatever fails now is tried again; a supervisor that ends of a fault helps nobody.
            try:
                self.look()
            except (CtmrError, OSError) as error:
                if str(error) != said:
                    said = str(error)
                    print(f"{type(error).__name__}: {said}", flush=True)
            time.sleep(LOOK_S)

    def look(self) -> None:
        """Look once at server and models, and start again what is dead."""
        running = self.triton.status()
        if running is None:
            self._restart("its process had ended")
            return
        if answers(running):
            self._heard_at = time.monotonic()
        elif time.monotonic() - self._heard_at > SILENT_S:
            self._restart(f"it lived and had not answered for {SILENT_S:g} s")
            return
        else:
            return
        ended = any(not process.lives for process in self._alive)
        if ended or time.monotonic() - self._canary_at >= self.every_s:
            self._ask_models(running)

    def _ask_models(self, running: Running) -> None:
        self._canary_at = time.monotonic()
        alive, _ = self.triton.leftovers()
        with TritonClient(Endpoint.of(running).grpc, control_key=self.triton.control_key()) as client:
            found = {model: self._ask(client, model) for model in served_models(self.repository)}
            Supervision.checked(self.triton.state_dir, {model: look.name.lower() for model, (look, _) in found.items()})
            dead = {model: why for model, (look, why) in found.items() if look is Look.DEAD}
            if not dead:
                self._alive, self._pause_s, self._next_try = set(alive), LOOK_S, 0.0
            elif self._may_act():
                with self._alone() as alone:
                    if alone and not self._revived(client, dead) and len(dead) == len(found):
                        self._restart_now(f"no model answered, {next(iter(dead))}: {next(iter(dead.values()))}")

    def _ask(self, client: TritonClient, model: str) -> tuple[Look, str]:
        """Return the outcome of a canary, and the words of what failed."""
        began = time.monotonic()
        try:
            canary(client, model, deadline_s=CANARY_DEADLINE_S)
        except QueueFull as error:
            return Look.BUSY, str(error)
        except CtmrError as error:
            if time.monotonic() - began < 0.9 * CANARY_DEADLINE_S:
                return Look.DEAD, str(error)
            return (Look.BUSY if self._progresses(client, model) else Look.DEAD), str(error)
        self._progress.pop(model, None)
        return Look.ANSWERS, ""

    def _progresses(self, client: TritonClient, model: str) -> bool:
        """Return False when a model has done nothing for anybody for `STUCK_S`: a long volume is no fault."""
        now, done = time.monotonic(), executions(client.url, model)
        before, since = self._progress.get(model, (-1, now))
        self._progress[model] = (done, since if done == before else now)
        return now - self._progress[model][1] < STUCK_S

    def _revived(self, client: TritonClient, dead: dict[str, str]) -> bool:
        """Load dead models again; False when one of them still does not answer."""
        well = True
        for model, why in dead.items():
            began = time.monotonic()
            with contextlib.suppress(CtmrError):
                # Whoever held the lock before may have seen to it.
                canary(client, model, deadline_s=CANARY_DEADLINE_S)
                continue
            try:
                version = revive(client, self.repository, model)
            except CtmrError as error:
                well = False
                self._failed(f"{model} could not be started again: {error}")
            else:
                self._did(f"{model} version {version}", why, time.monotonic() - began)
        return well

    def _restart(self, why: str) -> None:
        if self._may_act():
            with self._alone() as alone:
                running = self.triton.status()
                if alone and (running is None or not answers(running)):
                    self._restart_now(why)

    def _restart_now(self, why: str) -> None:
        began = time.monotonic()
        try:
            self.triton.restart(self.repository)
        except EnvironmentFault as error:
            self._failed(str(error))
            return
        self._heard_at, self._canary_at = time.monotonic(), 0.0
        self._did("the server", why, time.monotonic() - began)

    def _did(self, what: str, why: str, seconds: float) -> None:
        self._pause_s, self._next_try, self._alive = LOOK_S, 0.0, set()
        Supervision.restarted(self.triton.state_dir, what, why, seconds)
        print(f"{what} was started again in {seconds:.1f} s: {why}", flush=True)

    def _failed(self, words: str) -> None:
        self._next_try = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        Supervision.failed(self.triton.state_dir, words)
        print(words, flush=True)

    def _may_act(self) -> bool:
        return time.monotonic() >= self._next_try

    def _is_recorded(self) -> bool:
        recorded = self.triton.supervisor().recorded()
        return recorded is not None and recorded.process.pid == os.getpid()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """Hold the lock of promotions; False when a rollout holds it, which then has the word."""
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(locked(self.lock, busy="busy", mode=0o600))
            except EnvironmentFault:
                yield False
            else:
                # `ctmr down` may have come first.
                yield self._is_recorded()


def executions(url: str, model: str) -> int:
    """Return how often a served direction's three models have run; 0 when the server does not tell."""
    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException

    with triton.InferenceServerClient(url, channel_args=NO_PROXY) as client:
        try:
            found = [client.get_inference_statistics(f"{model}{part}", client_timeout=LOOK_S * 5) for part in Part]
        except InferenceServerException:
            return 0
    return sum(int(stats.execution_count) for answer in found for stats in answer.model_stats)


def main() -> None:
    """Supervise what the command line names."""
    state, repository, lock, every_s = sys.argv[1:]
    Supervisor(EmbeddedTriton(Path(state)), Path(repository), Path(lock), float(every_s)).watch()


if __name__ == "__main__":
    main()
