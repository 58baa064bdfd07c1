"""Recipe: one typed tree that is configuration, command-line option and documentation at once."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from ctmr.imaging.grid import Millimetres, Pixels, Plane
from ctmr.imaging.hounsfield import PATIENT_RANGE_HU, WINDOW_HU
from ctmr.imaging.steps import AnyStep
from ctmr.imaging.steps.base import ImageStep
from ctmr.imaging.steps.order import check_order
from ctmr.imaging.volume import UNEVEN_LIMIT, Direction, Interpolation
from ctmr.io.series_kinds import NEVER_KEPT, Kind
from ctmr.metrics.protocol import PROTOCOLS
from ctmr.metrics.registry import METRICS
from ctmr.recipe.base import Count, Fraction, NonNegative, Positive, Section
from ctmr.recipe.evaluation import Lesions, Robustness, Uncertainty
from ctmr.recipe.limits import UncertaintyLimits
from ctmr.recipe.training import (
    Loss,
    Network,
    Train,
)
from ctmr.recipe.tuning import Tune
from ctmr.system.digest import tree_digest


class Fetch(Section):
    """Reading of the images of a dataset."""

    uneven_limit: Annotated[float, Field(ge=0, lt=1)] = UNEVEN_LIMIT
    """Gaps between DICOM slices that differ from the usual one by up to this share of it are resampled to even ones, a
    larger one is an error; below 1, because a missing slice differs by 1 and is never made up."""
    keep: tuple[Kind, ...] = ()
    """Kinds of DICOM series that are used although they are no anatomical images of a head, such as ``phase``."""

    @field_validator("keep")
    @classmethod
    def _slices(cls, keep: tuple[Kind, ...]) -> tuple[Kind, ...]:
        if never := sorted(set(keep) & set(NEVER_KEPT)):
            raise ValueError(f"{never[0]} cannot be kept: what a model made is no truth")
        return keep


class Data(Section):
    """Choice of the images that are used, and of how subjects are split."""

    sequences: tuple[str, ...] = ()
    """MR sequences the model reads as channels, in order; empty: whatever single sequence there is."""
    max_images: Count | None = None
    """At most this many images per split and modality (a seeded choice); ``null`` uses all."""
    val_fraction: Fraction = 0.1
    """Share of subjects for validation, when the dataset has no split of its own."""
    test_fraction: Fraction = 0.15
    """Share of subjects for the test, when the dataset has no split of its own."""
    disjoint_training: bool = True
    """No subject gives both a CT and an MR to training: the unpaired setting."""
    split_seed: int = 0


class Validate(Section):
    """Conditions that an image must fulfil; the rest is dropped with a finding, or the dataset is refused."""

    max_dropped_fraction: Fraction = 0.25
    """More findings of kind *drop* than this refuse the dataset."""
    min_images: Count = 2
    """Images each modality must keep in training, and in the test."""
    hu_range: tuple[float, float] = PATIENT_RANGE_HU
    """Values outside can not be Hounsfield units of a patient."""
    near_duplicate_bits: Annotated[int, Field(ge=0, le=32)] = 4
    """Pictures whose perceptual hashes (64 bits) are this close are one image, which belongs in one split."""
    min_side: Pixels = 32
    """Pixels of the shorter side."""


class Preprocess(Section):
    """The grid of the model, and what is done to images before they go onto it."""

    steps: tuple[AnyStep, ...] = ()
    """Steps on native voxels, in order; each is for one modality, and served with the model or for training only."""
    interpolation: Interpolation = Interpolation.LINEAR
    """Between voxels, where an image is brought onto the grid."""
    plane: Plane = Plane.AXIAL
    spacing_mm: tuple[Millimetres, Millimetres] = (1.0, 1.0)
    slice_spacing_mm: Millimetres | None = None
    size: tuple[Pixels, Pixels] = (256, 256)
    """Slices (H, W) of volumes; both divisible by 4."""
    picture_size: tuple[Pixels, Pixels] = (256, 256)
    """Slices (H, W) when the dataset is pictures."""
    min_head_fraction: Fraction = 0.02
    """Slices with less head than this are not trained on."""
    atlases: Annotated[int, Field(ge=0)] = 0
    """CT volumes of other subjects brought onto the head of each MR volume, for the warm-up; 0: none."""

    @field_validator("plane")
    @classmethod
    def _a_plane_of_volumes(cls, plane: Plane) -> Plane:
        if plane is Plane.PICTURE:
            raise ValueError("pictures get their grid by themselves; allowed are axial, sagittal and coronal")
        return plane

    @field_validator("steps")
    @classmethod
    def _in_order(cls, steps: tuple[ImageStep, ...]) -> tuple[ImageStep, ...]:
        check_order(steps)
        return steps

    @field_validator("size", "picture_size")
    @classmethod
    def _divisible(cls, size: tuple[int, int]) -> tuple[int, int]:
        if size[0] % 4 or size[1] % 4:
            raise ValueError(f"size {size} is not divisible by 4, which two down-sampling layers need")
        return size


class Window(Section):
    """Fixed range of physical values."""

    kind: Literal["window"] = "window"
    low: float
    high: float
    knots: tuple[tuple[float, float], ...] = ()
    """Piecewise-linear (physical, normalised) points instead of one line; rising in both, ends included."""
    levels: Annotated[int, Field(ge=2, le=65536)] | None = None
    """Quantise to this many levels, as the papers' 8-bit data."""

    @model_validator(mode="after")
    def _rising(self) -> Window:
        if self.low >= self.high:
            raise ValueError(f"window low {self.low:g} must be below high {self.high:g}")
        if self.knots:
            physical, normal = zip(*self.knots, strict=True)
            if len(self.knots) < 2 or any(b <= a for seq in (physical, normal) for a, b in zip(seq, seq[1:])):  # noqa: B905, RUF007
                raise ValueError("knots must rise strictly in both coordinates")
            if (physical[0], physical[-1]) != (self.low, self.high) or (normal[0], normal[-1]) != (-1.0, 1.0):
                raise ValueError("the first knot is (low, -1) and the last (high, 1)")
        return self


class Percentile(Section):
    """Range taken from the volume: 0 to a percentile of the foreground (voxels above the mean) times headroom."""

    kind: Literal["percentile"] = "percentile"
    percentile: Annotated[float, Field(gt=0, le=100)] = 99.0
    headroom: Positive = 1.2
    levels: Annotated[int, Field(ge=2, le=65536)] | None = None


class Normalise(Section):
    """Normalisation of each unit to [-1, 1] and back; one implementation, `ctmr.networks.normaliser`."""

    hu: Window = Window(low=WINDOW_HU[0], high=WINDOW_HU[1])
    arbitrary: Annotated[Window | Percentile, Field(discriminator="kind")] = Percentile()
    grey8: Window = Window(low=0.0, high=255.0)


class Evaluate(Section):
    """Measurement of the model."""

    paired_protocols: tuple[str, ...] = ("paired_volume_hu",)
    """Taken where the test holds both images of a subject in HU."""
    paired_grey_protocols: tuple[str, ...] = ("paired_slice_grey8", "paired_slice_grey8_full")
    """Taken where pairs exist as 8-bit pictures."""
    bootstrap: Count = 2000
    """Resamples over patients of the 95 % interval."""
    max_unpaired_images: Count = 200
    """Images a modality that unpaired protocols use at most; of a volume, its middle slice."""
    kid_subsets: Count = 20
    kid_subset_size: Count = 50
    threads: Annotated[int, Field(ge=0)] = 2
    """CPU threads; 0 leaves PyTorch's choice. Part of the recipe because it changes the order of sums."""
    feature_weights: str | None = None
    """Extractor of KID and FID: a safetensors or TorchScript file; ``null``: the packaged EfficientNet-Lite0."""
    other_direction: Annotated[int, Field(ge=0)] = 8
    """Images on which the direction that is not gated is measured too, as information; 0: none."""
    lesions: Lesions = Lesions()
    robustness: Robustness = Robustness()
    uncertainty: Uncertainty = Uncertainty()
    seed: int = 0

    @field_validator("paired_protocols", "paired_grey_protocols")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in PROTOCOLS:
                raise ValueError(f"there is no protocol {name!r}; the protocols are {', '.join(sorted(PROTOCOLS))}")
        return names


class Limit(Section):
    """Limits of one metric's mean; both may be given."""

    min: float | None = None
    max: float | None = None


Limits = Mapping[str, Mapping[str, Limit]]
"""``<protocol>.<metric>`` → what its mean must be."""


class Gate(Section):
    """Conditions that a model must meet: ``<protocol>.<metric>.min|max``, and what may be promoted."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, dict[str, Limit]]

    allow_unmeasured_fidelity: bool = False
    """A model whose fidelity was not measured, because the test holds no pairs, may become champion by itself."""

    @property
    def limits(self) -> Limits:
        """The limits by protocol and metric."""
        return self.__pydantic_extra__

    @model_validator(mode="after")
    def _can_be_measured(self) -> Self:
        for name, metrics in self.limits.items():
            if name not in PROTOCOLS:
                raise ValueError(f"there is no protocol {name!r}; the protocols are {', '.join(sorted(PROTOCOLS))}")
            if not PROTOCOLS[name].may_gate:
                raise ValueError(f"{name} compares images of different patients and can never be in a gate")
            for metric in metrics:
                if metric not in METRICS:
                    raise ValueError(
                        f"gate.{name}: there is no metric {metric!r}; the metrics are {', '.join(sorted(METRICS))}"
                    )
        return self


class Register(Section):
    """The MLflow registered model."""

    name: str | None = None
    """Registered model's name; ``null``: ``<recipe>-<dataset>``, so that different data never replace each other."""
    alias: str = "champion"


class Shadow(Section):
    """Comparison of the live version with the one that is to follow it, before it does."""

    folder: str | None = None
    """Folder whose files and DICOM folders both versions translate beside the golden case; ``null``: that one alone."""
    cases: Count = 8
    """Images of the folder, by name, at most."""
    max_mean_hu: NonNegative | None = None
    """Largest mean absolute difference of an image (output unit for pictures); ``null``: recorded, not limited."""
    max_p99_hu: NonNegative | None = None
    """The same for the 99th percentile of the absolute difference."""


class Deploy(Section):
    """Triton."""

    url: str | None = None
    """gRPC address of a running Triton; ``null``: the embedded one."""
    repository: str | None = None
    """Folder or ``s3://bucket/prefix`` that this Triton loads from; ``null``: ``triton/models`` of the home."""
    chunk: Annotated[int, Field(ge=1, le=64)] = 8
    """Slices the volume model sends to the generator at a time."""
    max_voxels: Count = 64 * 1024 * 1024
    """Larger volumes are refused by the server, because memory grows with the message."""
    golden_tolerance_hu: NonNegative = 1.0
    """Largest difference of the served model from evaluate's own path on the golden case (output unit for pictures)."""
    shadow: Shadow = Shadow()
    uncertainty: UncertaintyLimits = UncertaintyLimits()

    @model_validator(mode="after")
    def _elsewhere(self) -> Deploy:
        if self.repository and not self.url:
            raise ValueError("repository needs url: the embedded server loads from the home")
        return self


_DEFAULT_GATE: dict[str, Any] = {
    "paired_volume_hu": {"psnr": {"min": 20.0}, "ssim": {"min": 0.6}},
    "cycle_slice": {"ssim": {"min": 0.3}},
    "structure": {"nmi": {"min": 0.01}},
    "unpaired_distribution": {"kid": {"max": 1.0}},
}


class Recipe(Section):
    """Everything that decides a model: fields, defaults and their documentation.

    Both generators are always trained; `direction`, ``mr2ct`` or ``ct2mr``, says which one is tuned, evaluated, gated,
    exported and served.

    Examples
    --------
    >>> recipe = Recipe()
    >>> recipe.network.generator.kind, recipe.train.lr_generator
    ('resnet', 0.0002)
    >>> from ctmr.recipe.loading import override
    >>> override(recipe, [("network.generator.kind", "unet")]).network.generator.kind
    'unet'
    >>> override(recipe, [("network.generator.kind", "gan")])
    Traceback (most recent call last):
        ...
    ctmr.errors.InputError: --set: network.generator.kind: should be one of resnet, unet, ... (found 'gan')
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$")] = "default"
    description: str = ""
    direction: Direction = Direction.MR2CT
    fetch: Fetch = Fetch()
    data: Data = Data()
    validation: Validate = Validate()
    preprocess: Preprocess = Preprocess()
    normalise: Normalise = Normalise()
    network: Network = Network()
    loss: Loss = Loss()
    train: Train = Train()
    tune: Tune = Tune()
    evaluate: Evaluate = Evaluate()
    gate: Gate = Gate.model_validate(_DEFAULT_GATE)
    """``<protocol>.<metric>.min|max`` on the mean over patients. Limits of paired protocols apply where pairs exist."""
    register_: Register = Field(default=Register(), alias="register")
    deploy: Deploy = Deploy()

    model_config = ConfigDict(populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _directions_was_a_list_of_one(cls, tree: Any) -> Any:
        if not isinstance(tree, dict) or "directions" not in tree:
            return tree
        _say_that_directions_is_old()
        given = tree["directions"]
        one = given[0] if isinstance(given, list | tuple) and len(given) == 1 else given
        return {**{k: v for k, v in tree.items() if k != "directions"}, "direction": one}

    @model_validator(mode="after")
    def _neighbours_are_equally_far(self) -> Self:
        self.network.require_distance(self.preprocess.slice_spacing_mm)
        return self

    def dump(self) -> dict[str, Any]:
        """Return the whole tree as plain JSON types, with every default filled in."""
        return self.model_dump(mode="json", by_alias=True)


@cache
def _say_that_directions_is_old() -> None:
    print("ctmr: the recipe key directions is now direction, one value: mr2ct or ct2mr", file=sys.stderr)


def section_tree(recipe: Recipe, sections: Iterable[str]) -> dict[str, Any]:
    """Return sections as keys and records hold them: the direction as a list, ``directions``.

    A recipe once had a list there, and what was made then shall be found again.
    """
    tree = recipe.dump()
    wanted = {name: tree[name] for name in sections}
    if "direction" in wanted:
        wanted["directions"] = [wanted.pop("direction")]
    return wanted


def section_digest(recipe: Recipe, sections: Iterable[str]) -> str:
    """Return the sha256 over the named sections; other sections never change it."""
    return tree_digest(section_tree(recipe, sections))
