"""The child process of a run: how it ends, whatever happens to it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kfp import compiler, dsl

from ctmr.errors import CtmrError, EnvironmentFault, GateFailed, InputError
from ctmr.pipeline import kfp_local
from ctmr.pipeline.kfp_child import pipeline_of, typed
from ctmr.pipeline.kfp_local import RunOutcome
from ctmr.system.home import Home

pytestmark = pytest.mark.slow


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def act(what: str, number: float, count: int, text: str, words: list) -> str:
    import os
    import signal
    import sys
    import time

    from ctmr.errors import GateFailed
    from ctmr.pipeline import events

    if what == "wait":
        events.emit("act", message=f"pid {os.getpid()}")
        time.sleep(120)
    if what == "raise":
        raise RuntimeError("the reason of it all")
    if what == "gate":
        events.failed("act", GateFailed("the gate failed: by 2 dB"))
        sys.exit(1)
    if what == "die":
        events.started("act")
        os.kill(os.getpid(), signal.SIGKILL)
    events.emit("act", message=f"{number!r} {count!r} {text!r} {words!r}")
    return "done"


@dsl.pipeline(name="acting")
def acting(what: str = "", number: float = 1.5, count: int = 1, text: str = "", words: list = ["a"]):  # noqa: B006
    act(what=what, number=number, count=count, text=text, words=words).set_retry(3, backoff_duration="60s")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("acting") / "pipeline.yaml"
    compiler.Compiler().compile(acting, str(path))
    return path


@pytest.fixture
def run(compiled: Path, home: Home, tmp_path: Path) -> Callable[..., list[str]]:
    def call(**parameters: object) -> list[str]:
        heard: list[str] = []
        kfp_local.run_compiled(
            parameters,
            folder=tmp_path / "run",
            home=home,
            pipeline=compiled,
            report_for=lambda stage: lambda message, fraction=None: heard.append(message),
        )
        return heard

    return call


def test_parameters_arrive_with_their_types_and_texts_unharmed(run: Callable[..., list[str]]) -> None:
    text = """it's "quoted" {json: [1]} $HOME `x` \\ ü"""
    assert run(number=2, count=3.0, text=text, words=["x y", "z=1"]) == [f"2.0 3 {text!r} ['x y', 'z=1']"]


def test_an_error_of_a_task_ends_the_run_with_its_own_kind_and_sentence(run: Callable[..., list[str]]) -> None:
    with pytest.raises(GateFailed, match=r"^the gate failed: by 2 dB$"):
        run(what="gate")


def test_a_traceback_of_a_task_becomes_its_last_words_and_where_the_log_is(run: Callable[..., list[str]]) -> None:
    began = time.monotonic()
    with pytest.raises(CtmrError, match="task act said: RuntimeError: the reason of it all") as caught:
        run(what="raise")
    assert "\n" not in str(caught.value) and "log.txt" in str(caught.value)
    # Three retries of a minute each are for a cluster.
    assert time.monotonic() - began < 60


def test_a_task_that_is_killed_is_a_fault_of_the_environment(run: Callable[..., list[str]]) -> None:
    with pytest.raises(EnvironmentFault, match=r"the process of stage act was killed .*run again.*log\.txt"):
        run(what="die")


def test_a_run_whose_child_is_killed_ends_the_tasks_too(
    run: Callable[..., list[str]], home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, seen = kfp_local.start, list[int]()

    def kill_it_once_a_task_waits(folder: Path, more: dict[str, str]) -> subprocess.Popen[bytes]:
        process = begun(folder, more)
        seen.append(waiting_task(folder))
        process.kill()
        return process

    monkeypatch.setattr(kfp_local, "start", kill_it_once_a_task_waits)
    with pytest.raises(EnvironmentFault, match="killed"):
        run(what="wait")
    assert not alive(seen[0])


@pytest.mark.parametrize("found", ["nothing", "a file", "what takes nothing"])
def test_a_temporary_folder_that_takes_no_file_is_a_fault_of_the_environment(
    run: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    folder = Path("/proc") if found == "what takes nothing" else tmp_path / "tmp"
    if found == "a file":
        folder.write_text("")
    monkeypatch.setenv("TMPDIR", str(folder))
    with pytest.raises(EnvironmentFault, match=rf"^no temporary file can be written into {folder} \(.*TMPDIR$"):
        run()


def test_an_unknown_parameter_is_named_with_the_known(run: Callable[..., list[str]]) -> None:
    with pytest.raises(InputError, match=r"\['nubmer'\].*'number'"):
        run(nubmer=1)


def start(compiled: Path, folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir()
    (folder / kfp_local.PIPELINE).write_text(compiled.read_text())
    (folder / kfp_local.PARAMETERS).write_text(json.dumps({"what": "wait"}))
    return kfp_local.start(folder)


def waiting_task(folder: Path) -> int:
    for _ in range(600):
        for line in (
            (folder / kfp_local.EVENTS).read_text().splitlines() if (folder / kfp_local.EVENTS).exists() else []
        ):
            return int(json.loads(line)["message"].removeprefix("pid "))
        time.sleep(0.1)
    raise AssertionError("the task did not begin")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int) -> bool:
    return any(not alive(pid) or time.sleep(0.1) for _ in range(100))


def test_a_run_whose_process_was_killed_says_so(compiled: Path, tmp_path: Path) -> None:
    process = start(compiled, tmp_path / "run")
    task = waiting_task(tmp_path / "run")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    how = kfp_local.outcome(tmp_path / "run")
    assert (how.state, how.exit_code) == ("FAILED", 3) and "killed" in how.error
    assert isinstance(kfp_local.error_of(how), EnvironmentFault)
    assert gone(task)


def test_stopping_a_run_stops_its_tasks(compiled: Path, tmp_path: Path) -> None:
    process = start(compiled, tmp_path / "run")
    task = waiting_task(tmp_path / "run")
    kfp_local.stop(process)
    assert process.poll() is not None and gone(task)


def test_a_run_ends_with_the_process_that_started_it(compiled: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / kfp_local.PIPELINE).write_text(compiled.read_text())
    (folder / kfp_local.PARAMETERS).write_text(json.dumps({"what": "wait"}))
    code = (
        "import sys, time; from pathlib import Path; from ctmr.pipeline import kfp_local;"
        "kfp_local.start(Path(sys.argv[1])); time.sleep(300)"
    )
    starter = subprocess.Popen([sys.executable, "-c", code, str(folder)])
    task = waiting_task(folder)
    starter.kill()
    starter.wait()
    assert gone(task)


def test_folders_of_ended_runs_do_not_pile_up(home: Home) -> None:
    runs = home.root / "pipelines" / "local"
    for k in range(kfp_local.KEPT_RUNS + 5):
        (runs / f"2020{k:02d}").mkdir(parents=True)
        RunOutcome(kfp_local.SUCCEEDED).write(runs / f"2020{k:02d}")
    (runs / "2019-running").mkdir()
    kfp_local._new_folder(home)
    left = sorted(p.name for p in runs.iterdir())
    assert "2019-running" in left and "202000" not in left and "202024" in left
    assert len(left) == kfp_local.KEPT_RUNS + 2


def test_numbers_get_the_declared_type(compiled: Path) -> None:
    values = typed(pipeline_of(compiled), {"number": 2, "count": 2.0})
    assert [repr(v) for v in values.values()] == ["2.0", "2"]
