"""The real server process and the real runner, driven by the unmodified kfp command line and client."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctmr.errors import CtmrError, EnvironmentFault, InputError
from ctmr.kubeflow.submit import submit
from ctmr.pipeline.kfp_local import shipped_pipeline
from ctmr.system.processes import start_time

pytestmark = pytest.mark.slow
FINAL = ("SUCCEEDED", "FAILED", "CANCELED")


class Server:
    """A server process on a port."""

    def __init__(self, home: Path, port: int, log: Path, **environment: str) -> None:
        self.home, self.port, self.log = home, port, log
        self.url = f"http://127.0.0.1:{port}"
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ctmr.kubeflow.local_api", "--port", str(port)],
                stdout=stream,
                stderr=stream,
                env={**os.environ, "CTMR_HOME": str(home), **environment},
                start_new_session=True,
            )
        end = time.monotonic() + 60
        while not self.answers():
            assert self.process.poll() is None, log.read_text()
            assert time.monotonic() < end
            time.sleep(0.05)

    @property
    def token(self) -> str:
        return (self.home / "pipelines" / "token").read_text()

    def answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.wait(30)

    def kfp(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run kfp's own command line."""
        env = {**os.environ, "KFP_EXISTING_TOKEN": self.token}
        command = [str(Path(sys.executable).parent / "kfp"), "--endpoint", self.url, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, env=env)

    def client(self):
        import kfp

        return kfp.Client(host=self.url, existing_token=self.token)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> str:
    """Two tasks, compiled; kfp reads their types, which must not be text then."""
    from kfp import compiler, dsl

    @dsl.component(install_kfp_package=False)
    def note(text: str, path: str, rate: float, seconds: float) -> str:
        """Write down what arrived, and this process; take a while."""
        import os
        import time
        from pathlib import Path

        if path:
            Path(path).write_text(f"{os.getpid()}\n{text!r} {rate!r}\n")
        time.sleep(seconds)
        return text

    @dsl.component(install_kfp_package=False)
    def judge(text: str, fail: bool):
        """Fail when asked."""
        if fail:
            raise SystemExit(f"{text} is a spoon")

    @dsl.pipeline(name="tiny")
    def tiny(text: str, path: str = "", rate: float = 1.0, seconds: float = 0.0, fail: bool = False):
        """Two tasks."""
        noted = note(text=text, path=path, rate=rate, seconds=seconds)
        judge(text=noted.output, fail=fail)

    path = tmp_path_factory.mktemp("package") / "tiny.yaml"
    compiler.Compiler().compile(tiny, str(path))
    return str(path)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    started = Server(folder / "home", free_port(), folder / "log", CTMR_ALLOW_ANY_PIPELINE="1")
    yield started
    started.end()


def document(text: str):
    """The JSON document that ends an output."""
    return json.loads(text[text.index("\n{") if not text.startswith(("{", "[")) else 0 :])


def wait_until(holds, timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_kfp_run_submit_watches_a_run_to_its_end(server, package, tmp_path):
    noted = tmp_path / "noted"
    done = server.kfp(
        "run",
        "submit",
        "-e",
        "brains",
        "-r",
        "mine",
        "-f",
        package,
        "-w",
        "text=hello world",
        f"path={noted}",
        "rate=2",
    )
    assert done.returncode == 0, done.stderr
    assert "Run is finished with state SUCCEEDED." in done.stdout
    # An integer for a double arrives as a double.
    assert noted.read_text().splitlines()[1] == "'hello world' 2.0"
    listed = server.kfp("--output", "json", "run", "list")
    run = next(r for r in json.loads(listed.stdout) if r["display_name"] == "mine")
    assert run["state"] == "SUCCEEDED"
    got = json.loads(server.kfp("--output", "json", "run", "get", run["run_id"]).stdout)
    assert got["runtime_config"]["parameters"]["text"] == "hello world"
    assert got["finished_at"] > got["created_at"]
    assert "brains" in server.kfp("experiment", "list").stdout


def test_kfp_run_submit_of_a_failing_run_exits_0_but_the_record_says_failed(server, package):
    done = server.kfp("--output", "json", "run", "submit", "-e", "x", "-f", package, "-w", "text=it", "fail=true")
    assert done.returncode == 0, done.stderr
    assert "Run is finished with state FAILED." in done.stdout
    newest = server.client().list_runs(sort_by="created_at desc", page_size=1).runs[0]
    assert newest.state == "FAILED"
    assert newest.error.code == 9
    assert "it is a spoon" in newest.error.message


def test_kfp_run_submit_shows_what_is_wrong_with_a_parameter(server, package):
    done = server.kfp("run", "submit", "-e", "x", "-f", package, "text=1", "rats=2")
    assert done.returncode != 0
    assert "rats is unknown; text is 1 (a number), expected STRING" in done.stderr


def test_kfp_pipeline_create_and_list_and_a_run_by_version(server, package):
    assert server.kfp("pipeline", "create", "-p", "heads", package).returncode == 0
    listed = json.loads(server.kfp("--output", "json", "pipeline", "list").stdout)
    assert [p["display_name"] for p in listed] == ["heads"]
    client, pipeline = server.client(), listed[0]["pipeline_id"]
    version = client.list_pipeline_versions(pipeline).pipeline_versions[0].pipeline_version_id
    assert server.kfp("run", "submit", "-e", "x", "-p", pipeline, "-v", version, "text=a").returncode == 0
    run = client.list_runs(sort_by="created_at desc", page_size=1).runs[0]
    assert client.wait_for_run_completion(run.run_id, 60, sleep_duration=0.2).state == "SUCCEEDED"


def test_a_running_run_is_cancelled_with_its_tasks(server, package, tmp_path):
    noted = tmp_path / "noted"
    client = server.client()
    run = client.create_run_from_pipeline_package(package, {"text": "a", "path": str(noted), "seconds": 60.0})
    wait_until(noted.exists)
    client.terminate_run(run.run_id)
    wait_until(lambda: client.get_run(run.run_id).state in FINAL)
    assert client.get_run(run.run_id).state == "CANCELED"
    assert start_time(int(noted.read_text().splitlines()[0])) is None


def test_submit_ends_as_the_run_ends(server, package):
    said: list[str] = []
    submit(server.url, "mine", package, ["text=a"], say=said.append, token=server.token)
    assert said[0].startswith("run ")
    assert [line.split() for line in said[1:]][-1] == ["run", "SUCCEEDED"]
    with pytest.raises(CtmrError, match="it is a spoon") as failed:
        submit(server.url, "mine", package, ["text=it", "fail=true"], say=said.append, token=server.token)
    assert failed.value.exit_code == 1
    with pytest.raises(InputError, match="text is 1 "):
        submit(server.url, "mine", package, ["text=1"], say=said.append, token=server.token)


def test_a_server_that_was_killed_fails_its_run_and_goes_on_with_the_next(package, tmp_path):
    noted, home, port = tmp_path / "noted", tmp_path / "home", free_port()
    first = Server(home, port, tmp_path / "log", CTMR_ALLOW_ANY_PIPELINE="1")
    client = first.client()
    running = client.create_run_from_pipeline_package(package, {"text": "a", "path": str(noted), "seconds": 60.0})
    pending = client.create_run_from_pipeline_package(package, {"text": "b"})
    wait_until(noted.exists)
    assert client.get_run(pending.run_id).state == "PENDING"
    first.end(signal.SIGKILL)
    second = Server(home, port, tmp_path / "log", CTMR_ALLOW_ANY_PIPELINE="1")
    try:
        failed = client.get_run(running.run_id)
        assert failed.state == "FAILED"
        assert failed.error.message.startswith("the local runner was stopped while this run was running")
        assert start_time(int(noted.read_text().splitlines()[0])) is None
        assert client.wait_for_run_completion(pending.run_id, 60, sleep_duration=0.2).state == "SUCCEEDED"
    finally:
        second.end()


def test_a_server_that_is_ended_ends_its_run_and_trusts_only_the_checkout_again(package, tmp_path):
    from kfp_server_api import ApiException

    noted, home, port = tmp_path / "noted", tmp_path / "home", free_port()
    first = Server(home, port, tmp_path / "log", CTMR_ALLOW_ANY_PIPELINE="1")
    client = first.client()
    run = client.create_run_from_pipeline_package(package, {"text": "a", "path": str(noted), "seconds": 60.0})
    wait_until(noted.exists)
    first.end()
    assert start_time(int(noted.read_text().splitlines()[0])) is None
    assert first.process.returncode == 0
    assert "Traceback" not in first.log.read_text()
    assert sorted(p.name for p in (home / "pipelines").iterdir()) == ["lock", "records.db", "runs", "token"]
    second = Server(home, port, tmp_path / "log")
    try:
        assert client.get_run(run.run_id).state == "FAILED"
        # Without the variable, only this checkout's own pipeline may run.
        with pytest.raises(ApiException, match=r"is not pipelines/ct_mr\.yaml"):
            client.create_run_from_pipeline_package(package, {"text": "a"})
        accepted = client.create_run_from_pipeline_package(
            str(shipped_pipeline()), {"dataset_repo": str(tmp_path / "nothing")}
        )
        ended = client.wait_for_run_completion(accepted.run_id, 60, sleep_duration=0.2)
        assert (ended.state, ended.error.code) == ("FAILED", 3)
        assert str(tmp_path / "nothing") in ended.error.message
        assert [(t.display_name, t.state) for t in ended.run_details.task_details] == [("start", "FAILED")]
    finally:
        second.end()


def test_one_server_a_home_and_one_a_port(server, tmp_path):
    def refused(home: Path, port: int) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "ctmr.kubeflow.local_api", "--port", str(port)],
            env={**os.environ, "CTMR_HOME": str(home)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == EnvironmentFault.exit_code
        return done.stderr

    same_home = server.log.parent / "home"
    assert "another ctmr local runner serves" in refused(same_home, free_port())
    assert f"port {server.port} on 127.0.0.1 cannot be used" in refused(tmp_path / "home", server.port)


def test_the_records_are_the_owners_alone_and_hold_no_environment(server):
    folder = server.log.parent / "home" / "pipelines"
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in ("records.db", "records.db-wal"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    content = b"".join(p.read_bytes() for p in folder.glob("records.db*"))
    assert b"CTMR_ALLOW_ANY_PIPELINE" not in content
    assert os.environ["PATH"].encode() not in content
