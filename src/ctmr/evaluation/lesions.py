"""Hallucination test: inputs of the test set with lesions and without, translated, and what became of the lesions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctmr.evaluation.candidates import Model
from ctmr.evaluation.lesion_insertion import CONTRAST_HU, PreparedCase, TwinCache, insert, insert_by_twin
from ctmr.evaluation.testset import Case, TestSet, spread
from ctmr.imaging.volume import Direction, Unit
from ctmr.metrics.cases import CaseMetrics
from ctmr.metrics.detection import (
    Findings,
    Response,
    false_findings,
    lesion_metrics,
    respond,
    visible_contrast,
    wilson_interval,
)
from ctmr.metrics.registry import FALSE_FINDINGS, INVENTED, Metric
from ctmr.metrics.stats import Summary, bootstrap_interval, finite_or_none, summarise
from ctmr.recipe.evaluation import Lesions
from ctmr.recipe.recipe import Recipe

SOFT_TISSUE_HU = (-20.0, 100.0)
"""Where a blob in a CT could be taken for a lesion."""
SKIN_MM = 12.0
"""In other images: this deep under the skin."""
FINDING_SHARE = 0.5
"""A blob in a translation of a lesion-free input counts from this share of an inserted lesion's contrast."""
_MOST_VIEWS = 4


@dataclass(frozen=True)
class LesionView:
    """One lesion's slice, for a figure; every image is ``[H, W]``.

    Attributes
    ----------
    ill, answer_healthy, answer_ill
        Input with the lesion, and the translations without and with it.
    truth_ill
        True target with the lesion, where it exists.
    outline
        The lesion.
    """

    case: str
    response: Response
    ill: NDArray[Any]
    answer_healthy: NDArray[np.float32]
    answer_ill: NDArray[np.float32]
    truth_ill: NDArray[Any] | None
    outline: NDArray[np.bool_]


@dataclass(frozen=True)
class LesionCase:
    """Outcome of the lesions of one image."""

    case: str
    subject: str
    findings: Findings
    unasked: int
    false_blobs: int | None


@dataclass(frozen=True)
class LesionTest:
    """The hallucination test of one direction.

    Attributes
    ----------
    direction
        Which way.
    how
        Where the lesions come from, in a few words.
    source_unit, unit
        Of the inputs; of the translations and so of signals.
    cases
        One an image.
    measured
        The same as numbers under protocol ``lesions``.
    views
        A few lesions, for a figure.
    """

    direction: Direction
    how: str
    source_unit: Unit
    unit: Unit
    cases: tuple[LesionCase, ...]
    measured: tuple[CaseMetrics, ...]
    views: tuple[LesionView, ...]

    @property
    def responses(self) -> list[Response]:
        """Every lesion that was asked for."""
        return [r for c in self.cases for r in c.findings.responses]

    @property
    def kept(self) -> int:
        """Lesions that the translations show."""
        return sum(r.kept for r in self.responses)

    @property
    def unasked(self) -> int:
        """Lesions that the input or the truth hides, which no translator can be asked for."""
        return sum(c.unasked for c in self.cases)

    @property
    def summary(self) -> Summary:
        """The numbers of protocol ``lesions`` over patients."""
        return summarise(list(self.measured))

    def rate_interval(self) -> tuple[float, float]:
        """Wilson 95 % interval of the detection rate over lesions."""
        return wilson_interval(self.kept, len(self.responses))

    def counts(self, metric: Metric) -> tuple[float, float, float] | None:
        """Mean a case and bootstrap 95 % interval over patients of a count; ``None`` where it was not measured."""
        values = [c.values[metric.name] for c in self.measured if metric.name in c.values]
        return (float(np.mean(values)), *bootstrap_interval(np.array(values))) if values else None

    def sentence(self) -> str:
        """The result in one sentence."""
        total = len(self.responses)
        low, high = self.rate_interval()
        kept = f"{self.kept} of {total} lesions kept" if total else "no lesion could be asked for"
        if total:
            kept += f" ({100 * self.kept / total:.0f} %, 95 % interval {100 * low:.0f} to {100 * high:.0f} %)"
        parts = [f"{self.direction}, lesions {self.how}: {kept}"]
        for metric, what in (
            (INVENTED, "invented an image"),
            (FALSE_FINDINGS, "blobs an image that the lesion-free truth does not show"),
        ):
            found = self.counts(metric)
            if found is not None:
                mean, at_least, at_most = found
                parts.append(f"{mean:.3g} {what}" + _between(at_least, at_most))
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        low, high = self.rate_interval()

        def count(metric: Metric) -> dict[str, float | None] | None:
            found = self.counts(metric)
            return None if found is None else dict(zip(("mean", "low", "high"), map(_plain, found), strict=True))

        return {
            "direction": self.direction.value,
            "how": self.how,
            "unit": self.unit.value,
            "sentence": self.sentence(),
            "kept": self.kept,
            "lesions": len(self.responses),
            "unasked": self.unasked,
            "low": _plain(low),
            "high": _plain(high),
            "invented": count(INVENTED),
            "false_findings": count(FALSE_FINDINGS),
            "cases": [
                {
                    "case": c.case,
                    "subject": c.subject,
                    "invented": c.findings.invented,
                    "false_findings": c.false_blobs,
                    "unasked": c.unasked,
                    "lesions": [
                        {k: _plain(v) if isinstance(v, float) else v for k, v in asdict(r).items()}
                        for r in c.findings.responses
                    ],
                }
                for c in self.cases
            ],
        }


def lesion_tests(sides: Sequence[tuple[TestSet, Model]], recipe: Recipe) -> list[LesionTest]:
    """Put lesions into inputs of the test set and see what the translations make of them.

    Heads that are phantoms are scanned again with lesions of tissue, so that the truth has them too. Every other image
    gets balls of a known contrast.

    Parameters
    ----------
    sides
        One or both directions. They take turns, because a phantom's scan serves both.
    recipe
        Its section ``evaluate.lesions``.

    Returns
    -------
    list of LesionTest
        In the order of `sides`; a direction without a case, or without room for a lesion, is left out.
    """
    section, cache = recipe.evaluate.lesions, TwinCache()
    tests = [_Collected(test_set, model) for test_set, model in sides]
    for turn in range(section.cases):
        for test in tests:
            test.add(turn, section, recipe.evaluate.seed, cache)
    return [test.result() for test in tests if test.cases]


class _Collected:
    """One direction's cases so far."""

    def __init__(self, test_set: TestSet, model: Model) -> None:
        self.test_set, self.model = test_set, model
        self.cases: list[LesionCase] = []
        self.measured: list[CaseMetrics] = []
        self.views: list[LesionView] = []
        self.how = ""

    def add(self, turn: int, section: Lesions, seed: int, cache: TwinCache) -> None:
        test_set = self.test_set
        indices = spread(sorted(test_set.partners) or range(len(test_set.source.volumes)), section.cases)
        if turn >= len(indices):
            return
        index = indices[turn]
        case = test_set.case(index)
        made = insert_by_twin(test_set, case, section, cache, seed) or insert(
            case, section, np.random.default_rng((seed, index))
        )
        # Numbers of lesions of tissue and of inserted ones are never put together.
        if made is None or self.how not in ("", made.how):
            return
        self.how = made.how
        found, blobs, views = _examine(case, self.model, made, section.contrast)
        radii = ", ".join(f"{r:g}" for r in sorted(section.radii_mm))
        self.cases.append(LesionCase(case.name, case.subject, found, len(made.sites) - len(found.responses), blobs))
        self.measured.append(
            lesion_metrics(
                found,
                case=case.name,
                subject=case.subject,
                variant=f"lesions {made.how}, radii {radii} mm",
                false_blobs=blobs,
            )
        )
        self.views += views[: _MOST_VIEWS - len(self.views)]

    def result(self) -> LesionTest:
        test_set = self.test_set
        return LesionTest(
            test_set.direction,
            self.how,
            test_set.source.unit,
            test_set.target_unit,
            tuple(self.cases),
            tuple(self.measured),
            tuple(self.views),
        )


def _examine(
    case: Case, model: Model, made: PreparedCase, contrast: float
) -> tuple[Findings, int | None, list[LesionView]]:
    """Translate both inputs, where they differ; the lesion-free one also where a truth says that a blob is false."""
    unit, spacing = case.target_unit, case.spacing_mm
    head = case.head_of(made.healthy)
    near = range(-model.forward.neighbours, model.forward.neighbours + 1)
    ill_slices = np.flatnonzero(np.any([s.mask.any(axis=(1, 2)) for s in made.sites], axis=0))
    # A lesion also changes the translations of slices that have its own as neighbours.
    slices = sorted({int(k) + offset for k in ill_slices for offset in near} & set(range(len(head))))
    truth = None if unit is Unit.ARBITRARY else made.truth_healthy
    where = _plausible(head, truth, unit, min(s.radius_mm for s in made.sites), spacing)
    looked_at = [int(k) for k in np.flatnonzero(where.any(axis=(1, 2)))] if truth is not None else []
    levels = sorted({*slices, *looked_at})
    healthy = np.zeros(head.shape, dtype=np.float32)
    healthy[levels] = model.translate(made.healthy, levels)
    before, ill = healthy[slices], model.translate(made.ill, slices)
    difference = np.zeros(head.shape, dtype=np.float32)
    difference[slices] = ill - before
    inside = np.zeros_like(head)
    inside[slices] = head[slices]
    scale = CONTRAST_HU if unit is Unit.HU else float(np.median(before[head[slices]]))
    finding = FINDING_SHARE * contrast * abs(scale)
    true_change, truth_visible = None, 0.0
    if made.truth_ill is not None and made.truth_healthy is not None:
        true_change = made.truth_ill.astype(np.float32) - made.truth_healthy.astype(np.float32)
        truth_visible = visible_contrast(unit, made.truth_healthy, head)
    change = made.ill.astype(np.float32) - made.healthy.astype(np.float32)
    hidden_below = visible_contrast(case.volumes[0].unit, made.healthy[0], head)
    found = respond(
        difference,
        made.sites,
        inside,
        visible=visible_contrast(unit, before, head[slices]),
        finding=finding,
        spacing_mm=spacing,
        where=where,
        truth=true_change,
        truth_visible=truth_visible,
        asked=[max(abs(float(c[s.mask].mean())) for c in change) >= hidden_below for s in made.sites],
    )
    blobs = None
    if truth is not None:
        smallest = min(s.radius_mm for s in made.sites)
        blobs = false_findings(healthy, truth, where, contrast=finding, radius_mm=smallest, spacing_mm=spacing)
    return found, blobs, _views(case, made, found, before, ill, slices)


def _plausible(
    head: NDArray[np.bool_],
    truth: NDArray[Any] | None,
    unit: Unit,
    radius_mm: float,
    spacing_mm: tuple[float, float, float],
) -> NDArray[np.bool_]:
    """Return where a blob would be taken for a lesion: soft tissue of a true CT, otherwise well under the skin."""
    if truth is None or unit is not Unit.HU:
        deep: NDArray[np.bool_] = ndimage.distance_transform_edt(head, sampling=spacing_mm) >= SKIN_MM
        return deep
    # The mean over a voxel's neighbours, because CT noise alone leaves the range of soft tissue.
    calm = ndimage.gaussian_filter(truth.astype(np.float32), 1.0)
    soft = head & (calm >= SOFT_TISSUE_HU[0]) & (calm <= SOFT_TISSUE_HU[1])
    inner: NDArray[np.bool_] = ndimage.distance_transform_edt(soft, sampling=spacing_mm) >= radius_mm
    return inner


def _views(
    case: Case,
    made: PreparedCase,
    found: Findings,
    before: NDArray[np.float32],
    ill: NDArray[np.float32],
    slices: Sequence[int],
) -> list[LesionView]:
    """The slice through the middle of every lesion that was asked for."""
    views = []
    for response in found.responses:
        site = made.sites[response.site]
        level = int(np.argmax(site.mask.sum(axis=(1, 2))))
        at = slices.index(level)
        truth = None if made.truth_ill is None else np.array(made.truth_ill[level])
        shown = np.array(made.ill[0, level])
        views.append(LesionView(case.name, response, shown, before[at], ill[at], truth, site.mask[level]))
    return views


def _between(low: float, high: float) -> str:
    """The interval of a count, where there are patients enough for one."""
    return f" (95 % interval {low:.3g} to {high:.3g})" if math.isfinite(low) and math.isfinite(high) else ""


def _plain(value: float) -> float | None:
    """A number as JSON takes it, with as many digits as mean something."""
    return finite_or_none(float(f"{value:.6g}"))
