"""Servers are started once, found again by another process, stopped with everything below them."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from ctmr.errors import EnvironmentFault
from ctmr.system import daemon as daemons
from ctmr.system.daemon import HTTP, Daemon, Launch, free_ports, python_server
from ctmr.system.processes import Process, start_time

# Answers on its port, and has a child.
SERVER = """
import os, socket, subprocess, sys, time
below = subprocess.Popen(["sleep", "60"])
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("child", below.pid, "variable", os.environ.get("SHADE"), "folder", os.getcwd(), flush=True)
while True:
    listener.accept()
"""


@pytest.fixture
def port():
    return free_ports({HTTP: 0})[HTTP]


@pytest.fixture
def daemon(home, port, tmp_path):
    server = python_server("-c", SERVER, "{port}", environment={"SHADE": "blue"}, folder=tmp_path)
    made = Daemon("the test server", home.root / "it", {HTTP: port}, server, facts={"colour": "blue"})
    yield made
    made.stop()


def pid(daemon) -> int:
    return json.loads(daemon.record.read_text())["pid"]


def said(daemon) -> list[str]:
    while not daemon.log.read_text().endswith("\n"):
        time.sleep(0.01)
    return daemon.log.read_text().split()


def test_it_starts_once_and_answers_on_its_port(daemon, port, tmp_path):
    assert daemon.running() is None
    started = daemon.start()
    assert (started.port, started.facts) == (port, {"colour": "blue"})
    assert daemon.start() == daemon.running() == daemon.answering() == started
    assert said(daemon)[2:] == ["variable", "blue", "folder", str(tmp_path)]


def test_it_stops_with_what_it_started(daemon):
    daemon.start()
    child = int(said(daemon)[1])
    assert daemon.stop()
    assert start_time(child) is None
    assert daemon.answering() is None
    assert not daemon.record.exists()
    assert not daemon.stop()


def test_a_killed_one_is_down_and_starts_again_without_leftovers(daemon):
    daemon.start()
    child, first = int(said(daemon)[1]), pid(daemon)
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    assert daemon.answering() is None
    daemon.start()
    assert pid(daemon) != first
    assert start_time(child) is None


def test_a_taken_port_gives_the_next_one(daemon, port):
    with socket.create_server(("127.0.0.1", port)):
        assert daemon.start().port > port


@pytest.fixture
def always_that_port(monkeypatch):
    """The port is taken after it was found to be free."""
    monkeypatch.setattr(daemons, "free_ports", dict)


DEAF = python_server("-c", "import time; print('hm', flush=True); time.sleep(60)")


def test_a_stranger_on_the_port_is_not_taken_for_it(daemon, port, always_that_port):
    with socket.create_server(("127.0.0.1", port)):
        with pytest.raises(EnvironmentFault, match=r"did not come up on port .*[Aa]ddress already in use"):
            daemon.start()
        with pytest.raises(EnvironmentFault, match="did not come up"):
            dataclasses.replace(daemon, launch=DEAF, timeout_s=0.3).start()
    assert daemon.running() is None


def test_a_port_that_was_taken_in_between_is_left_and_another_one_tried(daemon, port, monkeypatch):
    found = [{HTTP: port}]
    monkeypatch.setattr(daemons, "free_ports", lambda wanted: found.pop() if found else free_ports(wanted))
    with socket.create_server(("127.0.0.1", port)):
        assert daemon.start().port > port
    assert not found


def test_ports_are_the_wanted_ones_where_they_are_free_and_all_unlike(port):
    with socket.create_server(("127.0.0.1", port)):
        ports = free_ports({"a": port, "b": port, "c": 0})
    assert port not in ports.values() and len(set(ports.values())) == 3
    assert free_ports({"a": port}) == {"a": port}


def test_a_recycled_process_number_is_not_taken_for_it(daemon):
    daemon.start()
    record = json.loads(daemon.record.read_text())
    running = dict(record)
    with subprocess.Popen(["sleep", "60"]) as stranger:
        daemon.record.write_text(json.dumps({**record, "pid": stranger.pid}))
        assert daemon.answering() is None
        daemon.stop()
        assert stranger.poll() is None
        stranger.kill()
    daemon.record.write_text(json.dumps(running))


def test_a_record_of_an_earlier_boot_is_no_server(daemon):
    running = daemon.start()
    tree = json.loads(daemon.record.read_text())
    daemon.record.write_text(json.dumps(tree | {"boot": "another"}))
    assert daemon.running() is None
    daemon.record.write_text(json.dumps(tree))
    assert daemon.running() == running


OLDER = {
    "of one port": {"port": 5003},
    "of several ports, without a boot": {
        "ports": {"http": 5003, "grpc": 5004},
        "server_id": "ctmr-1",
        "repository": "m",
    },
}


@pytest.mark.parametrize("more", OLDER.values(), ids=OLDER)
def test_the_record_of_an_older_version_is_read_and_its_server_ended(daemon, more):
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as older:
        process = vars(Process.of(older.pid)).copy()
        if "ports" in more:
            del process["boot"]
        daemon.record.parent.mkdir(parents=True)
        daemon.record.write_text(json.dumps(process | more))
        found = daemon.running()
        assert (found.process.pid, found.port, found.facts.get("repository", "m")) == (older.pid, 5003, "m")
        assert daemon.stop()
        assert not found.process.lives


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"pid": 1, "port": 1}'])
def test_an_unreadable_record_is_no_server(daemon, content):
    daemon.record.parent.mkdir(parents=True)
    daemon.record.write_text(content)
    assert daemon.answering() is None
    daemon.stop()


def test_one_that_ends_at_once_is_a_fault_with_its_last_words_not_with_those_of_another_start(daemon):
    def start(program):
        with pytest.raises(EnvironmentFault, match="the test server did not come up") as caught:
            dataclasses.replace(daemon, launch=python_server("-c", program), timeout_s=10.0).start()
        assert not daemon.record.exists()
        return str(caught.value)

    assert f"the moon is full (its log is {daemon.log})" in start("raise SystemExit('the moon is full')")
    assert "it said nothing" in start("")


def test_one_that_never_answers_is_ended_and_cleared_up_after(daemon):
    seen = []
    silent = dataclasses.replace(daemon, launch=DEAF, timeout_s=0.3, clear=lambda: seen.append("cleared"))
    with pytest.raises(EnvironmentFault, match=r"did not come up .*: hm"):
        silent.start()
    assert not silent.record.exists() and seen == ["cleared"] * 2


def test_a_program_that_is_not_there_is_a_fault(daemon):
    missing = dataclasses.replace(daemon, launch=lambda ports, server_id: Launch(["/no/such/server"], {}))
    with pytest.raises(EnvironmentFault, match=r"the test server cannot be started: .*/no/such/server"):
        missing.start()


def test_what_is_ready_is_the_daemons_own_matter_and_the_environment_is_all_that_it_is_given(daemon, tmp_path):
    def launch(ports, server_id):
        program = f"import os, time; print(os.environ, flush=True); open('{server_id}', 'w'); time.sleep(60)"
        return Launch([sys.executable, "-c", program], {"ONLY": "this"}, tmp_path)

    own = dataclasses.replace(daemon, launch=launch, answers=lambda running: (tmp_path / running.server_id).exists())
    first = own.start()
    assert own.start() == first and own.log.read_text().count("ONLY") == 1 and "PATH" not in own.log.read_text()


def test_the_leader_is_asked_first_and_what_it_leaves_is_ended_then(daemon):
    program = (
        "import signal, subprocess, sys, time\n"
        "below = subprocess.Popen(['sleep', '60'])\n"
        "def end(*_): print('child lives', below.poll() is None, flush=True); sys.exit()\n"
        "signal.signal(signal.SIGTERM, end); print('child', below.pid, flush=True); time.sleep(60)"
    )
    polite = dataclasses.replace(
        daemon, launch=python_server("-c", program), answers=lambda running: polite.log.exists()
    )
    polite.start()
    child = int(said(polite)[1])
    polite.stop()
    assert "child lives True" in polite.log.read_text() and start_time(child) is None


def test_a_copied_home_neither_finds_nor_stops_the_originals_server(daemon, tmp_path):
    daemon.start()
    folder = shutil.copytree(daemon.state.parent, tmp_path / "copy")
    copy = dataclasses.replace(daemon, state=folder / daemon.state.name)
    assert copy.running() is None and not copy.stop()
    assert daemon.answering() is not None


def test_a_moved_home_still_finds_its_server(daemon, tmp_path):
    daemon.start()
    before = daemon.state.parent
    moved = dataclasses.replace(daemon, state=before.rename(tmp_path / "moved") / daemon.state.name)
    assert moved.answering() is not None and moved.stop()
