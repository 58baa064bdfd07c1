"""validate: findings and Great Expectations decide what may be used, and splits are made where none were given."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ctmr.data.manifest import MANIFEST_COLUMNS, PHANTOM_PREFIX, Column, Outcome, Split
from ctmr.imaging.volume import Modality, Unit
from ctmr.pipeline.stage import Context, Stage
from ctmr.recipe.recipe import Validate
from ctmr.system.home import quiet_libraries
from ctmr.system.tables import write_csv

if TYPE_CHECKING:
    import pandas as pd

    from ctmr.data.findings import Finding


def run(context: Context) -> dict[str, Any]:
    """Write ``findings.csv``, ``validation.json``, ``expectations.json`` and ``manifest.parquet``.

    A refused dataset is an outcome, not an error: the findings stay for a person to read.
    """
    import pandas as pd

    from ctmr.data import findings as quality
    from ctmr.data.look_alikes import look_alikes
    from ctmr.data.splits import make_splits

    section = context.recipe.validation
    inventory = pd.read_parquet(context.inputs["inventory"])
    context.report(f"looking at {len(inventory)} images", 0.1)
    early = quality.inspect(inventory, section)
    others = quality.left_out(early)
    usable = inventory[~inventory[Column.IMAGE].isin(quality.dropped_images(early) | others)]
    splits = make_splits(usable, context.recipe.data, look_alikes(usable, section))
    # Once splits are made, what fell out before them is no longer looked at: its findings are kept.
    gone = (quality.FindingKind.LEFT_OUT, quality.FindingKind.DROP)
    found = [f for f in early if f.kind in gone] + quality.inspect(usable, section, splits)
    images = len(inventory) - len(others)
    dropped = quality.dropped_images(found)
    manifest = inventory[inventory[Column.IMAGE].isin(splits.index) & ~inventory[Column.IMAGE].isin(dropped)].copy()
    manifest[Column.SPLIT.value] = manifest[Column.IMAGE].map(splits)
    manifest = manifest[list(MANIFEST_COLUMNS)].sort_values(Column.IMAGE.value, ignore_index=True)
    outcome = quality.decide(found, len(inventory), section.max_dropped_fraction)
    context.report("Great Expectations", 0.4)
    expectations = expect(manifest, section)
    reason = _reason(found, outcome, images)
    if not expectations["success"] and outcome is not Outcome.REFUSE:
        outcome = Outcome.REFUSE
        reason = f"Great Expectations: {', '.join(expectations['failed'])}"
    rows = ([f.kind.value, f.rule, ";".join(f.images), f.sentence] for f in found)
    write_csv(context.out / "findings.csv", ["kind", "rule", "images", "sentence"], rows)
    manifest.to_parquet(context.out / "manifest.parquet", index=False)
    counts = {
        f"{split}.{modality}": int(((manifest[Column.SPLIT] == split) & (manifest[Column.MODALITY] == modality)).sum())
        for split in Split
        for modality in Modality
    }
    summary = {
        "outcome": outcome.value,
        "reason": reason,
        "images": images,
        "left_out": len(others),
        "used": len(manifest),
        "dropped": len(dropped),
        "phantoms_only": bool(len(manifest)) and bool(manifest[Column.SUBJECT].str.startswith(PHANTOM_PREFIX).all()),
        "warnings": sum(f.kind is quality.FindingKind.WARN for f in found),
        "expectations": f"{expectations['met']} of {expectations['evaluated']} met",
        "counts": counts,
    }
    for name, tree in (("validation.json", summary), ("expectations.json", expectations)):
        (context.out / name).write_text(json.dumps(tree, indent=1, sort_keys=True) + "\n")
    return summary


def expect(manifest: pd.DataFrame, section: Validate) -> dict[str, Any]:
    """Hold the manifest against a Great Expectations suite and return what it found, without times or ids."""
    quiet_libraries()
    import logging
    import warnings

    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import great_expectations as gx

        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False}
        asset = context.data_sources.add_pandas("manifest").add_dataframe_asset("images")
        batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": manifest})
        suite = gx.ExpectationSuite(name="manifest")
        for expectation in _expectations(section):
            suite.add_expectation(expectation)
        result = batch.validate(suite)
    rows = []
    for item in result.results:
        config = item.expectation_config
        column = config.kwargs.get("column", config.kwargs.get("column_A", ""))
        rows.append(
            {
                "expectation": config.type,
                "column": column,
                "success": bool(item.success),
                "observed": _plain(item.result),
            }
        )
    return {
        "success": bool(result.success),
        "evaluated": len(rows),
        "met": sum(r["success"] for r in rows),
        "failed": [f"{r['expectation']}({r['column']})" for r in rows if not r["success"]],
        "results": rows,
    }


def _expectations(section: Validate) -> list[Any]:
    """Return what a manifest must fulfil."""
    import great_expectations.expectations as gxe

    low, high = section.hu_range
    hu = f'{Column.UNIT.value}=="{Unit.HU.value}"'
    return [
        gxe.ExpectTableColumnsToMatchSet(column_set=list(MANIFEST_COLUMNS), exact_match=True),
        gxe.ExpectTableRowCountToBeBetween(min_value=2 * section.min_images),
        gxe.ExpectColumnValuesToBeUnique(column=Column.IMAGE.value),
        gxe.ExpectColumnValuesToBeUnique(column=Column.SHA256.value),
        gxe.ExpectColumnValuesToBeInSet(column=Column.ERROR.value, value_set=[""]),
        gxe.ExpectColumnValuesToBeInSet(column=Column.MODALITY.value, value_set=[m.value for m in Modality]),
        gxe.ExpectColumnDistinctValuesToContainSet(column=Column.MODALITY.value, value_set=[m.value for m in Modality]),
        gxe.ExpectColumnValuesToBeInSet(column=Column.UNIT.value, value_set=[u.value for u in Unit]),
        gxe.ExpectColumnValuesToBeInSet(column=Column.SPLIT.value, value_set=[s.value for s in Split]),
        gxe.ExpectColumnDistinctValuesToContainSet(
            column=Column.SPLIT.value, value_set=[Split.TRAIN.value, Split.TEST.value]
        ),
        gxe.ExpectColumnValuesToNotBeNull(column=Column.SUBJECT.value),
        gxe.ExpectColumnValuesToBeBetween(column=Column.HEIGHT.value, min_value=section.min_side),
        gxe.ExpectColumnValuesToBeBetween(column=Column.WIDTH.value, min_value=section.min_side),
        gxe.ExpectColumnValuesToBeBetween(
            column=Column.MINIMUM.value, min_value=low, row_condition=hu, condition_parser="pandas"
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column=Column.MAXIMUM.value, max_value=high, row_condition=hu, condition_parser="pandas"
        ),
        gxe.ExpectColumnPairValuesAToBeGreaterThanB(column_A=Column.MAXIMUM.value, column_B=Column.MINIMUM.value),
    ]


def _plain(result: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key in ("element_count", "unexpected_count", "partial_unexpected_list"):
        value = result.get(key)
        if isinstance(value, list):
            kept[key] = [str(v) for v in value[:5]]
        elif isinstance(value, int | float) and math.isfinite(value):
            kept[key] = value
    return kept


def _reason(found: list[Finding], outcome: Outcome, total: int) -> str:
    from ctmr.data.findings import FindingKind, dropped_images

    if outcome is not Outcome.REFUSE:
        return ""
    refusals = [f.sentence for f in found if f.kind is FindingKind.REFUSE]
    drops = [f.sentence for f in found if f.kind is FindingKind.DROP]
    words = "; ".join(refusals) or "too many images had to be dropped, which is a fault of the dataset"
    if drops:
        words += f"; {len(dropped_images(found))} of {total} images were dropped, the first because: {drops[0]}"
    return words


def summary_line(summary: Mapping[str, Any]) -> str:
    """Return the outcome, what is used and why not more, in half a line."""
    s = summary
    used = f"{s['used']} of {s['images']} used, expectations {s['expectations']}"
    return f"{s['outcome'].replace('_', ' ')}: {used}{': ' if s['reason'] else ''}{s['reason']}"


STAGE = Stage(
    "validate",
    help="findings, Great Expectations, splits; decides what may be used.",
    takes={"inventory": "fetch/inventory.parquet"},
    sections=("data", "validation"),
    run=run,
    summary_line=summary_line,
    version=4,
)
