"""Tuning studies as Optuna's own tools see them."""

from __future__ import annotations

from typing import Any

import optuna

from ctmr.tuning.study import Study


def trials_of(study: Study) -> list[Any]:
    """Return what Optuna knows of a study's trials."""
    return optuna.load_study(study_name=study.name, storage=study.database.storage).get_trials()
