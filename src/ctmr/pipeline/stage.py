"""Contract of every stage: folders in, one folder out, written atomically, reused when nothing it reads has changed."""

from __future__ import annotations

import errno
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ctmr.errors import EnvironmentFault, InputError
from ctmr.recipe.recipe import Recipe, section_tree
from ctmr.system.digest import PROVENANCE, content_digest, file_digest, tree_digest
from ctmr.system.files import new_folder
from ctmr.system.home import Code, Home
from ctmr.system.processes import torchrun_rank
from ctmr.system.progress import Progress, silent

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
    report: Progress = silent


def _always(context: Context) -> bool:
    return True


def _none(recipe: Recipe) -> Mapping[str, str]:
    return {}


def _no_line(summary: Mapping[str, Any]) -> str:
    return ""


@dataclass(frozen=True)
class Stage:
    """A stage: all that its doors, its order and its reuse follow from.

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
    help
        One sentence for the command line.
    summary_line
        From the summary to what a person reads of it, half a line.
    options
        Name → help of what is neither data nor recipe. ``dataset`` and ``champion`` are found by whoever runs the
        stage; others are handed over as they were given on the command line.
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
    help: str = ""
    summary_line: Callable[[Mapping[str, Any]], str] = _no_line
    options: Mapping[str, str] = field(default_factory=dict)
    side_effects: bool = False
    still_true: Callable[[Context], bool] = _always
    version: int = 1
    files: Callable[[Recipe], Mapping[str, str]] = _none
    assist: Callable[[Context], None] | None = None

    def inputs(self, outputs: Mapping[str, Path]) -> dict[str, Path]:
        """Return where its inputs lie, from where each earlier stage's output lies."""
        places = {name: where.partition("/") for name, where in self.takes.items()}
        return {name: outputs[earlier] / rest for name, (earlier, _, rest) in places.items()}


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
    line
        The summary as a person reads it, half a line.
    """

    name: str
    out: Path
    digest: str
    reused: bool
    seconds: float
    summary: dict[str, Any] = field(default_factory=dict)
    because: str = ""
    line: str = ""


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
    sections = section_tree(recipe, stage.sections)
    parts = {
        "version": str(stage.version),
        **{f"recipe.{name}": tree_digest({name: tree}) for name, tree in sections.items()},
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
    report: Progress = silent,
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
    context = Context(inputs, options, recipe, out, place.work, home, report)
    because = _why(out, place.parts)
    _only_assist(stage, context, because)
    reused = not because and stage.still_true(context)
    if reused:
        record, because = json.loads((out / RECORD).read_text()), "nothing changed"
    else:
        record, because = _work(stage, context, place, started), because or "what it did is no longer there"
    seconds, summary = time.monotonic() - started, record["summary"]
    return Result(stage.name, out, record["digest"], reused, seconds, summary, because, stage.summary_line(summary))


def _only_assist(stage: Stage, context: Context, because: str) -> None:
    """End this process where torchrun started several and it is not the first, once it has assisted that one."""
    rank, processes = torchrun_rank()
    if processes > 1 and stage.assist is None:
        raise InputError(
            f"stage {stage.name} runs in one process, and torchrun started {processes}; start it without torchrun"
        )
    if rank > 0:
        if because and stage.assist is not None:
            stage.assist(replace(context, report=silent))
        # The first process tells the outcome.
        raise SystemExit(0)


def _work(stage: Stage, context: Context, place: StageKey, started: float) -> dict[str, Any]:
    """Run a stage, put its output in place and return its record; a failure leaves the old output where it was."""
    out = context.out
    with _told(stage, out):
        context.work.mkdir(parents=True, exist_ok=True)
    with new_folder(out, replace=True) as temporary, _told(stage, out):
        summary = stage.run(replace(context, out=temporary))
        record = {
            "stage": stage.name,
            "key": place.key,
            "parts": place.parts,
            "digest": content_digest(temporary),
            "summary": summary,
            "seconds": round(time.monotonic() - started, 2),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            "code_revision": Code().revision,
            "recipe": context.recipe.name,
            "settings": section_tree(context.recipe, stage.sections),
        }
        (temporary / PROVENANCE).mkdir(exist_ok=True)
        (temporary / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    return record


@contextmanager
def _told(stage: Stage, out: Path) -> Iterator[None]:
    """Turn an error of the system into a sentence that names the file."""
    try:
        yield
    except OSError as error:
        did = "could not write" if error.errno in _DISK_ERRORS else "failed on"
        raise EnvironmentFault(
            f"stage {stage.name} {did} {error.filename or out}: {error.strerror or type(error).__name__}; "
            "what was there before is untouched"
        ) from error


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
