"""Atomic writes: what is there is complete, what a killed writer left is swept, what a living one writes is not."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ctmr.errors import EnvironmentFault, InputError
from ctmr.system import files
from ctmr.system.files import append_line, exchange, new_folder, scratch_folder, sweep, write_file

WRITER = """
import os, sys
from pathlib import Path
from ctmr.system import files

path, what, point = Path(sys.argv[1]), sys.argv[2], sys.argv[3]


def wait(*words, **more):
    print("here", flush=True)
    sys.stdin.read()


if point == "flush":
    os.fsync = wait
if what == "file":
    if point == "write":
        Path.write_bytes = lambda self, content: (self.open("wb").write(content[:3]), wait())
    files.write_file(path, b"complete", replace=True)
else:
    with files.new_folder(path, replace=True) as folder:
        (folder / "a").write_text("complete")
        if point == "write":
            wait()
"""


@pytest.fixture
def writer(tmp_path):
    """Start processes that are writing `tmp_path / "it"` and stand still there."""
    started = []

    def start(what: str, point: str = "write") -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WRITER, str(tmp_path / "it"), what, point]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "here\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def write_again(what: str, path: Path) -> None:
    if what == "file":
        write_file(path, b"new", replace=True)
    else:
        with new_folder(path, replace=True) as folder:
            (folder / "b").write_text("new")


@pytest.mark.parametrize("what", ["file", "folder"])
@pytest.mark.parametrize("point", ["write", "flush"])
def test_a_writer_that_is_killed_leaves_the_old_one_and_the_next_write_clears_up(tmp_path, writer, what, point):
    write_again(what, tmp_path / "it")
    before = (tmp_path / "it").stat().st_ino
    kill(writer(what, point))
    assert len(names(tmp_path)) == 2 and (tmp_path / "it").stat().st_ino == before
    write_again(what, tmp_path / "it")
    assert names(tmp_path) == ["it"] and (tmp_path / "it").stat().st_ino != before


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_a_living_process_writes_is_never_swept(tmp_path, writer, what):
    process = writer(what)
    (partial,) = tmp_path.iterdir()
    write_again(what, tmp_path / "it")
    sweep(tmp_path)
    assert partial.exists()
    process.communicate("go on")
    assert process.returncode == 0 and names(tmp_path) == ["it"]
    content = tmp_path / "it" if what == "file" else tmp_path / "it" / "a"
    assert content.exists()


def test_what_this_process_writes_in_another_thread_is_not_swept(tmp_path):
    with new_folder(tmp_path / "it") as folder:
        thread = threading.Thread(target=sweep, args=(tmp_path,))
        thread.start()
        thread.join()
        (folder / "a").write_text("1")
    assert names(tmp_path / "it") == ["a"]


def test_a_leftover_is_told_by_its_lock_not_by_its_number(tmp_path):
    # The number of a process that lives: recycled, or of another container.
    (tmp_path / f".it.{os.getppid()}-0123abcd.partial").mkdir()
    sweep(tmp_path, "it")
    assert names(tmp_path) == []


def test_only_leftovers_of_that_name_and_that_form_are_swept(tmp_path):
    kept = [".it.partial", ".other.1-0123abcd.partial", "it", "it.1-0123abcd.partial"]
    for name in (*kept, ".it.1-0123abcd.partial"):
        (tmp_path / name).mkdir()
    sweep(tmp_path, "it")
    assert names(tmp_path) == kept
    sweep(tmp_path)
    assert ".other.1-0123abcd.partial" not in names(tmp_path)
    sweep(tmp_path / "nowhere")


def test_a_link_that_looks_like_a_leftover_is_not_followed(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / ".it.1-0123abcd.partial").symlink_to(tmp_path / "precious")
    sweep(tmp_path)
    assert (tmp_path / "precious").is_dir()


def test_a_name_is_not_taken_twice_unless_it_shall_be_replaced(tmp_path):
    write_file(tmp_path / "a", b"1")
    with pytest.raises(InputError, match="a exists already; choose another name"):
        write_file(tmp_path / "a", b"2")
    write_file(tmp_path / "a", b"3", replace=True)
    assert (tmp_path / "a").read_bytes() == b"3"
    (tmp_path / "f").mkdir()
    with new_folder(tmp_path / "f") as folder:
        (folder / "x").write_text("1")
    with pytest.raises(InputError, match="is not an empty folder"), new_folder(tmp_path / "f"):
        pass
    with new_folder(tmp_path / "f", replace=True):
        pass
    assert names(tmp_path) == ["a", "f"] and names(tmp_path / "f") == []


def test_a_name_that_is_taken_while_the_file_is_written_is_refused(tmp_path, monkeypatch):
    flush = os.fsync
    monkeypatch.setattr(os, "fsync", lambda d: ((tmp_path / "a").write_text("theirs"), flush(d)))
    with pytest.raises(InputError, match="exists already"):
        write_file(tmp_path / "a", b"ours")
    assert (tmp_path / "a").read_text() == "theirs" and names(tmp_path) == ["a"]


def test_rights_are_those_asked_for_less_the_umask_from_the_first_byte_on(tmp_path, monkeypatch):
    seen = []
    real = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda p, c: (seen.append(stat.S_IMODE(p.stat().st_mode)), real(p, c)))
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "a", b"", mode=0o600)
        write_file(tmp_path / "b", b"")
        with new_folder(tmp_path / "c"):
            pass
        with scratch_folder(tmp_path / "d") as scratch:
            assert stat.S_IMODE(scratch.stat().st_mode) == 0o700
    finally:
        os.umask(before)
    assert seen == [0o600, 0o640]
    assert [stat.S_IMODE((tmp_path / n).stat().st_mode) for n in "abc"] == [0o600, 0o640, 0o750]


def test_a_scratch_folder_is_removed_at_the_end_also_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), scratch_folder(tmp_path / "sub" / "it") as scratch:
        (scratch / "deep").mkdir()
        raise ZeroDivisionError
    assert names(tmp_path / "sub") == []


def large_file(path: Path) -> None:
    write_file(path, bytes(4_000_000), replace=True)


def large_folder(path: Path) -> None:
    with new_folder(path, replace=True) as folder:
        (folder / "large").write_bytes(bytes(4_000_000))


@pytest.mark.parametrize("write", [large_file, large_folder])
def test_a_full_disk_is_one_sentence_that_names_the_path_and_leaves_the_old_one(small_disk, write: Callable):
    path = small_disk / "it"
    write_again("file" if write is large_file else "folder", path)
    before = path.stat().st_ino
    with pytest.raises(EnvironmentFault, match=f"^{path} cannot be written: No space left on device; free") as caught:
        write(path)
    assert "\n" not in str(caught.value)
    assert names(small_disk) == ["it"] and path.stat().st_ino == before


def test_a_full_disk_refuses_a_line_and_no_line_swallows_the_next(small_disk, tmp_path):
    with pytest.raises(EnvironmentFault, match="ledger cannot be written: No space left"):
        append_line(small_disk / "ledger", "x" * 4_000_000)
        append_line(small_disk / "ledger", "x")
    (tmp_path / "ledger").write_text("torn")
    append_line(tmp_path / "ledger", "whole")
    append_line(tmp_path / "ledger", "whole")
    assert (tmp_path / "ledger").read_text() == "torn\nwhole\nwhole\n"


READ_ONLY = """
import os
from pathlib import Path
from ctmr.errors import EnvironmentFault
from ctmr.system.files import *
p = Path("/usr/it")
if os.getuid() == 0: os.setuid(65534)
"""


@pytest.mark.parametrize("call", ["write_file(p, b'')", "new_folder(p).__enter__()", "append_line(p, 'x')"])
def test_a_folder_that_cannot_be_written_is_one_sentence(call):
    program = f"{READ_ONLY}try: {call}\nexcept EnvironmentFault as e: print(e)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    expected = "/usr/it cannot be written: Permission denied; free space or fix its permissions, then try again\n"
    assert done.stdout == expected, done.stderr


def test_an_error_that_is_not_of_writing_passes_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError), new_folder(tmp_path / "it"):
        (tmp_path / "nothing").read_bytes()
    assert names(tmp_path) == []


def test_where_a_file_system_cannot_exchange_two_folders_are_renamed(tmp_path, monkeypatch):
    class Old:
        def renameat2(self, *words: object) -> int:
            return -1

    monkeypatch.setattr(files, "LIBC", Old())
    monkeypatch.setattr("ctypes.get_errno", lambda: errno.EINVAL)
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    exchange(tmp_path / "a", tmp_path / "b")
    assert (names(tmp_path), names(tmp_path / "a"), names(tmp_path / "b")) == (["a", "b"], ["b"], ["a"])
    write_file(tmp_path / "c", b"1")
    assert (tmp_path / "c").read_bytes() == b"1"


def test_where_a_file_system_has_no_locks_nothing_is_swept(tmp_path, monkeypatch):
    def none(*words: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    (tmp_path / ".it.1-0123abcd.partial").mkdir()
    write_file(tmp_path / "it", b"1")
    assert names(tmp_path) == [".it.1-0123abcd.partial", "it"]
