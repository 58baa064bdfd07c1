"""Evidence of a trial beside its scores: loss curves and pictures, as bytes for the study's database."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ctmr.tuning.objective import Pictures
from ctmr.tuning.trial import Reported

_LOSSES, _PICTURES = "losses.json", "pictures.npz"


@dataclass
class TrialEvidence:
    """Loss curves of a trial, and the pictures of its last report.

    Attributes
    ----------
    losses
        Training step → loss → mean since the point before.
    scores
        Training step → validation score; not among the `files`, the study has them.
    pictures
        ``None`` before the first report.
    step
        Training step of `pictures`.
    """

    losses: dict[int, Mapping[str, float]] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)
    pictures: Pictures | None = None
    step: int = 0

    @property
    def score(self) -> float:
        """The last score; not a number before the first."""
        return self.scores[max(self.scores)] if self.scores else math.nan

    @property
    def finite(self) -> dict[int, float]:
        """The scores that are finite."""
        return {step: score for step, score in self.scores.items() if math.isfinite(score)}

    def add(self, reported: Reported) -> None:
        """Take what a report brings."""
        self.losses |= reported.losses
        self.scores[reported.step] = reported.score
        if reported.pictures is not None:
            self.pictures, self.step = reported.pictures, reported.step

    def files(self) -> dict[str, bytes]:
        """Return it as bytes by name."""
        out = {_LOSSES: json.dumps(self.losses).encode()}
        if self.pictures is not None:
            stream = io.BytesIO()
            columns = np.array(self.pictures.columns)
            np.savez_compressed(stream, images=self.pictures.images, columns=columns, step=np.array(self.step))
            out[_PICTURES] = stream.getvalue()
        return out

    @staticmethod
    def of(files: Mapping[str, bytes]) -> TrialEvidence:
        """Return what `files` was made of; nothing, where nothing was kept."""
        out = TrialEvidence()
        if _LOSSES in files:
            out.losses = {int(step): row for step, row in json.loads(files[_LOSSES]).items()}
        if _PICTURES in files:
            with np.load(io.BytesIO(files[_PICTURES]), allow_pickle=False) as found:
                out.pictures = Pictures(tuple(map(str, found["columns"])), found["images"])
                out.step = int(found["step"])
        return out
