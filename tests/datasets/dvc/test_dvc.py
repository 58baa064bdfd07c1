"""Datasets: pinned to a state, checked against it, unpacked without trust."""

import os
import random
import shutil
import stat
import subprocess
import sys
import time
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctmr.datasets.dvc import Dataset, DatasetSource, archives, commands, folder_md5, materialise, pack, resolve, unpack
from ctmr.errors import CtmrError, EnvironmentFault, InputError

FILES = {
    "b/2.bin": b"two",
    "a.bin": b"one",
    "a/x.bin": b"deep",
    "A.bin": b"upper",
    "empty": b"",
    "with space/é.bin": b"umlaut",
}


def write(folder, files=FILES):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def said(message, fraction):
    pass


# Plain folders


def test_a_plain_folder_is_pinned_by_its_content(tmp_path):
    folder = write(tmp_path / "Brain Set-1")
    source = resolve(str(folder))
    assert source.dataset == Dataset("brain_set_1", "folder", "", folder_md5(folder))
    assert source.address == str(folder)
    assert DatasetSource.from_option(source.to_option()) == source


def test_a_copied_folder_holds_the_same_files(tmp_path):
    folder = write(tmp_path / "data")
    materialise(resolve(str(folder)), tmp_path / "raw", said)
    assert files_of(tmp_path / "raw") == FILES


@pytest.mark.parametrize("change", [{"a.bin": b"ONE"}, {"new.bin": b""}])
def test_a_folder_that_changed_since_it_was_pinned_is_refused(tmp_path, change):
    folder = write(tmp_path / "data")
    source = resolve(str(folder))
    write(folder, change)
    with pytest.raises(InputError, match=f"dataset data: its files have md5 .* pinned state is {source.dataset.md5}"):
        materialise(source, tmp_path / "raw", said)


def test_archives_are_unpacked_beside_themselves(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    with zipfile.ZipFile(folder / "s1.zip", "w") as archive:
        archive.writestr("IM0.dcm", b"x")
    materialise(resolve(str(folder)), tmp_path / "raw", said)
    assert files_of(tmp_path / "raw") == {"s1/IM0.dcm": b"x"}
    assert files_of(folder).keys() == {"s1.zip"}


def test_a_link_to_a_file_of_the_dataset_counts_as_that_file(tmp_path):
    linked = write(tmp_path / "linked")
    first = sorted(FILES)[0]
    (linked / "again").symlink_to(first)
    materialise(resolve(str(linked)), tmp_path / "raw", said)
    assert files_of(tmp_path / "raw") == FILES | {"again": FILES[first]}
    assert not any(p.is_symlink() for p in (tmp_path / "raw").rglob("*"))


def test_folders_linked_to_each_other_without_end_are_refused_at_once(tmp_path):
    folder = tmp_path / "data"
    for k in range(40):
        (folder / f"d{k:02d}").mkdir(parents=True)
        for name in ("a", "b"):
            (folder / f"d{k:02d}" / name).symlink_to(f"../d{k + 1:02d}")
    (folder / "d40").mkdir()
    with pytest.raises(InputError, match="is a link to a folder, which would be taken in twice"):
        resolve(str(folder))


def nested(folder, depth):
    """Make folders in each other, more than one path can name."""
    folder.mkdir()
    here = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("n", dir_fd=here)
        inner = os.open("n", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    return folder


def test_folders_nested_without_end_are_refused(tmp_path):
    folder = nested(tmp_path / "data", 1500)
    try:
        with pytest.raises(InputError, match="nested more than 64 deep"):
            resolve(str(folder))
    finally:
        # pytest's own removal recurses.
        subprocess.run(["rm", "-rf", folder], check=True)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: (p / "dead").symlink_to("nowhere"), r"dead is a link to nowhere, which is not there"),
        (lambda p: (p / "b" / "loop").symlink_to(p), r"loop is a link to .*, a folder that holds it"),
        (lambda p: (p / "out").symlink_to(p.parent / "else"), r"out is a link to .*/else, outside"),
        (lambda p: os.mkfifo(p / "pipe"), r"pipe is neither a file nor a folder"),
        (lambda p: Path(os.fsdecode(bytes(p) + b"/\xff.bin")).touch(), r"is not UTF-8; rename the file"),
    ],
)
def test_what_is_no_plain_file_is_refused_and_named(tmp_path, make, words):
    write(tmp_path / "else")
    make(write(tmp_path / "data"))
    with pytest.raises(InputError, match=words) as caught:
        resolve(str(tmp_path / "data"))
    assert "\n" not in str(caught.value)
    str(caught.value).encode()


def test_an_address_with_a_token_is_refused_and_not_repeated():
    with pytest.raises(InputError, match="holds a user name or token") as caught:
        resolve("https://me:glpat-123@host.invalid/data.git")
    assert "glpat" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (lambda p: None, {}, "there is no dataset at"),
        (lambda p: p.write_bytes(b"x"), {}, "is a file; a dataset is a folder"),
        (lambda p: p.mkdir(), {"revision": "main"}, "belong to a DVC repository"),
        (lambda p: p.mkdir(), {"path": "images"}, "belong to a DVC repository"),
    ],
)
def test_an_address_that_is_no_dataset_is_one_sentence(tmp_path, make, options, words):
    make(tmp_path / "data")
    with pytest.raises(InputError, match=words) as caught:
        resolve(str(tmp_path / "data"), **options)
    assert str(tmp_path / "data") in str(caught.value)


def test_a_dataset_that_holds_the_folder_ctmr_writes_to_is_refused(tmp_path):
    folder = write(tmp_path / "data")
    with pytest.raises(InputError, match="ctmr writes to"):
        materialise(resolve(str(folder)), folder / ".ctmr" / "raw", said)


# Archives


def archive_of(path, members, external=0):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            info = zipfile.ZipInfo(name)
            info.filename = name
            info.external_attr = external << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    return path


def refused(archive, target, words):
    with pytest.raises(InputError, match=words) as caught:
        unpack(archive, target)
    assert archive.name in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "..", "a\\..\\..\\evil", "C:\\evil"])
def test_a_member_that_leaves_the_folder_is_refused_before_anything_is_written(tmp_path, name):
    target = tmp_path / "in" / "target"
    refused(archive_of(tmp_path / "a.zip", [("good", b"1"), (name, b"2")]), target, "leaves its folder")
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {"a.zip"}


def test_backslashes_part_folders_and_what_macos_adds_is_left_out(tmp_path):
    members = [("CT\\p1.png", b"1"), ("MR\\", b""), ("__MACOSX\\CT\\._p1.png", b"x"), ("CT/._p1.png", b"x")]
    unpack(archive_of(tmp_path / "a.zip", members), tmp_path / "t")
    assert files_of(tmp_path / "t") == {"CT/p1.png": b"1"}


def test_companions_of_macos_are_no_images_of_a_dataset(tmp_path):
    write(tmp_path / "data")
    (tmp_path / "data" / "._scan.zip").write_bytes(b"Mac OS X")
    materialise(resolve(str(tmp_path / "data")), tmp_path / "raw", said)
    assert files_of(tmp_path / "raw") == FILES | {"._scan.zip": b"Mac OS X"}


@pytest.mark.parametrize("name", ["n" * 300, "ü" * 128, "n/" * 70 + "x", ("n" * 99 + "/") * 50 + "x"])
def test_a_name_that_no_folder_can_hold_is_refused(tmp_path, name):
    said = refused(archive_of(tmp_path / "a.zip", [(name, b"1")]), tmp_path / "t", "which no folder can hold")
    assert len(said) < 400


def test_a_link_is_refused(tmp_path):
    archive = archive_of(tmp_path / "a.zip", [("link", b"/etc/passwd")], external=stat.S_IFLNK | 0o777)
    refused(archive, tmp_path / "t", "holds the link 'link'")
    assert not (tmp_path / "t").exists()


def test_a_bomb_is_refused_by_its_ratio(tmp_path):
    archive = archive_of(tmp_path / "bomb.zip", [("zeros", bytes(4_000_000))])
    refused(archive, tmp_path / "t", "unpacks to 4000000 bytes")
    assert not (tmp_path / "t").exists()


def test_a_bomb_is_refused_by_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_ARCHIVE_BYTES", 1000)
    random.seed(0)
    archive = archive_of(tmp_path / "big.zip", [("noise", random.randbytes(2000))])
    refused(archive, tmp_path / "t", "at most 1000 bytes")


def test_a_bomb_that_lies_about_its_size_writes_no_more_than_it_claims(tmp_path):
    archive = archive_of(tmp_path / "liar.zip", [("zeros", bytes(1_000_000))])
    raw = archive.read_bytes()
    archive.write_bytes(raw.replace((1_000_000).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    refused(archive, tmp_path / "t", "damaged")
    assert sum(len(d) for d in files_of(tmp_path / "t").values()) <= 100


def test_a_truncated_archive_is_refused(tmp_path):
    archive = archive_of(tmp_path / "a.zip", [("x", bytes(range(256)) * 50)])
    archive.write_bytes(archive.read_bytes()[:-30])
    refused(archive, tmp_path / "t", "damaged")


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_with_a_damaged_stream_is_refused(tmp_path, seed, method):
    rng = random.Random(seed)
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", method) as packed:
        packed.writestr("x", bytes(rng.choices(range(40), k=5000)))
    raw = bytearray(archive.read_bytes())
    for _ in range(40):
        raw[rng.randrange(40, len(raw) - 120)] ^= 0xFF
    archive.write_bytes(raw)
    refused(archive, tmp_path / "t", "damaged")


def test_what_a_damaged_archive_says_is_no_page_of_its_bytes(tmp_path):
    archive = archive_of(tmp_path / "a.zip", [("x" * 200, b"data")])
    raw = bytearray(archive.read_bytes())
    at = raw.index(b"x" * 200)
    raw[at : at + 200] = bytes(200)
    archive.write_bytes(raw)
    with pytest.raises(InputError, match=r"a\.zip is damaged") as said:
        unpack(archive, tmp_path / "t")
    assert len(str(said.value)) < 300


def test_an_encrypted_archive_is_refused(tmp_path):
    archive = archive_of(tmp_path / "a.zip", [("x", b"secret")])
    raw = bytearray(archive.read_bytes())
    raw[6] |= 1
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(raw)
    refused(archive, tmp_path / "t", "a.zip")


def test_an_archive_in_a_compression_nobody_has_is_refused(tmp_path):
    archive = archive_of(tmp_path / "a.zip", [("x", b"data" * 10)])
    raw = bytearray(archive.read_bytes())
    raw[8] = raw[raw.index(b"PK\x01\x02") + 10] = 99
    archive.write_bytes(raw)
    refused(archive, tmp_path / "t", "a.zip")


def test_members_that_are_each_others_folder_are_refused(tmp_path):
    archive = archive_of(tmp_path / "a.zip", [("x", b"1"), ("x/y", b"2")])
    refused(archive, tmp_path / "t", "a.zip")


def test_two_members_of_one_name_never_silently_become_one(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive = archive_of(tmp_path / "a.zip", [("IM0", b"1"), ("IM0", b"2")])
    refused(archive, tmp_path / "t", "IM0")


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"not a zip")
    refused(tmp_path / "a.zip", tmp_path / "t", "damaged")


@settings(max_examples=20)
@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8})?[.]dcm", fullmatch=True), st.binary(max_size=5000)))
def test_what_is_packed_comes_out_again_and_packs_alike(tmp_path_factory, members):
    base = tmp_path_factory.mktemp("zip")
    write(base / "in", members)
    for name in ("a.zip", "b.zip"):
        pack(base / name, [(n, base / "in" / n) for n in sorted(members)])
    assert (base / "a.zip").read_bytes() == (base / "b.zip").read_bytes()
    unpack(base / "a.zip", base / "out")
    assert files_of(base / "out") == members


def test_what_deflates_too_well_is_stored_so_that_it_can_be_unpacked(tmp_path):
    (tmp_path / "zeros").write_bytes(bytes(4_000_000))
    pack(tmp_path / "a.zip", [("zeros", tmp_path / "zeros")])
    unpack(tmp_path / "a.zip", tmp_path / "out")
    assert (tmp_path / "out" / "zeros").read_bytes() == bytes(4_000_000)


# git and DVC as subprocesses


def test_a_command_that_hangs_is_stopped_with_all_that_it_started(tmp_path, monkeypatch):
    script = tmp_path / "bin" / "git"
    script.parent.mkdir()
    script.write_text(f"#!/bin/sh\nsleep 300 &\necho $! > {tmp_path}/child\nwait\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    with pytest.raises(EnvironmentFault, match=r"git fetch in .* took longer than 0.5 s and was stopped"):
        commands.git(tmp_path, "fetch", limit_s=0.5)
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]:
            return
        time.sleep(0.05)
    pytest.fail("what the command had started is still running")


def test_a_command_that_fails_says_why_in_one_line_without_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sEcReT")
    script = tmp_path / "git"
    lines = ["hint: one", "fatal: no sEcReT at https://u:p@s/w@h/x", "more"]
    script.write_text("#!/bin/sh\n" + "".join(f"echo '{line}' >&2\n" for line in lines) + "exit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(commands.CommandFailed) as caught:
        commands.git(tmp_path, "push")
    assert caught.value.reason == "no *** at https://***@h/x"
    assert str(caught.value) == f"git push failed in {tmp_path}: {caught.value.reason}"


def test_a_command_that_is_not_installed_is_a_fault_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentFault, match="git status could not start"):
        commands.git(tmp_path, "status")


@pytest.mark.slow
def test_dvc_tells_nobody(tmp_path):
    commands.git(tmp_path, "init", "--quiet")
    commands.dvc(tmp_path, "init", "--quiet")
    program = "import os; from dvc.analytics import is_enabled; print(os.environ['DVC_NO_ANALYTICS'], is_enabled())"
    environment = {k: v for k, v in os.environ.items() if k != "DVC_NO_ANALYTICS"}
    shown = "from ctmr.system.home import quiet_libraries; quiet_libraries(); " + program
    done = subprocess.run([sys.executable, "-c", shown], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["true", "False"], done.stderr


# git + DVC, for real


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A git + DVC repository with a local remote, made as the demo makes its own."""
    from ctmr.phantom.repository import track
    from ctmr.system.home import quiet_libraries

    quiet_libraries()
    root = tmp_path_factory.mktemp("dvc")
    track(write(root / "incoming"), root / "repository", root / "remote", name="images", message="one")
    return root / "repository"


def git(repository, *words):
    author = ["-c", "user.name=t", "-c", "user.email=t@example.invalid", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *author, *words], cwd=repository, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.mark.slow
def test_a_plain_folder_gets_the_md5_that_dvc_gives_it(repository):
    import yaml

    tracked = yaml.safe_load((repository / "images.dvc").read_text())["outs"][0]
    assert folder_md5(repository / "images") == tracked["md5"]
    assert tracked["nfiles"] == len(FILES)


@pytest.mark.slow
def test_tracked_data_is_pushed_to_the_remote_that_was_asked_for(repository):
    contents = {p.read_bytes() for p in (repository.parent / "remote").rglob("*") if p.is_file()}
    assert set(FILES.values()) <= contents


@pytest.mark.slow
def test_a_dvc_dataset_is_pinned_to_revision_and_md5_and_comes_out_unchanged(repository, tmp_path):
    source = resolve(str(repository))
    assert source.dataset.revision == git(repository, "rev-parse", "HEAD")
    assert (source.dataset.name, source.dataset.kind, source.path) == ("images", "dvc", "images")
    assert resolve(str(repository), path="images/", revision="main").dataset == source.dataset
    assert DatasetSource.from_option(source.to_option()) == source
    materialise(source, tmp_path / "raw", said)
    assert files_of(tmp_path / "raw") == FILES


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path": "nonesuch"}, r"does not track 'nonesuch'; it tracks images: choose"),
        ({"revision": "nonesuch"}, "at revision nonesuch"),
    ],
)
def test_what_a_repository_does_not_have_is_one_sentence(repository, options, words):
    with pytest.raises(InputError, match=words) as caught:
        resolve(str(repository), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_broken_dvc_folder_is_one_sentence(tmp_path):
    (tmp_path / "data" / ".dvc").mkdir(parents=True)
    with pytest.raises(InputError, match="data at revision HEAD"):
        resolve(str(tmp_path / "data"))


@pytest.fixture
def clone(repository, tmp_path):
    """A clone without any cached data, so that every object comes from a remote of its own."""
    remote = tmp_path / "remote"
    # DVC lays out its cache and a folder remote alike.
    shutil.copytree(repository / ".dvc" / "cache", remote)
    for entry in remote.rglob("*"):
        entry.chmod(0o755 if entry.is_dir() else 0o644)
    subprocess.run(["git", "clone", "-q", str(repository), str(tmp_path / "clone")], check=True, capture_output=True)
    command = [sys.executable, "-m", "dvc", "remote", "modify", "--quiet", "storage", "url", str(remote)]
    environment = {**os.environ, "DVC_NO_ANALYTICS": "true"}
    subprocess.run(command, cwd=tmp_path / "clone", check=True, capture_output=True, env=environment)
    git(tmp_path / "clone", "commit", "-qam", "another remote")
    return tmp_path / "clone"


def remote_object(clone, data):
    return next(p for p in (clone.parent / "remote").rglob("*") if p.is_file() and p.read_bytes() == data)


@pytest.mark.slow
def test_a_damaged_object_of_the_remote_is_refused_and_named(clone, tmp_path):
    damaged = remote_object(clone, b"deep")
    damaged.write_bytes(b"DEEP")
    source = resolve(str(clone))
    with pytest.raises(CtmrError) as caught:
        materialise(source, tmp_path / "raw", said)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert "images" in sentence
    assert "a/x.bin" in sentence or damaged.parent.name + damaged.name in sentence


@pytest.mark.slow
def test_an_object_that_the_remote_lacks_is_a_fault_of_the_environment(clone, tmp_path):
    remote_object(clone, b"deep").unlink()
    source = resolve(str(clone))
    with pytest.raises(CtmrError, match=r"dataset images at revision .* could not be fetched") as caught:
        materialise(source, tmp_path / "raw", said)
    assert caught.value.exit_code == 3 and "a/x.bin is missing in the remote (files/md5/" in str(caught.value)


@pytest.mark.slow
def test_a_dataset_is_what_was_committed_whatever_is_pinned_wrongly(repository, tmp_path):
    source = resolve(str(repository))
    other = replace(source, dataset=replace(source.dataset, md5="0" * 32 + ".dir"))
    with pytest.raises(InputError, match="the pinned state is 0000"):
        materialise(other, tmp_path / "raw", said)


@pytest.mark.slow
def test_a_repository_that_tracks_nothing_or_several_things_asks_which(clone):
    shutil.copytree(clone, clone.parent / "several")
    several = clone.parent / "several"
    text = (several / "images.dvc").read_text()
    (several / "more.dvc").write_text(text.replace("path: images", "path: more"))
    git(several, "add", "-A")
    git(several, "commit", "-qm", "two")
    with pytest.raises(InputError, match=r"tracks no single dataset; it tracks images, more: choose with --path"):
        resolve(str(several))
    assert resolve(str(several), path="more").dataset.name == "more"
    assert Path(resolve(str(several), path="more").address) == several
