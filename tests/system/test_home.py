"""Home: one folder for everything, addresses from the environment, telemetry off."""

import os
import subprocess
import sys

import pytest
from requests.utils import should_bypass_proxies
from sqlalchemy import make_url

from ctmr.system.home import Code, Home, quiet_libraries, sqlite_address


def test_ctmr_home_decides_where_everything_lies(home, tmp_path):
    assert home.root == tmp_path / "home"
    for path in (home.runs, home.work, home.demo, home.triton, home.model_repository, home.ledger, home.artifacts):
        assert path.is_relative_to(home.root)


def test_without_a_variable_it_is_dot_ctmr_of_the_working_directory(monkeypatch, tmp_path):
    monkeypatch.delenv("CTMR_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert Home.current().root == tmp_path / ".ctmr"


def test_an_empty_variable_is_like_none(monkeypatch, tmp_path):
    monkeypatch.setenv("CTMR_HOME", "")
    monkeypatch.chdir(tmp_path)
    assert Home.current().root == tmp_path / ".ctmr"


def test_a_relative_home_is_made_absolute(monkeypatch, tmp_path):
    monkeypatch.setenv("CTMR_HOME", "state")
    monkeypatch.chdir(tmp_path)
    assert Home.current().root == tmp_path / "state"


def test_asking_for_paths_makes_no_folder(home):
    assert not home.root.exists()


def test_tracking_is_sqlite_here_unless_the_environment_names_a_server(home, monkeypatch):
    assert home.tracking_uri == f"sqlite:///{home.root}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.invalid:5000")
    assert home.tracking_uri == "http://mlflow.invalid:5000"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "code.py").write_text("x = 1\n")
    author = ["-c", "user.name=t", "-c", "user.email=t@example.invalid"]
    for words in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "one"]):
        subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)
    return folder


def test_the_revision_is_gits_and_says_when_files_differ(checkout):
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, check=True, capture_output=True, text=True)
    head = done.stdout.strip()
    assert Code(checkout).revision == head[:12]
    (checkout / "new.py").write_text("not tracked\n")
    assert Code(checkout).revision == head[:12]
    (checkout / "code.py").write_text("x = 2\n")
    assert Code(checkout).revision == f"{head[:12]}+changes"


def test_outside_a_checkout_the_revision_is_the_installed_version(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert Code(tmp_path).revision.startswith("ctmr-")


def test_without_git_the_revision_is_the_installed_version(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert Code(checkout).revision.startswith("ctmr-")


def test_telemetry_is_turned_off_and_a_persons_own_choice_is_kept():
    program = (
        "import os; os.environ['DO_NOT_TRACK'] = 'mine'; from ctmr.system.home import quiet_libraries; "
        "quiet_libraries(); "
        "print(*[os.environ[n] for n in ('MLFLOW_DISABLE_TELEMETRY', 'GX_ANALYTICS_ENABLED', 'DVC_NO_ANALYTICS', "
        "'DO_NOT_TRACK')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["true", "false", "true", "mine"]


def test_under_test_no_library_that_ctmr_silences_can_speak(home, monkeypatch):
    """The fixture's own list of variables must not say less than the code's."""
    environment = dict(os.environ)
    monkeypatch.setattr(os, "environ", environment)
    before = set(environment)
    quiet_libraries()
    assert not [n for n in set(environment) - before if "TRACK" in n or "TELEMETRY" in n or "ANALYTICS" in n]


@pytest.mark.parametrize("name", ["plain", "with blank", "hash#tag", "50% off", "feature%2Fnew", "what?now", "ünïcode"])
def test_a_databases_address_leads_to_its_file_whatever_the_folder_is_called(tmp_path, name):
    path = tmp_path / name / "mlflow.db"
    assert make_url(sqlite_address(path)).database == str(path)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, "localhost,127.0.0.1,::1"),
        ({"no_proxy": "pacs, localhost"}, "pacs,localhost,127.0.0.1,::1"),
        ({"no_proxy": "pacs", "NO_PROXY": ".clinic"}, "pacs,.clinic,localhost,127.0.0.1,::1"),
        ({"NO_PROXY": "*"}, "*"),
    ],
)
def test_servers_of_this_machine_are_behind_no_proxy(monkeypatch, given, named):
    proxies = {"http_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
    monkeypatch.setattr(os, "environ", proxies | given)
    quiet_libraries()
    quiet_libraries()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == named
    for host in ("localhost", "127.0.0.1", "[::1]"):
        assert should_bypass_proxies(f"http://{host}:5000", no_proxy=None)
