"""`ctmr pipeline` and `ctmr submit`: the pipeline's doors written, compiled, checked, and sent to a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctmr.errors import CtmrError, InputError

app = typer.Typer(help="The pipeline: write its doors, compile it, check it.", no_args_is_help=True)


@app.command()
def doors() -> None:
    """Write the doors that are files: dvc.yaml, MLproject and pipelines/ct_mr.yaml."""
    from ctmr.kubeflow.compile import compile_pipeline
    from ctmr.pipeline.doors import written
    from ctmr.pipeline.kfp_local import shipped_pipeline

    compiled = shipped_pipeline()
    for path, text in {**written(compiled.parents[1]), compiled: compile_pipeline()}.items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}")


@app.command("compile")
def compile_(
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


@app.command()
def lint(
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
    from ctmr.cli.services import pipelines_address, pipelines_token
    from ctmr.kubeflow.submit import submit as send
    from ctmr.pipeline.kfp_local import shipped_pipeline

    address = endpoint or pipelines_address()
    send(
        address,
        experiment,
        package or shipped_pipeline(),
        arguments or [],
        run_name=run_name,
        watch=watch,
        timeout=timeout,
        token=pipelines_token(address),
    )
