"""Make .venv from constraints.txt with uv, as fast as the network allows; standard library only.

uv is brought by pip, and is handed pip's own index, find-links and certificate, so that whatever works for pip on
this machine works here and no address is written down. Run again, it does nothing when nothing changed.

Environment: TORCH_INDEX_URL, an index that serves CPU builds of PyTorch (pytorch.org documents its own); without it
PyTorch comes from the same place as everything else, which on many machines is the CUDA build of several gigabytes.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
import venv
from pathlib import Path

import commit_msg

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
MARK = VENV / "ctmr-installed"
WITHOUT_DEPENDENCIES = "# without dependencies:"
"""Lines of constraints.txt with this remark are installed with --no-deps: their own pins contradict the rest."""


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
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    alone = [x.partition("#")[0].strip() for x in lines if WITHOUT_DEPENDENCIES in x]
    together = [x for x in lines if x and not x.startswith("#") and WITHOUT_DEPENDENCIES not in x]
    listing = VENV / "requirements.txt"
    listing.write_text("\n".join(together) + "\n")
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    options, environment = from_pip()
    steps = [
        [*pip, next(x for x in together if x.startswith("uv=="))],
        [str(VENV / "bin" / "uv"), "pip", "install", "--python", str(PYTHON), *options, "--requirement", str(listing)],
        [str(VENV / "bin" / "uv"), "pip", "install", "--python", str(PYTHON), *options, "--no-deps", *alone],
        [
            str(VENV / "bin" / "uv"),
            "pip",
            "install",
            "--quiet",
            "--python",
            str(PYTHON),
            *options,
            "--no-deps",
            "--editable",
            str(ROOT),
        ],
    ]
    for step in steps:
        print(f"environment: {shlex.join(Path(p).name if p.startswith('/') else p for p in step[:3])} …", flush=True)
        if run(step, environment):
            print(
                "environment: the step above failed; its last lines say why, and make goes on from there",
                file=sys.stderr,
            )
            return 3
    MARK.write_text(wanted)
    return 0


def run(step: list[str], environment: dict[str, str]) -> int:
    """Run a step and return its exit code; of its output, the list of several hundred packages is left out."""
    with subprocess.Popen(
        step, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if not line.startswith((" + ", " - ", " ~ ")):
                print(f"  {line}", end="", flush=True)
    return process.returncode


def fingerprint() -> str:
    """Return what decides the environment: constraints, project file and Python."""
    content = b"".join((ROOT / n).read_bytes() for n in ("constraints.txt", "pyproject.toml"))
    return hashlib.sha256(content + sys.version.encode() + str(ROOT).encode()).hexdigest()


def from_pip() -> tuple[list[str], dict[str, str]]:
    """Translate pip's configuration into uv's options and environment."""
    listing = subprocess.run(
        [str(PYTHON), "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    options = ["--index-strategy", "unsafe-best-match"]
    environment = {**os.environ, "UV_NO_PROGRESS": "1"}
    for line in listing.splitlines():
        name, _, value = line.partition("=")
        key = name.rpartition(".")[2]
        values = value.strip("'\"").replace("\\n", " ").split()
        if key == "index-url":
            options += ["--index-url", values[0]]
        elif key in ("extra-index-url", "find-links"):
            options += [word for v in values for word in (f"--{key}", v)]
        elif key == "cert":
            environment.setdefault("SSL_CERT_FILE", values[0])
    if os.environ.get("TORCH_INDEX_URL"):
        options += ["--extra-index-url", os.environ["TORCH_INDEX_URL"]]
    return options, environment


if __name__ == "__main__":
    sys.exit(main())
