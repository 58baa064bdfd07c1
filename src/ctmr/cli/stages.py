"""`ctmr run` and a command for every stage."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated

import typer

from ctmr.cli.options import (
    AsJson,
    DataPath,
    DatasetAddress,
    Out,
    RecipeName,
    Revision,
    RunnerName,
    Settings,
    runner_of,
)
from ctmr.pipeline import stages
from ctmr.pipeline.parameters import DATASET, PARAMETERS, PATH, RECIPE, REVISION
from ctmr.pipeline.stages import Declaration
from ctmr.tracking.names import run_name


def run(
    dataset: DatasetAddress = DATASET.default,
    revision: Revision = REVISION.default,
    path: DataPath = PATH.default,
    recipe: RecipeName = RECIPE.default,
    settings: Settings = None,
    out: Out = None,
    runner: RunnerName = "kfp",
    json_: AsJson = False,
) -> None:
    """The whole pipeline on a dataset; what has not changed since the last run is reused."""
    from ctmr.cli.console import Console
    from ctmr.pipeline import kfp_local as runners
    from ctmr.pipeline.inline import resolve_dataset
    from ctmr.recipe.loading import load
    from ctmr.system.home import Home

    how = runner_of(runner)
    home = Home.current()
    chosen = load(recipe, settings or [])
    console = Console(as_json=json_)
    source = resolve_dataset(dataset, path, revision, home, console.report_for("dataset"))
    done = runners.run(
        source,
        recipe,
        settings or [],
        folder=out or home.runs / run_name(chosen.name, source.dataset.name),
        home=home,
        runner=how,
        report_for=console.report_for,
        on_result=console.stage_done,
    )
    console.run_summary(done, chosen)


def add_stages(app: typer.Typer) -> None:
    """Add a command for every stage, in order."""
    for number, stage in enumerate(stages.declared().values(), start=1):
        app.command(name=stage.name, help=f"Stage {number}: {stage.help}")(_command_of(stage))


def _command_of(stage: Declaration) -> Callable[..., None]:
    def command(
        context: typer.Context,
        dataset: DatasetAddress = DATASET.default,
        revision: Revision = REVISION.default,
        path: DataPath = PATH.default,
        recipe: RecipeName = RECIPE.default,
        settings: Settings = None,
        inputs: Annotated[
            list[str] | None,
            typer.Option("--input", metavar="NAME=PATH", help="Where an input lies; default: below --out."),
        ] = None,
        out: Out = None,
        json_: AsJson = False,
        **options: str,
    ) -> None:
        from ctmr.cli.console import Console
        from ctmr.pipeline.inline import resolve_dataset
        from ctmr.pipeline.single import check_options, run_alone, run_folder
        from ctmr.recipe.loading import load
        from ctmr.system.home import Home

        check_options(options)
        home = Home.current()
        chosen = load(recipe, settings or [])
        console = Console(as_json=json_)
        source = None
        if "dataset" in stage.options:
            source = resolve_dataset(dataset, path, revision, home, console.report_for(stage.name))
            folder = out or home.runs / run_name(chosen.name, source.dataset.name)
        else:
            # The default says nothing about which run is meant; what was typed does.
            typed = getattr(context.get_parameter_source("dataset"), "name", "") != "DEFAULT"
            folder = out or run_folder(chosen, dataset if typed else "", path, home)
        result = run_alone(
            stage.name,
            chosen,
            folder=folder,
            home=home,
            report=console.report_for(stage.name),
            source=source,
            inputs=inputs or [],
            options=options,
        )
        console.stage_done(result)
        console.stage_summary(result)

    _take(command, {name: text for name, text in stage.options.items() if name not in {p.name for p in PARAMETERS}})
    return command


def _take(command: Callable[..., None], options: Mapping[str, str]) -> None:
    """Give a command options beside its own; Typer reads them from its signature."""
    signature = inspect.signature(command, eval_str=True)
    *own, _ = signature.parameters.values()
    more = [
        inspect.Parameter(name, own[-1].kind, default="", annotation=Annotated[str, typer.Option(help=text)])
        for name, text in options.items()
    ]
    command.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
