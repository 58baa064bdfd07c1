"""Digests: what counts changes them, what does not never does."""

import os
import shutil

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ctmr.errors import InputError
from ctmr.system.digest import content_digest, file_digest, tree_digest

names = st.text("abcdéx_ 0.", min_size=1, max_size=6).filter(lambda n: set(n) - {"."} and n == n.strip())
contents = st.dictionaries(
    st.lists(names, min_size=1, max_size=3).map("/".join), st.binary(max_size=40), min_size=1, max_size=5
).filter(lambda files: not any(a != b and b.startswith(f"{a}/") for a in files for b in files))

json_leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
json_trees = st.recursive(
    json_leaves, lambda c: st.lists(c, max_size=3) | st.dictionaries(st.text(max_size=5), c, max_size=3), max_leaves=8
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("digest") / "folder"


def write(folder, files):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def digest_of(folder, files):
    return content_digest(write(folder, files))


@settings(max_examples=30)
@given(files=contents, order=st.randoms())
def test_the_order_in_which_files_were_written_does_not_count(scratch, files, order):
    shuffled = list(files.items())
    order.shuffle(shuffled)
    assert digest_of(scratch, files) == digest_of(scratch, dict(shuffled))


@settings(max_examples=30)
@given(files=contents, data=st.data())
def test_any_changed_byte_changes_the_digest(scratch, files, data):
    name = data.draw(st.sampled_from(sorted(files)))
    other = data.draw(st.binary(max_size=40))
    assume(other != files[name])
    assert digest_of(scratch, files) != digest_of(scratch, {**files, name: other})


@settings(max_examples=30)
@given(files=contents, data=st.data())
def test_any_changed_name_changes_the_digest(scratch, files, data):
    name = data.draw(st.sampled_from(sorted(files)))
    renamed = {f"{k}y" if k == name else k: v for k, v in files.items()}
    assert digest_of(scratch, files) != digest_of(scratch, renamed)


@settings(max_examples=30)
@given(files=contents)
def test_a_file_more_or_less_changes_the_digest(scratch, files):
    assert digest_of(scratch, files) != digest_of(scratch, {**files, "more.bin": b""})


@settings(max_examples=30)
@given(files=contents, noise=contents)
def test_what_lies_in_provenance_never_counts(scratch, files, noise):
    expected = digest_of(scratch, files)
    assert digest_of(scratch, {**files, **{f"provenance/{k}": v for k, v in noise.items()}}) == expected


def test_only_the_top_folder_called_provenance_is_free(tmp_path):
    one = digest_of(tmp_path / "f", {"a": b"1", "sub/provenance/x": b"1"})
    assert one != digest_of(tmp_path / "f", {"a": b"1", "sub/provenance/x": b"2"})


def test_bytes_cannot_wander_from_a_name_into_a_content(tmp_path):
    assert digest_of(tmp_path / "f", {"ab": b"c"}) != digest_of(tmp_path / "f", {"a": b"bc"})
    assert digest_of(tmp_path / "f", {"a/b": b"c"}) != digest_of(tmp_path / "f", {"a": b"bc"})


def test_times_and_rights_do_not_count(tmp_path):
    folder = write(tmp_path / "f", {"a": b"1"})
    before = content_digest(folder)
    os.utime(folder / "a", (1, 1))
    (folder / "a").chmod(0o600)
    assert content_digest(folder) == before


@pytest.mark.parametrize("target", ["a", "/etc/hostname", "nowhere"])
def test_a_link_is_refused_by_name(tmp_path, target):
    folder = write(tmp_path / "f", {"a": b"1"})
    (folder / "link").symlink_to(target)
    with pytest.raises(InputError, match="link is a symbolic link"):
        content_digest(folder)


def test_a_linked_folder_is_refused_and_not_followed(tmp_path):
    folder = write(tmp_path / "f", {"sub/a": b"1"})
    (folder / "loop").symlink_to(folder)
    with pytest.raises(InputError, match="loop is a symbolic link"):
        content_digest(folder)


def test_a_missing_path_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="there is nothing at"):
        content_digest(tmp_path / "nowhere")


def test_a_single_file_has_the_sha256_of_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1.
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert content_digest(tmp_path / "a") == file_digest(tmp_path / "a") == expected


@settings(max_examples=40)
@given(st.dictionaries(st.text(max_size=5), json_trees, max_size=5), st.randoms())
def test_the_order_of_keys_of_a_tree_does_not_count(tree, order):
    shuffled = list(tree.items())
    order.shuffle(shuffled)
    assert tree_digest(tree) == tree_digest(dict(shuffled))


@given(json_trees, json_trees)
def test_unlike_trees_have_unlike_digests(a, b):
    # JSON tells 1 from true although Python's == does not.
    assume(repr(a) != repr(b) and a != b)
    assert tree_digest(a) != tree_digest(b)


def test_names_that_are_not_utf_8_count_and_do_not_crash(tmp_path):
    for name in (b"caf\xe9", b"caf\xea"):
        folder = tmp_path / name.hex()
        folder.mkdir()
        (folder / os.fsdecode(name)).write_bytes(b"x")
    assert content_digest(tmp_path / b"caf\xe9".hex()) != content_digest(tmp_path / b"caf\xea".hex())
