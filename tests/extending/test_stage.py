"""A stage is one file: name, command, reuse, doors and line in the terminal follow from it (docs/extending.md)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from ctmr.cli.app import build, main
from ctmr.pipeline import stages
from ctmr.pipeline.doors import written
from ctmr.pipeline.stage import Result, run_stage
from ctmr.recipe.recipe import Recipe
from ctmr.system.home import Home

ROOT = Path(__file__).resolve().parents[2]
RECIPE = Recipe(name="tiny")
Say = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def one_stage_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of the ninth stage stands beside that of the eight."""
    monkeypatch.setattr(stages, "__path__", [*stages.__path__, str(Path(__file__).parent / "stages")])


@pytest.fixture
def run_folder(home: Home) -> Path:
    """A run that was evaluated."""
    folder = home.runs / "tiny-heads"
    (folder / "evaluate").mkdir(parents=True)
    (folder / "evaluate" / "metrics.json").write_text("0123456789")
    return folder


@pytest.fixture
def ctmr(home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """Run the command line in this process; returns exit code, standard output and standard error."""

    def command(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("ctmr.cli.app.app", build())
        monkeypatch.setattr(sys, "argv", ["ctmr", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return command


def run(folder: Path, home: Home, **options: str) -> Result:
    stage = stages.load("report_size")
    inputs = stage.inputs({"evaluate": folder / "evaluate"})
    return run_stage(stage, inputs=inputs, recipe=RECIPE, out=folder / stage.name, home=home, options=options)


def test_it_is_found_by_name_after_what_it_takes() -> None:
    names = stages.names()
    assert stages.load("report_size").name == "report_size" and len(names) == 9
    assert names.index("report_size") > names.index("evaluate")


def test_it_is_a_command_with_help_and_options() -> None:
    app = build()
    place = stages.names().index("report_size") + 1
    assert f"report_size  Stage {place}: how large the report" in CliRunner().invoke(app, ["--help"]).output
    shown = CliRunner().invoke(app, ["report_size", "--help"]).output
    assert "how large the report of an evaluation is." in shown and "--recipe" in shown
    assert "--unit" in shown and "B or kB; default: B." in shown and "--champion" not in shown


def test_its_output_is_reused_until_what_it_declares_changes(run_folder: Path, home: Home) -> None:
    assert run(run_folder, home).summary == {"size": 10.0, "unit": "B", "files": 1}
    assert run(run_folder, home).reused
    assert run(run_folder, home, unit="kB").because == "option unit changed"
    (run_folder / "evaluate" / "metrics.json").write_text("0")
    assert run(run_folder, home, unit="kB").because == "input evaluation changed"


def test_the_terminal_shows_its_line(run_folder: Path, ctmr: Say) -> None:
    words = ("report_size", "--out", str(run_folder))
    code, out, _ = ctmr(*words)
    assert code == 0 and out.startswith("  report_size ") and out.endswith("10 B in 1 files\n")
    assert "reused" in ctmr(*words)[1]
    assert "0.01 kB in 1 files  (option unit changed)" in ctmr(*words, "--unit", "kB")[1]


def test_its_errors_are_one_sentence(run_folder: Path, ctmr: Say) -> None:
    code, _, err = ctmr("report_size", "--out", str(run_folder), "--unit", "miles")
    assert (code, err) == (2, "ctmr: --unit 'miles': allowed are B, kB\n")


def test_dvc_and_mlflow_get_it_by_make_doors() -> None:
    doors = {path.name: yaml.safe_load(text) for path, text in written(ROOT).items()}
    assert doors["dvc.yaml"]["stages"]["report_size"] == {
        "cmd": "${ctmr} report_size --recipe params.yaml --out outputs",
        "deps": ["outputs/evaluate"],
        "params": ["name"],
        "outs": ["outputs/report_size"],
    }
    command = doors["MLproject"]["entry_points"]["report_size"]["command"]
    assert command.startswith('PATH="$PATH:$PWD/.venv/bin" ctmr report_size --dataset={dataset}')


def test_a_run_hands_it_its_recipe_sections_on_kubeflow_too() -> None:
    from ctmr.kubeflow.tasks import stage_settings

    assert stage_settings(RECIPE)["report_size"] == '{"name": "tiny"}'
