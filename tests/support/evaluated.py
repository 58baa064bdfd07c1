"""Results of an evaluation with the numbers that a test wants, for what is made of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ctmr.evaluation.candidates import OWN
from ctmr.evaluation.comparison import MeasuredDirection
from ctmr.evaluation.direction import DirectionResult
from ctmr.evaluation.gate import Verdict
from ctmr.evaluation.lesions import LesionCase, LesionTest, LesionView
from ctmr.evaluation.result import EvaluationResult
from ctmr.imaging.volume import Direction, Unit
from ctmr.metrics.cases import CaseMetrics
from ctmr.metrics.detection import Findings, Response
from ctmr.metrics.protocol import protocol
from ctmr.metrics.stats import Summary, summarise
from ctmr.metrics.tissue import TissueTable

Summaries = Mapping[str, Summary]


def summary(name: str, values: Mapping[str, float], patients: str = "ab") -> dict[str, Summary]:
    """The same values for each patient, under a protocol."""
    return {name: summarise([CaseMetrics(s, s, protocol(name), values) for s in patients])}


def direction_result(
    own: Summaries,
    baselines: Mapping[str, Summaries] | None = None,
    *,
    direction: Direction = Direction.MR2CT,
    cases: Mapping[str, list[CaseMetrics]] | None = None,
    tissues: TissueTable | None = None,
    **fields: Any,
) -> DirectionResult:
    """One direction with these summaries."""
    baselines = baselines or {}
    measured = MeasuredDirection({OWN: dict(cases or {})}, {"a": tissues} if tissues else {})
    summaries = {OWN: own, **baselines}
    names = tuple(baselines)
    fields = {"unit": Unit.HU, "has_pairs": True, "phantom": False} | fields
    return DirectionResult(direction, measured=measured, summaries=summaries, baseline_names=names, **fields)


def evaluation_result(
    gated: DirectionResult, verdict: Verdict, *, other: DirectionResult | str = "not measured", **fields: Any
) -> EvaluationResult:
    """A result of which a test says nothing more than it needs."""
    return EvaluationResult(gated, verdict, other, **fields)


def lesion_test(
    kept: Sequence[bool], measured: Sequence[Mapping[str, float]] = ({},), views: Sequence[LesionView] = ()
) -> LesionTest:
    """A hallucination test of one image with a lesion for each of `kept`, and the counts of some images."""
    responses = tuple(Response(k, "tumour", 5.0, 8.0, 10.0, 9.0, each) for k, each in enumerate(kept))
    rows = tuple(CaseMetrics(f"c{k}", f"s{k}", protocol("lesions"), values) for k, values in enumerate(measured))
    case = LesionCase("a", "s", Findings(responses, 0), 0, None)
    return LesionTest(Direction.MR2CT, "inserted", Unit.ARBITRARY, Unit.HU, (case,), rows, tuple(views))


def lesion_view(image: np.ndarray, outline: np.ndarray, truth: bool) -> LesionView:
    """A lesion in an image ``[H, W]`` that the translation shows, with its truth or without."""
    response = Response(0, "tumour", 5.0, 8.0, 10.0, 7.0, True)
    return LesionView("a", response, image, image, image + 9 * outline, image if truth else None, outline)
