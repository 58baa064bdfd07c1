"""Write what .venv is made of: a CycloneDX list, a readable list of licences, and known vulnerabilities.

Into build/sbom: sbom.cdx.json (components with versions, licences and, for all that constraints.txt pins, the sha256 of
the release's files), licences.txt, and vulnerabilities.json, which is missing when no service could be asked.

Environment: OSV_URL, a service that speaks the API of the Open Source Vulnerabilities project, for machines that reach
none but their own; without it uv asks the project's.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bootstrap import PYTHON, ROOT, UV, Pin, from_pip, read

OUT = ROOT / "build" / "sbom"
NOT_STATED = "not stated"
COMMENT = "sha256 of the release's files, from constraints.txt; the installed one is among them"


def main(out: Path = OUT) -> int:
    """Write the three lists and say what is in them; 3 when the components cannot be listed."""
    pins = read((ROOT / "constraints.txt").read_text())
    out.mkdir(parents=True, exist_ok=True)
    try:
        bom = with_hashes(components(), pins)
    except subprocess.CalledProcessError as error:
        print(f"sbom: the components of {PYTHON} cannot be listed: {error.stderr.strip()[-500:]}", file=sys.stderr)
        return 3
    (out / "sbom.cdx.json").write_text(json.dumps(bom, indent=1, sort_keys=True) + "\n")
    (out / "licences.txt").write_text(licences(bom))
    unstated = sum(licence(c) == NOT_STATED for c in bom["components"])
    print(f"sbom: {len(bom['components'])} components, {unstated} of them without a stated licence, in {out}")
    print(f"sbom: {vulnerabilities(pins, out / 'vulnerabilities.json')}")
    return 0


def components() -> dict[str, Any]:
    """Return the CycloneDX tree of what is installed."""
    step = [str(PYTHON), "-m", "cyclonedx_py", "environment", str(PYTHON), "--pyproject", str(ROOT / "pyproject.toml")]
    done = subprocess.run(
        [*step, "--output-format", "JSON", "--no-validate"], capture_output=True, text=True, check=True
    )
    tree: dict[str, Any] = json.loads(done.stdout)
    return tree


def with_hashes(bom: dict[str, Any], pins: Iterable[Pin]) -> dict[str, Any]:
    """Add to each component the digests that the files of its pinned release may have."""
    known = {(pin.name, pin.version): pin.hashes for pin in pins}
    for component in bom["components"]:
        name = re.sub(r"[-_.]+", "-", component["name"]).lower()
        # A build, as 2.13.0+cpu, is one of the files of its release.
        version = component.get("version", "").partition("+")[0]
        if hashes := known.get((name, version)):
            component.setdefault("externalReferences", []).append(
                {
                    "type": "distribution",
                    "url": component["purl"],
                    "comment": COMMENT,
                    "hashes": [{"alg": "SHA-256", "content": h.removeprefix("sha256:")} for h in hashes],
                }
            )
    return bom


def licence(component: Mapping[str, Any]) -> str:
    """Return what a component says of its licence, in one line."""
    found = []
    for entry in component.get("licenses", []):
        one = entry.get("license", {})
        found.append(entry.get("expression") or one.get("id") or one.get("name") or "")
    return "; ".join(sorted({" ".join(x.split())[:100] for x in found if x.strip()})) or NOT_STATED


def licences(bom: Mapping[str, Any]) -> str:
    """Return the list of licences, one component a line, then how often each occurs."""
    rows = sorted((c["name"].lower(), c.get("version", ""), licence(c)) for c in bom["components"])
    width = max(len(f"{name} {version}") for name, version, _ in rows) + 2
    counts: dict[str, int] = {}
    for _, _, said in rows:
        counts[said] = counts.get(said, 0) + 1
    lines = [f"{f'{name} {version}':<{width}}{said}" for name, version, said in rows]
    total = [f"{count:>4}  {said}" for said, count in sorted(counts.items(), key=lambda x: (-x[1], x[0]))]
    return "\n".join([*lines, "", *total]) + "\n"


def vulnerabilities(pins: Iterable[Pin], target: Path) -> str:
    """Write what a service knows against the pinned releases; return what was found, or that nobody could be asked."""
    target.unlink(missing_ok=True)
    listed = "".join(f'#   "{pin.name}=={pin.version}",\n' for pin in pins)
    # uv audits a project or a script. The overrides keep every pin, whatever another one's metadata asks for.
    script = (
        f"# /// script\n# requires-python = '=={sys.version_info[0]}.{sys.version_info[1]}.*'\n"
        f"# dependencies = [\n{listed}# ]\n# [tool.uv]\n# override-dependencies = [\n{listed}# ]\n# ///\n"
    )
    options, environment = from_pip()
    # Else uv would look for a Python of its own elsewhere.
    path = os.pathsep.join([str(PYTHON.parent), environment.get("PATH", "")])
    environment |= {"PATH": path, "UV_PYTHON_DOWNLOADS": "never"}
    if address := os.environ.get("OSV_URL"):
        options += ["--service-url", address]
    with tempfile.TemporaryDirectory() as folder:
        audited = Path(folder) / "audited.py"
        audited.write_text(script)
        step = [str(UV), "audit", "--preview-features", "audit-command,json-output", "--output-format", "json"]
        done = subprocess.run(
            [*step, *options, "--script", str(audited)], env=environment, capture_output=True, text=True, check=False
        )
    try:
        tree = json.loads(done.stdout)
        asked, found = tree["summary"]["audited_packages"], tree["vulnerabilities"]
    except (ValueError, KeyError, TypeError):
        lines = [line.strip() for line in done.stderr.splitlines() if "cause:" in line or "error:" in line]
        reason = (
            lines[-1].removeprefix("cause: ").removeprefix("error: ") if lines else f"uv ended with {done.returncode}"
        )
        return (
            f"VULNERABILITIES WERE NOT LOOKED UP ({reason}); nothing is known about them, run it where a service "
            "answers, or name one in OSV_URL"
        )
    target.write_text(json.dumps(tree, indent=1, sort_keys=True) + "\n")
    lines = [
        f"  {v['dependency']['name']} {v['dependency']['version']}: {v['display_id']}, fixed in "
        f"{', '.join(v['fix_versions']) or 'no version'}: {v['summary'] or ''}"
        for v in found
    ]
    return "\n".join([f"{len(found)} known vulnerabilities in {asked} releases, in {target}", *lines])


if __name__ == "__main__":
    sys.exit(main())
