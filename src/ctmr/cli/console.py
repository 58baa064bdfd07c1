"""Output in the terminal: progress, one line a stage, tables; or one JSON document for machines."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console as RichConsole
from rich.table import Table

from ctmr.errors import visible

if TYPE_CHECKING:
    from ctmr.pipeline.inline import Run
    from ctmr.pipeline.stage import Result
    from ctmr.recipe.recipe import Recipe
    from ctmr.system.progress import Progress
    from ctmr.tracking.lineage import Link

PLAIN_INTERVAL_S = 5.0
"""Between progress lines where the output is not a terminal."""


class Console:
    """Terminal output of one command.

    Parameters
    ----------
    as_json
        Progress goes to standard error, and standard output holds one JSON document.
    """

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self.out = RichConsole(stderr=as_json, highlight=False, soft_wrap=True)
        self._last = 0.0
        self._status: Any = None

    def say(self, text: str) -> None:
        """Print a line; what a name in it would make a terminal do is shown."""
        self._close()
        self.out.print(visible(text), markup=False)

    def title(self, text: str) -> None:
        """Print a heading."""
        self._close()
        self.out.print()
        self.out.print(visible(text), style="bold", markup=False)

    def document(self, tree: Mapping[str, Any]) -> None:
        """Print the one JSON document."""
        self._close()
        print(json.dumps(tree, indent=1, sort_keys=True, default=str))

    def report_for(self, stage: str) -> Progress:
        """Return where a stage reports progress: a live line on a terminal, a line every few seconds elsewhere."""

        def report(message: str, fraction: float | None = None) -> None:
            percent = "" if fraction is None else f"{100 * fraction:3.0f} % "
            line = visible(f"  {stage:<10} {percent}{message}")
            if self.out.is_terminal:
                if self._status is None:
                    self._status = self.out.status("")
                    self._status.start()
                self._status.update(line)
            elif time.monotonic() - self._last >= PLAIN_INTERVAL_S:
                self._last = time.monotonic()
                print(line, file=self.out.file, flush=True)

        return report

    def stage_done(self, result: Result) -> None:
        """Print one line for a finished stage."""
        what = "reused" if result.reused else f"{result.seconds:6.1f} s"
        why = "" if result.reused or result.because == "it had not run yet" else f"  ({_reasons(result.because)})"
        self.say(f"  {result.name:<10} {what:<9} {result.digest[:12]}  {result.line}{why}")

    def stage_summary(self, result: Result) -> None:
        """Print the JSON document of one stage."""
        if self.as_json:
            self.document(
                {
                    "stage": result.name,
                    "out": result.out,
                    "digest": result.digest,
                    "reused": result.reused,
                    "summary": result.summary,
                }
            )

    def run_summary(self, run: Run, recipe: Recipe) -> None:
        """Print what a whole run came to."""
        if self.as_json:
            self.document(
                {
                    n: {"digest": r.digest, "reused": r.reused, "seconds": round(r.seconds, 1), "summary": r.summary}
                    for n, r in run.results.items()
                }
            )
            return
        if run.reused:
            self.say("Nothing had changed: every stage was reused.")
        self.measurements(run.results["evaluate"].summary)
        register, deploy = run.results["register"].summary, run.results["deploy"].summary
        self.title("Model")
        said = f"  {register['name']} version {register['version']}"
        if deploy["deployed"]:
            self.say(f"{said}, champion, live on Triton at {deploy['grpc']}")
        else:
            live = f"version {deploy['version']} stays live" if deploy["version"] else "nothing is live"
            self.say(f"{said} is registered and {live}: {deploy['reason']}")
        self.say(
            f"  outputs in {_short(run.folder)}, report in {_short(run.folder / 'evaluate/provenance/report.html')}"
        )

    def measurements(self, summary: Mapping[str, Any]) -> None:
        """Print the metrics beside the baselines, the protocol, and the verdict."""
        from ctmr.metrics.protocol import PROTOCOLS
        from ctmr.metrics.registry import Shown, shown_metrics
        from ctmr.reports.numbers import metric_text

        for name, metrics in summary["metrics"].items():
            self.title(f"Held-out test, {summary['protocols'][name]}")
            columns = shown_metrics(Shown.TERMINAL, [metrics])
            rows = [("this model", metrics)] + [(k, v[name]) for k, v in summary["baselines"].items() if name in v]
            table = Table(box=None, pad_edge=False, padding=(0, 2))
            table.add_column("")
            for column in columns:
                table.add_column(column.label, justify="right")
            for who, values in rows:
                cells = [metric_text(c.name, PROTOCOLS[name], values.get(c.name), unit=True) for c in columns]
                table.add_row(f"  {who}", *cells, style="bold" if who == "this model" else "dim")
            self.out.print(table)
        if summary["tissues"]:
            self.title("Median HU by tissue (synthetic for true)")
            self.say(
                "  "
                + ", ".join(f"{k} {v['prediction']:.0f} for {v['truth']:.0f}" for k, v in summary["tissues"].items())
            )
        for warning in summary["warnings"]:
            self.say(f"  still wrong: {warning}")
        self.title("Verdict")
        self.say(f"  {summary['statement']}")

    def synthesized(self, written: Mapping[str, Any]) -> None:
        """Print where a translation went."""
        if self.as_json:
            self.document(written)
            return
        self.say(
            f"synthetic {written['modality']} from {written['model']} version {written['version']}: {written['path']}"
        )
        for note in written.get("notes", ()):
            self.say(f"note: {note}")
        for warning in written.get("warnings", ()):
            self.say(f"  warning: {warning}")
        if "uncertainty" in written:
            self.say(f"{written['uncertainty']['words']}: {written['uncertainty']['path']}")
        self.say(f"where it comes from: ctmr lineage {written['series_uid']}")
        for sentence in written.get("left_out", ()):
            self.say(f"  {sentence}")

    def lineage(self, links: Sequence[Link]) -> None:
        """Print the walk from a synthetic image to its data."""
        if self.as_json:
            self.document({"links": [vars(link) for link in links]})
            return
        for link in links:
            mark = {True: "  [verified]", False: "  [NOT FOUND]", None: ""}[link.checked]
            self.say(f"  {link.what:<17} {link.value}{mark}")

    def services(self, rows: Sequence[Mapping[str, str]]) -> None:
        """Print services with their addresses."""
        if self.as_json:
            self.document({"services": list(rows)})
            return
        for row in rows:
            self.say(f"  {row['name']:<12} {row['state']:<10} {row['address']}")

    def _close(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


def _reasons(because: str) -> str:
    return because if len(because) < 100 else because[:97] + "…"


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
