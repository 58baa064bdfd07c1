"""tune: an Optuna study over the recipe's search space; each trial is a child run in MLflow."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

import yaml

from ctmr.errors import CtmrError, EnvironmentFault
from ctmr.recipe import Choice, LogUniform, Recipe, Tune
from ctmr.stages.contract import Context, Stage
from ctmr.stages.trial import DONE, FAILED, GO, REPORT, STOP, run_trial

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    import optuna

RETRIES = 1
"""Times a trial whose process died is started again."""


@dataclass
class _Worker:
    """A trial that runs."""

    trial: optuna.Trial
    process: BaseProcess
    channel: Connection
    died: int = 0
    scores: dict[int, float] = field(default_factory=dict)


def run(context: Context) -> dict[str, Any]:
    """Run the study and write ``best.yaml``, ``trials.json`` and, in provenance, the history plot.

    The study lives in SQLite in the work directory: a killed run goes on with the trials that are missing. Trials run
    in waves of ``tune.workers``; this process asks Optuna, prunes and tells, the workers only train, and a wave is told
    to Optuna as a whole. So neither the order in which trials finish nor a kill changes which trials are tried.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    recipe = context.recipe
    section = recipe.tune
    storage = f"sqlite:///{context.work / 'study.db'}"
    study = optuna.create_study(
        storage=storage,
        study_name="ctmr",
        direction="minimize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=section.workers, n_warmup_steps=0),
    )
    name = _score_name(context)
    _recover(study, recipe)
    tracking = _Tracking(context)
    tracking.trials(study.trials)
    finished = len(_finished(study))
    while finished < section.trials:
        study.sampler = optuna.samplers.TPESampler(seed=section.seed * 1_000_003 + finished)
        wave = [
            study.ask(_distributions(recipe)) for _ in range(min(_room(section, finished), section.trials - finished))
        ]
        _run_wave(context, study, wave, finished)
        tracking.trials(study.trials)
        finished = len(_finished(study))
        if finished == 0 and len(study.trials) >= 2 * section.workers:
            raise EnvironmentFault(
                f"every trial failed; the last said: {study.trials[-1].user_attrs.get('error', '?')}"
            )
    best = study.best_trial
    rows = [
        {
            "trial": t.number,
            "state": t.state.name.lower(),
            "score": t.value,
            "params": t.params,
            "reports": {str(k): v for k, v in sorted(t.intermediate_values.items())},
        }
        for t in _finished(study)
    ]
    (context.out / "best.yaml").write_text(yaml.safe_dump(dict(sorted(best.params.items())), sort_keys=True))
    tree = {"objective": name, "direction": "minimize", "best": best.number, "trials": rows}
    (context.out / "trials.json").write_text(json.dumps(tree, indent=1, sort_keys=True) + "\n")
    _history(context, study, name)
    run_id = tracking.finish(best, name)
    pruned = sum(t.state is optuna.trial.TrialState.PRUNED for t in study.trials)
    return {
        "objective": name,
        "trials": len(rows),
        "pruned": pruned,
        "best_trial": best.number,
        "best_score": best.value,
        "best_params": best.params,
        "mlflow_run": run_id,
    }


def _room(section: Tune, finished: int) -> int:
    """Return how many trials the next wave takes: the rest of a wave that a kill cut in two, else a whole one."""
    return section.workers - finished % section.workers


def _distributions(recipe: Recipe) -> dict[str, optuna.distributions.BaseDistribution]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    out: dict[str, optuna.distributions.BaseDistribution] = {}
    for key, space in recipe.tune.space.items():
        if isinstance(space, Choice):
            out[key] = CategoricalDistribution(space.values)
        else:
            out[key] = FloatDistribution(space.low, space.high, log=isinstance(space, LogUniform))
    return out


def _recover(study: optuna.Study, recipe: Recipe) -> None:
    """Begin with the recipe itself, or queue again what a killed run left running."""
    from optuna.trial import TrialState

    if not study.trials:
        tree = recipe.dump()
        own = {}
        for key in recipe.tune.space:
            value: Any = tree
            for part in key.split("."):
                value = value[part]
            own[key] = value
        study.enqueue_trial(own)
    for trial in study.trials:
        if trial.state is TrialState.RUNNING:
            study.tell(trial.number, state=TrialState.FAIL)
            study.enqueue_trial(trial.params)


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    from optuna.trial import TrialState

    return list(study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED)))


def _start(context: Context, trial: optuna.Trial, died: int) -> _Worker:
    spawn = get_context("spawn")
    here, there = spawn.Pipe()
    preprocessed = context.inputs["preprocessed"]
    process = spawn.Process(
        target=run_trial, args=(there, preprocessed, context.recipe.dump(), trial.params), daemon=True
    )
    process.start()
    there.close()
    return _Worker(trial, process, here, died)


def _run_wave(context: Context, study: optuna.Study, wave: list[optuna.Trial], before: int) -> None:
    """Run trials side by side; tell Optuna when all have ended, in their order."""
    from optuna.trial import TrialState

    running = [_start(context, trial, 0) for trial in wave]
    outcomes: dict[int, tuple[TrialState, float | None, str]] = {}
    total = context.recipe.tune.trials * context.recipe.tune.reports
    reports = before * context.recipe.tune.reports
    try:
        while running:
            ready = wait([w.channel for w in running])
            for worker in [w for w in running if w.channel in ready]:
                number = worker.trial.number
                try:
                    message = worker.channel.recv()
                except (EOFError, ConnectionResetError):
                    worker.process.join()
                    running.remove(worker)
                    if worker.died < RETRIES:
                        running.append(_start(context, worker.trial, worker.died + 1))
                    else:
                        code = worker.process.exitcode
                        outcomes[number] = (TrialState.FAIL, None, f"its process died with exit code {code}")
                    continue
                if message[0] == REPORT:
                    _, step, score = message
                    reports += 1
                    if step not in worker.scores and math.isfinite(score):
                        worker.trial.report(score, step)
                    worker.scores[step] = score
                    prune = worker.trial.should_prune()
                    with contextlib.suppress(BrokenPipeError):
                        # A process that died meanwhile is found by the next read, and retried.
                        worker.channel.send(STOP if prune else GO)
                    word = ", pruned" if prune else ""
                    context.report(f"trial {number}: step {step}, score {score:.4g}{word}", min(1.0, reports / total))
                    if prune:
                        outcomes[number] = (TrialState.PRUNED, None, "")
                elif message[0] == DONE:
                    score = float(message[1])
                    finite = math.isfinite(score)
                    outcomes[number] = (
                        (TrialState.COMPLETE, score, "") if finite else (TrialState.FAIL, None, f"its score is {score}")
                    )
                elif message[0] == FAILED:
                    outcomes[number] = (TrialState.FAIL, None, str(message[1]))
                if number in outcomes:
                    worker.process.join()
                    running.remove(worker)
    finally:
        for worker in running:
            worker.process.kill()
    for trial in wave:
        state, value, error = outcomes[trial.number]
        if error:
            trial.set_user_attr("error", error)
        study.tell(trial, value, state=state)


def _score_name(context: Context) -> str:
    from ctmr.stages.scoring import Scorer
    from ctmr.stages.training import describe

    preprocessed = context.inputs["preprocessed"]
    return Scorer.make(preprocessed / "shards", context.recipe, describe(preprocessed, context.recipe)).name


def _history(context: Context, study: optuna.Study, name: str) -> None:
    """Draw score over steps of every trial; a view, so it lives in provenance."""
    from ctmr.reports.study import trial_curves

    curves = {f"trial {t.number}": dict(sorted(t.intermediate_values.items())) for t in _finished(study)}
    folder = context.out / "provenance"
    folder.mkdir(exist_ok=True)
    (folder / "history.png").write_bytes(trial_curves(curves, best=f"trial {study.best_trial.number}", label=name))


class _Tracking:
    """The study as one MLflow run with a child a trial."""

    def __init__(self, context: Context) -> None:
        from ctmr.tracking import Tracking

        self.context = context
        self.tracking = Tracking(context.home)
        self.record = context.work / "mlflow.json"
        known: Mapping[str, str] = json.loads(self.record.read_text()) if self.record.is_file() else {}
        parent = known.get("run_id", "")
        if not parent or not self.tracking.exists(parent):
            recipe = context.recipe
            parent = self.tracking.start(f"tune {recipe.name}", tags={"stage": "tune", "recipe": recipe.name})
            self.tracking.params(parent, {"tune": recipe.dump()["tune"]})
            self.record.write_text(json.dumps({"run_id": parent}))
        self.parent = parent

    def trials(self, trials: list[optuna.trial.FrozenTrial]) -> None:
        """Log every ended trial that has no child run yet: a kill may have come between Optuna and MLflow."""
        known = {
            run.info.run_name
            for run in self.tracking.client.search_runs(
                [self.tracking.experiment_id], f"tags.mlflow.parentRunId = '{self.parent}'"
            )
        }
        for trial in trials:
            # A trial that a kill cut off is queued again under another number; it ended without an outcome.
            told = trial.state.name in ("COMPLETE", "PRUNED") or "error" in trial.user_attrs
            if told and f"trial {trial.number}" not in known:
                self.trial(trial)

    def trial(self, trial: optuna.trial.FrozenTrial) -> None:
        """Log a finished trial as a child run."""
        state = trial.state.name.lower()
        run_id = self.tracking.start(
            f"trial {trial.number}", tags={"stage": "trial", "state": state}, parent=self.parent
        )
        self.tracking.params(run_id, trial.params)
        for step, score in sorted(trial.intermediate_values.items()):
            self.tracking.metrics(run_id, {"validation_score": score}, step)
        self.tracking.end(run_id, "FAILED" if state == "fail" else "FINISHED")

    def finish(self, best: optuna.trial.FrozenTrial, name: str) -> str:
        """Log the best trial on the parent and close it."""
        if best.value is None:
            raise CtmrError("the study has no complete trial; raise tune.trials or tune.steps")
        self.tracking.metrics(self.parent, {"best_validation_score": best.value})
        self.tracking.tag(self.parent, {"objective": name, "best_trial": str(best.number)})
        self.tracking.artifact(self.parent, self.context.out / "best.yaml")
        self.tracking.artifact(self.parent, self.context.out / "provenance" / "history.png")
        self.tracking.end(self.parent)
        return self.parent


STAGE = Stage(
    "tune",
    takes={"preprocessed": "preprocess"},
    sections=("directions", "preprocess", "normalise", "network", "loss", "train", "tune"),
    run=run,
)
