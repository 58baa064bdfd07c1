"""All doors to the stages agree in names, inputs, parameters and defaults, and none has a default of its own."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ctmr.cli.app import app
from ctmr.errors import EnvironmentFault
from ctmr.pipeline import stages
from ctmr.pipeline.doors import written
from ctmr.pipeline.parameters import OUT, OVERRIDES, PARAMETERS, RECIPE, assignments
from ctmr.recipe.loading import load, render

STAGE_NAMES = stages.names()

ROOT = Path(__file__).resolve().parents[2]
COMPILED = ROOT / "pipelines" / "ct_mr.yaml"
KFP_ALONE = {"limits", "study_storage", "tracking_uri", "triton_url", "workspace"}
"""What a cluster has to be told and this machine's environment knows, and limits as numbers for a form to ask for."""
TUNE_ON_KFP = {"create-study", "work-on-study", "tune"}

CHARACTERS = "abz09_.:,-+[]{}'\"\\ /αø"


def read(name: str) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    return tree


@pytest.fixture(scope="module")
def dvc() -> dict[str, Any]:
    return read("dvc.yaml")


@pytest.fixture(scope="module")
def mlproject() -> dict[str, Any]:
    points: dict[str, Any] = read("MLproject")["entry_points"]
    return points


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    tree: dict[str, Any] = next(iter(yaml.safe_load_all(COMPILED.read_text(encoding="utf-8"))))
    return tree


def options(command: str) -> dict[str, Any]:
    """Option → default, of a command of ours."""
    group: Any = typer.main.get_command(app)
    return {p.opts[0]: p.default for p in group.commands[command].params}


def test_the_doors_that_are_files_are_those_of_the_stages() -> None:
    for path, text in written(ROOT).items():
        assert path.read_text(encoding="utf-8") == text, "run `make doors`"


def test_what_stands_around_the_stages_is_kept(tmp_path: Path) -> None:
    for name in ("dvc.yaml", "MLproject"):
        whole = (ROOT / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(re.sub(r"(?m)^  (fetch|tune):\n(    .*\n)+", "", whole))
    assert {p.name: text for p, text in written(tmp_path).items()} == {
        name: (ROOT / name).read_text(encoding="utf-8") for name in ("dvc.yaml", "MLproject")
    }


def test_doors_are_written_in_a_checkout_only(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match=r"there is no dvc\.yaml in .*; write it in a checkout"):
        written(tmp_path)


# The command line


@pytest.mark.parametrize("command", ["run", *STAGE_NAMES])
def test_the_command_line_has_every_parameter_with_its_default(command: str) -> None:
    found = options(command)
    for parameter in PARAMETERS:
        assert (found[parameter.option] or "") == parameter.default, parameter.name


def test_the_default_recipe_exists() -> None:
    assert load(RECIPE.default).name == RECIPE.default


# MLproject


def test_mlproject_has_the_eight_stages_and_main(mlproject: dict[str, Any]) -> None:
    assert list(mlproject) == ["main", *STAGE_NAMES]


@pytest.mark.parametrize("point", ["main", *STAGE_NAMES])
def test_an_entry_point_hands_every_parameter_to_its_command(mlproject: dict[str, Any], point: str) -> None:
    parameters = mlproject[point]["parameters"]
    assert {k: v["default"] for k, v in parameters.items()} == {p.name: p.default for p in PARAMETERS}
    assert {v["type"] for v in parameters.values()} == {"string"}
    words = shlex.split(mlproject[point]["command"])
    assert words[1:3] == ["ctmr", "run" if point == "main" else point]
    assert words[3:] == [f"{p.option}={{{p.name}}}" for p in PARAMETERS]


def test_mlprojects_environment_is_held_to_the_constraints() -> None:
    environment = read("python_env.yaml")
    assert "-c constraints.txt" in environment["dependencies"] and "-e ." in environment["dependencies"]
    assert (ROOT / "constraints.txt").is_file()


# DVC


def test_dvc_has_the_stages_without_side_effects(dvc: dict[str, Any]) -> None:
    assert list(dvc["stages"]) == [n for n in STAGE_NAMES if not stages.load(n).side_effects]


@pytest.mark.parametrize("name", [n for n in STAGE_NAMES if n not in ("register", "deploy")])
def test_a_dvc_stage_reads_and_writes_what_the_stage_declares(dvc: dict[str, Any], name: str) -> None:
    spec, found = stages.load(name), dvc["stages"][name]
    assert sorted(found.get("deps", [])) == sorted(f"outputs/{where}" for where in spec.takes.values())
    plain = [p for p in found.get("params", []) if isinstance(p, str)]
    assert plain == list(spec.sections)
    out = found["outs"][0]
    assert (out if isinstance(out, str) else next(iter(out))) == f"outputs/{name}" and len(found["outs"]) == 1
    words = shlex.split(found["cmd"])
    assert words[:2] == ["${ctmr}", name] and words[-4:] == [RECIPE.option, "params.yaml", OUT.option, "outputs"]


def test_dvc_fetches_what_dataset_yaml_says_and_reruns_when_that_changes(dvc: dict[str, Any]) -> None:
    values = read("dataset.yaml")
    given_ = [p for p in PARAMETERS if p.name in values]
    assert values == {p.name: p.default for p in PARAMETERS if p not in (RECIPE, OVERRIDES, OUT)}
    assert dvc["stages"]["fetch"]["params"] == [{"dataset.yaml": list(values)}, *stages.load("fetch").sections]
    words = shlex.split(dvc["stages"]["fetch"]["cmd"])
    for parameter in given_:
        assert words[words.index(parameter.option) + 1] == f"${{{parameter.name}}}"


def test_params_yaml_is_the_default_recipe_in_full() -> None:
    current = (ROOT / "params.yaml").read_text(encoding="utf-8")
    assert current == render(load(RECIPE.default)), "run `ctmr recipe resolve demo > params.yaml`"


def test_params_yaml_read_as_a_recipe_is_that_recipe() -> None:
    assert load(str(ROOT / "params.yaml")) == load(RECIPE.default)


def test_the_repository_ships_no_dvc_lock_and_names_no_remote() -> None:
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "dvc.lock"], capture_output=True, text=True)
    assert listed.stdout == ""
    config = (ROOT / ".dvc" / "config").read_text()
    assert "analytics = false" in config and "remote" not in config


# Kubeflow


def test_the_kubeflow_pipeline_has_the_same_parameters_with_the_same_defaults(compiled: dict[str, Any]) -> None:
    inputs = compiled["root"]["inputDefinitions"]["parameters"]
    shared = {p.kfp: p for p in PARAMETERS if p.kfp}
    assert set(inputs) - set(shared) <= KFP_ALONE
    for name, parameter in shared.items():
        kind = "LIST" if parameter.repeatable else "STRING"
        assert (inputs[name]["defaultValue"] or "", inputs[name]["parameterType"]) == (parameter.default, kind)


def test_the_kubeflow_pipeline_has_the_eight_stages_with_their_inputs(compiled: dict[str, Any]) -> None:
    components = {k.removeprefix("comp-"): v for k, v in compiled["components"].items()}
    assert set(STAGE_NAMES) | TUNE_ON_KFP <= set(components)
    for name in STAGE_NAMES:
        upstream = {where.partition("/")[0] for where in stages.load(name).takes.values()}
        assert set(components[name].get("inputDefinitions", {}).get("artifacts", {})) == upstream, name


# Overrides in one text


def test_several_assignments_in_one_text_keep_brackets_commas_and_other_semicolons() -> None:
    text = "train.steps=5;preprocess.size=[32, 32]; network.generator={kind: resnet, width: 4} ;description=a; b;"
    assert assignments([text, "", "loss.cycle=5"]) == [
        "train.steps=5",
        "preprocess.size=[32, 32]",
        "network.generator={kind: resnet, width: 4}",
        "description=a; b",
        "loss.cycle=5",
    ]


@given(
    st.lists(
        st.tuples(
            st.from_regex(r"\A[a-z_]+(\.[a-z0-9_]+){0,3}\Z"),
            st.text(CHARACTERS, min_size=1, max_size=20).map(str.strip),
        ).map("=".join),
        max_size=6,
    )
)
def test_joined_with_semicolons_assignments_are_read_as_given_one_by_one(single: list[str]) -> None:
    assert assignments(["; ".join(single)]) == single
    assert assignments(single) == single


def test_what_is_no_assignment_reaches_the_recipe_and_is_named_there() -> None:
    assert assignments(["train.steps"]) == ["train.steps"]
