"""Door of a served model: an image on its own voxels is checked and brought onto the grid, and the answer goes back.

It runs inside the server (`backend/volume/model.py` calls it), so that no client has to prepare anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctmr.errors import InputError
from ctmr.imaging.calibration import head_levels, mirrored_difference, series_figure
from ctmr.imaging.grid import ServeStep
from ctmr.imaging.hounsfield import HU_EVIDENCE, PATIENT_RANGE_HU
from ctmr.imaging.inference_path import ServedPlacement, finish, prepare
from ctmr.imaging.mask import head_mask
from ctmr.imaging.plan import Plan
from ctmr.imaging.plausibility import doubts, modality_fault
from ctmr.imaging.resample import from_grid
from ctmr.imaging.volume import Modality, Unit, Volume
from ctmr.io.values import compact, without_padding
from ctmr.serving.export import MAX_EXTENT, ServedSpec

SPACING_MM = (0.05, 50.0)
"""Distances of voxels beyond are in another unit than millimetres."""
FEWEST_LEVELS = 32
"""An image of fewer grey levels was cut down to them."""
WIDEST = 4
"""Times the largest volume that an image may grow to between two steps of resampling."""
NAME = "of the request"
"""Stands for the image in sentences; a subject's name never reaches a server."""

_SOURCE_KEYS = ("modality", "unit", "sequences", "phantom")


@dataclass(frozen=True)
class Received:
    """An image of a request on the model's grid.

    Attributes
    ----------
    array
        ``[C, D, H, W]``, as the generator's volume model takes it.
    findings
        Sentences on what a person should know before the answer is used.
    """

    spec: ServedSpec
    array: NDArray[Any]
    placement: ServedPlacement
    findings: tuple[str, ...]
    head: NDArray[np.bool_] = field(repr=False)

    @property
    def levels(self) -> list[int]:
        """Slices that the figure of the series is taken of."""
        return head_levels(self.head, self.spec.uncertainty.slices)

    def answer(self, made: NDArray[Any]) -> NDArray[Any]:
        """Bring a translation ``[D, H, W]`` back onto the image's own voxels."""
        target = self.spec.target
        return finish(made, self.placement, modality=target.modality, unit=target.unit).array

    def doubt(
        self, made: NDArray[np.float32], mirrored: NDArray[np.float32], at: list[int] | None = None
    ) -> tuple[NDArray[np.float32], float]:
        """Return the uncertainty by voxel, and the figure of the series.

        Parameters
        ----------
        made, mirrored
            ``[D, H, W]`` on the grid, the second of the mirrored input and mirrored back.
        at
            Where both hold some slices only: which.
        """
        found = mirrored_difference(made, mirrored)
        levels = self.levels
        shown = found[levels] if at is None else found
        return found, series_figure(shown, self.head[levels if at is None else at])

    def native_doubt(self, doubt: NDArray[np.float32]) -> NDArray[np.float32]:
        """Bring an uncertainty map back onto the image's own voxels; 0 where nothing was translated."""
        native: NDArray[np.float32] = from_grid(doubt, self.placement.on_grid, outside=0.0)
        return native

    def judge(self, figure: float) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Return what a figure means, in plain JSON types, and the findings that follow.

        Raises
        ------
        InputError
            The expected error is above the limit for an answer.
        """
        section, unit = self.spec.uncertainty, self.spec.target.unit.value
        known = section.calibration
        expected = None if known is None else round(known.expected_error(figure), 2)
        tree = {
            "figure": round(figure, 4),
            "unit": unit,
            "calibrated": known is not None,
            "expected_error": expected,
            "rank_correlation": None if known is None else known.rank_correlation,
            "intact_rank_correlation": None if known is None else known.intact_rank_correlation,
            "cases": 0 if known is None else known.cases,
            "flag_above": section.flag_above,
            "refuse_above": section.refuse_above,
        }
        if expected is None:
            return tree, ()
        words = f"the expected mean error inside the head is {expected:g} {unit}"
        if section.refuse_above is not None and expected > section.refuse_above:
            raise InputError(
                f"{words}, and nothing is answered above {section.refuse_above:g}: the model does not know such images"
            )
        if section.flag_above is not None and expected > section.flag_above:
            return tree, (f"{words}, above the limit of {section.flag_above:g}: look at the uncertainty map",)
        return tree, ()


def shaped(voxels: NDArray[Any], shape: NDArray[Any] | None) -> NDArray[Any]:
    """Return voxels in a row as the image that they are; InputError when their shape is not theirs."""
    if shape is None:
        raise InputError("the image has no shape; give the input 'shape', D, H and W")
    extents = [int(n) for n in shape]
    if len(extents) not in (3, 4) or min(extents) < 0:
        raise InputError(f"the shape {extents} is none of an image; it is D, H and W, after C where there are channels")
    # In Python's own integers, which do not overflow.
    if math.prod(extents) != voxels.size:
        raise InputError(f"the shape {extents} has {math.prod(extents)} voxels, and {voxels.size} were sent")
    return voxels.reshape(extents)


def receive(
    spec: ServedSpec,
    image: NDArray[Any],
    *,
    affine: NDArray[np.float64] | None = None,
    spacing: NDArray[np.float64] | None = None,
    source: bytes = b"",
) -> Received:
    """Check an image and bring it onto the model's grid.

    Parameters
    ----------
    spec
        Of the version that answers.
    image
        ``[D, H, W]``, or ``[C, D, H, W]`` where the model reads several.
    affine
        ``[4, 4]``, index (d, h, w, 1) → RAS mm.
    spacing
        ``[3]``, mm along D, H, W, in place of an affine: slices run from the feet to the head, rows from front to back,
        columns from the patient's right to the left, as an axial DICOM series that lies face up.
    source
        JSON object that says what the image is: modality, unit, sequences, phantom. What it leaves out is taken for
        what the model reads.

    Raises
    ------
    InputError
        The image cannot be translated; one sentence says why.
    """
    said = _said(source)
    _require_source(spec, said)
    channels = _channels(spec, image)
    placed, findings = _affine(spec, affine, spacing)
    _require_room(spec, channels, placed)
    volumes = []
    for number, channel in enumerate(channels, start=1):
        volume, told = _volume(spec, channel, placed, f"channel {number}: " if len(channels) > 1 else "")
        volumes.append(volume)
        findings += told
    array, placement = prepare(volumes, spec.grid)
    findings += placement.notes + doubts(volumes[0])
    warning = spec.lineage.get("warning", "")
    if warning and not said.get("phantom"):
        findings += (f"the model: {warning}",)
    return Received(spec, array, placement, tuple(dict.fromkeys(findings)), head_mask(array[0], spec.source.unit))


def _said(source: bytes) -> dict[str, Any]:
    try:
        tree = json.loads(source) if source else {}
    except (ValueError, RecursionError):
        raise InputError('the input \'source\' is no JSON; it is an object such as {"modality": "MR"}') from None
    if not isinstance(tree, dict) or set(tree) - set(_SOURCE_KEYS):
        raise InputError(f"the input 'source' is a JSON object with the keys {', '.join(_SOURCE_KEYS)}")
    return tree


def _require_source(spec: ServedSpec, said: Mapping[str, Any]) -> None:
    """Refuse an image that says to be another than the model reads."""
    reads = spec.source
    for key, wanted in (("modality", reads.modality.value), ("unit", reads.unit.value)):
        if said.get(key) not in (None, "", wanted):
            raise InputError(f"the image says {key} {said[key]!r}; this model takes {reads.modality} in {reads.unit}")
    sequences = said.get("sequences") or []
    if not isinstance(sequences, list):
        raise InputError("sequences in the input 'source' are a list of names, one a channel")
    for number, (found, wanted) in enumerate(zip(sequences, reads.sequences, strict=False), start=1):
        if found and wanted and found != wanted:
            raise InputError(f"the image says {found!r} for channel {number}; this model takes {wanted} there")


def _channels(spec: ServedSpec, image: NDArray[Any]) -> NDArray[Any]:
    channels = image[None] if image.ndim == 3 else image
    shape = list(image.shape)
    named = f" ({', '.join(spec.source.sequences)})" if spec.source.sequences else ""
    if channels.ndim != 4 or len(channels) != spec.channels:
        wanted = "[D, H, W]" if spec.channels == 1 else f"[{spec.channels}, D, H, W]"
        raise InputError(f"the image has shape {shape}; this model takes {spec.channels} channels{named}, {wanted}")
    if channels.size == 0:
        raise InputError(f"the image of shape {shape} is empty; at least one slice is needed")
    if channels.size > spec.max_voxels:
        raise InputError(f"the image has {channels.size} voxels, at most {spec.max_voxels} are allowed")
    if max(channels.shape[1:]) > MAX_EXTENT:
        raise InputError(f"the image of shape {shape} is longer than {MAX_EXTENT} voxels along an axis")
    return channels


def _affine(
    spec: ServedSpec, affine: NDArray[np.float64] | None, spacing: NDArray[np.float64] | None
) -> tuple[NDArray[np.float64] | None, tuple[str, ...]]:
    """Return where the voxels lie, ``None`` for pictures, and what was assumed."""
    if spec.source.unit is Unit.GREY8:
        if affine is not None or spacing is not None:
            raise InputError("this model reads pictures, which have no geometry; leave affine and spacing out")
        return None, ()
    if (affine is None) is (spacing is None):
        raise InputError("the image has no geometry, or two; give either 'affine' (4×4, RAS mm) or 'spacing' (3, mm)")
    told: tuple[str, ...] = ()
    if affine is None:
        assert spacing is not None
        if spacing.shape != (3,):
            raise InputError(f"the spacing has shape {list(spacing.shape)}; it is 3 numbers, mm along D, H and W")
        d, h, w = (float(v) for v in spacing)
        affine = np.array([[0, 0, -w, 0], [0, -h, 0, 0], [d, 0, 0, 0], [0, 0, 0, 1]], dtype=np.float64)
        told = ("only a spacing was given: slices were taken to run from feet to head, rows to the back, columns left",)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or affine[3].tolist() != [0, 0, 0, 1]:
        raise InputError(
            "the geometry is no finite 4×4 affine with the last row 0 0 0 1; it maps (d, h, w, 1) to RAS mm"
        )
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if lengths.min() < SPACING_MM[0] or lengths.max() > SPACING_MM[1]:
        words = " × ".join(f"{v:.4g}" for v in lengths)
        raise InputError(f"voxels are {words} mm apart, {SPACING_MM[0]:g} to {SPACING_MM[1]:g} mm is allowed; use mm")
    if abs(float(np.linalg.det(affine[:3, :3] / lengths))) < 1e-3:
        raise InputError("the affine collapses an axis; its first three columns point along D, H and W")
    return affine.astype(np.float64), told


def _require_room(spec: ServedSpec, channels: NDArray[Any], affine: NDArray[np.float64] | None) -> None:
    """Refuse an image that is small as it was sent and would be large on the grid."""
    if affine is None:
        return
    grid, shape = spec.grid, channels.shape[1:]
    plan = Plan(shape, affine, None)
    volume = Volume(np.broadcast_to(np.int16(0), shape), affine, spec.source.modality, spec.source.unit, uid=NAME)
    widest = 1
    for step in grid.geometry:
        if step is ServeStep.REORIENT:
            plan.reorient(grid.orientation, volume)
        elif step is ServeStep.RESAMPLE:
            plan.resample(grid, volume)
        # In between, axes are resampled one after the other.
        widest = max(widest, int(np.prod([max(a, b) for a, b in zip(sorted(plan.shape), sorted(shape), strict=True)])))
    depth = plan.shape[0]
    on_grid = len(channels) * depth * grid.size[0] * grid.size[1]
    if depth > MAX_EXTENT or on_grid > spec.max_voxels or widest > spec.max_voxels * WIDEST:
        raise InputError(
            f"the image covers {' × '.join(map(str, plan.shape))} voxels of the model's grid, more than the server "
            f"takes ({spec.max_voxels}); check the spacing, or crop it to the head"
        )


def _volume(
    spec: ServedSpec, channel: NDArray[Any], affine: NDArray[np.float64] | None, name: str
) -> tuple[Volume, tuple[str, ...]]:
    """Return one channel, checked, and what is odd about its values."""
    if channel.dtype.kind == "f" and not np.isfinite(channel).all():
        count = int((~np.isfinite(channel)).sum())
        raise InputError(f"{name}the image holds {count} values that are NaN or infinite; every voxel must be a number")
    low, high = float(channel.min()), float(channel.max())
    if low == high:
        raise InputError(f"{name}the image is {low:g} everywhere; an image is needed")
    told: tuple[str, ...] = ()
    # As a reader of files leaves values, so that whole numbers take one path however they were sent.
    array = compact(channel)
    if spec.source.unit is Unit.HU:
        array, told = without_padding(array)
        told += _require_hu(array, name)
    volume = Volume(array, affine, spec.source.modality, spec.source.unit, uid=NAME)
    fault = modality_fault(volume)
    if fault:
        raise InputError(f"{name}the image was taken for {Modality.MR}, but {fault}; send the {Modality.MR}")
    if array.dtype.kind in "iu" and spec.source.unit is not Unit.GREY8:
        levels = np.unique(array[:: max(1, len(array) // 16)]).size
        if levels < FEWEST_LEVELS:
            told += (f"the image has about {levels} grey levels; send the values that the scanner stored",)
    return volume, tuple(name + sentence for sentence in told)


def _require_hu(array: NDArray[Any], name: str) -> tuple[str, ...]:
    """Refuse values that are no Hounsfield units: pictures, Cormack units, stored values without their rescale."""
    low, high = float(array.min()), float(array.max())
    if low > HU_EVIDENCE:
        what = "an 8-bit picture" if low >= 0 and high <= 255 else "stored values without rescale, or Cormack units"
        raise InputError(
            f"{name}the image holds {low:g} to {high:g}, and a CT in Hounsfield units shows air near -1000; this looks "
            f"like {what}, so send slope × stored + intercept"
        )
    if high < 0 or high > np.iinfo(np.int16).max or low < np.iinfo(np.int16).min:
        raise InputError(f"{name}the image holds {low:g} to {high:g}, which are no Hounsfield units of a head")
    lowest, highest = PATIENT_RANGE_HU
    if low < lowest or high > highest:
        return (f"the image holds {low:g} to {high:g} HU; a patient has {lowest:g} to {highest:g}",)
    return ()
