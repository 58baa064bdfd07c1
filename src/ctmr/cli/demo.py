"""The demo from nothing to a synthetic DICOM series, with a summary table at the end."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from ctmr.cli.console import Console
from ctmr.datasets.dvc import resolve
from ctmr.phantom.cohort import CohortPlan
from ctmr.phantom.repository import demo_repository, make_demo_dataset
from ctmr.pipeline.inline import Run
from ctmr.pipeline.kfp_local import Runner, run
from ctmr.recipe.loading import load
from ctmr.system.home import Home, quiet_libraries
from ctmr.tracking.names import run_name

RECIPE = "demo"


def run_demo(settings: list[str], *, runner: Runner = Runner.KFP, as_json: bool = False) -> None:
    """Make the cohort, run the eight stages, translate a held-out series through Triton, say where to look.

    Parameters
    ----------
    settings
        ``key=value`` overrides of the recipe ``demo``.
    runner
        How the pipeline is executed.
    as_json
        Print one JSON document instead of tables.
    """
    quiet_libraries()
    home, console = Home.current(), Console(as_json)
    recipe = load(RECIPE, settings)
    seconds: dict[str, float] = {}
    console.say("ctmr demo: phantom heads, unpaired CycleGAN T1 MR to CT, on this machine only")
    began = time.monotonic()
    made = make_demo_dataset(home, CohortPlan(), lambda m, f=None: console.report_for("cohort")(m, f))
    seconds["cohort"] = time.monotonic() - began
    took = f"{seconds['cohort']:6.1f} s" if made else "reused"
    console.say(f"  {'cohort':<10} {took:<9} PHANTOM heads in {demo_repository(home)}")
    source = resolve(str(demo_repository(home)))
    done = run(
        source,
        RECIPE,
        settings,
        folder=home.runs / run_name(recipe.name, source.dataset.name),
        home=home,
        runner=runner,
        report_for=console.report_for,
        on_result=console.stage_done,
    )
    seconds |= {name: result.seconds for name, result in done.results.items()}
    began = time.monotonic()
    written = _synthesize_held_out(done, home, console)
    seconds["synthesize"] = time.monotonic() - began
    picture = done.folder / "evaluate" / "provenance" / "comparison.png"
    if as_json:
        console.document(
            {
                "seconds": {k: round(v, 1) for k, v in seconds.items()},
                "stages": {
                    n: {"digest": r.digest, "reused": r.reused, "summary": r.summary} for n, r in done.results.items()
                },
                "synthetic": written,
                "picture": picture,
            }
        )
        return
    _summary(console, done, written, picture, seconds, home)


def _synthesize_held_out(done: Run, home: Home, console: Console) -> dict[str, Any]:
    """Translate the golden case's DICOM series through Triton into a new synthetic series."""
    from ctmr.serving.synthesis import synthesize

    golden = done.results["evaluate"].summary["golden"]
    register = done.results["register"].summary
    out = home.demo / "synthetic" / f"{golden['subject']}_v{register['version']}"
    if out.exists():
        shutil.rmtree(out)
    written: dict[str, Any] = synthesize(
        done.folder / "fetch" / "raw" / golden["paths"][0],
        out,
        to="CT",
        model=register["name"],
        url="",
        home=home,
        report=console.report_for("synthesize"),
    )
    return written


def _summary(
    console: Console, done: Run, written: dict[str, Any], picture: Path, seconds: dict[str, float], home: Home
) -> None:
    fetch, validate, tune, register, deploy = (
        done.results[n].summary for n in ("fetch", "validate", "tune", "register", "deploy")
    )
    console.measurements(done.results["evaluate"].summary)
    console.title("Summary (PHANTOM data: says nothing about patients)")
    where = Path.cwd()
    for name, value in {
        "dataset": f"{fetch['name']}, revision {fetch['revision'][:12]}, md5 {fetch['md5']}",
        "validation": f"{validate['outcome'].replace('_', ' ')}, Great Expectations {validate['expectations']}",
        "tuning": f"trial {tune['best_trial']} of {tune['trials']}: {tune['best_score']:.1f}, {tune['objective']}",
        "model": f"{register['name']} version {register['version']}, {register['tags']} lineage tags, MLflow run "
        f"{register['run_id'][:8]}",
        "Triton": f"{deploy['model']} version {deploy['version']} at {deploy['grpc']}, golden DICOM case within "
        f"{deploy['golden_difference']:g} {deploy['golden_unit']} of evaluate's own path",
        "synthetic": f"{written['files']} DICOM files in {_relative(Path(written['path']), where)}",
        "picture": str(_relative(picture, where)),
        "report": str(_relative(picture.parent / "report.html", where)),
    }.items():
        console.say(f"  {name:<11} {value}")
    console.title("Seconds")
    console.say(
        "  " + ", ".join(f"{k} {v:.0f}" for k, v in seconds.items()) + f"; together {sum(seconds.values()):.0f}"
    )
    console.title("Next")
    python = ".venv/bin/ctmr" if (where / ".venv").is_dir() else "ctmr"
    console.say(f"  {python} lineage {written['series_uid']}")
    console.say(f"  {python} up                     MLflow UI, to compare models")
    console.say(f"  {python} run --dataset PATH     the same on your own images")
    console.say(f"  {python} down                   stop the server that is still running")


def _relative(path: Path, base: Path) -> Path:
    return path.relative_to(base) if path.is_relative_to(base) else path
