"""One stage alone finds its run, and does not register what was never compared with the champion."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ctmr.datasets.dvc import Dataset, DatasetSource
from ctmr.errors import InputError
from ctmr.pipeline import single
from ctmr.pipeline.inline import resolve_champion
from ctmr.pipeline.single import run_alone, run_folder
from ctmr.pipeline.stage import RECORD, read_record
from ctmr.recipe.recipe import Recipe
from ctmr.system.digest import content_digest
from ctmr.system.home import Home
from ctmr.tracking.mlflow import Version

RECIPE = Recipe(name="tiny")
CHAMPION = json.dumps({"digest": "d1", "name": "tiny-heads", "run_id": "r", "version": "4"})


def leave(out: Path, files: dict[str, str], **record: object) -> Path:
    """Write what a stage leaves: files, and a record that tells of them."""
    for name, text in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text)
    (out / RECORD).parent.mkdir(parents=True, exist_ok=True)
    (out / RECORD).write_text(json.dumps({"digest": content_digest(out), **record}))
    return out


def fetched(home: Home, name: str, address: Path, path: str = "") -> Path:
    """A run that has fetched a dataset."""
    folder = home.runs / f"tiny-{name}"
    source = DatasetSource(Dataset(name, "folder", "", "0.dir"), str(address.resolve()), path)
    leave(
        folder / "fetch",
        {"dataset.json": json.dumps(source.dataset.to_json())},
        parts={"option dataset": source.to_option()},
    )
    return folder


# Which run


def test_the_only_run_of_a_recipe_needs_no_dataset(home: Home, tmp_path: Path) -> None:
    only = fetched(home, "heads", tmp_path / "heads")
    assert run_folder(RECIPE, "", "", home) == only


def test_of_several_runs_the_dataset_decides(home: Home, tmp_path: Path) -> None:
    fetched(home, "heads", tmp_path / "heads")
    necks = fetched(home, "necks", tmp_path / "necks")
    demo = fetched(home, "phantom", home.demo / "repository")
    assert run_folder(RECIPE, str(tmp_path / "necks"), "", home) == necks
    assert run_folder(RECIPE, "demo", "", home) == demo
    with pytest.raises(InputError, match=r"3 runs of recipe tiny below .*tiny-heads, tiny-necks.*--dataset or --out"):
        run_folder(RECIPE, "", "", home)


def test_of_several_paths_in_one_repository_the_path_decides(home: Home, tmp_path: Path) -> None:
    ct = fetched(home, "ct", tmp_path / "repository", "data/ct")
    fetched(home, "mr", tmp_path / "repository", "data/mr")
    assert run_folder(RECIPE, str(tmp_path / "repository"), "data/ct", home) == ct


def test_the_only_run_is_not_taken_for_another_dataset(home: Home, tmp_path: Path) -> None:
    fetched(home, "heads", tmp_path / "heads")
    with pytest.raises(InputError, match="0 runs of recipe tiny on dataset demo"):
        run_folder(RECIPE, "demo", "", home)


# Records


def test_a_record_beside_other_content_is_no_record(tmp_path: Path) -> None:
    out = leave(tmp_path / "train", {"model.json": "{}"}, summary={})
    assert read_record(out)
    (out / "model.json").write_text("{ }")
    assert read_record(out) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"digest": 5}'])
def test_a_damaged_record_is_no_record(tmp_path: Path, text: str) -> None:
    out = leave(tmp_path / "train", {"model.json": "{}"})
    (out / RECORD).write_text(text)
    assert read_record(out) is None


# The champion


@pytest.fixture
def judged(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose model passed without a champion; today there is one."""
    folder = fetched(home, "heads", tmp_path / "heads")
    leave(folder / "train", {"model.json": "{}"})
    leave(folder / "evaluate", {"decision.json": '{"passed": true}'}, summary={"champion": ""})
    leave(folder / "validate", {"validation.json": "{}"})
    monkeypatch.setattr("ctmr.pipeline.inline.resolve_champion", lambda dataset, recipe, home: json.loads(CHAMPION))
    monkeypatch.setattr(single, "run_stage", lambda spec, **given: None)
    return folder


def register(folder: Path, home: Home, *inputs: str) -> None:
    run_alone("register", RECIPE, folder=folder, home=home, report=lambda m, f=None: None, inputs=inputs)


def test_a_model_judged_without_todays_champion_is_not_registered(judged: Path, home: Home) -> None:
    with pytest.raises(InputError, match=r"with no champion, and tiny-heads version 4 is .* now; run `ctmr evaluate"):
        register(judged, home)


def test_a_model_judged_against_another_champion_is_not_registered(judged: Path, home: Home) -> None:
    before = CHAMPION.replace('"4"', '"3"')
    leave(judged / "evaluate", {"decision.json": '{"passed": true}'}, summary={"champion": before})
    with pytest.raises(InputError, match="was compared with version 3, and tiny-heads version 4"):
        register(judged, home)


def test_a_model_judged_against_todays_champion_may_be_registered(judged: Path, home: Home) -> None:
    leave(judged / "evaluate", {"decision.json": '{"passed": true}'}, summary={"champion": CHAMPION})
    register(judged, home)


def test_the_champion_itself_may_be_registered_again(judged: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    itself = json.loads(CHAMPION) | {"digest": content_digest(judged / "train")}
    monkeypatch.setattr("ctmr.pipeline.inline.resolve_champion", lambda dataset, recipe, home: itself)
    register(judged, home)


def test_where_there_is_no_champion_none_is_asked_for(
    judged: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctmr.pipeline.inline.resolve_champion", lambda dataset, recipe, home: {})
    register(judged, home)


def test_a_verdict_from_elsewhere_and_a_failed_one_are_registers_own_affair(
    judged: Path, home: Home, tmp_path: Path
) -> None:
    register(judged, home, f"decision={judged / 'train' / 'model.json'}")
    leave(judged / "evaluate", {"decision.json": '{"passed": false}'}, summary={"champion": ""})
    register(judged, home)


@pytest.mark.parametrize(("champion", "option"), [("none", ""), ("registered", CHAMPION), ("", CHAMPION)])
def test_evaluate_compares_with_whom_it_is_told(
    judged: Path, home: Home, monkeypatch: pytest.MonkeyPatch, champion: str, option: str
) -> None:
    seen: dict[str, str] = {}
    monkeypatch.setattr(single, "run_stage", lambda spec, **kwargs: seen.update(kwargs["options"]))
    options = {"champion": champion}
    run_alone("evaluate", RECIPE, folder=judged, home=home, report=lambda m, f=None: None, options=options)
    assert seen == {"champion": option}


@pytest.mark.parametrize(
    ("address", "asked"),
    [
        ("", False),
        ("sqlite:///{here}/absent.db", False),
        ("sqlite:///{here}/there.db", True),
        ("sqlite:///{here}/there.db?timeout=5", True),
        ("sqlite:///there.db", True),
        ("sqlite:///{here}/what%3Fnow/there.db", True),
        ("http://127.0.0.1:1", True),
        ("postgresql://127.0.0.1:1/mlflow", True),
    ],
)
def test_the_champion_is_looked_up_wherever_there_is_a_store(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, asked: bool
) -> None:
    class Store:
        def __init__(self, home: Home) -> None: ...

        def champion(self, name: str, alias: str) -> Version:
            return Version(name, "4", "r", "d", {})

    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.db").touch()
    (tmp_path / "what?now").mkdir()
    (tmp_path / "what?now" / "there.db").touch()
    monkeypatch.setattr("ctmr.tracking.mlflow.Tracking", Store)
    if address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address.format(here=tmp_path))
    found = resolve_champion("heads", RECIPE, home)
    assert found == ({"name": "tiny-heads", "version": "4", "digest": "d", "run_id": "r"} if asked else {})
