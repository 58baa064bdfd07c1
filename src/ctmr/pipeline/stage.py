"""Contract of every stage: folders in, one folder out, written atomically, reused when nothing it reads has changed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ctmr.errors import EnvironmentFault, InputError
from ctmr.recipe.recipe import Recipe, section_digest
from ctmr.system.digest import PROVENANCE, content_digest, file_digest, tree_digest
from ctmr.system.files import put_in_place, sweep_partial
from ctmr.system.home import Code, Home
from ctmr.system.processes import torchrun_rank
from ctmr.system.progress import Report, silent

RECORD = f"{PROVENANCE}/stage.json"
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


@dataclass(frozen=True)
class Context:
    """Resources that a stage may use.

    Attributes
    ----------
    inputs
        Input name → folder or file.
    options
        What is neither data nor recipe: a dataset's address, the champion. Counts for reuse.
    recipe
        The whole recipe; a stage reads only the sections its `Stage` declares.
    out
        Empty folder to fill; becomes the output when the stage returns.
    work
        Folder that survives a killed run with the same inputs and recipe sections.
    home
        Stores and servers, for stages with side effects and tracking.
    report
        Progress.
    """

    inputs: Mapping[str, Path]
    options: Mapping[str, str]
    recipe: Recipe
    out: Path
    work: Path
    home: Home
    report: Report = silent


def _always(context: Context) -> bool:
    return True


def _none(recipe: Recipe) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True)
class Stage:
    """One of the eight stages.

    Attributes
    ----------
    name
        The same everywhere.
    takes
        Input name → where the pipeline finds it: a stage's output, or a path inside one.
    sections
        Recipe sections that it reads; others never invalidate it.
    run
        Does the work; returns a summary of plain JSON types.
    side_effects
        True when it changes something outside its folder (register, deploy).
    still_true
        Asked before an output is reused: does the world still look as the stage left it? Its context's `out` is
        the finished output.
    version
        Raised when the stage's code changes what it would write.
    assist
        What the other processes do where torchrun started several; only the first runs the stage. ``None``: the
        stage runs in one process.
    files
        Recipe key → file outside the pipeline that it names. The file's bytes count, not only its name.
    """

    name: str
    takes: Mapping[str, str]
    sections: tuple[str, ...]
    run: Callable[[Context], dict[str, Any]]
    options: tuple[str, ...] = ()
    side_effects: bool = False
    still_true: Callable[[Context], bool] = _always
    version: int = 1
    files: Callable[[Recipe], Mapping[str, str]] = _none
    assist: Callable[[Context], None] | None = None


@dataclass(frozen=True)
class Result:
    """Result of a stage.

    Attributes
    ----------
    digest
        Content digest of the output folder.
    reused
        True when nothing had to be done.
    because
        Why it ran: which input, recipe section or option changed.
    """

    name: str
    out: Path
    digest: str
    reused: bool
    seconds: float
    summary: dict[str, Any] = field(default_factory=dict)
    because: str = ""


@dataclass(frozen=True)
class StageKey:
    """Place where a stage keeps what survives a kill.

    Attributes
    ----------
    key
        sha256 over `parts`.
    parts
        What the stage's output depends on: its version, and digests of recipe sections, inputs, files that the recipe
        names, and options.
    work
        Work folder; may not exist yet.
    """

    key: str
    parts: Mapping[str, str]
    work: Path


def locate(
    stage: Stage,
    *,
    inputs: Mapping[str, Path],
    recipe: Recipe,
    home: Home,
    options: Mapping[str, str] | None = None,
) -> StageKey:
    """Return a stage's key and work folder; equal inputs, recipe sections and options have the same.

    Raises
    ------
    InputError
        A missing or unknown input or option, or a file that the recipe names and that is not there.
    """
    options = dict(options or {})
    for given, declared, what in ((inputs, stage.takes, "input"), (options, stage.options, "option")):
        unknown = sorted(set(given) - set(declared))
        missing = sorted(set(declared) - set(given)) if what == "input" else []
        if unknown or missing:
            raise InputError(
                f"stage {stage.name} takes the {what}s {sorted(declared)}; unknown {unknown}, missing {missing}"
            )
    for name, path in inputs.items():
        if not path.exists():
            raise InputError(
                f"stage {stage.name}: its input {name} is not at {path}; run the stage that makes it first"
            )
    files = {key: Path(name) for key, name in sorted(stage.files(recipe).items())}
    for key, path in files.items():
        if not path.is_file():
            raise InputError(f"{key} names {path}, and there is no such file; give the path of a file, or null")
    parts = {
        "version": str(stage.version),
        **{f"recipe.{section}": section_digest(recipe, (section,)) for section in stage.sections},
        **{f"input {name}": content_digest(path) for name, path in sorted(inputs.items())},
        **{f"file {key}": file_digest(path) for key, path in files.items()},
        **{f"option {name}": value for name, value in sorted(options.items())},
    }
    key = tree_digest({"stage": stage.name, **parts})
    return StageKey(key, parts, home.work / stage.name / key[:16])


def run_stage(
    stage: Stage,
    *,
    inputs: Mapping[str, Path],
    recipe: Recipe,
    out: Path,
    home: Home,
    options: Mapping[str, str] | None = None,
    report: Report = silent,
) -> Result:
    """Run a stage, or reuse its output when key and content are as recorded.

    Raises
    ------
    InputError
        A missing or unknown input or option.
    """
    started = time.monotonic()
    options = dict(options or {})
    place = locate(stage, inputs=inputs, recipe=recipe, home=home, options=options)
    key, parts, work = place.key, place.parts, place.work
    because = _why(out, parts)
    rank, processes = torchrun_rank()
    if processes > 1 and stage.assist is None:
        raise InputError(
            f"stage {stage.name} runs in one process, and torchrun started {processes}; start it without torchrun"
        )
    if rank > 0:
        if because and stage.assist is not None:
            stage.assist(Context(inputs, options, recipe, out, work, home))
        # The first process tells the outcome.
        raise SystemExit(0)
    if not because:
        context = Context(inputs, options, recipe, out, work, home, report)
        if stage.still_true(context):
            record = json.loads((out / RECORD).read_text())
            return Result(
                stage.name,
                out,
                record["digest"],
                True,
                time.monotonic() - started,
                record["summary"],
                "nothing changed",
            )
        because = "what it did is no longer there"
    work.mkdir(parents=True, exist_ok=True)
    sweep_partial(out)
    temporary = out.parent / f".{out.name}.{os.getpid()}.partial"
    temporary.mkdir(parents=True)
    try:
        summary = stage.run(Context(inputs, options, recipe, temporary, work, home, report))
        digest = content_digest(temporary)
        seconds = time.monotonic() - started
        settings = recipe.dump()
        record = {
            "stage": stage.name,
            "key": key,
            "parts": parts,
            "digest": digest,
            "summary": summary,
            "seconds": round(seconds, 2),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            "code_revision": Code().revision,
            "recipe": recipe.name,
            "settings": {section: settings[section] for section in stage.sections},
        }
        (temporary / PROVENANCE).mkdir(exist_ok=True)
        (temporary / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        put_in_place(temporary, out)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        did = "could not write" if error.errno in _DISK_ERRORS else "failed on"
        raise EnvironmentFault(
            f"stage {stage.name} {did} {error.filename or out}: {error.strerror or type(error).__name__}; "
            "what was there before is untouched"
        ) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return Result(stage.name, out, digest, False, seconds, summary, because)


def read_record(out: Path) -> dict[str, Any] | None:
    """Return the record of an output; ``None`` where it is missing, unreadable, or tells of other content.

    DVC restores an output without its record, or leaves the record of what stood there before.
    """
    try:
        record: dict[str, Any] = json.loads((out / RECORD).read_text())
        return record if record["digest"] == content_digest(out) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _why(out: Path, parts: Mapping[str, str]) -> str:
    """Return why the output cannot be reused, or an empty string when it can."""
    if not (out / RECORD).is_file():
        return "it had not run yet"
    try:
        record = json.loads((out / RECORD).read_text())
        before: Mapping[str, str] = record["parts"]
        recorded = str(record["digest"])
    except (ValueError, KeyError, TypeError):
        return "its record is unreadable"
    changed = sorted(k for k in {*parts, *before} if parts.get(k) != before.get(k))
    if changed:
        return ", ".join(changed) + " changed"
    return "" if content_digest(out) == recorded else "its output was altered"
