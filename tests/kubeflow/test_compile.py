"""The checked-in pipeline: current, strictly parsed, and asking the platform for what it should."""

from __future__ import annotations

import json

import pytest
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from ctmr.errors import CtmrError
from ctmr.kubeflow.compile import compile_pipeline, read
from ctmr.kubeflow.tasks import recipe_for, recipe_from, stage_settings
from ctmr.pipeline import stages
from ctmr.pipeline.kfp_local import shipped_pipeline
from ctmr.recipe.recipe import section_digest

STAGE_NAMES = stages.names()


@pytest.fixture(scope="module")
def pipeline():
    return read(shipped_pipeline())[0]


@pytest.fixture(scope="module")
def platform():
    return read(shipped_pipeline())[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def tasks_of(pipeline):
    found = {}
    for dag in (pipeline["root"], *pipeline["components"].values()):
        for name, task in dag.get("dag", {}).get("tasks", {}).items():
            found[name] = task
    return found


def test_the_checked_in_file_is_what_the_source_compiles_to():
    assert shipped_pipeline().read_text() == compile_pipeline(), "run `ctmr pipeline compile`"


def test_it_parses_strictly_into_the_protobufs_and_back(pipeline):
    message = json_format.ParseDict(pipeline, pipeline_spec_pb2.PipelineSpec(), ignore_unknown_fields=False)
    again = json_format.MessageToDict(message)
    assert again["root"] == json.loads(json.dumps(pipeline["root"]))


def test_every_stage_is_a_task_that_takes_what_the_stage_takes(pipeline):
    tasks = tasks_of(pipeline)
    for name in STAGE_NAMES:
        upstream = {where.partition("/")[0] for where in stages.load(name).takes.values()}
        assert set(tasks[name]["inputs"].get("artifacts", {})) == upstream, name


def test_what_changes_the_world_or_must_look_again_is_never_cached(pipeline):
    tasks = tasks_of(pipeline)
    uncached = {
        n
        for n, t in tasks.items()
        if "executorLabel" in pipeline["components"][t["componentRef"]["name"]]
        and not t["cachingOptions"].get("enableCache")
    }
    assert uncached == {"start", "create-study", "work-on-study", "register", "deploy", "reject"}


def test_the_pinned_dataset_is_in_the_cache_key_of_fetch(pipeline):
    source = tasks_of(pipeline)["fetch"]["inputs"]["parameters"]["dataset"]["taskOutputParameter"]
    assert source == {"outputParameterKey": "dataset", "producerTask": "start"}


def test_training_asks_for_an_accelerator_and_registering_does_not(pipeline):
    executors = pipeline["deploymentSpec"]["executors"]
    with_one = {
        n.removeprefix("exec-") for n, e in executors.items() if "accelerator" in e["container"].get("resources", {})
    }
    assert with_one == {"work-on-study", "tune", "train", "evaluate"}


def test_only_what_may_be_done_twice_is_retried(pipeline):
    retried = {n for n, t in tasks_of(pipeline).items() if "retryPolicy" in t}
    assert retried == {"fetch", "work-on-study", "tune", "train"}


def test_secrets_come_from_the_cluster_and_none_is_written_down(pipeline, platform):
    assert all("env" not in e["container"] for e in pipeline["deploymentSpec"]["executors"].values())
    for name, executor in platform.items():
        assert [s["secretName"] for s in executor["secretAsEnv"]] == ["ctmr"], name
        assert all(s["optional"] for s in executor["secretAsEnv"])


def test_another_image_is_the_only_difference():
    ours, other = compile_pipeline(), compile_pipeline("reg.example/ctmr@sha256:0")
    changed = [(a, b) for a, b in zip(ours.splitlines(), other.splitlines(), strict=True) if a != b]
    assert len(changed) == 12
    assert all(a.strip().startswith("image: ctmr:") for a, _ in changed)
    assert all(b.strip() == "image: reg.example/ctmr@sha256:0" for _, b in changed)


def test_a_stage_gets_its_own_recipe_sections_and_nothing_else():
    recipe = recipe_for("demo", ["train.steps=7"], {"paired_volume_hu.psnr.min": 24}, "10.0.0.1:8001")
    settings = stage_settings(recipe)
    for name in STAGE_NAMES:
        sections = stages.load(name).sections
        assert set(json.loads(settings[name])) == {"name", *sections}
        assert section_digest(recipe_from(settings[name]), sections) == section_digest(recipe, sections)
    assert json.loads(settings["train"])["train"]["steps"] == 7
    assert json.loads(settings["evaluate"])["gate"]["paired_volume_hu"]["psnr"]["min"] == 24
    assert json.loads(settings["deploy"])["deploy"]["url"] == "10.0.0.1:8001"


def test_a_changed_gate_limit_leaves_the_settings_of_training_alone():
    before, after = (
        stage_settings(recipe_for("demo", [], limits, "")) for limits in ({}, {"paired_volume_hu.psnr.min": 99})
    )
    assert [n for n in STAGE_NAMES if before[n] != after[n]] == ["evaluate"]


def test_gate_entries_that_were_taken_out_do_not_come_back():
    recipe = recipe_for("demo", ["gate={cycle_slice: {ssim: {min: 0}}}"], {}, "")
    assert set(recipe_from(stage_settings(recipe)["evaluate"]).gate.limits) == {"cycle_slice"}


def test_a_recipe_may_come_as_text():
    assert recipe_for("name: mine\ntrain: {steps: 5}\n", [], {}, "").train.steps == 5


def test_a_limit_on_an_unknown_metric_is_named():
    with pytest.raises(CtmrError, match="psmr"):
        recipe_for("demo", [], {"paired_volume_hu.psmr.min": 24}, "")


def test_parameters_have_defaults_of_their_types(pipeline):
    parameters = pipeline["root"]["inputDefinitions"]["parameters"]
    assert all(p["isOptional"] for p in parameters.values())
    kinds = {n: p["parameterType"] for n, p in parameters.items()}
    assert kinds.pop("overrides") == "LIST" and kinds.pop("limits") == "STRUCT"
    assert set(kinds.values()) == {"STRING"}


def test_the_file_is_yaml_of_two_documents():
    assert len(list(yaml.safe_load_all(shipped_pipeline().read_text()))) == 2
