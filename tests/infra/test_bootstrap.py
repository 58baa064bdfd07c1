"""Nothing is installed whose digest constraints.txt does not record."""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import sysconfig
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bootstrap(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "infra"))
    import bootstrap

    return bootstrap


@pytest.fixture
def lock(bootstrap: ModuleType) -> ModuleType:
    import lock

    return lock


@pytest.fixture
def uv() -> str:
    found = shutil.which("uv", path=sysconfig.get_path("scripts"))
    assert found is not None
    return found


def wheel(folder: Path, content: str = "") -> str:
    """Write a package of one module, and return the wheel's digest."""
    folder.mkdir(exist_ok=True)
    path = folder / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny.py", content)
        archive.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny-1.0.dist-info/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_pin_is_one_version_with_the_digests_of_its_files(bootstrap: ModuleType) -> None:
    pins = bootstrap.read((ROOT / "constraints.txt").read_text())
    assert len(pins) > 250 and len({p.name for p in pins}) == len(pins)
    for pin in pins:
        assert re.fullmatch(r"[\w.+!-]+", pin.version), pin.name
        assert pin.hashes and all(re.fullmatch("sha256:[0-9a-f]{64}", h) for h in pin.hashes), pin.name
    assert {p.remark.partition(":")[0] for p in pins} == {"", bootstrap.ALONE, bootstrap.CUDA}
    assert set(bootstrap.FIRST) <= {p.name for p in pins if not p.remark}


def test_lock_writes_what_bootstrap_reads(bootstrap: ModuleType, lock: ModuleType) -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert lock.write(bootstrap.read(text)) == text


def test_a_file_of_another_digest_is_refused_in_one_sentence(
    bootstrap: ModuleType, uv: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recorded = wheel(tmp_path / "index")
    listing = tmp_path / "listing.txt"
    listing.write_text(bootstrap.Pin("tiny", "1.0", "", (f"sha256:{recorded}",)).lines())
    step = [uv, "pip", "install", "--python", sys.executable, "--no-index", "--find-links", str(tmp_path / "index")]
    step += ["--target", str(tmp_path / "there"), "--no-cache", "--require-hashes", "-r", str(listing)]
    assert bootstrap.run(step, {}) and (tmp_path / "there" / "tiny.py").is_file()
    shutil.rmtree(tmp_path / "there")
    given = wheel(tmp_path / "index", "import os  # and more")
    capfd.readouterr()
    assert not bootstrap.run(step, {})
    said = capfd.readouterr()
    assert not (tmp_path / "there" / "tiny.py").exists()
    assert said.err.count("\n") == 1 and "Traceback" not in said.err and "rror:" not in said.out
    assert f"tiny==1.0 (sha256 {given[:12]}…) is none that constraints.txt records" in said.err


def test_pip_too_is_understood_when_it_refuses_a_file(bootstrap: ModuleType) -> None:
    said = (
        "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have updated\n"
        "    uv==0.13.8 from file:///index/uv.whl (from -r first.txt (line 4)):\n"
        f"        Expected sha256 {'0' * 64}\n        Expected     or {'1' * 64}\n             Got        {'e' * 64}\n"
    )
    assert bootstrap.refusal(said).startswith("the file that the index gave for uv==0.13.8 (sha256 eeeeeeeeeeee…)")
    assert bootstrap.refusal("error: Failed to fetch the index") == ""


def test_one_index_is_asked(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "PYTHON", Path(sys.executable))
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://other.example/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels")
    options, _ = bootstrap.from_pip()
    words = " ".join(options)
    assert "--default-index https://mirror.example/simple" in words and "--find-links /wheels" in words
    assert "other.example" not in words and "unsafe" not in words


@pytest.mark.parametrize(("build", "cuda"), [("2.13.0+cpu", False), ("2.13.0", True)])
def test_cuda_is_installed_with_a_build_that_needs_it_and_everything_by_digest(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, build: str, cuda: bool
) -> None:
    steps: list[list[str]] = []

    def noted(step: list[str], environment: Any) -> bool:
        steps.append(step)
        return True

    monkeypatch.setattr(bootstrap, "VENV", tmp_path)
    monkeypatch.setattr(bootstrap, "from_pip", lambda: ([], {}))
    monkeypatch.setattr(bootstrap, "resolved", lambda *_: build)
    monkeypatch.setattr(bootstrap, "run", noted)
    monkeypatch.setenv("TORCH_INDEX_URL", "https://torch.example/cpu")
    assert bootstrap.install(bootstrap.read((ROOT / "constraints.txt").read_text()))
    assert [("--require-hashes" in s, "https://torch.example/cpu" in s) for s in steps] == [
        (True, False),
        (True, True),
        (True, False),
        (True, False),
        (False, False),
    ]
    assert steps[-1][-2:] == ["--editable", str(bootstrap.ROOT)] and "--no-build-isolation" in steps[-1]
    assert (tmp_path / "torch.txt").read_text().startswith(f"torch=={build} \\\n")
    assert ("nvidia-cublas==" in (tmp_path / "together.txt").read_text()) == cuda
    assert "numpy==" in (tmp_path / "together.txt").read_text()
