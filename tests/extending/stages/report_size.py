"""report_size: how large the report of an evaluation is, in a unit that a person chooses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ctmr.errors import InputError
from ctmr.pipeline.stage import Context, Stage

_BYTES = {"B": 1, "kB": 1000}


def run(context: Context) -> dict[str, Any]:
    """Write ``size.json``."""
    unit = context.options.get("unit", "B")
    if unit not in _BYTES:
        raise InputError(f"--unit {unit!r}: allowed are {', '.join(_BYTES)}")
    files = [path for path in context.inputs["evaluation"].rglob("*") if path.is_file()]
    summary = {"size": sum(path.stat().st_size for path in files) / _BYTES[unit], "unit": unit, "files": len(files)}
    (context.out / "size.json").write_text(json.dumps(summary, sort_keys=True) + "\n")
    return summary


def summary_line(summary: Mapping[str, Any]) -> str:
    """Return the size and the number of files, in half a line."""
    return f"{summary['size']:g} {summary['unit']} in {summary['files']} files"


STAGE = Stage(
    "report_size",
    help="how large the report of an evaluation is.",
    takes={"evaluation": "evaluate"},
    options={"unit": "B or kB; default: B."},
    sections=("name",),
    run=run,
    summary_line=summary_line,
)
