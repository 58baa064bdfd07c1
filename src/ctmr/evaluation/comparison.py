"""Comparison: every candidate on every image of the test set, one image in memory at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from ctmr.data.manifest import Column
from ctmr.evaluation.candidates import OWN, Candidate
from ctmr.evaluation.testset import Case, TestSet
from ctmr.evaluation.truth import Truth
from ctmr.imaging.mask import head_mask_ct
from ctmr.imaging.volume import UNEVEN_LIMIT, Unit, Volume
from ctmr.metrics.cases import CaseMetrics
from ctmr.metrics.protocol import protocol
from ctmr.metrics.registry import MAE
from ctmr.metrics.tissue import TissueTable, classes_by_hu, pool_tables, table_of_classes, tissue_table
from ctmr.recipe.recipe import Recipe
from ctmr.system.progress import Progress

if TYPE_CHECKING:
    from ctmr.evaluation.sections import Compared

TISSUE_CASES = 2
"""Synthetic MR images that are translated whole, to be looked at tissue by tissue."""

Cases = dict[str, list[CaseMetrics]]


@dataclass(frozen=True)
class Golden:
    """One case of the test set with evaluate's own answer.

    Attributes
    ----------
    answer
        ``[D, H, W]`` on the native voxels, storage type of the target unit.
    paths, formats, uneven_limits
        Of each source channel, as the manifest has them: what it takes to read it again.
    """

    case: str
    subject: str
    paths: tuple[str, ...]
    formats: tuple[str, ...]
    uneven_limits: tuple[float, ...]
    answer: NDArray[Any]


@dataclass(frozen=True)
class ComparedCase:
    """Sections of one case for a figure.

    Attributes
    ----------
    error
        MAE under the first paired protocol; ``None`` without truth.
    """

    case: str
    subject: str
    compared: Compared
    error: float | None


@dataclass
class MeasuredDirection:
    """Measurements of the candidates on the test set.

    Attributes
    ----------
    cases
        Candidate → protocol → cases.
    tables
        Case → its tissue table, of the model by the served path: tissues of the true CT, or of the source where that
        is a CT and the target has no unit. Empty for pictures.
    heads
        (true, synthetic) mean HU of each head.
    coarsest_mm
        Largest edge of a voxel on the grid.
    golden
        The first case.
    best, worst
        Cases of the smallest and largest error; the first case is both where nothing compares.
    """

    cases: dict[str, Cases]
    tables: dict[str, TissueTable] = field(default_factory=dict)
    heads: list[tuple[float, float]] = field(default_factory=list)
    coarsest_mm: float = 0.0
    golden: Golden | None = None
    best: ComparedCase | None = None
    worst: ComparedCase | None = None

    @property
    def tissues(self) -> TissueTable:
        """One tissue table of all cases."""
        return pool_tables(list(self.tables.values()))


def compare(
    test_set: TestSet, recipe: Recipe, candidates: Sequence[Candidate], indices: Sequence[int], tell: Progress
) -> MeasuredDirection:
    """Translate images of the test set with every candidate and measure them where truth exists.

    Parameters
    ----------
    candidates
        The model by the served path (`OWN`) makes the golden case, the tissue tables and the compared cases.
    indices
        Source volumes. Without pairs only a few are translated whole: the first is the golden case.
    """
    with ThreadPoolExecutor(recipe.evaluate.threads or os.cpu_count() or 1) as beside:
        return _compare(test_set, recipe, candidates, indices, tell, beside)


def _compare(
    test_set: TestSet,
    recipe: Recipe,
    candidates: Sequence[Candidate],
    indices: Sequence[int],
    tell: Progress,
    beside: ThreadPoolExecutor,
) -> MeasuredDirection:
    """Translate one after the other, and measure beside it: metrics run on one core each."""
    measured = MeasuredDirection({c.name: {} for c in candidates})
    by_source = test_set.source.unit is Unit.HU and test_set.target_unit is Unit.ARBITRARY
    chosen = list(indices) if test_set.has_pairs else list(indices)[: TISSUE_CASES if by_source else 1]
    for k, index in enumerate(chosen):
        case = test_set.case(index)
        waiting: list[tuple[Candidate, Volume, Future[list[CaseMetrics]]]] = []
        for candidate in candidates:
            made = candidate.translate(case)
            native = case.native_as_trained(made) if candidate.as_trained else case.native(made)
            seen = case.as_trained if candidate.as_trained else case
            truth = None if seen is None else seen.truth
            if truth is not None:
                for name in _protocols(case, recipe):
                    truth.mask(protocol(name).mask)  # Found here, once, for all that are measured at the same time.
            waiting.append((candidate, native, beside.submit(_measure, case, native, truth, recipe)))
            if candidate.name == OWN and by_source:
                measured.tables[case.name] = _by_source(test_set, index, case, made)
        for candidate, native, found in waiting:
            rows = found.result()
            for row in rows:
                measured.cases[candidate.name].setdefault(row.protocol.name, []).append(row)
            if candidate.name == OWN:
                _keep(measured, case, native, rows)
        tell(f"measured {k + 1} of {len(chosen)} images of the test set", (k + 1) / len(chosen))
    return measured


def _measure(case: Case, native: Volume, truth: Truth | None, recipe: Recipe) -> list[CaseMetrics]:
    from ctmr.metrics.measurement import measure_paired

    if truth is None:
        return []
    prediction = truth.receive(native)
    rows = []
    for name in _protocols(case, recipe):
        how = protocol(name)
        rows.append(
            measure_paired(
                prediction,
                truth.volume.array,
                truth.mask(how.mask),
                how,
                case=case.name,
                subject=case.subject,
                slice_axis=case.slice_axis,
            )
        )
    return rows


def _protocols(case: Case, recipe: Recipe) -> tuple[str, ...]:
    section = recipe.evaluate
    return section.paired_protocols if case.target_unit is Unit.HU else section.paired_grey_protocols


def _keep(measured: MeasuredDirection, case: Case, native: Volume, rows: Sequence[CaseMetrics]) -> None:
    """Keep of a case what the report shows: a table and a few sections, and the whole answer of the first."""
    if measured.golden is None:
        measured.golden = Golden(
            case.name,
            case.subject,
            tuple(str(r[Column.PATH]) for r in case.rows),
            tuple(str(r[Column.FORMAT]) for r in case.rows),
            tuple(float(r.get(Column.UNEVEN_LIMIT, UNEVEN_LIMIT)) for r in case.rows),
            native.array,
        )
    measured.coarsest_mm = max(measured.coarsest_mm, *case.spacing_mm)
    if case.truth is not None and case.target_unit is Unit.HU:
        truth, head, received = case.truth.volume.array, case.truth.head, case.truth.receive(native)
        measured.tables[case.name] = tissue_table(received, truth, head)
        measured.heads.append((float(truth[head].mean()), float(received[head].mean())))
    error = rows[0].values[MAE.name] if rows else None
    best, worst = measured.best, measured.worst
    is_best = best is None or (error is not None and best.error is not None and error < best.error)
    is_worst = worst is None or (error is not None and worst.error is not None and error > worst.error)
    if is_best or is_worst:
        shown = ComparedCase(case.name, case.subject, _sections(case, native), error)
        measured.best = shown if is_best else best
        measured.worst = shown if is_worst else worst


def _by_source(test_set: TestSet, index: int, case: Case, made: NDArray[Any]) -> TissueTable:
    """Tissue table of a synthetic MR image in the tissues of its CT, beside the true MR image where there is one."""
    classes = classes_by_hu(case.array[0], head_mask_ct(case.array[0]))
    truth = case.on_grid(test_set.truth(index)) if index in test_set.partners else None
    return table_of_classes(made, classes, truth)


def _sections(case: Case, native: Volume) -> Compared:
    from ctmr.evaluation.sections import compare as compare_images

    source = case.volumes[0]
    truth = case.truth
    alike = truth is not None and truth.covers(native)
    return compare_images(
        source.array,
        native.array,
        truth.volume.array if truth is not None and alike else None,
        source_unit=source.unit,
        target_unit=case.target_unit,
        source_name=f"{source.sequence or ''} {source.modality}".strip(),
        target_name=case.direction.target.value,
        spacing_mm=source.spacing_mm if source.affine is not None else (1.0, 1.0, 1.0),
        head=truth.head if truth is not None and alike and case.target_unit is Unit.HU else None,
    )
