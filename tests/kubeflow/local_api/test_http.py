"""The calls of the Kubeflow Pipelines API over HTTP, as kfp's own client makes and reads them."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest

WELL = "echo well > ended"


@contextmanager
def refused(status: int, *parts: str):
    """Expect kfp's client to be refused with a sentence."""
    from kfp_server_api import ApiException

    with pytest.raises(ApiException) as error:
        yield
    assert error.value.status == status
    message = json.loads(error.value.body)["message"]
    for part in parts:
        assert part in message


@pytest.fixture
def compiled(tmp_path, pipeline_spec):
    """A compiled file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(json.dumps(pipeline_spec))
    return str(path)


def test_health_says_what_this_server_is(local_runner):
    health = local_runner.client().get_kfp_healthz()
    assert health.multi_user is False
    assert health.pipeline_store == "ctmr local runner"
    assert local_runner.call("GET", "healthz").headers["server"] == "ctmr local runner"


def test_experiments(local_runner):
    client = local_runner.client()
    made = client.create_experiment("brains", description="of phantoms")
    assert client.create_experiment("brains").experiment_id == made.experiment_id
    assert client.get_experiment(made.experiment_id).description == "of phantoms"
    assert client.get_experiment(experiment_name="brains").created_at.tzinfo is not None
    client.create_experiment("other")
    assert [e.display_name for e in client.list_experiments(sort_by="display_name desc").experiments] == [
        "other",
        "brains",
    ]
    client.archive_experiment(made.experiment_id)
    assert client.get_experiment(made.experiment_id).storage_state == "ARCHIVED"
    client.unarchive_experiment(made.experiment_id)
    assert client.get_experiment(made.experiment_id).storage_state == "AVAILABLE"
    client.delete_experiment(made.experiment_id)
    with refused(404, made.experiment_id):
        client.get_experiment(made.experiment_id)


def test_of_two_who_make_the_same_experiment_at_once_both_get_it(local_runner):
    first, second = (local_runner.call("POST", "experiments", {"display_name": "x"}) for _ in range(2))
    assert (first.status, second.status) == (200, 200)
    assert first.tree == second.tree
    other = local_runner.call("POST", "experiments", {"display_name": "x", "description": "another"})
    assert (other.status, other.tree["code"]) == (409, 6)


def test_a_run_from_a_package_to_its_end(local_runner, compiled):
    client = local_runner.client()
    submitted = client.create_run_from_pipeline_package(
        compiled, {"script": WELL, "rate": 2, "count": 4.0}, run_name="mine", experiment_name="e"
    )
    run = client.wait_for_run_completion(submitted.run_id, timeout=20, sleep_duration=0.1)
    assert run.state == "SUCCEEDED"
    assert run.display_name == "mine"
    assert run.experiment_id == client.get_experiment(experiment_name="e").experiment_id
    assert run.runtime_config.parameters == {"script": WELL, "rate": 2.0, "count": 4}
    given = json.loads((local_runner.folder / "runs" / run.run_id / "params.json").read_text())
    assert {k: type(v) for k, v in given.items()} == {"script": str, "rate": float, "count": int}
    assert run.created_at <= run.scheduled_at <= run.finished_at
    assert [s.state for s in run.state_history] == ["PENDING", "RUNNING", "SUCCEEDED"]
    assert run.pipeline_spec["pipelineInfo"]["name"] == "tiny"
    assert client.get_experiment(run.experiment_id).last_run_created_at == run.created_at


def test_runs_are_listed_by_experiment_state_and_page(local_runner, compiled):
    client = local_runner.client()
    for name, script in (("a", WELL), ("b", "exit 1"), ("c", WELL)):
        made = client.create_run_from_pipeline_package(
            compiled, {"script": script}, run_name=name, experiment_name="x" if name == "a" else "y"
        )
        client.wait_for_run_completion(made.run_id, timeout=20, sleep_duration=0.05)
    first = client.list_runs(page_size=2, sort_by="created_at desc")
    assert [r.display_name for r in first.runs] == ["c", "b"]
    assert first.total_size == 3
    rest = client.list_runs(page_size=2, sort_by="created_at desc", page_token=first.next_page_token)
    assert [r.display_name for r in rest.runs] == ["a"]
    assert not rest.next_page_token
    of_y = client.list_runs(experiment_id=client.get_experiment(experiment_name="y").experiment_id)
    assert [r.display_name for r in of_y.runs] == ["b", "c"]
    wanted = {"predicates": [{"operation": 1, "key": "state", "stringValue": "FAILED"}]}
    assert [r.display_name for r in client.list_runs(filter=json.dumps(wanted)).runs] == ["b"]


def test_a_run_is_archived_brought_back_and_deleted(local_runner):
    client = local_runner.client()
    key = local_runner.submit("sleep 60")["run_id"]
    client.archive_run(key)
    assert client.get_run(key).storage_state == "ARCHIVED"
    client.unarchive_run(key)
    assert client.get_run(key).storage_state == "AVAILABLE"
    with refused(400, "terminate it before it is deleted"):
        client.delete_run(key)
    client.terminate_run(key)
    local_runner.wait(key, "CANCELED")
    client.delete_run(key)
    with refused(404, key):
        client.get_run(key)
    assert list((local_runner.folder / "runs").iterdir()) == []


def test_a_pipeline_is_uploaded_and_its_versions_run(local_runner, compiled):
    client = local_runner.client()
    pipeline = client.upload_pipeline(compiled, pipeline_name="heads", description="of phantoms")
    assert client.get_pipeline_id("heads") == pipeline.pipeline_id
    assert client.get_pipeline(pipeline.pipeline_id).description == "of phantoms"
    second = client.upload_pipeline_version(compiled, "v2", pipeline_id=pipeline.pipeline_id)
    versions = client.list_pipeline_versions(pipeline.pipeline_id).pipeline_versions
    assert [v.display_name for v in versions] == ["heads", "v2"]
    found = client.get_pipeline_version(pipeline.pipeline_id, second.pipeline_version_id)
    assert found.pipeline_spec["pipelineInfo"]["name"] == "tiny"
    experiment = client.create_experiment("e").experiment_id
    run = client.run_pipeline(
        experiment,
        "r",
        pipeline_id=pipeline.pipeline_id,
        version_id=second.pipeline_version_id,
        params={"script": WELL},
    )
    assert run.pipeline_version_reference.pipeline_version_id == second.pipeline_version_id
    newest = local_runner.call(
        "POST",
        "runs",
        {
            "display_name": "r",
            "pipeline_version_reference": {"pipeline_id": pipeline.pipeline_id},
            "runtime_config": {"parameters": {"script": WELL}},
        },
    )
    assert newest.tree["pipeline_version_reference"]["pipeline_version_id"] == second.pipeline_version_id
    client.delete_pipeline_version(pipeline.pipeline_id, second.pipeline_version_id)
    client.delete_pipeline(pipeline.pipeline_id)
    assert not client.list_pipelines().pipelines
    # A run keeps what it was submitted with.
    assert local_runner.wait(run.run_id, "SUCCEEDED")["pipeline_spec"]["pipelineInfo"]["name"] == "tiny"


def test_two_pipelines_of_one_name_are_refused(local_runner, compiled):
    client = local_runner.client()
    client.upload_pipeline(compiled, pipeline_name="heads")
    with refused(409, "'heads' already"):
        client.upload_pipeline(compiled, pipeline_name="heads")
    assert client.list_pipelines().total_size == 1


def test_the_stages_of_a_run_are_its_tasks(local_runner):
    events = [
        {"stage": "fetch", "started": "2026-01-01T10:00:00+00:00"},
        {"stage": "fetch", "message": "half", "fraction": 0.5},
        {"stage": "fetch", "result": {"seconds": 2.5, "reused": False}},
        {"stage": "tune", "started": "2026-01-01T10:00:03+00:00"},
        {"stage": "tune", "started": "2026-01-01T10:00:04+00:00"},
        {"stage": "train", "started": "2026-01-01T10:00:09+00:00"},
        {"stage": "train", "error": "the shards are a spoon", "exit_code": 2},
    ]
    lines = "\n".join(json.dumps(e) for e in events)
    key = local_runner.submit(f"cat > events.jsonl <<'E'\n{lines}\ntorn {{\nE\nexec sleep 60")["run_id"]
    local_runner.wait_for(local_runner.folder / "runs" / key / "events.jsonl")
    tasks = {t.display_name: t for t in local_runner.client().get_run(key).run_details.task_details}
    assert {name: t.state for name, t in tasks.items()} == {
        "fetch": "SUCCEEDED",
        "tune": "SUCCEEDED",
        "train": "FAILED",
    }
    assert (tasks["fetch"].end_time - tasks["fetch"].start_time).total_seconds() == 2.5
    assert tasks["tune"].end_time == tasks["train"].start_time
    assert (tasks["train"].error.code, tasks["train"].error.message) == (3, "the shards are a spoon")
    local_runner.call("POST", f"runs/{key}:terminate")


def test_a_stage_that_ran_when_its_run_was_cancelled_is_cancelled(local_runner):
    event = json.dumps({"stage": "train", "started": "2026-01-01T10:00:00+00:00"})
    key = local_runner.submit(f"echo '{event}' > events.jsonl; exec sleep 60")["run_id"]
    local_runner.wait_for(local_runner.folder / "runs" / key / "events.jsonl")
    assert local_runner.run(key)["run_details"]["task_details"][0]["state"] == "RUNNING"
    local_runner.call("POST", f"runs/{key}:terminate")
    ended = local_runner.wait(key, "CANCELED")
    assert ended["run_details"]["task_details"][0]["state"] == "CANCELED"
    assert ended["run_details"]["task_details"][0]["end_time"] == ended["finished_at"]
