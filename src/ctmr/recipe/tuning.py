"""Recipe section of the tuning study: how much it tries, what it searches, how it stops what leads nowhere."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, field_validator, model_validator

from ctmr.recipe.base import Count, Positive, Section
from ctmr.recipe.training import Loss, Network, Train

_INSIDE = 0.381966
"""Where a range is probed beside its ends: the golden section, no whole number between whole numbers."""


class Range(Section):
    """Base of search ranges."""

    low: float
    high: float

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}")
        return self

    @property
    def probes(self) -> tuple[Any, ...]:
        """Values that a key must be able to take for the whole range to make sense."""
        return self.low, self.high, self.low + _INSIDE * (self.high - self.low)


class LogUniform(Range):
    """Search range on a logarithmic scale."""

    kind: Literal["log_uniform"] = "log_uniform"
    low: Positive
    high: Positive


class Uniform(Range):
    """Search range on a linear scale."""

    kind: Literal["uniform"] = "uniform"


class Integers(Section):
    """Search among whole numbers: depth, pool, steps between updates."""

    kind: Literal["int"] = "int"
    low: int
    high: int
    step: Count = 1
    log: bool = False
    """On a logarithmic scale; then low is at least 1, and step 1."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        if self.log and (self.low < 1 or self.step != 1):
            raise ValueError(f"log needs a low of at least 1 and a step of 1, found {self.low} and {self.step}")
        if (self.high - self.low) % self.step:
            raise ValueError(f"steps of {self.step} from {self.low} do not meet high {self.high}")
        return self

    @property
    def probes(self) -> tuple[Any, ...]:
        """Values that a key must be able to take for the whole range to make sense."""
        return self.low, self.high


class Choice(Section):
    """Search among values."""

    kind: Literal["choice"] = "choice"
    values: Annotated[tuple[float | int | str | bool, ...], Field(min_length=1)]

    @property
    def probes(self) -> tuple[Any, ...]:
        """Values that a key must be able to take."""
        return self.values


SearchSpace = Annotated[LogUniform | Uniform | Integers | Choice, Field(discriminator="kind")]

_TUNABLE: dict[str, type[BaseModel]] = {"train": Train, "loss": Loss, "network": Network}
_A_TRIALS_OWN = {
    "train.steps": "a trial trains tune.steps",
    "train.threads": "a trial has tune.threads",
    "train.sample_every": "it changes no result",
    "train.checkpoint_every": "it changes no result",
}


class Sampler(StrEnum):
    """Algorithm that proposes what a trial tries."""

    TPE = "tpe"
    """Tree-structured Parzen estimator (Bergstra et al. 2011), as Optuna has it."""
    RANDOM = "random"
    """Evenly over the search space: what every other sampler must beat."""


class Pruner(StrEnum):
    """Choice of the trials that end before their last step."""

    HYPERBAND = "hyperband"
    """Brackets of successive halving (Li et al. 2018, Li et al. 2020), `ctmr.tuning.hyperband`."""
    MEDIAN = "median"
    """A trial whose best report is worse than the median of complete trials at that step."""
    NONE = "none"


class Tune(Section):
    """Optuna's study. The first trial is the recipe itself."""

    study: Annotated[str, Field(pattern=r"^[a-z0-9_]*$")] = ""
    """Part of the study's name: another one begins a study of its own, with a search space of its own."""
    trials: Count = 20
    steps: Count = 2_000
    """Training steps of a trial."""
    reports: Count = 4
    """Times a trial reports its validation score and may be pruned."""
    workers: Count = 2
    """Trials of a wave, which learn from earlier waves only, and worker processes that the stage starts.

    More or fewer processes at the study, here or on other machines, change nothing but the time.
    """
    threads: Annotated[int, Field(ge=0)] = 1
    sampler: Sampler = Sampler.TPE
    pruner: Pruner = Pruner.HYPERBAND
    reduction: Annotated[int, Field(ge=2)] = 3
    """η of Hyperband: one in so many trials goes on at each rung."""
    subset_images: Annotated[int, Field(ge=0)] = 0
    """Slices of each modality that a trial trains on until its first report; 0: all from the start."""
    subset_cases: Annotated[int, Field(ge=0)] = 0
    """Validation images that reports before the last are scored on; 0: all."""
    space: dict[str, SearchSpace] = Field(
        default={
            "train.lr_generator": LogUniform(low=1e-4, high=1e-3),
            "train.lr_discriminator": LogUniform(low=1e-4, high=1e-3),
            "loss.cycle": Uniform(low=5.0, high=15.0),
        }
    )
    """Dotted recipe key → range; keys under ``train``, ``loss`` or ``network``."""
    seed: int = 0

    @field_validator("space")
    @classmethod
    def _tunable(cls, space: dict[str, SearchSpace]) -> dict[str, SearchSpace]:
        for key, searched in space.items():
            if key in _A_TRIALS_OWN:
                raise ValueError(f"{key!r} cannot be tuned; {_A_TRIALS_OWN[key]}")
            values = _values_of(key)
            for value in searched.probes:
                try:
                    values.validate_python(value)
                except ValidationError as error:
                    first = error.errors()[0]
                    hint = "; search it by kind int" if first["type"].startswith("int_") else ""
                    said = first["msg"][0].lower() + first["msg"][1:]
                    raise ValueError(f"{key!r} cannot be {value!r}, which the search would try: {said}{hint}") from None
        return space

    @model_validator(mode="after")
    def _one_subset(self) -> Self:
        both = sorted({"train.subset_images", "train.subset_fraction"} & set(self.space))
        if self.subset_images and both:
            raise ValueError(f"subset_images decides {both[0]} of every trial; search it, or set subset_images to 0")
        return self


def _values_of(key: str) -> TypeAdapter[Any]:
    """Return what checks a value of one recipe key.

    Raises
    ------
    ValueError
        When the key is none that a trial may change.
    """
    first, *rest = key.split(".")
    if first not in _TUNABLE or not rest:
        raise ValueError(f"{key!r} cannot be tuned; tunable keys start with train., loss. or network.")
    section: type[BaseModel] | None = _TUNABLE[first]
    field = None
    for part in rest:
        field = section.model_fields.get(part) if section else None
        if field is None:
            raise ValueError(f"{key!r} cannot be tuned; the recipe has no such key")
        kind = field.annotation
        section = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
    if section is not None:
        raise ValueError(f"{key!r} cannot be tuned; it is a section, so search the keys below it")
    assert field is not None
    typed: Any = field.annotation
    for bound in field.metadata:
        typed = Annotated[typed, bound]
    return TypeAdapter(typed)
