"""Result: everything that was measured for one verdict, as ``verdict.json`` and the report show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ctmr.evaluation.direction import DirectionResult, dicts
from ctmr.evaluation.gate import Verdict
from ctmr.evaluation.lesions import LesionTest
from ctmr.evaluation.robustness import RobustnessResult
from ctmr.evaluation.uncertainty import CalibrationResult, UncertaintyResult
from ctmr.metrics.stats import Summary


@dataclass(frozen=True)
class EvaluationResult:
    """Measurements that a verdict rests on, and those made besides.

    Attributes
    ----------
    gated
        The direction that the gate judges, its lesions among the summaries.
    verdict
        From `ctmr.evaluation.gate.judge`.
    other
        The other direction, or a sentence why it was not measured.
    lesions
        One a direction.
    robustness, uncertainty
        ``None`` where the recipe asks for none.
    calibration
        Of the gated direction's uncertainty.
    champion
        How to call it.
    compared_with
        The champion's name, version and digest; ``None`` when there was none.
    lineage
        Name → value: recipe and content digests, seed, versions.
    """

    gated: DirectionResult
    verdict: Verdict
    other: DirectionResult | str
    lesions: tuple[LesionTest, ...] = ()
    robustness: RobustnessResult | None = None
    uncertainty: UncertaintyResult | None = None
    calibration: CalibrationResult | None = None
    champion: str = "the champion"
    compared_with: Mapping[str, str] | None = None
    lineage: Mapping[str, str] = field(default_factory=dict)

    @property
    def summaries(self) -> Mapping[str, Summary]:
        """Protocol → summary of the model in the gated direction."""
        return self.gated.own

    @property
    def others(self) -> dict[str, Mapping[str, Summary]]:
        """Return what stands beside the model, by the name that tables use."""
        return self.gated.beside(self.champion)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: the verdict, and every number behind it."""
        gated, other = self.gated, self.other
        return (
            self.verdict.to_dict()
            | gated.to_dict()
            | {
                "has_pairs": gated.has_pairs,
                "as_trained": None if gated.as_trained is None else dicts(gated.as_trained),
                "lesions": {t.direction.value: t.to_dict() for t in self.lesions},
                "robustness": self.robustness.to_dict() if self.robustness else None,
                "uncertainty": self.uncertainty.to_dict() if self.uncertainty else None,
                "calibration": self.calibration.to_dict() if self.calibration else None,
                "other_direction": {"note": other}
                if isinstance(other, str)
                else other.to_dict() | {"alarm": other.alarm},
            }
        )
