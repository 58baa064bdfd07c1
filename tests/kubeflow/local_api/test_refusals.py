"""What the local runner refuses over HTTP, whom, and how it says so; what it does when it cannot write."""

from __future__ import annotations

import errno
import json
import resource
from contextlib import contextmanager

import pytest

WELL = "echo well > ended"
PIPELINE_FORM = {"Content-Type": "multipart/form-data; boundary=x"}


@pytest.fixture(scope="module")
def refusing(tmp_path_factory, running):
    """A local runner that gets nothing but what it refuses."""
    with running(tmp_path_factory.mktemp("refusing")) as runner:
        yield runner


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({}, "script (STRING) is missing"),
        ({"script": 7}, "script is 7 (a number), expected STRING"),
        ({"script": "", "count": 1.5}, "count is 1.5 (a number), expected NUMBER_INTEGER"),
        ({"script": "", "rate": "fast"}, 'rate is "fast" (text), expected NUMBER_DOUBLE'),
        ({"script": "", "flag": 1}, "flag is 1 (a number), expected BOOLEAN"),
        ({"script": "", "items": {}}, "items is {} (an object), expected LIST"),
        ({"script": "", "table": []}, "table is [] (a list), expected STRUCT"),
        ({"script": "", "colour": "red"}, "colour is unknown"),
    ],
)
def test_ill_typed_parameters_are_refused_and_leave_nothing(refusing, pipeline_spec, parameters, said):
    answer = refusing.call(
        "POST",
        "runs",
        {"display_name": "r", "pipeline_spec": pipeline_spec, "runtime_config": {"parameters": parameters}},
    )
    assert (answer.status, answer.tree["code"]) == (400, 3)
    assert said in answer.message
    assert "It takes count (NUMBER_INTEGER, default 3)" in answer.message
    assert refusing.call("GET", "runs").tree["runs"] == []
    assert list((refusing.folder / "runs").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"display_name": ""}, "display_name is ''"),
        ({"display_name": "x" * 257}, "257 characters"),
        ({"display_name": 3}, "display_name is 3"),
        ({"pipeline_spec": None}, "either pipeline_spec or pipeline_version_reference"),
        ({"pipeline_spec": {"root": {}, "nonsense": 1}}, "nonsense"),
        ({"pipeline_version_reference": {"pipeline_id": "x"}}, "either pipeline_spec or"),
        ({"runtime_config": {"parameters": [1]}}, "parameters is [1]"),
        ({"runtime_config": {"pipeline_root": "s3://x", "parameters": {}}}, "leave pipeline_root out"),
    ],
)
def test_an_impossible_run_is_refused(refusing, pipeline_spec, change, said):
    body = {"display_name": "r", "pipeline_spec": pipeline_spec, "runtime_config": {"parameters": {"script": WELL}}}
    answer = refusing.call("POST", "runs", body | change)
    assert answer.status == 400
    assert said in answer.message


def test_a_run_in_an_experiment_that_is_not_there_is_not_found(refusing, pipeline_spec):
    body = {
        "display_name": "r",
        "experiment_id": "nowhere",
        "pipeline_spec": pipeline_spec,
        "runtime_config": {"parameters": {"script": WELL}},
    }
    assert refusing.call("POST", "runs", body).status == 404


def test_a_pipeline_that_kfp_local_runs_wrongly_is_refused(refusing, pipeline_spec):
    pipeline_spec["deploymentSpec"]["executors"]["exec-work"]["container"]["command"] = ["sh", "-c", "pip install x"]
    body = {"display_name": "r", "pipeline_spec": pipeline_spec, "runtime_config": {"parameters": {"script": WELL}}}
    answer = refusing.call("POST", "runs", body)
    assert answer.status == 400
    assert "installs-packages" in answer.message


def test_foreign_code_is_refused_inline_and_as_an_upload(tmp_path, running, pipeline_spec):
    reference = tmp_path / "reference.yaml"
    reference.write_text(json.dumps(pipeline_spec))
    with running(tmp_path / "pipelines", trusted=reference) as runner:
        runner.wait(runner.submit(WELL)["run_id"], "SUCCEEDED")
        executor = pipeline_spec["deploymentSpec"]["executors"]["exec-work"]
        executor["container"]["command"][-1] = "print('evil')"
        body = {"display_name": "r", "pipeline_spec": pipeline_spec, "runtime_config": {"parameters": {"script": ""}}}
        answer = runner.call("POST", "runs", body)
        assert answer.status == 400
        assert "it differs in" in answer.message
        assert "CTMR_ALLOW_ANY_PIPELINE=1" in answer.message
        upload = b'--x\r\nContent-Disposition: form-data; name="uploadfile"; filename="a.yaml"\r\n\r\n%s\r\n--x--\r\n'
        form = upload % json.dumps(pipeline_spec).encode()
        answer = runner.call("POST", "pipelines/upload", raw=form, headers=PIPELINE_FORM)
        assert answer.status == 400
        assert "it differs in" in answer.message
        assert runner.call("GET", "pipelines").tree["total_size"] == 0


def test_other_users_of_the_machine_are_refused(refusing):
    """Their calls come from loopback, by its right name and from no web page: only the token tells them apart."""
    guesses = ("", "Bearer", "Bearer ", "Bearer x", f"Basic {refusing.token}", refusing.token, "Bearer Ω".encode())
    for guess in guesses:
        for method, path in (("GET", "healthz"), ("POST", "runs"), ("GET", "runs"), ("DELETE", "runs/x"), ("GET", "/")):
            answer = refusing.call(method, path, {}, headers={"Authorization": guess})
            assert (answer.status, answer.tree["code"]) == (401, 16), (guess, method, path)
            assert 'export KFP_EXISTING_TOKEN="$(cat "${CTMR_HOME:-.ctmr}/pipelines/token")"' in answer.message
            assert refusing.token not in answer.message


def test_other_names_of_this_host_are_refused(refusing):
    for host in ("evil.example", f"evil.example:{refusing.port}", "127.0.0.1", "127.0.0.1:1", ""):
        answer = refusing.call("GET", "runs", headers={"Host": host})
        assert (answer.status, answer.tree["code"]) == (403, 7), host
        assert "Host" in answer.message
        assert "ctmr local runner" in answer.message
    assert refusing.call("GET", "runs", headers={"Host": f"LOCALHOST:{refusing.port}"}).status == 200


def test_web_pages_of_other_sites_are_refused(refusing):
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": f"http://127.0.0.1:{refusing.port + 1}"},
        {"Sec-Fetch-Site": "cross-site"},
    ):
        for method, path in (("POST", "experiments"), ("GET", "runs"), ("OPTIONS", "runs")):
            answer = refusing.call(method, path, {"display_name": "x"}, headers=headers)
            assert answer.status == 403, (headers, method)
            assert "web pages may not call" in answer.message
    assert refusing.call("GET", "experiments").tree["experiments"] == []
    assert refusing.call("GET", "runs", headers={"Origin": refusing.url}).status == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"])
def test_what_changes_something_must_come_as_json_or_a_form(refusing, kind):
    body = json.dumps({"display_name": "x"}).encode()
    answer = refusing.call("POST", "experiments", raw=body, headers={"Content-Type": kind})
    assert answer.status == 415
    assert "application/json" in answer.message
    assert refusing.call("DELETE", "experiments/x", headers={"Content-Type": kind}).status == 415


def test_a_form_where_json_belongs_is_refused(refusing):
    assert refusing.call("POST", "experiments", raw=b"--x--\r\n", headers=PIPELINE_FORM).status == 415
    assert refusing.call("POST", "pipelines/upload", {"a": 1}).status == 415


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[1]",
        b"3",
        b'{"display_name": "x", "other": NaN}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"display_name": ' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_not_a_json_object_is_refused(refusing, body):
    answer = refusing.call("POST", "experiments", raw=body)
    assert (answer.status, answer.tree["code"]) == (400, 3)


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"--x--\r\n", PIPELINE_FORM),
        (b"nothing", PIPELINE_FORM),
        (b"--x--\r\n", {"Content-Type": "multipart/form-data"}),
        (b'--x\r\nContent-Disposition: form-data; name="other"; filename="a"\r\n\r\nx\r\n--x--\r\n', PIPELINE_FORM),
        (
            b'--x\r\nContent-Disposition: form-data; name="uploadfile"; filename="a.zip"\r\n\r\n'
            b"PK\x03\x04\r\n--x--\r\n",
            PIPELINE_FORM,
        ),
    ],
)
def test_an_upload_without_a_compiled_file_is_refused(refusing, body, headers):
    answer = refusing.call("POST", "pipelines/upload", raw=body, headers=headers)
    assert (answer.status, answer.tree["code"]) == (400, 3)


def test_a_body_beyond_the_limit_is_refused(refusing, monkeypatch):
    from ctmr.kubeflow.local_api import app

    monkeypatch.setattr(app, "LARGEST_BODY_BYTES", 2**20)
    body = json.dumps({"display_name": "x", "description": "y" * 2**20}).encode()
    answer = refusing.call("POST", "experiments", raw=body)
    assert answer.status == 413
    assert "1 MiB" in answer.message


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "recurringruns", 501),
        ("POST", "recurringruns", 501),
        ("POST", "runs/x:retry", 501),
        ("PATCH", "pipelines/x", 501),
        ("GET", "/apis/v1beta1/runs", 501),
        ("GET", "/", 404),
        ("GET", "/pipeline/", 404),
        ("GET", "runs/x", 404),
        ("POST", "runs/x:terminate", 404),
        ("GET", "pipelines/names/x", 404),
        ("GET", "pipelines/x/versions", 404),
    ],
)
def test_what_is_not_served_says_so_in_the_apis_form(refusing, method, path, status):
    answer = refusing.call(method, path)
    assert answer.status == status
    if status == 501 or not path.count("x"):
        assert "this is the ctmr local runner, not Kubeflow" in answer.message
        assert "It serves experiments, runs" in answer.message


@contextmanager
def largest_file(size: int):
    """Let no file of this process grow beyond a size, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_said_and_leaves_nothing_half_written(local_runner, pipeline_spec):
    body = {"display_name": "r", "pipeline_spec": pipeline_spec, "runtime_config": {"parameters": {"script": WELL}}}
    experiment = local_runner.call("POST", "experiments", {"display_name": "e"}).tree["experiment_id"]
    with largest_file(100):
        answer = local_runner.call("POST", "runs", body | {"experiment_id": experiment})
    assert (answer.status, answer.tree["code"]) == (503, 14)
    assert "make room on the disk" in answer.message
    assert local_runner.call("GET", "runs").tree["runs"] == []
    assert list((local_runner.folder / "runs").iterdir()) == []
    local_runner.wait(local_runner.submit(WELL)["run_id"], "SUCCEEDED")


def test_a_run_whose_record_cannot_be_written_leaves_no_folder(local_runner, pipeline_spec, monkeypatch):
    def no_room(*args, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    experiment = local_runner.call("POST", "experiments", {"display_name": "e"}).tree["experiment_id"]
    body = {
        "display_name": "r",
        "experiment_id": experiment,
        "pipeline_spec": pipeline_spec,
        "runtime_config": {"parameters": {"script": WELL}},
    }
    with monkeypatch.context() as patch:
        patch.setattr(local_runner.records, "add", no_room)
        answer = local_runner.call("POST", "runs", body)
    assert answer.status == 503
    assert "No space left" in answer.message
    assert list((local_runner.folder / "runs").iterdir()) == []


def test_a_fault_of_the_server_is_said_in_the_apis_form(local_runner, monkeypatch):
    def fault(*args, **more):
        raise AssertionError("secret detail")

    monkeypatch.setattr(local_runner.records, "all", fault)
    answer = local_runner.call("GET", "runs")
    assert (answer.status, answer.tree["code"]) == (500, 13)
    assert "secret" not in answer.message
