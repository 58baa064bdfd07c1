"""ctmr compare: finished runs side by side, in the terminal, as an HTML page or as JSON."""

from __future__ import annotations

import ast
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ctmr.cli.options import AsJson
from ctmr.errors import InputError

if TYPE_CHECKING:
    from ctmr.cli.console import Console
    from ctmr.reports.compare import Comparison, ProtocolTable
    from ctmr.reports.runs import FinishedRun
    from ctmr.system.home import Home

_MLFLOW_RUN = re.compile(r"[0-9a-f]{32}")


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN RUN …", help="Run folders, names below .ctmr/runs, or MLflow run ids."),
    ],
    protocols: Annotated[
        list[str] | None, typer.Option("--protocol", help="Only this protocol; repeatable. Default: all they share.")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a self-contained page; must not exist.")] = None,
    json_: AsJson = False,
) -> None:
    """Compare evaluated runs: means with intervals, paired tests, baselines, verdicts, what differs."""
    from ctmr.cli.console import Console
    from ctmr.metrics.protocol import UnlikeProtocolsError
    from ctmr.reports.compare import compare_runs, render_comparison
    from ctmr.system.files import write_file
    from ctmr.system.home import Home

    home = Home.current()
    if html is not None and html.exists():
        raise InputError(f"{html} exists already; give a file that does not")
    found = [_read(text, name, home) for text, name in zip(runs, _names(runs), strict=True)]
    try:
        comparison = compare_runs(found, protocols=protocols or [])
    except UnlikeProtocolsError as error:
        raise InputError(str(error)) from None
    if html is not None:
        write_file(html, render_comparison(comparison).encode())
    console = Console(as_json=json_)
    if json_:
        console.document(comparison.to_dict())
        return
    _print(console, comparison)
    if html is not None:
        console.say(f"page written to {html}")


def _names(texts: list[str]) -> list[str]:
    """Short names where they are unique: the last part of a path, the first of an MLflow run id."""
    short = [text[:8] if _MLFLOW_RUN.fullmatch(text) else Path(text).resolve().name for text in texts]
    names = [name if short.count(name) == 1 else text for name, text in zip(short, texts, strict=True)]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise InputError(f"run {twice[0]} is given twice; a comparison needs different runs")
    return names


def _read(text: str, name: str, home: Home) -> FinishedRun:
    from ctmr.reports.runs import read_run

    for folder in (Path(text), home.runs / text):
        if folder.is_dir():
            return read_run(folder.parent if folder.resolve().name == "evaluate" else folder, name)
    if _MLFLOW_RUN.fullmatch(text):
        return _from_mlflow(text, name, home)
    have = sorted(p.name for p in home.runs.iterdir() if p.is_dir()) if home.runs.is_dir() else []
    raise InputError(
        f"there is no run {text!r}: no such folder, and below {home.runs} are {', '.join(have) or 'no runs'}; give a "
        "folder, one of these names or an MLflow run id"
    )


def _from_mlflow(run_id: str, name: str, home: Home) -> FinishedRun:
    """Read a run from MLflow: what evaluate logged, and the recipe's leaves as parameters."""
    from dataclasses import replace

    from ctmr.reports.runs import EVALUATE, read_run
    from ctmr.tracking.mlflow import Tracking

    tracking = Tracking(home)
    if not tracking.exists(run_id):
        raise InputError(f"MLflow at {tracking.uri} has no run {run_id}; give the id of a run that was evaluated")
    with tempfile.TemporaryDirectory() as scratch:
        folder = tracking.download(run_id, "evaluation", Path(scratch))
        folder.rename(Path(scratch) / EVALUATE)
        run = read_run(Path(scratch), name)
    logged = tracking.client.get_run(run_id).data
    tags = {k.removeprefix("ctmr."): str(v) for k, v in logged.tags.items() if k.startswith("ctmr.")}
    settings = {key: _literal(text) for key, text in logged.params.items()}
    return replace(run, recipe=tags.get("recipe", ""), code=tags.get("code_revision", ""), settings=settings)


def _literal(text: str) -> Any:
    """Read a logged parameter back: MLflow keeps what Python prints."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _print(console: Console, comparison: Comparison) -> None:
    console.title(f"Runs, {comparison.runs[0].direction}")
    for run in comparison.runs:
        data = run.dataset.get("name", "dataset not recorded")
        revision = run.dataset.get("revision", run.dataset.get("md5", ""))[:12]
        console.say(f"  {run.name}: recipe {run.recipe or 'not recorded'}, {data} {revision}".rstrip())
        console.say(f"    {run.statement}")
    if comparison.phantom:
        console.say("  Phantoms, not patients.")
    for note in comparison.notes:
        console.say(f"  note: {note}")
    for table in comparison.tables:
        _print_table(console, table)
        _print_tests(console, table)
    console.title("Settings that differ")
    if not comparison.settings:
        console.say("  none that is recorded")
        return
    rows = _grid("", *(run.name for run in comparison.runs))
    for key, values in comparison.settings.items():
        rows.add_row(f"  {key}", *values)
    console.out.print(rows)


def _print_table(console: Console, table: ProtocolTable) -> None:
    from ctmr.metrics.registry import Shown
    from ctmr.reports.numbers import interval_text, metric_text, value_text

    console.title(table.protocol.describe())
    runs = [row for row in table.rows if not row.baseline]
    rows = _grid("", *(row.who for row in runs))
    for metric in table.metrics:
        cells = []
        for row in runs:
            found = row.summary.metrics.get(metric.name)
            interval = interval_text(metric.name, table.protocol, found.low, found.high) if found else ""
            cells.append(f"{value_text(metric.name, table.protocol, found)}\n{interval}".rstrip())
        rows.add_row(f"  {metric.label}", *cells)
    console.out.print(rows)
    count = runs[0].summary
    console.say(f"  mean ± sd, bootstrap 95 % interval; {count.subjects} patients, {count.cases} cases")
    baselines = [row for row in table.rows if row.baseline]
    if not baselines:
        return
    metrics = [m for m in table.metrics if Shown.BASELINES in m.shown]
    rows = _grid("  baselines", *(m.label for m in metrics))
    for row in baselines:
        cells = [metric_text(m.name, table.protocol, row.summary.mean(m.name)) for m in metrics]
        rows.add_row(f"  {row.who}", *cells, style="dim")
    console.out.print(rows)


def _print_tests(console: Console, table: ProtocolTable) -> None:
    from ctmr.metrics.registry import METRICS
    from ctmr.reports.numbers import interval_text, metric_text, p_text

    for pair in table.pairs:
        console.title(f"{pair.a} less {pair.b}")
        rows = _grid("", "difference", "95 % interval", "Wilcoxon", "t-test", "better")
        notes: dict[str, list[str]] = {}
        for test in pair.tests:
            rows.add_row(
                f"  {METRICS[test.metric].label}",
                metric_text(test.metric, table.protocol, test.difference, sign=True),
                interval_text(test.metric, table.protocol, test.low, test.high),
                p_text(test.wilcoxon_holm),
                p_text(test.t_holm),
                table.better(pair, test),
            )
            if test.note:
                notes.setdefault(test.note, []).append(test.metric)
        console.out.print(rows)
        for note, metrics in notes.items():
            console.say(f"  {', '.join(metrics)}: {note}")
    if table.pairs:
        count = sum(len(pair.tests) for pair in table.pairs)
        console.say(f"  p values are those of paired tests after Holm's correction over {count} tests")


def _grid(*columns: str) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for k, column in enumerate(columns):
        table.add_column(column, justify="right" if k else "left", no_wrap=k == 0)
    return table
