"""Geometry of a DICOM series: slice planes to one affine and back, and every reason why slices do not stack."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ctmr.errors import InputError
from ctmr.imaging.volume import UNEVEN_LIMIT

GAP_TOLERANCE_MM = 0.1
GAP_TOLERANCE = 0.01
"""Gaps that differ by the larger of `GAP_TOLERANCE_MM` and this share of the gap are equal."""
TILT_LIMIT_DEG = 45.0
"""A larger shear comes from no gantry (they tilt by 30° at most)."""
SHEAR_TOLERANCE = 1e-3
"""In-plane movement of the slice origins, relative to their movement along the normal."""
ROUNDING_MM = 5e-3
"""Scanners round positions to about this; less than it is never called a shear or a gap."""
LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""DICOM counts towards left, posterior, superior; NIfTI and `ctmr.imaging.volume` towards right, anterior, superior."""
_NAMED = 3

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class SlicePlane:
    """Image plane module of one slice (DICOM PS3.3 C.7.6.2), in LPS millimetres.

    Attributes
    ----------
    name
        What messages call the slice.
    position
        Centre of the first pixel.
    across, down
        Unit vectors along which the column index and the row index grow (ImageOrientationPatient 1-3 and 4-6).
    spacing
        Distance of rows, distance of columns (PixelSpacing).
    shape
        Rows, columns.
    """

    name: str
    position: Vector
    across: Vector
    down: Vector
    spacing: tuple[float, float]
    shape: tuple[int, int]

    @property
    def normal(self) -> Vector:
        """Unit normal of the plane, `across` × `down`."""
        return np.cross(self.across, self.down)

    def plane_faults(self) -> list[str]:
        """Return why this is no usable plane, empty when it is one."""
        faults = []
        lengths = math.sqrt(self.across @ self.across), math.sqrt(self.down @ self.down)
        cosine = float(self.across @ self.down)
        # Written so that NaN is a fault.
        if not max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(cosine)) <= SHEAR_TOLERANCE:
            faults.append(
                f"ImageOrientationPatient of {self.name} is not two orthogonal unit vectors "
                f"(lengths {lengths[0]:.4f} and {lengths[1]:.4f}, cosine {cosine:.4f})"
            )
        if not min(self.spacing) > 0 or not all(map(math.isfinite, self.spacing)):
            faults.append(f"PixelSpacing of {self.name} is {self.spacing}, both must be above 0 mm")
        if not all(map(math.isfinite, self.position.tolist())):
            faults.append(f"ImagePositionPatient of {self.name} is not finite")
        return faults


@dataclass(frozen=True)
class Stack:
    """Arrangement of planes, sorted along their normal.

    Attributes
    ----------
    planes
        Sorted, all of one orientation, spacing and shape.
    along
        ``[N]`` mm along the normal, from the first plane.
    sideways
        ``[N, 2]`` mm (down, across) by which each origin lies off the normal through the first.
    tilted
        True when the origins move sideways evenly, as a tilted gantry makes them.
    even
        True when all gaps are equal.
    """

    planes: list[SlicePlane]
    along: Vector
    sideways: Vector
    tilted: bool
    even: bool

    @property
    def tilt_deg(self) -> float:
        """Angle between the normal and the way from the first to the last origin."""
        return float(np.degrees(np.arctan2(np.linalg.norm(self.sideways[-1]), self.along[-1])))


def sort_along_normal(planes: list[SlicePlane]) -> list[int]:
    """Return the order of the planes along the normal of the first one."""
    along = np.array([p.position for p in planes]) @ planes[0].normal
    return sorted(range(len(planes)), key=lambda i: (float(along[i]), planes[i].name))


def stack_faults(planes: list[SlicePlane], uneven_limit: float = UNEVEN_LIMIT) -> list[str]:
    """Return every reason why planes, sorted along the normal, cannot become one straight, evenly spaced volume."""
    faults = [fault for plane in planes for fault in plane.plane_faults()]
    if faults:
        return faults[:_NAMED]
    faults = _unlike_planes(planes)
    if faults or len(planes) == 1:
        return faults
    stack = stack_of(planes)
    faults = _sideways_faults(stack) + _gap_faults(stack, uneven_limit)
    if faults and stack.tilted and stack.tilt_deg <= TILT_LIMIT_DEG:
        faults.append(f"gantry tilt {stack.tilt_deg:.1f}°, which alone would be straightened")
    return faults


def stack_of(planes: list[SlicePlane]) -> Stack:
    """Return how sorted planes without faults of their own lie on each other."""
    first = planes[0]
    moved = np.stack([p.position - first.position for p in planes])
    along = moved @ first.normal
    sideways = np.stack([moved @ first.down, moved @ first.across], axis=1)
    gaps = np.diff(along)
    even = True
    if gaps.size:
        tolerance = _tolerance(gaps)
        drift = np.abs(along - np.linspace(along[0], along[-1], len(along)))
        even = bool(np.abs(gaps - np.median(gaps)).max() <= tolerance and drift.max() <= tolerance)
    tilted = bool(np.linalg.norm(sideways[-1]) > max(SHEAR_TOLERANCE * along[-1], ROUNDING_MM))
    return Stack(planes, along, sideways, tilted, even)


def stack_affine(planes: list[SlicePlane], single_slice_mm: float = 1.0) -> Vector:
    """Return the RAS affine of sorted planes: index (slice, row, column, 1) to mm.

    Parameters
    ----------
    planes
        Sorted, without faults.
    single_slice_mm
        Extent along the normal when there is but one plane.
    """
    first, last = planes[0], planes[-1]
    if len(planes) > 1:
        step = (last.position - first.position) / (len(planes) - 1)
    else:
        step = first.normal * single_slice_mm
    return plane_affine(first, step, first.position)


def plane_affine(plane: SlicePlane, step: Vector, origin: Vector) -> Vector:
    """Return the RAS affine of slices like `plane` that begin at `origin` and are `step` apart (both LPS mm)."""
    lps = np.eye(4)
    lps[:3, 0] = step
    lps[:3, 1] = plane.down * plane.spacing[0]
    lps[:3, 2] = plane.across * plane.spacing[1]
    lps[:3, 3] = origin
    return LPS_FROM_RAS @ lps


def planes_of(affine: Vector, shape: tuple[int, int, int], name: str) -> tuple[list[SlicePlane], list[int]]:
    """Return the planes of a volume in ascending order along their normal, and the slice index of each.

    Raises
    ------
    InputError
        When the affine is sheared: DICOM planes are rectangular and stacked along their normal.
    """
    lps = LPS_FROM_RAS @ affine
    step, down, across = lps[:3, 0], lps[:3, 1], lps[:3, 2]
    extents = np.linalg.norm(lps[:3, :3], axis=0)
    directions = lps[:3, :3] / extents
    cosines = np.abs(directions.T @ directions - np.eye(3))
    if cosines.max() > SHEAR_TOLERANCE:
        angle = np.degrees(np.arcsin(min(1.0, float(cosines.max()))))
        raise InputError(
            f"{name} has a sheared affine (axes {angle:.2f}° off the right angle, "
            f"{np.degrees(SHEAR_TOLERANCE):.2f}° allowed), which a DICOM series cannot hold; "
            "resample it to a straight grid first"
        )
    planes = [
        SlicePlane(
            name=f"slice {d}",
            position=lps[:3, 3] + d * step,
            across=across / extents[2],
            down=down / extents[1],
            spacing=(float(extents[1]), float(extents[2])),
            shape=(shape[1], shape[2]),
        )
        for d in range(shape[0])
    ]
    order = list(range(shape[0]))
    if float(step @ planes[0].normal) < 0:
        order.reverse()
    return [planes[d] for d in order], order


def _unlike_planes(planes: list[SlicePlane]) -> list[str]:
    first = planes[0]
    faults = []
    shapes = sorted({p.shape for p in planes})
    if len(shapes) > 1:
        faults.append(f"inconsistent shape: slices of {' and '.join(f'{r}×{c}' for r, c in shapes[:_NAMED])} pixels")
    spread = np.abs(np.array([p.spacing for p in planes]) - first.spacing).max(axis=1)
    if spread.max() > 1e-3 * min(first.spacing):
        odd = planes[int(spread.argmax())]
        faults.append(f"inconsistent PixelSpacing: {first.spacing} mm in {first.name}, {odd.spacing} mm in {odd.name}")
    turned = np.abs(np.array([[*p.across, *p.down] for p in planes]) - [*first.across, *first.down]).max(axis=1)
    if turned.max() > SHEAR_TOLERANCE:
        odd = planes[int(turned.argmax())]
        faults.append(
            f"inconsistent orientation: {_orientation(first)} in {first.name}, {_orientation(odd)} in {odd.name}"
        )
    return faults


def _orientation(plane: SlicePlane) -> str:
    return "[" + ", ".join(f"{x:.4g}" for x in (*plane.across, *plane.down)) + "]"


def _sideways_faults(stack: Stack) -> list[str]:
    share = stack.along / stack.along[-1] if stack.along[-1] > 0 else stack.along
    stray = np.linalg.norm(stack.sideways - np.outer(share, stack.sideways[-1]), axis=1)
    if stray.max() > GAP_TOLERANCE_MM:
        odd = stack.planes[int(stray.argmax())].name
        return [f"{odd} is shifted {stray.max():.2f} mm sideways from the other slices"]
    if stack.tilted and stack.tilt_deg > TILT_LIMIT_DEG:
        moved = float(np.linalg.norm(stack.sideways[-1]))
        return [
            f"sheared volume: slice origins move {moved:.2f} mm in the plane over {stack.along[-1]:.2f} mm along the "
            f"normal ({stack.tilt_deg:.1f}°, at most {TILT_LIMIT_DEG:g}° are straightened)"
        ]
    return []


def _gap_faults(stack: Stack, uneven_limit: float) -> list[str]:
    planes, gaps = stack.planes, np.diff(stack.along)
    same = np.flatnonzero(gaps < ROUNDING_MM)
    if same.size:
        k = int(same[0])
        return [f"duplicates: {planes[k].name} and {planes[k + 1].name} lie at one position ({same.size} such pairs)"]
    usual, tolerance = float(np.median(gaps)), _tolerance(gaps)
    odd = np.flatnonzero(np.abs(gaps - usual) > max(tolerance, uneven_limit * usual))
    if not odd.size:
        return []
    missing = np.rint(gaps[odd] / usual).astype(int) - 1
    if (missing >= 1).all() and (np.abs(gaps[odd] - (missing + 1) * usual) <= tolerance).all():
        holes = ", ".join(
            f"{m} between {planes[k].name} and {planes[k + 1].name}"
            for k, m in zip(odd[:_NAMED], missing[:_NAMED], strict=True)
        )
        more = f" and {odd.size - _NAMED} more holes" if odd.size > _NAMED else ""
        return [f"missing slices: {int(missing.sum())} where neighbours are {usual:.2f} mm apart ({holes}{more})"]
    # One pair of slices for each size of gap says more than many pairs of one size.
    _, firsts = np.unique(np.round(gaps[odd], 2), return_index=True)
    pairs = ", ".join(
        f"{gaps[k]:.2f} mm between {planes[k].name} and {planes[k + 1].name}" for k in sorted(odd[firsts])[:_NAMED]
    )
    return [
        f"uneven gaps: slices lie {usual:.2f} mm apart, but {pairs} ({odd.size} such gaps; "
        f"{max(tolerance, uneven_limit * usual):.2g} mm of difference are resampled)"
    ]


def _tolerance(gaps: Vector) -> float:
    return max(GAP_TOLERANCE_MM, GAP_TOLERANCE * float(np.median(gaps)))
