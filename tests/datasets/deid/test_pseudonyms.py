"""The hospital's identity file: a key that makes pseudonyms, a map back, for nobody else to read."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import time

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctmr.datasets.deid.pseudonyms import IdentityFile, Key, Originals, refuse_below
from ctmr.errors import EnvironmentFault, InputError

ANY = st.text(min_size=1)


@given(subject=ANY)
def test_a_pseudonym_depends_on_subject_and_key_and_shows_neither(subject):
    one, other = Key(b"1" * 32), Key(b"2" * 32)
    assert one.pseudonym(subject) == one.pseudonym(subject) != other.pseudonym(subject)
    assert len(one.pseudonym(subject)) == 16 and int(one.pseudonym(subject), 16) >= 0
    assert one.pseudonym(subject + " ") != one.pseudonym(subject)
    assert "1111" not in repr(one)


@given(original=ANY)
def test_a_new_uid_is_a_uid(original):
    new = Key(b"1" * 32).uid(original)
    assert pydicom.uid.UID(new).is_valid and len(new) <= 64 and new.startswith("2.25.")


@given(subject=ANY)
def test_dates_move_by_at_least_a_day_and_at_most_ten_years(subject):
    assert 1 <= Key(b"1" * 32).shift_days(subject) <= 3652


def test_the_file_is_made_with_a_key_of_its_own_and_for_its_owner_alone(tmp_path):
    before = os.umask(0)
    try:
        first, second = IdentityFile(tmp_path / "a"), IdentityFile(tmp_path / "b")
        first.add(Originals({"p": "patient 1"}, {"2.25.1": "1.2.3"}, {"set/p/ct": "scans/1"}))
    finally:
        os.umask(before)
    assert first.key != second.key
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    tree = json.loads((tmp_path / "a").read_text())
    assert tree["subjects"] == {"p": "patient 1"} and tree["uids"] == {"2.25.1": "1.2.3"}
    assert IdentityFile(tmp_path / "a").key == first.key


def test_a_second_dataset_adds_to_the_map(tmp_path):
    for name in ("one", "two"):
        IdentityFile(tmp_path / "ids").add(Originals({name: name}))
    assert set(json.loads((tmp_path / "ids").read_text())["subjects"]) == {"one", "two"}


def test_a_file_that_others_can_read_is_refused(tmp_path):
    IdentityFile(tmp_path / "ids")
    (tmp_path / "ids").chmod(0o640)
    with pytest.raises(InputError, match=r"mode 0640, so others can read it; `chmod 600`"):
        IdentityFile(tmp_path / "ids")


@pytest.mark.parametrize("content", ["", "not json", "[]", "{}", '{"key": "00", "subjects": {}}', '{"key": 7}'])
def test_a_damaged_file_is_refused_and_left_as_it_is(tmp_path, content):
    (tmp_path / "ids").write_text(content)
    (tmp_path / "ids").chmod(0o600)
    with pytest.raises(InputError, match="restore it from a backup"):
        IdentityFile(tmp_path / "ids")
    assert (tmp_path / "ids").read_text() == content


def test_a_file_that_was_replaced_meanwhile_is_not_written_to(tmp_path):
    identities = IdentityFile(tmp_path / "ids")
    (tmp_path / "ids").unlink()
    with pytest.raises(EnvironmentFault, match="removed or replaced"):
        identities.add(Originals({"p": "1"}))
    IdentityFile(tmp_path / "ids")
    with pytest.raises(EnvironmentFault, match="removed or replaced"):
        identities.add(Originals({"p": "1"}))
    assert not json.loads((tmp_path / "ids").read_text())["subjects"]


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentFault, match="cannot be written: File exists"):
        IdentityFile(tmp_path / "file" / "ids")


@pytest.mark.parametrize("inside", ["repo/ids", "repo/.dvc/ids", "link/ids"])
def test_the_file_never_lies_in_what_travels(tmp_path, inside):
    (tmp_path / "repo").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "repo")
    with pytest.raises(InputError, match="lies in the data repository"):
        refuse_below(tmp_path / inside, {"data repository": tmp_path / "repo"})
    refuse_below(tmp_path / "repo-ids", {"data repository": tmp_path / "repo"})


def _add_many(path, name, count):
    for k in range(count):
        IdentityFile(path).add(Originals({f"{name}{k}": "x"}))


def test_two_commands_at_once_lose_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_add_many, args=(tmp_path / "ids", name, 15)) for name in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert len(json.loads((tmp_path / "ids").read_text())["subjects"]) == 30


@pytest.mark.parametrize("point", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch, point):
    path = tmp_path / "ids"
    identities = IdentityFile(path)
    identities.add(Originals({"old": "1"}))
    before = path.read_bytes()

    def broken(*words):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync", broken) if point == "fsync" else (type(path), "replace", broken)))
        with pytest.raises(EnvironmentFault, match="cannot be written: No space left on device"):
            identities.add(Originals({"new": "2"}))
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ids", "ids.lock"]
    identities.add(Originals({"new": "2"}))
    assert set(json.loads(path.read_text())["subjects"]) == {"old", "new"}


def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path):
    path = tmp_path / "ids"
    key = IdentityFile(path).key
    program = (
        "import sys; from pathlib import Path; from ctmr.datasets.deid.pseudonyms import *\n"
        "f = IdentityFile(Path(sys.argv[1])); print(flush=True)\n"
        "n = 0\n"
        "while True:\n    f.add(Originals({f'{n}-{k}': 'x' * 50 for k in range(300)})); n += 1\n"
    )
    for pause in (0.0, 0.05, 0.11):
        process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert IdentityFile(path).key == key
        subjects = json.loads(path.read_text())["subjects"]
        assert len(subjects) % 300 == 0
        IdentityFile(path).add(Originals())
    assert not list(tmp_path.glob("*.partial"))
