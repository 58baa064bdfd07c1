"""Make .venv from constraints.txt with uv, as fast as the network allows; standard library only.

Nothing is installed whose sha256 constraints.txt does not record. uv is brought by pip, and is handed pip's own index,
find-links and certificate, so that whatever works for pip on this machine works here and no address is written down.
Run again, it does nothing when nothing changed.

Environment: TORCH_INDEX_URL, an index that serves CPU builds of PyTorch (pytorch.org documents its own); without it
PyTorch comes from the same place as everything else, which on many machines is the CUDA build of several gigabytes.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import commit_msg

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
UV = VENV / "bin" / "uv"
MARK = VENV / "ctmr-installed"
ALONE = "without dependencies"
"""Remark on pins that are installed with --no-deps: their own pins contradict the rest, or differ between builds."""
CUDA = "with CUDA"
"""Remark on pins that only a CUDA build of PyTorch needs."""
FIRST = ("uv", "setuptools")
"""What pip installs: the installer, and the backend that source distributions and ctmr itself are built with."""
MISMATCH = re.compile(r"Hash mismatch for `([^`]+)`|no hashes were provided or computed for: (\S+)")
COMPUTED = re.compile(r"(?:Computed:\s+sha256:|Got\s+)([0-9a-f]{64})")


@dataclass(frozen=True)
class Pin:
    """A release of constraints.txt: its name, version, remark, and the digests that its files may have."""

    name: str
    version: str
    remark: str
    hashes: tuple[str, ...]

    def lines(self, version: str = "") -> str:
        """Return the pin as a requirement, of that version where the index calls the same release otherwise."""
        return " \\\n".join([f"{self.name}=={version or self.version}", *(f"    --hash={h}" for h in self.hashes)])


def read(text: str) -> list[Pin]:
    """Read constraints.txt: pins with their hashes, and as a remark the comment line right above one."""
    pins, remark = [], ""
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("#"):
            remark = line.removeprefix("#").strip()
            continue
        if line.strip():
            pin, *hashes = line.split()
            name, _, version = pin.partition("==")
            pins.append(Pin(name, version, remark, tuple(h.removeprefix("--hash=") for h in hashes)))
        remark = ""
    return pins


def main() -> int:
    """Install, or say why not; 0 when .venv is ready."""
    if not (3, 11) <= sys.version_info[:2] < (3, 13):
        print(
            f"ctmr needs Python 3.11 or 3.12, this is {sys.version.split()[0]}; run make with PYTHON=python3.11",
            file=sys.stderr,
        )
        return 3
    if said := commit_msg.install(ROOT):
        print(f"environment: {said}")
    wanted = fingerprint()
    if MARK.is_file() and MARK.read_text() == wanted and PYTHON.exists():
        print("environment: .venv is up to date")
        return 0
    print("environment: making .venv", flush=True)
    if not PYTHON.exists():
        venv.create(VENV, with_pip=True, clear=VENV.exists())
    pins = read((ROOT / "constraints.txt").read_text())
    if not install(pins):
        return 3
    MARK.write_text(wanted)
    return 0


def install(pins: list[Pin]) -> bool:
    """Install all pins and ctmr itself; False when a step failed, which was told."""
    options, environment = from_pip()
    torch_options = list(options)
    if address := os.environ.get("TORCH_INDEX_URL"):
        torch_options += ["--index", address]
    torch = next(p for p in pins if p.name == "torch")
    alone = [p for p in pins if p.remark.startswith(ALONE) and p is not torch]
    together = [p for p in pins if not p.remark]
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    uv = [str(UV), "pip", "install", "--python", str(PYTHON), "--no-build-isolation"]

    def checked(name: str, pins: list[str]) -> list[str]:
        listing = VENV / f"{name}.txt"
        listing.write_text("\n".join(pins) + "\n")
        return ["--require-hashes", "--requirement", str(listing)]

    first = checked("first", [p.lines() for p in together if p.name in FIRST])
    if not run([*pip, "--no-deps", *first], environment):
        return False
    build = resolved(torch, torch_options, environment)
    if "+cpu" not in build:
        together += [p for p in pins if p.remark.startswith(CUDA)]
    return all(
        run(step, environment)
        for step in (
            [*uv, *torch_options, "--no-deps", *checked("torch", [torch.lines(build)])],
            [*uv, *options, *checked("together", [p.lines() for p in together])],
            [*uv, *options, "--no-deps", *checked("alone", [p.lines() for p in alone])],
            [*uv, *options, "--quiet", "--no-deps", "--editable", str(ROOT)],
        )
    )


def resolved(pin: Pin, options: list[str], environment: dict[str, str]) -> str:
    """Return the version that the index has of a release: 2.13.0 may be 2.13.0+cpu, which uv wants by that name."""
    step = [str(UV), "pip", "compile", "--quiet", "--no-deps", "--no-header", "--no-annotate", "--python", str(PYTHON)]
    answer = subprocess.run(
        [*step, *options, "-"],
        input=f"{pin.name}=={pin.version}\n",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(rf"^{pin.name}==(\S+)", answer.stdout, re.MULTILINE)
    return found[1] if found else pin.version


def run(step: list[str], environment: dict[str, str]) -> bool:
    """Run a step, tell what it says but the list of several hundred packages, and say whether it ended well.

    A file that is not the recorded one is told in one sentence instead.
    """
    print(f"environment: {shlex.join(Path(p).name if p.startswith('/') else p for p in step[:3])} …", flush=True)
    complaint: list[str] = []
    with subprocess.Popen(
        step, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if complaint or line.lower().startswith("error:"):
                complaint.append(line)
            elif not line.startswith((" + ", " - ", " ~ ")):
                print(f"  {line}", end="", flush=True)
    if process.returncode == 0:
        return True
    said = "".join(complaint)
    if not (sentence := refusal(said)):
        print("".join(f"  {line}" for line in complaint), end="", flush=True)
        sentence = "the step above failed; its last lines say why, and make goes on from there"
    print(f"environment: {sentence}", file=sys.stderr)
    return False


def refusal(said: str) -> str:
    """Return the sentence for a file whose digest is not recorded; empty when the installer complained of another."""
    # pip names the package on the line before the digests that it expected: "uv==0.13.8 from ADDRESS:".
    of_pip = re.search(r"DO NOT MATCH THE HASHES.*?\n\s+(\S+)", said, re.DOTALL)
    found = MISMATCH.search(said)
    if not found and not of_pip:
        return ""
    name = next(x for x in (found.groups() if found else of_pip.groups()) if x)  # type: ignore[union-attr]
    computed = COMPUTED.search(said)
    digest = f" (sha256 {computed[1][:12]}…)" if computed else ""
    return (
        f"the file that the index gave for {name}{digest} is none that constraints.txt records, so it was not "
        "installed: find out where it comes from, and only if that is trusted, record it with `make lock`"
    )


def fingerprint() -> str:
    """Return what decides the environment: constraints, project file and Python."""
    content = b"".join((ROOT / n).read_bytes() for n in ("constraints.txt", "pyproject.toml"))
    return hashlib.sha256(content + sys.version.encode() + str(ROOT).encode()).hexdigest()


def from_pip() -> tuple[list[str], dict[str, str]]:
    """Translate pip's configuration into uv's options and environment.

    One index is asked, pip's own, by uv's own strategy: what the first index does not have in that version is not
    looked for elsewhere. pip's extra indexes are left out: uv would ask them first, and an old copy or anybody's
    package of the same name there would stand in the pinned release's way. Who needs one names it in UV_INDEX.
    """
    listing = subprocess.run(
        [str(PYTHON), "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    options: list[str] = []
    environment = {**os.environ, "UV_NO_PROGRESS": "1"}
    for line in listing.splitlines():
        name, _, value = line.partition("=")
        key = name.rpartition(".")[2]
        values = value.strip("'\"").replace("\\n", " ").split()
        if key == "index-url":
            options += ["--default-index", values[0]]
        elif key == "find-links":
            options += [word for v in values for word in ("--find-links", v)]
        elif key == "cert":
            environment.setdefault("SSL_CERT_FILE", values[0])
    return options, environment


if __name__ == "__main__":
    sys.exit(main())
