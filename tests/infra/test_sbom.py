"""What .venv is made of: components, digests, licences, vulnerabilities, and no claim about what nobody was asked."""

from __future__ import annotations

import json
import shutil
import sys
import sysconfig
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def sbom(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "infra"))
    import bootstrap
    import sbom

    uv = shutil.which("uv", path=sysconfig.get_path("scripts"))
    assert uv is not None
    for module in (bootstrap, sbom):
        monkeypatch.setattr(module, "PYTHON", Path(sys.executable))
        monkeypatch.setattr(module, "UV", Path(uv))
    return sbom


class Osv(BaseHTTPRequestHandler):
    """A vulnerability service that knows one flaw of one package."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))["queries"]
        flaw = {"vulns": [{"id": "TEST-1", "modified": "2026-01-01T00:00:00Z"}]}
        self.say({"results": [flaw if q["package"]["name"] == "tiny" else {} for q in asked]})

    def do_GET(self) -> None:
        ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.0"}]}]
        affected = [{"package": {"ecosystem": "PyPI", "name": "tiny"}, "ranges": ranges, "versions": ["1.0"]}]
        self.say({"id": "TEST-1", "modified": "2026-01-01T00:00:00Z", "summary": "runs code", "affected": affected})

    def say(self, tree: Any) -> None:
        content = json.dumps(tree).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def service() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Osv) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def tiny(sbom: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A pinned package that lies in a folder, which is asked in place of any index."""
    from tests.infra.test_bootstrap import wheel

    wheel(tmp_path / "wheels")
    monkeypatch.setattr(sbom, "from_pip", lambda: (["--no-index", "--find-links", str(tmp_path / "wheels")], {}))
    return sbom.Pin("tiny", "1.0", "", ())


def test_known_vulnerabilities_are_listed(
    sbom: ModuleType, tiny: Any, service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OSV_URL", service)
    said = sbom.vulnerabilities([tiny], tmp_path / "found.json")
    assert said.splitlines()[0].startswith("1 known vulnerabilities in 1 releases, in ")
    assert said.splitlines()[1] == "  tiny 1.0: TEST-1, fixed in 2.0: runs code"
    assert json.loads((tmp_path / "found.json").read_text())["vulnerabilities"][0]["id"] == "TEST-1"


def test_where_no_service_answers_nothing_is_claimed(
    sbom: ModuleType, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OSV_URL", "http://127.0.0.1:9")
    options, _ = sbom.from_pip()
    monkeypatch.setattr(sbom, "from_pip", lambda: (options, {"UV_HTTP_RETRIES": "0"}))
    (tmp_path / "found.json").write_text("of yesterday")
    said = sbom.vulnerabilities([tiny], tmp_path / "found.json")
    assert said.startswith("VULNERABILITIES WERE NOT LOOKED UP (") and "\n" not in said
    assert not (tmp_path / "found.json").exists()


def test_components_get_the_digests_of_their_release_and_licences_are_one_line(sbom: ModuleType) -> None:
    digest = "a" * 64
    bom: dict[str, Any] = {
        "components": [
            {"name": "Tiny_Thing", "version": "1.0+cpu", "purl": "pkg:pypi/tiny-thing@1.0", "licenses": []},
            {"name": "b", "version": "2", "purl": "pkg:pypi/b@2", "licenses": [{"license": {"name": "MIT\nand more"}}]},
            {"name": "c", "version": "3", "purl": "pkg:pypi/c@3", "licenses": [{"expression": "MIT OR BSD-2-Clause"}]},
        ]
    }
    found = sbom.with_hashes(bom, [sbom.Pin("tiny-thing", "1.0", "", (f"sha256:{digest}",))])
    (reference,) = found["components"][0]["externalReferences"]
    assert reference["hashes"] == [{"alg": "SHA-256", "content": digest}]
    assert "externalReferences" not in found["components"][1]
    lines = sbom.licences(found).splitlines()
    assert [line.split(None, 2)[2] for line in lines[:3]] == ["MIT and more", "MIT OR BSD-2-Clause", "not stated"]


def test_the_list_of_this_environment_is_valid_and_complete(
    sbom: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    monkeypatch.setattr(sbom, "vulnerabilities", lambda *_: "not asked")
    assert sbom.main(tmp_path) == 0
    tree = json.loads((tmp_path / "sbom.cdx.json").read_text())
    # The validator takes half a minute for all of them.
    few = json.dumps({**tree, "components": tree["components"][:12], "dependencies": []})
    assert JsonStrictValidator(SchemaVersion.from_version(tree["specVersion"])).validate_str(few) is None
    hashed = {
        c["name"].lower()
        for c in tree["components"]
        if any(r.get("comment") == sbom.COMMENT and r["hashes"] for r in c.get("externalReferences", []))
    }
    assert {"torch", "numpy", "mlflow", "nvidia-pytriton"} <= hashed and len(hashed) > 200
    assert "numpy 2" in (tmp_path / "licences.txt").read_text()
    assert f"{len(tree['components'])} components" in capsys.readouterr().out
