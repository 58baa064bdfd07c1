"""Lineage: the ledger keeps what was written, the walk says what it can and cannot prove."""

import hashlib
import json

import pytest

from ctmr.errors import CtmrError, EnvironmentFault, InputError
from ctmr.tracking.lineage import Link, record, trace

ENTRY = {
    "series_uid": "1.2.3",
    "instance_uids": ["1.2.3.1", "1.2.3.2"],
    "path": "/out/synthetic",
    "source_uid": "9.8.7",
    "direction": "mr2ct",
    "model_name": "demo-phantom",
    "model_version": "4",
    "onnx_sha256": hashlib.sha256(b"graph").hexdigest(),
    "run_id": "run1",
    "code_revision": "abc",
    "dataset_revision": "def",
    "dataset_md5": "0123.dir",
}


class Store:
    """An MLflow that knows one version, or does not answer."""

    uri = "http://mlflow.invalid"
    known, answers = True, True

    def __init__(self, home):
        pass

    def version(self, name, version):
        from ctmr.tracking.mlflow import Version

        if not Store.answers:
            raise EnvironmentFault(f"MLflow at {self.uri} failed: Connection refused")
        if not Store.known:
            raise InputError(f"MLflow at {self.uri} has no version {version} of model {name}")
        tags = {"code_revision": "abc", "dataset_revision": "def", "dataset_md5": "other.dir", "validation": "pass"}
        return Version(name, version, "run1", "digest", tags)


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr("ctmr.tracking.mlflow.Tracking", Store)
    monkeypatch.setattr(Store, "known", True)
    monkeypatch.setattr(Store, "answers", True)
    return Store


def by_what(links: list[Link]) -> dict[str, Link]:
    return {link.what: link for link in links}


def test_every_entry_is_one_line_with_its_time_and_earlier_lines_stay(home):
    record(home, ENTRY)
    first = home.ledger.read_text()
    record(home, {**ENTRY, "series_uid": "4.5.6", "note": "two\nlines, é"})
    text = home.ledger.read_text()
    assert text.startswith(first)
    rows = [json.loads(line) for line in text.splitlines()]
    assert [r["series_uid"] for r in rows] == ["1.2.3", "4.5.6"]
    assert all(ENTRY.keys() < r.keys() and r["written"].endswith("+00:00") for r in rows)


def test_the_ledger_is_its_owners_alone(home):
    record(home, ENTRY)
    assert home.ledger.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("uid", ["1.2.3", "1.2.3.2"])
def test_a_series_is_found_by_its_own_and_its_images_uids(home, store, uid):
    record(home, ENTRY)
    links = by_what(trace(uid, home))
    assert links["synthetic series"].value == "1.2.3"
    assert links["source series"].value == "9.8.7"
    assert links["dataset revision"].value == "def"


def test_a_uid_written_twice_is_the_latest(home, store):
    record(home, ENTRY)
    record(home, {**ENTRY, "model_version": "5"})
    assert by_what(trace("1.2.3", home))["Triton model"].value == "demo-phantom_mr2ct version 5"


def test_what_the_registry_says_otherwise_is_not_verified(home, store):
    record(home, ENTRY)
    links = by_what(trace("1.2.3", home))
    assert links["code revision"].checked and links["MLflow run"].checked and links["validation"].checked
    assert links["dataset md5"].checked is False


TOLD_BY_MLFLOW = ("MLflow model", "MLflow run", "code revision", "validation", "dataset revision", "dataset md5")


def test_a_version_that_the_registry_does_not_have_is_not_found_and_the_walk_goes_on(home, store, monkeypatch):
    monkeypatch.setattr(Store, "known", False)
    record(home, ENTRY)
    links = by_what(trace("1.2.3", home))
    assert links["dataset revision"].value == "def"
    assert {links[w].checked for w in TOLD_BY_MLFLOW} == {False}
    assert "MLflow" not in links


def test_a_registry_that_does_not_answer_is_said_and_nothing_is_called_missing(home, store, monkeypatch):
    monkeypatch.setattr(Store, "answers", False)
    record(home, ENTRY)
    links = by_what(trace("1.2.3", home))
    assert {links[w].checked for w in TOLD_BY_MLFLOW} == {None}
    assert "does not answer" in links["MLflow"].value and "Connection refused" in links["MLflow"].value
    assert links["dataset revision"].value == "def" and links["validation"].value == "not known"


@pytest.mark.parametrize(("content", "checked"), [(b"graph", True), (b"another graph", False), (None, False)])
def test_a_model_is_verified_by_the_bytes_that_triton_serves(home, store, content, checked):
    if content is not None:
        path = home.model_repository / "demo-phantom_mr2ct" / "4" / "model.onnx"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    record(home, ENTRY)
    assert by_what(trace("1.2.3", home))["Triton model"].checked is checked


def test_an_unknown_uid_is_one_sentence(home):
    record(home, ENTRY)
    with pytest.raises(InputError, match=r"9\.9\.9 is no synthetic image this machine wrote \(1 in"):
        trace("9.9.9", home)


def test_without_a_ledger_a_uid_is_unknown(home):
    with pytest.raises(InputError, match=r"\(0 in"):
        trace("1.2.3", home)


def test_a_line_that_a_power_cut_tore_hides_no_other(home, store):
    record(home, ENTRY)
    with home.ledger.open("a") as stream:
        stream.write("[" * 100_000 + '\n{"series_uid": "torn')
    assert by_what(trace("1.2.3", home))["synthetic series"].value == "1.2.3"
    record(home, {**ENTRY, "series_uid": "4.5.6"})
    assert by_what(trace("4.5.6", home))["synthetic series"].value == "4.5.6"


@pytest.mark.parametrize("content", [None, b"", b"not DICOM"])
def test_a_path_without_a_synthetic_image_is_one_sentence(home, tmp_path, content):
    folder = tmp_path / "series"
    folder.mkdir()
    if content is not None:
        (folder / "x.dcm").write_bytes(content)
    with pytest.raises(CtmrError, match="series") as caught:
        trace(str(folder), home)
    assert caught.value.exit_code == 2


FACTS = {k: ENTRY[k] for k in ("direction", "model_name", "model_version", "onnx_sha256", "run_id", "series_uid")}


@pytest.fixture
def picture(tmp_path):
    def write(name="made.png", **text):
        from PIL import Image, PngImagePlugin

        info = PngImagePlugin.PngInfo()
        for keyword, value in text.items():
            info.add_text(keyword, value)
        Image.linear_gradient("L").save(tmp_path / name, "PNG", pnginfo=info)
        return tmp_path / name

    return write


def test_a_file_is_traced_by_what_it_carries_whatever_its_name(home, store, picture):
    path = picture("x.dat", Description="SYNTHETIC CT by demo version 4", Provenance=json.dumps(FACTS))
    links = by_what(trace(str(path), home))
    assert links["synthetic series"].value == "1.2.3" and links["MLflow run"].value == "run1"


def test_a_file_that_lost_its_text_is_traced_by_its_content(home, store, picture):
    from ctmr.io.content import content_digest, read_whatever

    path = picture()
    with pytest.raises(InputError, match="none of the 0 synthetic images"):
        trace(str(path), home)
    record(home, {**ENTRY, "content_sha256": content_digest(read_whatever(path).array)})
    assert by_what(trace(str(path), home))["dataset revision"].value == "def"


def test_a_torn_statement_leads_nowhere_and_is_one_sentence(home, picture):
    path = picture(Provenance=json.dumps({**FACTS, "direction": "sideways"}))
    with pytest.raises(InputError, match="carries no provenance"):
        trace(str(path), home)
