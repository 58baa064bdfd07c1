"""Geometry of a DICOM series: slice planes to one affine and back, and every reason why slices do not stack."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ctmr.errors import InputError

GAP_TOLERANCE_MM = 0.1
GAP_TOLERANCE = 0.01
"""Gaps may differ by the larger of `GAP_TOLERANCE_MM` and this share of the gap."""
SHEAR_TOLERANCE = 1e-3
"""In-plane movement of the slice origins, relative to their movement along the normal."""
ROUNDING_MM = 5e-3
"""Scanners round positions to about this; less than it is never called a shear or a gap."""
LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""DICOM counts towards left, posterior, superior; NIfTI and `ctmr.volume` towards right, anterior, superior."""

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
        lengths = float(np.linalg.norm(self.across)), float(np.linalg.norm(self.down))
        cosine = float(np.dot(self.across, self.down))
        if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(cosine)) > SHEAR_TOLERANCE:
            faults.append(
                f"ImageOrientationPatient of {self.name} is not two orthogonal unit vectors "
                f"(lengths {lengths[0]:.4f} and {lengths[1]:.4f}, cosine {cosine:.4f})"
            )
        if min(self.spacing) <= 0 or not np.isfinite(self.spacing).all():
            faults.append(f"PixelSpacing of {self.name} is {self.spacing}, both must be above 0 mm")
        if not np.isfinite(self.position).all():
            faults.append(f"ImagePositionPatient of {self.name} is not finite")
        return faults


def sort_along_normal(planes: list[SlicePlane]) -> list[int]:
    """Return the order of the planes along the normal of the first one."""
    normal = planes[0].normal
    return sorted(range(len(planes)), key=lambda i: (float(planes[i].position @ normal), planes[i].name))


def stack_faults(planes: list[SlicePlane]) -> list[str]:
    """Return every reason why planes, sorted along the normal, are not one straight, evenly spaced stack."""
    faults = [fault for plane in planes for fault in plane.plane_faults()]
    if faults:
        return faults[:3]
    faults = _unlike_planes(planes)
    if faults or len(planes) == 1:
        return faults
    return _shear(planes) + _gaps(planes)


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
    lps = np.eye(4)
    lps[:3, 0] = step
    lps[:3, 1] = first.down * first.spacing[0]
    lps[:3, 2] = first.across * first.spacing[1]
    lps[:3, 3] = first.position
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
        faults.append(f"inconsistent shape: slices of {' and '.join(f'{r}×{c}' for r, c in shapes[:3])} pixels")
    spread = max(float(np.abs(np.subtract(p.spacing, first.spacing)).max()) for p in planes)
    if spread > 1e-3 * min(first.spacing):
        odd = next(p for p in planes if np.abs(np.subtract(p.spacing, first.spacing)).max() == spread)
        faults.append(f"inconsistent PixelSpacing: {first.spacing} mm in {first.name}, {odd.spacing} mm in {odd.name}")
    turned = [max(np.linalg.norm(p.across - first.across), np.linalg.norm(p.down - first.down)) for p in planes]
    if max(turned) > SHEAR_TOLERANCE:
        odd = planes[int(np.argmax(turned))]
        faults.append(
            f"inconsistent orientation: {_orientation(first)} in {first.name}, {_orientation(odd)} in {odd.name}"
        )
    return faults


def _orientation(plane: SlicePlane) -> str:
    return "[" + ", ".join(f"{x:.4g}" for x in (*plane.across, *plane.down)) + "]"


def _shear(planes: list[SlicePlane]) -> list[str]:
    first = planes[0]
    moved = np.stack([p.position - first.position for p in planes])
    along = moved @ first.normal
    sideways = moved - along[:, None] * first.normal
    total = float(np.linalg.norm(sideways[-1]))
    if total > max(SHEAR_TOLERANCE * along[-1], ROUNDING_MM):
        angle = np.degrees(np.arctan2(total, along[-1]))
        return [
            f"sheared volume: slice origins move {total:.2f} mm in the plane over {along[-1]:.2f} mm along the normal "
            f"(gantry tilt {angle:.1f}°)"
        ]
    straight = np.outer(along / along[-1] if along[-1] > 0 else along, sideways[-1])
    stray = np.linalg.norm(sideways - straight, axis=1)
    if stray.max() > GAP_TOLERANCE_MM:
        return [f"{planes[int(stray.argmax())].name} is shifted {stray.max():.2f} mm sideways from the other slices"]
    return []


def _gaps(planes: list[SlicePlane]) -> list[str]:
    along = np.array([float(p.position @ planes[0].normal) for p in planes])
    gaps = np.diff(along)
    same = np.flatnonzero(gaps < ROUNDING_MM)
    if same.size:
        k = int(same[0])
        return [f"duplicates: {planes[k].name} and {planes[k + 1].name} lie at one position ({same.size} such pairs)"]
    usual = float(np.median(gaps))
    tolerance = max(GAP_TOLERANCE_MM, GAP_TOLERANCE * usual)
    odd = np.flatnonzero(np.abs(gaps - usual) > tolerance)
    if odd.size:
        missing = np.rint(gaps[odd] / usual).astype(int) - 1
        if (missing >= 1).all() and (np.abs(gaps[odd] - (missing + 1) * usual) <= tolerance).all():
            k = int(odd[0])
            return [
                f"missing slices: {int(missing.sum())} between neighbours {usual:.2f} mm apart, the first after "
                f"{planes[k].name} (gap {gaps[k]:.2f} mm)"
            ]
        found = ", ".join(f"{g:.2f}" for g in sorted(set(np.round(gaps, 2).tolist()))[:6])
        return [f"uneven gaps: slices lie {found} mm apart, {tolerance:.2g} mm of difference are allowed"]
    drift = np.abs(along - np.linspace(along[0], along[-1], len(along)))
    if drift.max() > tolerance:
        return [
            f"uneven gaps: {planes[int(drift.argmax())].name} lies {drift.max():.2f} mm off an even stack, "
            f"{tolerance:.2g} mm are allowed"
        ]
    return []
