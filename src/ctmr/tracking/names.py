"""The names of runs and models, one rule wherever they stand: folders, MLflow, Optuna, Triton."""

from __future__ import annotations

from enum import StrEnum

_CANDIDATE = "_candidate"


class Part(StrEnum):
    """The three Triton models of one direction, as suffixes of its name."""

    GENERATOR = ""
    RANGE = "_range"
    VOLUME = "_volume"


def run_name(recipe: str, dataset: str) -> str:
    """Return the name of a run's folder: runs of one recipe on different data lie side by side."""
    return f"{recipe}-{dataset}"


def model_name(given: str | None, recipe: str, dataset: str) -> str:
    """Return a registered model's name; unless the recipe gives one, different data never replace each other."""
    return given or run_name(recipe, dataset)


def study_name(folder: str) -> str:
    """Return the name of the Optuna study of a folder of that name."""
    return f"ctmr-tune-{folder}"


def trial_name(number: int) -> str:
    """Return the name of a trial's MLflow run."""
    return f"trial {number}"


def served_name(model: str, direction: str) -> str:
    """Return the name under which Triton serves a direction of a registered model; its `Part` comes after it."""
    return f"{model}_{direction}"


def registered_name(served: str, direction: str) -> str:
    """Return the registered model's name of a served one; the inverse of `served_name`."""
    return served.removesuffix(f"_{direction}")


def candidate_name(served: str) -> str:
    """Return the name under which a version is proven before it is served."""
    return served + _CANDIDATE


def is_candidate(model: str) -> bool:
    """True for the name of a Triton model under which a version is proven."""
    return any(model.endswith(candidate_name("") + part) for part in Part)
