"""The held-out test: every image of it translated, brought back to its native voxels and measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ctmr.data.shards import Shard, pairs, read_shard
from ctmr.errors import InputError
from ctmr.grid import OUTSIDE_VALUE, Grid
from ctmr.imaging.mask import head_mask_ct, head_mask_grey
from ctmr.imaging.resample import resample_to
from ctmr.imaging.served_path import ServedPlacement, finish, prepare
from ctmr.manifest import Column, Split
from ctmr.normaliser import to_storage
from ctmr.protocol import CaseMetrics, Mask, protocol
from ctmr.recipe import Recipe
from ctmr.stages import images
from ctmr.stages.model_folder import Description, load_generator, load_translator
from ctmr.stages.scoring import unit_interval
from ctmr.stages.translation import cycle_slices, translate_array
from ctmr.volume import Direction, Unit, Volume

if TYPE_CHECKING:
    from ctmr.metrics.tissue import TissueTable

Cases = dict[str, list[CaseMetrics]]
Tell = Callable[[str, float | None], None]


@dataclass(frozen=True)
class Golden:
    """One held-out case with evaluate's own answer.

    Attributes
    ----------
    answer
        ``[D, H, W]`` on the native voxels, storage type of the target unit.
    paths, formats
        Of each source channel, relative to ``raw/``.
    """

    case: str
    subject: str
    paths: tuple[str, ...]
    formats: tuple[str, ...]
    answer: NDArray[Any]


@dataclass(frozen=True)
class Case:
    """A held-out source image on the grid, and its truth where there is one."""

    name: str
    subject: str
    volumes: list[Volume]
    array: NDArray[Any]
    placement: ServedPlacement
    rows: list[Mapping[str, Any]]
    truth: Volume | None
    level: float

    @property
    def head(self) -> NDArray[np.bool_]:
        """Head mask of the source on the grid, as preprocessing makes it."""
        find = head_mask_ct if self.volumes[0].unit is Unit.HU else head_mask_grey
        return find(self.array[0])


@dataclass(frozen=True)
class HeldOut:
    """The test split of one direction."""

    raw: Path
    rows: Mapping[str, Mapping[str, Any]]
    shards: Path
    source: Shard
    target: Shard
    grid: Grid
    direction: Direction
    pairs: Mapping[int, int]
    phantom: bool

    @staticmethod
    def open(inputs: Mapping[str, Path], recipe: Recipe, grid: Grid, direction: Direction) -> HeldOut:
        """Open the test shards and find the pairs."""
        import pandas as pd

        shards = inputs["preprocessed"] / "shards"
        source, target = (read_shard(shards, Split.TEST, m) for m in (direction.source, direction.target))
        rows = {str(r[Column.PATH]): r for r in images.rows(pd.read_parquet(inputs["manifest"]))}
        found = dict(pairs(source, target)) if target.unit in (Unit.HU, Unit.GREY8) else {}
        phantom = all(v.subject.startswith("phantom-") for v in source.volumes)
        return HeldOut(inputs["raw"], rows, shards, source, target, grid, direction, found, phantom)

    @property
    def has_pairs(self) -> bool:
        """True when some subject has source and truth on one grid."""
        return bool(self.pairs)

    @property
    def target_unit(self) -> Unit:
        """Unit of the truth."""
        return self.target.unit

    def indices(self, recipe: Recipe) -> list[int]:
        """Return which source volumes are measured: all pairs, or at most the recipe's number of unpaired ones."""
        if self.pairs:
            return sorted(self.pairs)
        count = min(len(self.source.volumes), recipe.evaluate.max_unpaired_images)
        return sorted({int(k) for k in np.linspace(0, len(self.source.volumes) - 1, count).round()})

    def case(self, index: int) -> Case:
        """Read a source image, and its truth, from the raw data."""
        entry = self.source.volumes[index]
        rows = [self.rows[p] for p in entry.paths]
        volumes = [images.read(self.raw, row) for row in rows]
        array, placement = prepare(volumes, self.grid)
        truth = None
        if index in self.pairs:
            truth = images.read(self.raw, self.rows[self.target.volumes[self.pairs[index]].paths[0]])
        return Case(entry.image, entry.subject, volumes, array, placement, rows, truth, entry.level)


@dataclass
class Measured:
    """What one model did on the held-out test."""

    cases: Cases = field(default_factory=dict)
    tissues: TissueTable = field(default_factory=dict)
    alarm: str | None = None
    warnings: tuple[str, ...] = ()
    golden: Golden = field(default=None)  # type: ignore[assignment]
    picture: bytes = b""
    picture_caption: str = ""

    def tissues_as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        from ctmr.metrics.tissue import table_to_dict

        return table_to_dict(self.tissues)


def measure(held: HeldOut, model: Path, recipe: Recipe, tell: Tell) -> Measured:
    """Translate and measure the held-out test with the model of a folder."""
    from ctmr.metrics.tissue import order_alarm, order_warnings, pool_tables, tissue_table

    translator = load_translator(model, held.direction)
    out = Measured()
    tables = []
    indices = held.indices(recipe)
    for k, index in enumerate(indices):
        case = held.case(index)
        made = translate_array(translator, case.array)
        native = _native(made, case, held)
        if out.golden is None:
            out.golden = Golden(
                case.name,
                case.subject,
                tuple(str(r[Column.PATH]) for r in case.rows),
                tuple(str(r[Column.FORMAT]) for r in case.rows),
                native.array,
            )
        if case.truth is not None:
            truth, prediction = _on_one_grid(case.truth, native)
            _paired(out.cases, prediction, truth, case, held, recipe)
            if held.target_unit is Unit.HU:
                tables.append(tissue_table(prediction, truth, head_mask_ct(truth)))
        if not out.picture:
            out.picture, out.picture_caption = _picture(case, native, held)
        tell(f"measured {k + 1} of {len(indices)} held-out images", (k + 1) / len(indices))
    out.tissues = pool_tables(tables)
    out.alarm = order_alarm(out.tissues) if out.tissues else None
    out.warnings = order_warnings(out.tissues) if out.tissues else ()
    if not held.has_pairs:
        _unpaired(out.cases, held, model, recipe, indices)
    return out


def measure_trivial(held: HeldOut, recipe: Recipe) -> dict[str, Cases]:
    """Measure every trivial translator that saw no pairs; empty without pairs, where nothing can be compared."""
    from ctmr.metrics.trivial import fit_trivial

    if not held.has_pairs:
        return {}
    source, target = (read_shard(held.shards, Split.TRAIN, m) for m in (held.direction.source, held.direction.target))
    fitted = fit_trivial(source, target, held.direction)
    out: dict[str, Cases] = {name: {} for name in fitted}
    for index in held.indices(recipe):
        case = held.case(index)
        assert case.truth is not None
        for name, translator in fitted.items():
            native = _native(translator(case.array, case.head, first_level=case.level), case, held)
            truth, prediction = _on_one_grid(case.truth, native)
            _paired(out[name], prediction, truth, case, held, recipe)
    return out


def _native(made: NDArray[np.float32], case: Case, held: HeldOut) -> Volume:
    """Round as the served model does, then go back to the native voxels."""
    stored = to_storage(made, held.target_unit)
    return finish(stored, case.placement, modality=held.direction.target, unit=held.target_unit)


def _on_one_grid(truth: Volume, made: Volume) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return truth and translation on the truth's voxels."""
    same = truth.affine is None or (
        made.affine is not None
        and truth.array.shape == made.array.shape
        and np.allclose(truth.affine, made.affine, atol=1e-3)
    )
    if same:
        return truth.array, made.array
    moved = resample_to(made, truth.require_affine(), truth.array.shape, outside=OUTSIDE_VALUE[made.unit])
    return truth.array, moved


def _paired(
    cases: Cases, prediction: NDArray[Any], truth: NDArray[Any], case: Case, held: HeldOut, recipe: Recipe
) -> None:
    from ctmr.metrics.fidelity import measure_paired

    hu = held.target_unit is Unit.HU
    names = recipe.evaluate.paired_protocols if hu else recipe.evaluate.paired_grey_protocols
    for name in names:
        how = protocol(name)
        cases.setdefault(name, []).append(
            measure_paired(prediction, truth, _mask(how.mask, truth, case), how, case=case.name, subject=case.subject)
        )


def _mask(kind: Mask, truth: NDArray[Any], case: Case) -> NDArray[np.bool_] | None:
    """Return the mask that a protocol names.

    Raises
    ------
    InputError
        The protocol takes a mask that comes with the dataset, and datasets here come without.
    """
    if kind is Mask.GIVEN:
        raise InputError(
            "a synthrad protocol is measured in the mask that comes with its dataset, and this dataset has none; "
            "take it out of evaluate.paired_protocols"
        )
    if kind is Mask.NONE:
        return None
    if kind is Mask.HEAD_FROM_GREY:
        return head_mask_grey(truth)
    head = head_mask_ct(truth)
    return head & head_mask_grey(case.volumes[0].array) if kind is Mask.HEAD_FROM_CT_AND_MR else head


def _unpaired(cases: Cases, held: HeldOut, model: Path, recipe: Recipe, indices: list[int]) -> None:
    """Cycle, structure and distribution: what can be measured where no truth exists."""
    from ctmr.metrics.distribution import features, load_extractor, measure_distribution
    from ctmr.metrics.fidelity import measure_cycle
    from ctmr.metrics.structure import measure_structure

    translator = load_translator(model, held.direction)
    back = load_generator(model, Direction.CT2MR if held.direction is Direction.MR2CT else Direction.MR2CT)
    made_slices = []
    for index in indices:
        entry, volume = held.source.volumes[index], held.source.volume(index)
        head = held.source.volume_head(index)
        made = translate_array(translator, volume)
        middle = volume.shape[1] // 2
        made_slices.append(made[middle])
        trained, again = cycle_slices(translator.source, translator.generator, back, volume[:, middle : middle + 1])
        cases.setdefault("cycle_slice", []).append(
            measure_cycle(trained[0], again[0], case=entry.image, subject=entry.subject)
        )
        if head[middle].sum() > 64:
            cases.setdefault("structure", []).append(
                measure_structure(
                    volume[0, middle], made[middle], head[middle], case=entry.image, subject=entry.subject
                )
            )
    real_count = min(len(held.target.volumes), recipe.evaluate.max_unpaired_images)
    chosen = sorted({int(k) for k in np.linspace(0, len(held.target.volumes) - 1, real_count).round()})
    real = [held.target.volume(i)[0, held.target.volumes[i].count // 2] for i in chosen]
    side = Description.read(model).sides[held.direction.target].target_range or (0.0, 1.0)
    extractor = load_extractor()
    cases["unpaired_distribution"] = [
        measure_distribution(
            features(unit_interval(np.stack(real), *side), extractor),
            features(unit_interval(np.stack(made_slices), *side), extractor),
            subsets=recipe.evaluate.kid_subsets,
            subset_size=recipe.evaluate.kid_subset_size,
            seed=recipe.evaluate.seed,
            variant=extractor.variant,
            case=f"test {held.direction}",
        )
    ]


def _picture(case: Case, made: Volume, held: HeldOut) -> tuple[bytes, str]:
    from ctmr.reports.figures import comparison_figure

    truth = None
    if case.truth is not None and case.truth.array.shape == made.array.shape:
        truth = case.truth.array
    source = case.volumes[0]
    png = comparison_figure(
        source.array,
        made.array,
        truth,
        source_unit=source.unit,
        target_unit=held.target_unit,
        source_name=f"{source.sequence or ''} {source.modality}".strip(),
        target_name=held.direction.target.value,
        title=f"{case.subject}, held out",
        phantom=held.phantom,
        spacing_mm=source.spacing_mm if source.affine is not None else (1.0, 1.0, 1.0),
        head=None if truth is None or held.target_unit is not Unit.HU else head_mask_ct(truth),
    )
    kind = "phantom head" if held.phantom else "image"
    return png, f"Held-out {kind} {case.subject}: source, synthetic {held.direction.target}" + (
        ", truth and difference." if truth is not None else "; no truth exists."
    )
