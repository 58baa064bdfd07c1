"""ctmr: the command line, thin; every heavy import happens inside the command that needs it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from ctmr.cli.compare import compare
from ctmr.cli.dataset import app as dataset_app
from ctmr.errors import CtmrError, InputError
from ctmr.pipeline.names import STAGE_NAMES
from ctmr.pipeline.parameters import DATASET, OUT, OVERRIDES, PATH, RECIPE, REVISION, assignments
from ctmr.system.processes import share_cores

if TYPE_CHECKING:
    from ctmr.pipeline.kfp_local import Runner

app = typer.Typer(
    name="ctmr",
    help="CT<->MR synthesis, from versioned data to a model that hospitals call.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipe_app = typer.Typer(help="The recipes: one typed tree of settings each.", no_args_is_help=True)
app.add_typer(recipe_app, name="recipe")
pipeline_app = typer.Typer(help="The Kubeflow pipeline: compile it, check it.", no_args_is_help=True)
app.add_typer(pipeline_app, name="pipeline")
app.add_typer(dataset_app, name="dataset")

RecipeName = Annotated[str, typer.Option(RECIPE.option, help=RECIPE.help)]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        OVERRIDES.option,
        metavar="KEY=VALUE",
        help=OVERRIDES.help,
        callback=lambda texts: assignments(texts or []),
    ),
]
DatasetAddress = Annotated[str, typer.Option(DATASET.option, help=DATASET.help)]
Revision = Annotated[str, typer.Option(REVISION.option, help=REVISION.help)]
DataPath = Annotated[str, typer.Option(PATH.option, help=PATH.help)]
Out = Annotated[
    Path | None,
    typer.Option(OUT.option, metavar="FOLDER", help=OUT.help, parser=lambda text: Path(text) if text else None),
]
RunnerName = Annotated[
    str, typer.Option("--runner", help="kfp: the compiled pipeline under kfp.local; inline: in this process, to debug.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, nothing else.")]


@app.command()
def demo(settings: Settings = None, runner: RunnerName = "kfp", json_: AsJson = False) -> None:
    """The main job on this machine: phantom data → … → a Triton answer and a synthetic DICOM series."""
    from ctmr.cli.demo import run_demo

    run_demo(settings or [], runner=_runner(runner), as_json=json_)


@app.command()
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

    how = _runner(runner)
    home = Home.current()
    chosen = load(recipe, settings or [])
    console = Console(as_json=json_)
    source = resolve_dataset(dataset, path, revision, home, console.report_for("dataset"))
    done = runners.run(
        source,
        recipe,
        settings or [],
        folder=out or home.runs / f"{chosen.name}-{source.dataset.name}",
        home=home,
        runner=how,
        report_for=console.report_for,
        on_result=console.stage_done,
    )
    console.run_summary(done, chosen)


def _stage_command(name: str, text: str) -> None:
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
        champion: Annotated[
            str, typer.Option(help="evaluate only: compare with the registered champion, or with none.")
        ] = "registered",
        out: Out = None,
        json_: AsJson = False,
    ) -> None:
        from ctmr.cli.console import Console
        from ctmr.pipeline.inline import resolve_dataset
        from ctmr.pipeline.single import Champion, run_alone, run_folder
        from ctmr.recipe.loading import load
        from ctmr.system.home import Home

        if champion not in set(Champion):
            raise InputError(f"--champion {champion!r}: allowed are {', '.join(Champion)}")
        home = Home.current()
        chosen = load(recipe, settings or [])
        console = Console(as_json=json_)
        source = None
        if name == "fetch":
            source = resolve_dataset(dataset, path, revision, home, console.report_for(name))
            folder = out or home.runs / f"{chosen.name}-{source.dataset.name}"
        else:
            # The default says nothing about which run is meant; what was typed does.
            typed = getattr(context.get_parameter_source("dataset"), "name", "") != "DEFAULT"
            folder = out or run_folder(chosen, dataset if typed else "", path, home)
        result = run_alone(
            name,
            chosen,
            folder=folder,
            home=home,
            report=console.report_for(name),
            source=source,
            inputs=inputs or [],
            champion=Champion(champion),
        )
        console.stage_done(result)
        console.stage_summary(result)

    command.__doc__ = text
    command.__name__ = name
    app.command(name=name)(command)


_STAGE_HELP = {
    "fetch": "Stage 1: pin a dataset, copy it, describe every image in an inventory.",
    "validate": "Stage 2: findings, Great Expectations, splits; decides what may be used.",
    "preprocess": "Stage 3: images onto the model's grid, in shards of physical units.",
    "tune": "Stage 4: Optuna study; every trial is an MLflow child run.",
    "train": "Stage 5: CycleGAN training, export to ONNX.",
    "evaluate": "Stage 6: held-out measurements under named protocols, verdict of the gate.",
    "register": "Stage 7: a model that passed becomes an MLflow version with lineage.",
    "deploy": "Stage 8: the registered version goes live on Triton, proven, or the old one stays.",
}
for _name in STAGE_NAMES:
    _stage_command(_name, _STAGE_HELP[_name])


app.command()(compare)


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    subjects: Annotated[int, typer.Option(min=1, help="Subjects with CT and MR, all in split test.")] = 3,
    seed: int = 1,
    sequences: Annotated[str, typer.Option(help="MR sequences, comma-separated: T1, T2.")] = "T1,T2",
) -> None:
    """Write phantom heads (CT and MR of each subject) as DICOM series."""
    from ctmr.cli.console import Console
    from ctmr.phantom.cohort import CohortPlan, write_cohort

    if out.exists():
        raise InputError(f"{out} exists already; give a folder that does not")
    wanted = tuple(s.strip().upper() for s in sequences.split(",") if s.strip())
    if not wanted or set(wanted) - {"T1", "T2"}:
        raise InputError(f"--sequences {sequences!r}: allowed are T1 and T2, comma-separated")
    plan = CohortPlan(train_mr=0, train_ct=0, val=0, test=subjects, sequences=wanted, seed=seed)
    console = Console()
    count = write_cohort(out, plan, report=console.report_for("phantom"))
    console.say(f"{count} phantom series in {out} (one zip archive of DICOM files each)")


@app.command()
def synthesize(
    source: Annotated[Path, typer.Argument(metavar="IN", help="DICOM series folder, NIfTI file or picture.")],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder (DICOM), or .nii.gz or .png file; must not exist.")
    ],
    to: Annotated[str, typer.Option("--to", help="Modality to make: CT or MR.")] = "CT",
    model: Annotated[str, typer.Option(help="Registered model's name; default: the only one that is served.")] = "",
    url: Annotated[str, typer.Option(help="Triton's gRPC address; default: the embedded server.")] = "",
    json_: AsJson = False,
) -> None:
    """Translate an image through Triton over gRPC; the result is marked as synthetic and traceable."""
    from ctmr.cli.console import Console
    from ctmr.serving.synthesis import synthesize as translate
    from ctmr.system.home import Home

    console = Console(as_json=json_)
    written = translate(
        source, out, to=to, model=model, url=url, home=Home.current(), report=console.report_for("synthesize")
    )
    console.synthesized(written)


@app.command()
def lineage(
    uid: Annotated[str, typer.Argument(help="Series or SOP instance UID, or path, of a synthetic image.")],
    json_: AsJson = False,
) -> None:
    """From a synthetic image back to the data revision that made it."""
    from ctmr.cli.console import Console
    from ctmr.system.home import Home
    from ctmr.tracking.lineage import trace

    Console(as_json=json_).lineage(trace(uid, Home.current()))


@app.command()
def up(json_: AsJson = False) -> None:
    """Start Triton, the MLflow UI and the local pipeline runner on loopback and print their addresses."""
    from ctmr.cli.console import Console
    from ctmr.cli.services import up as start
    from ctmr.system.home import Home

    Console(as_json=json_).services(start(Home.current()))


@app.command()
def status(json_: AsJson = False) -> None:
    """Say what runs on this machine, and where."""
    from ctmr.cli.console import Console
    from ctmr.cli.services import status as look
    from ctmr.system.home import Home

    Console(as_json=json_).services(look(Home.current()))


@app.command()
def down(json_: AsJson = False) -> None:
    """Stop what `ctmr up` and `ctmr demo` started."""
    from ctmr.cli.console import Console
    from ctmr.cli.services import down as stop
    from ctmr.system.home import Home

    Console(as_json=json_).services(stop(Home.current()))


@pipeline_app.command("compile")
def pipeline_compile(
    out: Annotated[Path | None, typer.Option("--out", help="File to write; default pipelines/ct_mr.yaml.")] = None,
    image: Annotated[str, typer.Option("--image", help="Image of every task, with registry and digest.")] = "",
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail when the file is not current.")] = False,
) -> None:
    """Compile the pipeline to the YAML that Kubeflow runs."""
    from ctmr.kubeflow import compile as compiling
    from ctmr.pipeline.kfp_local import shipped_pipeline

    path = out or shipped_pipeline()
    if image and not out:
        raise InputError("--image needs --out: pipelines/ct_mr.yaml itself names no registry")
    text = compiling.compile_pipeline(image)
    if check:
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            raise CtmrError(f"{path} is not what pipelines/ct_mr.py compiles to; run `ctmr pipeline compile`")
        print(f"{path} is current")
        return
    path.write_text(text, encoding="utf-8")
    print(f"compiled to {path}")


@pipeline_app.command("lint")
def pipeline_lint(
    path: Annotated[Path | None, typer.Argument(metavar="FILE", help="Default: pipelines/ct_mr.yaml.")] = None,
) -> None:
    """Check a compiled pipeline: strict parsing, and what would silently not run on one machine."""
    from ctmr.kubeflow import compile as compiling
    from ctmr.pipeline.kfp_local import shipped_pipeline

    where = path or shipped_pipeline()
    problems = compiling.check(where)
    for problem in problems:
        print(problem)
    if problems:
        raise CtmrError(f"{where} breaks {len(problems)} rules")
    print(f"{where}: strictly parsed, no rule broken")


@app.command()
def submit(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE…", help="Pipeline parameters, as dataset_rev=v2.")
    ] = None,
    experiment: Annotated[str, typer.Option("--experiment-name", "-e", help="Experiment of the run.")] = "ctmr",
    package: Annotated[
        Path | None, typer.Option("--package-file", "-f", help="Compiled pipeline; default pipelines/ct_mr.yaml.")
    ] = None,
    run_name: Annotated[str, typer.Option("--run-name", "-r", help="Name of the run.")] = "",
    watch: Annotated[bool, typer.Option("--watch/--no-watch", "-w", help="Wait for the run's end.")] = True,
    timeout: Annotated[int, typer.Option("--timeout", "-t", help="Seconds to wait; 0: for ever.")] = 0,
    endpoint: Annotated[str, typer.Option(help="Kubeflow's address; default: the local runner of `ctmr up`.")] = "",
) -> None:
    """Submit a run as `kfp run submit` does, but end with its exit code: 1 when the run failed."""
    from ctmr.cli.services import pipelines_address
    from ctmr.kubeflow.submit import submit as send
    from ctmr.pipeline.kfp_local import shipped_pipeline

    send(
        endpoint or pipelines_address(),
        experiment,
        package or shipped_pipeline(),
        arguments or [],
        run_name=run_name,
        watch=watch,
        timeout=timeout,
    )


@recipe_app.command("list")
def recipe_list() -> None:
    """The recipes by name."""
    from ctmr.recipe.loading import load, recipe_names

    for name in recipe_names():
        print(f"{name:<16}{load(name).description or 'every field at its default'}")


@recipe_app.command("resolve")
def recipe_resolve(
    name: Annotated[str, typer.Argument(help="Recipe by name, or a YAML file.")], settings: Settings = None
) -> None:
    """Print a recipe in full, every default filled in."""
    from ctmr.recipe.loading import load, render

    print(render(load(name, settings or [])), end="")


def _runner(name: str) -> Runner:
    from ctmr.pipeline.kfp_local import Runner

    if name not in set(Runner):
        raise InputError(f"--runner {name!r}: allowed are {', '.join(Runner)}")
    return Runner(name)


_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""What Typer raises for every mistyped command line; it has no public name."""
_INTERRUPTED = 130


def main() -> None:
    """Run the command line; a user's mistake is one sentence on standard error, with its exit code."""
    as_json = "--json" in sys.argv
    share_cores()
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
