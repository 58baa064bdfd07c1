"""tune: real studies (Optuna and MLflow) by worker processes that train tiny networks, or are killed on purpose."""

import json
import os
import signal
import threading

import mlflow
import numpy as np
import pytest
import yaml
from PIL import Image

from ctmr.errors import InputError
from ctmr.pipeline.stage import run_stage
from ctmr.pipeline.stages import tune
from ctmr.recipe.loading import override
from ctmr.recipe.recipe import Recipe
from ctmr.tuning import worker as study_worker
from ctmr.tuning.figures import MIN_COMPLETE
from ctmr.tuning.tracking import StudyRun

pytestmark = pytest.mark.slow

SPACE = tuple(Recipe().tune.space)
REAL = (("tune.steps", 40),)
"""Trials that take a second: time enough to be killed in the middle."""


@pytest.fixture(scope="module")
def undisturbed(place_at, tmp_path_factory, quick_start):
    """A study of real networks that the stage ran with its own two workers, and what it left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("CTMR_STUDY_STORAGE", raising=False)
        here = place_at(tmp_path_factory.mktemp("undisturbed") / "home", *REAL)
        return here, *here.run()


# Real networks


def test_a_study_trains_real_networks_and_begins_with_the_recipe(undisturbed):
    here, result, tree = undisturbed
    assert [t["trial"] for t in tree["trials"]] == [0, 1, 2, 3]
    recipe = here.recipe
    first = tree["trials"][0]
    assert first["state"] == "complete" and set(first["reports"]) == {"20", "40"}
    assert first["params"] == {
        "train.lr_generator": recipe.train.lr_generator,
        "train.lr_discriminator": recipe.train.lr_discriminator,
        "loss.cycle": recipe.loss.cycle,
    }
    assert len({json.dumps(t["params"]) for t in tree["trials"]}) == 4
    assert "MAE (HU, paired" in tree["objective"]
    # The head is about 40 HU and the window reaches from -1024 to 2000: no error can be outside.
    assert all(0 < t["score"] < 2100 for t in tree["trials"] if t["state"] == "complete")
    complete = [t for t in tree["trials"] if t["state"] == "complete"]
    best = min(complete, key=lambda t: t["score"])
    assert tree["best"] == best["trial"]
    assert yaml.safe_load((result.out / "best.yaml").read_text()) == best["params"]
    assert override(recipe, list(best["params"].items())).loss.cycle == best["params"]["loss.cycle"]
    runs = here.children(result.summary["mlflow_run"])
    assert sorted(r.info.run_name for r in runs) == [f"trial {k}" for k in range(4)]
    assert all(r.info.status == "FINISHED" and "validation_score" in r.data.metrics for r in runs)


def test_every_trial_is_a_child_run_with_curves_and_a_sample(undisturbed):
    here, result, tree = undisturbed
    client = mlflow.MlflowClient(f"sqlite:///{here.root / 'mlflow.db'}")
    for run in here.children(result.summary["mlflow_run"]):
        row = tree["trials"][int(run.info.run_name.split()[1])]
        scores = client.get_metric_history(run.info.run_id, "validation_score")
        assert {str(m.step): m.value for m in scores} == row["reports"]
        last = max(map(int, row["reports"]))
        for name in ("generator", "discriminator", "cycle_ct", "cycle_mr", "adversarial_mr2ct"):
            curve = client.get_metric_history(run.info.run_id, f"train.{name}")
            assert sorted(m.step for m in curve) == list(range(1, last + 1)), name
            assert all(m.value > 0 for m in curve)
        assert run.data.tags["ctmr.state"] == row["state"] and run.data.tags["ctmr.bracket"] in ("0", "1")
        assert run.data.params == {key: str(value) for key, value in row["params"].items()}
        (sample,) = client.list_artifacts(run.info.run_id, "samples")
        assert sample.path == f"samples/step_{last:07d}.png"
        shown = np.asarray(Image.open(client.download_artifacts(run.info.run_id, sample.path)))
        assert shown.shape[0] > 100 and shown.std() > 10


def test_a_study_leaves_its_figures_in_provenance_and_in_mlflow(undisturbed):
    here, result, tree = undisturbed
    client = mlflow.MlflowClient(f"sqlite:///{here.root / 'mlflow.db'}")
    names = ("history.png", "importance.png", "slice.png")
    logged = client.list_artifacts(result.summary["mlflow_run"], "figures")
    assert [file.path for file in logged] == [f"figures/{name}" for name in names]
    for name in names:
        shown = np.asarray(Image.open(result.out / "provenance" / "figures" / name).convert("L"))
        assert shown[0, 0] == 255 and shown.std() > 5
    metrics = client.get_run(result.summary["mlflow_run"]).data.metrics
    shares = [value for name, value in metrics.items() if name.startswith("importance.")]
    complete = [t for t in tree["trials"] if t["state"] == "complete"]
    assert shares == [] if len(complete) < MIN_COMPLETE else sum(shares) == pytest.approx(1)


def test_one_process_for_all_trials_changes_nothing_and_the_stage_after_it_only_writes(place, undisturbed, monkeypatch):
    here = place("home", *REAL)
    name = here.create()
    here.work(1)
    monkeypatch.setattr(study_worker, "get_context", None)
    result, _ = here.run()
    assert result.digest == undisturbed[1].digest
    assert here.study.name == name


STAGE = """
import json, sys
from pathlib import Path
from ctmr.system.home import Home
from ctmr.recipe.recipe import Recipe
from ctmr.pipeline.stages import tune
from ctmr.pipeline.stage import run_stage

if __name__ == "__main__":
    recipe, preprocessed, root = json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    run_stage(tune.STAGE, inputs={"preprocessed": preprocessed}, recipe=Recipe.model_validate(recipe),
              out=root / "out", home=Home(root))
"""


def test_a_study_whose_every_process_was_killed_goes_on_with_what_is_missing(place, undisturbed, session, until):
    here = place("home", *REAL)
    here.create()
    process = session(STAGE, json.dumps(here.recipe.dump()), here.preprocessed, here.root)
    study = here.study
    until(lambda: any(s.number >= 2 and s.params and not s.finished for s in study.slots()))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = [t.number for t in here.trials() if t.state.name in ("COMPLETE", "PRUNED")]
    result, _ = here.run()
    assert result.digest == undisturbed[1].digest
    after = [t for t in here.trials() if t.state.name in ("COMPLETE", "PRUNED")]
    assert set(before) >= {0, 1} and len(after) == 4
    names = [r.info.run_name for r in here.children(result.summary["mlflow_run"])]
    assert sorted(names) == [f"trial {k}" for k in range(4)]


def test_two_stages_on_one_study_come_to_the_same_and_log_it_once(place, undisturbed, tmp_path):
    here, results = place("home", *REAL), []

    def run(name):
        results.append(
            run_stage(tune.STAGE, inputs=here.inputs, recipe=here.recipe, out=tmp_path / name, home=here.home)
        )

    threads = [threading.Thread(target=run, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [r.digest for r in results] == [undisturbed[1].digest] * 2
    assert results[0].summary["mlflow_run"] == results[1].summary["mlflow_run"]
    names = [r.info.run_name for r in here.children(results[0].summary["mlflow_run"])]
    assert sorted(names) == [f"trial {k}" for k in range(4)]


# Workers that compute a score from their parameters instead of training: fixture `workers`.


@pytest.mark.parametrize("moment", ["start", "_curves", "params", "end"])
def test_every_trial_is_one_whole_child_run_wherever_its_logging_was_cut(place, workers, moment, monkeypatch):
    from ctmr.tracking.mlflow import Tracking

    here, cutting = place(), []
    owner = StudyRun if moment == "_curves" else Tracking

    def cut(self, *arguments, real=getattr(owner, moment), **kwargs):
        done = real(self, *arguments, **kwargs)
        if cutting:
            raise KeyboardInterrupt
        return done

    def log(self, slot, child, real=StudyRun._log):
        cutting.append(slot)
        real(self, slot, child)

    with monkeypatch.context() as patch:
        patch.setattr(owner, moment, cut)
        patch.setattr(StudyRun, "_log", log)
        with pytest.raises(KeyboardInterrupt):
            here.run()
    result, tree = here.run()
    runs = here.children(result.summary["mlflow_run"])
    assert sorted(r.info.run_name for r in runs) == [f"trial {k}" for k in range(4)]
    client = mlflow.MlflowClient(f"sqlite:///{here.root / 'mlflow.db'}")
    for run in runs:
        row = tree["trials"][int(run.info.run_name.split()[1])]
        history = client.get_metric_history(run.info.run_id, "validation_score")
        assert {str(m.step): m.value for m in history} == row["reports"] and len(history) == len(row["reports"])
        assert run.info.status == "FINISHED" and set(run.data.params) == set(SPACE)
    parents = [r for r in client.search_runs([runs[0].info.experiment_id]) if "ctmr.study" in r.data.tags]
    assert len(parents) == 1


def test_another_seed_is_another_study_that_begins_with_the_recipe_too(place, workers):
    first, other = place("a").run()[1], place("b", ("tune.seed", -1)).run()[1]
    assert other["trials"][0] == first["trials"][0]
    assert other["trials"][1]["params"] != first["trials"][1]["params"]


def test_work_before_the_study_was_created_is_refused(place):
    here = place()
    with pytest.raises(InputError, match="create it before its workers start"):
        tune.work(here.inputs, here.recipe, here.home)
