"""Small sources, and data repositories looked at from outside."""

from __future__ import annotations

import subprocess

import numpy as np
from PIL import Image


def pictures(folder, names, seed=0):
    rng = np.random.default_rng(seed)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40), dtype=np.uint8)).save(folder / name)
    return folder


PAIRS = [f"{s}/{m}/{k}.png" for s in ("train", "test") for m in ("CT", "MR") for k in range(2)]


def run_git(root, *words):
    author = ["-c", "user.name=t", "-c", "user.email=t@example.invalid"]
    return subprocess.run(["git", *author, *words], cwd=root, check=True, capture_output=True, text=True).stdout


def state(repo):
    """What git and the working tree say."""
    files = {p.name: p.read_bytes() for p in repo.iterdir() if p.is_file()}
    data = {p.relative_to(repo): p.read_bytes() for p in sorted((repo / "pairs").rglob("*")) if p.is_file()}
    return run_git(repo, "log", "--format=%H"), run_git(repo, "status", "--porcelain"), files, data


def objects(folder):
    """Objects of a cache or remote by name, the list of files last."""
    found = sorted(p for p in folder.rglob("*") if p.is_file() and p.parent.parent.name == "md5")
    return [p for p in found if p.suffix != ".dir"], next(p for p in found if p.suffix == ".dir")


def overwrite(path, data):
    path.chmod(0o644)
    path.unlink()
    path.write_bytes(data)


def clone_of(folder):
    """A clone without data, whose objects come from the remote."""
    run_git(folder, "clone", "-q", str(folder / "repo"), str(folder / "clone"))
    return folder / "clone"
