"""Write constraints.txt: every pin with the sha256 of each file of its release, for CPython 3.11 and 3.12 on Linux.

Versions are those that constraints.txt has; edit one there, or add a dependency to pyproject.toml, and run `make lock`.
What a release needs and no pin says is resolved and added. Only pip's own index is asked.

Environment: TORCH_INDEX_URL, an index with another build of PyTorch whose digests are recorded beside the release's.
They stay as long as the version does, since the index that has them is not always at hand.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bootstrap import ALONE, CUDA, PYTHON, ROOT, UV, Pin, from_pip, read

PYTHONS = ("3.11", "3.12")
PLATFORM = "x86_64-manylinux_2_35"
HEADER = """\
# One full set that installs together on CPython 3.11 and 3.12, Linux x86_64. `make lock` writes the hashes: all files
# of each release on the index, and for torch CPU builds of PyTorch's own. infra/bootstrap.py installs nothing else.

"""
NEEDED_BY_TORCH = f"{CUDA}: the builds of PyTorch that have it need it"


def main() -> int:
    """Write constraints.txt; 3 when the index does not give what is pinned."""
    target = ROOT / "constraints.txt"
    old = read(target.read_text())
    try:
        new = lock(old)
    except subprocess.CalledProcessError as error:
        print(f"lock: uv found no such set, constraints.txt stays as it is\n{error.stderr}", file=sys.stderr)
        return 3
    except ValueError as error:
        print(f"lock: {error}; pin one that both take", file=sys.stderr)
        return 3
    temporary = target.with_suffix(".new")
    temporary.write_text(write(new))
    temporary.replace(target)
    known = {(p.name, p.version) for p in old}
    changed = [f"{p.name} {p.version}" for p in new if (p.name, p.version) not in known]
    print(f"lock: {len(new)} pins, {sum(len(p.hashes) for p in new)} hashes; new: {', '.join(changed) or 'none'}")
    return 0


def lock(old: list[Pin]) -> list[Pin]:
    """Resolve what the old pins and pyproject.toml ask for, and return it with hashes."""
    alone = [p for p in old if p.remark.startswith(ALONE)]
    torch = next(p for p in alone if p.name == "torch")
    # Who installs without dependencies is left out of the resolution by an override that holds on no machine.
    never = [f"{p.name}=={p.version}; sys_platform == 'never'" for p in alone]
    asked = [pinned(p) for p in old if not p.remark]
    together = compiled([*asked, f"ctmr[dev] @ {ROOT.as_uri()}"], [], never)
    together.pop("ctmr", None)
    by_themselves = compiled([pinned(p) for p in alone], ["--no-deps"])
    wanted = [pinned(p) for p in together.values()] + [pinned(p) for p in old if p.remark.startswith(CUDA)]
    for_torch = compiled([pinned(torch)], [], constraints=wanted)
    hashes = by_themselves["torch"].hashes + torch.hashes
    if address := os.environ.get("TORCH_INDEX_URL"):
        build = compiled([pinned(torch)], ["--no-deps", "--default-index", address])["torch"]
        hashes += build.hashes
    pins = list(together.values())
    for p in alone:
        known = hashes if p.name == "torch" else by_themselves[p.name].hashes
        pins.append(Pin(p.name, p.version, p.remark, tuple(sorted(set(known)))))
    seen = {p.name for p in pins}
    pins += [Pin(p.name, p.version, NEEDED_BY_TORCH, p.hashes) for p in for_torch.values() if p.name not in seen]
    return sorted(pins, key=lambda p: p.name)


def compiled(
    asked: list[str], options: list[str], overrides: list[str] | None = None, constraints: list[str] | None = None
) -> dict[str, Pin]:
    """Let uv resolve for every Python and return the pins by name; ValueError when two Pythons want two versions."""
    configured, environment = from_pip()
    while "--find-links" in configured:  # a folder of this machine is no source of digests
        at = configured.index("--find-links")
        del configured[at : at + 2]
    found: dict[str, Pin] = {}
    with tempfile.TemporaryDirectory() as name:
        for file, lines in (("override", overrides), ("constraint", constraints)):
            if lines:
                path = Path(name) / file
                path.write_text("\n".join(lines) + "\n")
                options = [*options, f"--{file}", str(path)]
        for python in PYTHONS:
            target = ["--python-version", python, "--python-platform", PLATFORM, "--python", str(PYTHON)]
            step = [str(UV), "pip", "compile", "--quiet", "--generate-hashes", "--no-header", "--no-annotate", *target]
            answer = subprocess.run(
                [*step, *configured, *options, "-"],
                input="\n".join(asked) + "\n",
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            )
            for pin in read("".join(x for x in answer.stdout.splitlines(True) if "@ file:" not in x)):
                other = found.setdefault(pin.name, pin)
                if pin.version != other.version:
                    raise ValueError(f"{pin.name} is {other.version} for one Python and {pin.version} for {python}")
    return found


def pinned(pin: Pin) -> str:
    """Return the pin without its hashes."""
    return f"{pin.name}=={pin.version}"


def write(pins: list[Pin]) -> str:
    """Return the text of constraints.txt."""
    return HEADER + "".join((f"# {p.remark}\n" if p.remark else "") + p.lines() + "\n" for p in pins)


if __name__ == "__main__":
    sys.exit(main())
