"""ctmr: the command line, thin; every heavy import happens inside the command that needs it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ctmr.errors import CtmrError, InputError
from ctmr.stages.names import STAGE_NAMES

if TYPE_CHECKING:
    from ctmr.home import Home
    from ctmr.storage import Source

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

RecipeName = Annotated[str, typer.Option("--recipe", help="Recipe by name, or a YAML file.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one recipe key; repeatable.")
]
DatasetAddress = Annotated[str, typer.Option("--dataset", help="Folder of images, a git + DVC repository, or `demo`.")]
Revision = Annotated[
    str, typer.Option("--revision", help="Git revision of the DVC repository; default: the current one.")
]
DataPath = Annotated[str, typer.Option("--path", help="Path the DVC repository tracks; needed when it tracks several.")]
Out = Annotated[
    Path | None, typer.Option("--out", help="Folder of the stages' outputs; default .ctmr/runs/<recipe>-<dataset>.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, nothing else.")]


@app.command()
def demo(settings: Settings = None, json_: AsJson = False) -> None:
    """The main job on this machine: phantom data → … → a Triton answer and a synthetic DICOM series."""
    from ctmr.demo.run import run_demo

    run_demo(settings or [], as_json=json_)


@app.command()
def run(
    dataset: DatasetAddress,
    recipe: RecipeName = "default",
    settings: Settings = None,
    revision: Revision = "",
    path: DataPath = "",
    out: Out = None,
    json_: AsJson = False,
) -> None:
    """The whole pipeline on a dataset; what has not changed since the last run is reused."""
    from ctmr.console import Console
    from ctmr.home import Home
    from ctmr.orchestration.local import run_pipeline
    from ctmr.recipe_files import load

    home = Home.current()
    chosen = load(recipe, settings or [])
    source = _source(dataset, path, revision, home)
    console = Console(as_json=json_)
    folder = out or home.runs / f"{chosen.name}-{source.dataset.name}"
    done = run_pipeline(
        source, chosen, folder=folder, home=home, report_for=console.report_for, on_result=console.stage_done
    )
    console.run_summary(done, chosen)


def _stage_command(name: str, text: str) -> None:
    def command(
        recipe: RecipeName = "default",
        settings: Settings = None,
        dataset: Annotated[str, typer.Option(help="fetch only: folder, DVC repository or `demo`.")] = "",
        revision: Revision = "",
        path: DataPath = "",
        inputs: Annotated[
            list[str] | None,
            typer.Option("--input", metavar="NAME=PATH", help="Where an input lies; default: below --out."),
        ] = None,
        out: Out = None,
        json_: AsJson = False,
    ) -> None:
        from ctmr.console import Console
        from ctmr.home import Home
        from ctmr.orchestration import local
        from ctmr.recipe_files import load
        from ctmr.stages.contract import run_stage

        home = Home.current()
        chosen = load(recipe, settings or [])
        options: dict[str, str] = {}
        if name == "fetch":
            if not dataset:
                raise InputError("fetch needs --dataset: a folder of images, a git + DVC repository, or demo")
            source = _source(dataset, path, revision, home)
            options["dataset"] = source.to_option()
            folder = out or home.runs / f"{chosen.name}-{source.dataset.name}"
        else:
            folder = out or _only_run(home, chosen.name)
        spec = local.stage(name)
        where = local.default_inputs(spec, folder)
        for text_ in inputs or []:
            key, equals, value = text_.partition("=")
            if not equals:
                raise InputError(f"--input {text_!r} is not NAME=PATH; {name} takes {sorted(spec.takes)}")
            where[key] = Path(value)
        console = Console(as_json=json_)
        if name == "evaluate":
            options["champion"] = local.champion_for(folder, chosen, home)
        result = run_stage(
            spec,
            inputs=where,
            recipe=chosen,
            out=folder / name,
            home=home,
            options=options,
            report=console.report_for(name),
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


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    subjects: Annotated[int, typer.Option(min=1, help="Subjects with CT and MR, all in split test.")] = 3,
    seed: int = 1,
    sequences: Annotated[str, typer.Option(help="MR sequences, comma-separated: T1, T2.")] = "T1,T2",
) -> None:
    """Write phantom heads (CT and MR of each subject) as DICOM series."""
    from ctmr.console import Console
    from ctmr.data.cohort import CohortPlan, write_cohort

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
    from ctmr.console import Console
    from ctmr.home import Home
    from ctmr.serving.synthesis import synthesize as translate

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
    from ctmr.console import Console
    from ctmr.home import Home
    from ctmr.lineage import trace

    Console(as_json=json_).lineage(trace(uid, Home.current()))


@app.command()
def up(json_: AsJson = False) -> None:
    """Start the MLflow UI and Triton on loopback and print their addresses."""
    from ctmr.console import Console
    from ctmr.home import Home
    from ctmr.services import up as start

    Console(as_json=json_).services(start(Home.current()))


@app.command()
def status(json_: AsJson = False) -> None:
    """Say what runs on this machine, and where."""
    from ctmr.console import Console
    from ctmr.home import Home
    from ctmr.services import status as look

    Console(as_json=json_).services(look(Home.current()))


@app.command()
def down(json_: AsJson = False) -> None:
    """Stop what `ctmr up` and `ctmr demo` started."""
    from ctmr.console import Console
    from ctmr.home import Home
    from ctmr.services import down as stop

    Console(as_json=json_).services(stop(Home.current()))


@recipe_app.command("list")
def recipe_list() -> None:
    """The recipes by name."""
    from ctmr.recipe_files import load, recipe_names

    for name in recipe_names():
        print(f"{name:<16}{load(name).description or 'every field at its default'}")


@recipe_app.command("resolve")
def recipe_resolve(
    name: Annotated[str, typer.Argument(help="Recipe by name, or a YAML file.")], settings: Settings = None
) -> None:
    """Print a recipe in full, every default filled in."""
    from ctmr.recipe_files import load, render

    print(render(load(name, settings or [])), end="")


def _source(dataset: str, path: str, revision: str, home: Home) -> Source:
    from ctmr.home import quiet_libraries
    from ctmr.storage import resolve

    quiet_libraries()
    if dataset == "demo":
        from ctmr.demo.repository import demo_repository

        return resolve(str(demo_repository(home)), path=path, revision=revision)
    return resolve(dataset, path=path, revision=revision)


def _only_run(home: Home, recipe: str) -> Path:
    found = sorted(p for p in home.runs.glob(f"{recipe}-*") if p.is_dir()) if home.runs.is_dir() else []
    if len(found) != 1:
        raise InputError(
            f"there are {len(found)} runs of recipe {recipe} below {home.runs} ({', '.join(p.name for p in found)}); "
            "name one with --out"
        )
    return found[0]


def main() -> None:
    """Run the command line; a user's mistake is one sentence on standard error, with its exit code."""
    as_json = "--json" in sys.argv
    try:
        app()
    except CtmrError as error:
        if as_json:
            print(json.dumps({"error": str(error), "kind": type(error).__name__, "exit_code": error.exit_code}))
        print(f"ctmr: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print(
            "ctmr: stopped; finished stages and checkpoints are kept, the same command goes on from there",
            file=sys.stderr,
        )
        sys.exit(130)


if __name__ == "__main__":
    main()
