"""ctmr: the command line, put together from its groups of commands, and what its errors come to."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import NoReturn

import typer

from ctmr.cli import champions, dataset, images, pipeline, recipes
from ctmr.cli.compare import compare
from ctmr.cli.options import AsJson, RunnerName, Settings, runner_of
from ctmr.cli.stages import add_stages, run
from ctmr.errors import CtmrError, InputError
from ctmr.system.home import fault_of
from ctmr.system.processes import share_cores


def demo(settings: Settings = None, runner: RunnerName = "kfp", json_: AsJson = False) -> None:
    """The main job on this machine: phantom data → … → a Triton answer and a synthetic DICOM series."""
    from ctmr.cli.demo import run_demo

    run_demo(settings or [], runner=runner_of(runner), as_json=json_)


def up(json_: AsJson = False) -> None:
    """Start Triton, the MLflow UI and the local pipeline runner on loopback and print their addresses."""
    from ctmr.cli.console import Console
    from ctmr.cli.services import up as start
    from ctmr.system.home import Home

    Console(as_json=json_).services(start(Home.current()))


def status(json_: AsJson = False) -> None:
    """Say what runs on this machine, and where."""
    from ctmr.cli.console import Console
    from ctmr.cli.services import status as look
    from ctmr.system.home import Home

    Console(as_json=json_).services(look(Home.current()))


def down(json_: AsJson = False) -> None:
    """Stop what `ctmr up` and `ctmr demo` started."""
    from ctmr.cli.console import Console
    from ctmr.cli.services import down as stop
    from ctmr.system.home import Home

    Console(as_json=json_).services(stop(Home.current()))


def build() -> typer.Typer:
    """Return the command line with a command for every stage that there is."""
    app = typer.Typer(
        name="ctmr",
        help="CT<->MR synthesis, from versioned data to a model that hospitals call.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    first: tuple[Callable[..., None], ...] = (demo, run)
    made = (compare, images.phantom, images.synthesize, images.lineage)
    rest = (*made, up, status, down, champions.rollback, champions.reconcile, pipeline.submit)
    for command in first:
        app.command()(command)
    add_stages(app)
    for command in rest:
        app.command()(command)
    for name, group in (("recipe", recipes.app), ("pipeline", pipeline.app), ("dataset", dataset.app)):
        app.add_typer(group, name=name)
    return app


app = build()
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""What Typer raises for every mistyped command line; it has no public name."""
_INTERRUPTED = 130
_OWNER_ALONE = 0o077
"""Runs, models and synthetic series hold images of patients: what is written is for the user who asked for it."""
_SHARED = (["dataset"], ["pipeline"], ["recipe"])
"""What these groups of commands write goes to a team, by its own rights: a remote, a compiled pipeline."""


def main() -> None:
    """Run the command line; a user's mistake is one sentence on standard error, with its exit code."""
    as_json = "--json" in sys.argv
    share_cores()
    if sys.argv[1:2] not in _SHARED:
        os.umask(_OWNER_ALONE)
    try:
        code = app(standalone_mode=False)
    except _UsageError as mistake:
        words = mistake.format_message()  # type: ignore[attr-defined]
        if "\n" in words:  # Not a mistake: a command without arguments shows its help.
            print(words)
            sys.exit(InputError.exit_code)
        at = getattr(mistake, "ctx", None)
        where = at.command_path if at else "ctmr"
        _end(InputError(f"{words[0].lower()}{words[1:].rstrip('.')}; `{where} --help` says what there is"), as_json)
    except CtmrError as error:
        _end(error, as_json)
    except OSError as error:
        _end(fault_of(error), as_json)
    except KeyboardInterrupt:
        code = _INTERRUPTED
    if code == _INTERRUPTED:
        print(
            "ctmr: stopped; finished stages and checkpoints are kept, the same command goes on from there",
            file=sys.stderr,
        )
    sys.exit(code or 0)


def _end(error: CtmrError, as_json: bool) -> NoReturn:
    if as_json:
        print(json.dumps({"error": str(error), "kind": type(error).__name__, "exit_code": error.exit_code}))
    print(f"ctmr: {error}", file=sys.stderr)
    sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
