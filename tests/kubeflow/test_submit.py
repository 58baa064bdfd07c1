"""Submitting a run from a command that ends as the run ends."""

from __future__ import annotations

import http.server
import json
import threading
from contextlib import contextmanager

import pytest

from ctmr.errors import CtmrError, EnvironmentFault, InputError
from ctmr.kubeflow import submit as module
from ctmr.kubeflow.submit import submit

WELL = "echo well > ended"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(module, "POLL_S", 0.05)
    monkeypatch.setattr(module, "PATIENCE_S", 0.3)


@pytest.fixture
def compiled(tmp_path, pipeline_spec):
    path = tmp_path / "tiny.yaml"
    path.write_text(json.dumps(pipeline_spec))
    return path


@contextmanager
def answering(status: int, body: str):
    """A server that gives one answer to everything."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_run_is_watched_with_a_line_for_each_change(local_runner, compiled, capsys):
    events = [
        {"stage": "fetch", "started": "2026-01-01T10:00:00+00:00"},
        {"stage": "train", "started": "2026-01-01T10:00:01+00:00"},
    ]
    lines = "\n".join(json.dumps(e) for e in events)
    script = f"cat > events.jsonl <<'E'\n{lines}\nE\nsleep 0.4; {WELL}"
    submit(local_runner.url, "brains", compiled, [f"script={script}"], run_name="mine", token=local_runner.token)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("run ")
    assert f"(mine) submitted to {local_runner.url}" in said[0]
    changes = [tuple(line.split()) for line in said[1:]]
    assert changes[-1] == ("run", "SUCCEEDED")
    assert {("fetch", "SUCCEEDED"), ("train", "RUNNING"), ("train", "SUCCEEDED")} <= set(changes)
    assert len(changes) == len(set(changes))
    run = local_runner.client().list_runs().runs[0]
    assert run.display_name == "mine"
    assert local_runner.client().get_experiment(run.experiment_id).display_name == "brains"


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("3", 3), ("2.5", 2.5), ('["a"]', ["a"]), ('{"a": 1}', {"a": 1}), ('"3"', "3"), ("v 1", "v 1")],
)
def test_values_are_read_as_kfp_reads_them(text, value):
    assert module.parameters_of([f"it={text}"]) == {"it": value}


def test_the_runs_name_is_the_experiments_unless_it_has_one(local_runner, compiled):
    submit(local_runner.url, "brains", compiled, [f"script={WELL}"], watch=False, token=local_runner.token)
    assert local_runner.client().list_runs().runs[0].display_name == "brains"


@pytest.mark.parametrize(
    ("script", "error", "said"),
    [
        ("echo the image is a spoon > ended", InputError, "the image is a spoon"),
        ("exit 1", EnvironmentFault, "it was killed"),
    ],
)
def test_a_failed_run_raises_the_error_of_its_exit_code(local_runner, compiled, script, error, said):
    with pytest.raises(error, match=f"^{said}$"):
        submit(local_runner.url, "e", compiled, [f"script={script}"], token=local_runner.token)


def test_a_run_of_a_cluster_that_failed_without_a_sentence_takes_its_tasks(monkeypatch):
    from kfp_server_api import GoogleRpcStatus, V2beta1PipelineTaskDetail, V2beta1Run, V2beta1RunDetails

    task = V2beta1PipelineTaskDetail(
        display_name="train", state="FAILED", error=GoogleRpcStatus(code=13, message="OOMKilled")
    )
    run = V2beta1Run(run_id="r", state="FAILED", run_details=V2beta1RunDetails(task_details=[task]))
    found = module.failure(run)
    assert (type(found), str(found)) == (CtmrError, "OOMKilled")
    assert "does not say why" in str(module.failure(V2beta1Run(run_id="r", state="FAILED")))


def test_a_cancelled_run_is_an_error(local_runner, compiled):
    def cancel(line: str) -> None:
        if line.split() == ["run", "RUNNING"]:
            key = local_runner.call("GET", "runs").tree["runs"][0]["run_id"]
            local_runner.call("POST", f"runs/{key}:terminate")

    with pytest.raises(CtmrError, match="was canceled"):
        submit(local_runner.url, "e", compiled, ["script=sleep 60"], say=cancel, token=local_runner.token)


def test_waiting_has_a_limit_and_leaves_the_run_alone(local_runner, compiled):
    with pytest.raises(CtmrError, match=r"still RUNNING after 0.3 s"):
        submit(local_runner.url, "e", compiled, ["script=sleep 60"], watch=False, timeout=0.3, token=local_runner.token)
    key = local_runner.call("GET", "runs").tree["runs"][0]["run_id"]
    assert local_runner.run(key)["state"] == "RUNNING"


def test_what_the_server_refuses_is_an_input_error_with_its_sentence(local_runner, compiled):
    with pytest.raises(InputError, match=r"^the parameters do not fit the pipeline: script is 3 \(a number\)") as found:
        submit(local_runner.url, "e", compiled, ["script=3"], token=local_runner.token)
    assert found.value.exit_code == 2


@pytest.mark.parametrize(("argument", "said"), [("dataset", "'dataset' is not name=value"), ("=3", "not name=value")])
def test_an_argument_is_name_and_value(argument, said):
    with pytest.raises(InputError, match=said):
        submit("http://127.0.0.1:1", "e", "x.yaml", [argument])


def test_a_parameter_is_given_once():
    with pytest.raises(InputError, match="a is given twice"):
        submit("http://127.0.0.1:1", "e", "x.yaml", ["a=1", "a=2"])


@pytest.mark.parametrize("content", ["a: [", "just text", "root: 3", "surprise: {}"])
def test_a_file_that_is_no_compiled_pipeline_is_an_input_error(local_runner, tmp_path, content):
    path = tmp_path / "broken.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=r"broken\.yaml is not a compiled pipeline"):
        submit(local_runner.url, "e", path, [], token=local_runner.token)


def test_a_missing_file_and_an_impossible_address_are_input_errors(compiled, tmp_path):
    with pytest.raises(InputError, match=r"no compiled pipeline .*absent\.yaml"):
        submit("http://127.0.0.1:1", "e", tmp_path / "absent.yaml", [])
    with pytest.raises(InputError, match=r"'127\.0\.0\.1:8888' is no address"):
        submit("127.0.0.1:8888", "e", compiled, [])


def test_a_server_that_does_not_answer_is_a_fault_of_the_environment(compiled):
    with pytest.raises(EnvironmentFault, match=r"no pipeline server answers at http://127\.0\.0\.1:1 .*`ctmr up`"):
        submit("http://127.0.0.1:1", "e", compiled, [])


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (404, "<html>", "status 404: it has no Kubeflow Pipelines API"),
        (200, "<html>", "status 200: it has no Kubeflow Pipelines API"),
        (500, "", "status 500"),
        (403, '{"message": "not you"}', "status 403: not you"),
        (401, '{"message": "who are you"}', "status 401: who are you"),
    ],
)
def test_another_server_is_a_fault_of_the_environment(compiled, status, body, said):
    with answering(status, body) as url, pytest.raises(EnvironmentFault, match=said):
        submit(url, "e", compiled, [])


def test_a_server_that_vanishes_while_a_run_is_watched_is_a_fault_after_some_patience(tmp_path, running, compiled):
    context = running(tmp_path / "pipelines")
    runner = context.__enter__()
    gone = []

    def vanish(line: str) -> None:
        if line.split() == ["run", "RUNNING"] and not gone:
            gone.append(line)
            context.__exit__(None, None, None)

    with pytest.raises(EnvironmentFault, match="no pipeline server answers"):
        submit(runner.url, "e", compiled, ["script=sleep 60"], say=vanish, token=runner.token)
    assert gone
