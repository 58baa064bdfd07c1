"""Log of a training: tables, sample grids, and the same numbers in MLflow."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from ctmr.recipe.training import Term
from ctmr.system.pool import Background
from ctmr.system.tables import write_csv

if TYPE_CHECKING:
    from ctmr.training.alarms import Reading
    from ctmr.training.events import AlarmEvent, StepEvent

TOTALS = (Term.GENERATOR, Term.DISCRIMINATOR)
_NAMED = "paper."
"""Before the names that ``loss.log_as`` gives, so that they never meet a loss of that name."""


class RunStore(Protocol):
    """Receiver of a run's numbers; `ctmr.tracking.mlflow.Tracking` is one."""

    def logged(self, run_id: str) -> Container[tuple[str, int]]:
        """Return name and step of every metric that the run has."""

    def metrics(self, run_id: str, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics at a step."""

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags."""


class RunLog:
    """Metrics of one MLflow run, sent by another thread, each once a step however often training was killed.

    As a context it ends when everything is sent.

    Parameters
    ----------
    reports, readings
        What the training, resumed or new, already has; what the run lacks of it is sent.
    """

    def __init__(
        self, tracking: RunStore, run_id: str, reports: Iterable[StepEvent], readings: Iterable[tuple[int, Reading]]
    ) -> None:
        self._tracking, self._run_id = tracking, run_id
        self._known = tracking.logged(run_id)
        self._calls = Background()
        for report in reports:
            self.report(report)
        for step, reading in readings:
            self.readings(step, [reading])

    def report(self, event: StepEvent) -> None:
        """Send a report's losses, accuracies and the papers' names."""
        measures, named = measures_of(event)
        self._send(event.step, {**{f"train.{k}": v for k, v in measures.items()}, **named})

    def readings(self, step: int, readings: Iterable[Reading]) -> None:
        """Send what the alarms measured."""
        self._send(step, {f"alarm.{r.name}": r.value for r in readings})

    def alarm(self, event: AlarmEvent) -> None:
        """Tag the run with an alarm that sounds."""
        self._calls.call(self._tracking.tag, self._run_id, {f"alarm.{event.reading.name}": event.message})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Return when everything is sent; a training that ended by an error ends by that one."""
        if kind is None:
            self._calls.wait()
        else:
            self._calls.settle()

    def _send(self, step: int, values: Mapping[str, float]) -> None:
        self._calls.finished()
        new = {k: v for k, v in values.items() if (k, step) not in self._known}
        if new:
            self._calls.call(self._tracking.metrics, self._run_id, new, step)


def measures_of(event: StepEvent) -> tuple[dict[str, float], dict[str, float]]:
    """Return losses with accuracies, and the papers' names."""
    accuracies = {f"accuracy_{k}": v for k, v in event.accuracy.items()}
    return {**event.losses, **accuracies}, {f"{_NAMED}{k}": v for k, v in event.named.items()}


def write_tables(out: Path, reports: Sequence[StepEvent], readings: Sequence[tuple[int, Reading]]) -> None:
    """Write ``curves.csv`` (losses), ``measures.csv`` (accuracies, the papers' names) and ``alarms.csv`` (readings)."""
    rows = {}
    for report in reports:
        measures, named = measures_of(report)
        rows[report.step] = measures | named
    names = {n for row in rows.values() for n in row}
    _table(out / "curves.csv", rows, sorted(names & set(Term)))
    _table(out / "measures.csv", rows, sorted(names - set(Term)))
    alarms = (
        [step, r.alarm.value, r.side.value, f"{r.value:.6g}", f"{r.limit:g}", int(r.beyond)] for step, r in readings
    )
    write_csv(out / "alarms.csv", ["step", "alarm", "side", "value", "limit", "beyond"], alarms)


def history(reports: Sequence[StepEvent]) -> dict[str, list[float]]:
    """Return the loss terms by name over the reports, without the totals."""
    names = sorted({n for r in reports for n in r.losses} & set(Term) - set(TOTALS))
    return {n: [r.losses.get(n, 0.0) for r in reports] for n in names}


def _table(path: Path, rows: Mapping[int, Mapping[str, float]], names: Sequence[str]) -> None:
    lines = ([s, *(f"{row.get(n, float('nan')):.6g}" for n in names)] for s, row in sorted(rows.items()))
    write_csv(path, ["step", *names], lines)
