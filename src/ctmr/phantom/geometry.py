"""Coordinates, solid shapes and noise for the head phantom, all in millimetres.

A shape is a *depth*: a volume that is positive inside, negative outside and close to the signed distance in
millimetres near the surface. Depths combine with `union` and `intersection`, whose blend rounds the seam, and
become the share of each voxel that the shape fills with `coverage`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.ndimage import map_coordinates

Volume: TypeAlias = NDArray[np.float32]
Point: TypeAlias = tuple[float, float, float]
Window: TypeAlias = tuple[slice, slice, slice]
Span: TypeAlias = tuple[float, float]

NOISE_PERIOD_MM = 240.0
_EVERYWHERE: Span = (-np.inf, np.inf)


@dataclass(frozen=True)
class Space:
    """Anatomical coordinates of the voxels in one box of the grid.

    Attributes
    ----------
    z, y, x
        Millimetres towards superior, posterior and the patient's left from the middle of the cranial cavity,
        after pose, size and warp of the subject.
    side
        ``abs(x)``: the coordinate that draws a structure on both sides at once.
    drift, patch, ripple, grain
        Noise of unit variance with wavelengths of about 110, 55, 16 and 9 mm.
    fascicle
        Noise of 21 mm across and 65 mm along the neck.
    window
        Where the box lies in the whole grid.
    spacing_mm
        Edge of a voxel.
    """

    z: Volume
    y: Volume
    x: Volume
    side: Volume
    drift: Volume
    patch: Volume
    ripple: Volume
    fascicle: Volume
    grain: Volume
    window: Window
    spacing_mm: float

    def box(self, z: Span = _EVERYWHERE, y: Span = _EVERYWHERE, side: Span = _EVERYWHERE) -> Space:
        """Return the smallest box of voxels that holds the given anatomical spans.

        Working in boxes is what keeps a subject below three seconds.
        """
        inside = np.ones(self.z.shape, dtype=np.bool_)
        for coordinate, (low, high) in ((self.z, z), (self.y, y), (self.side, side)):
            if np.isfinite(low):
                inside &= coordinate >= low
            if np.isfinite(high):
                inside &= coordinate <= high
        cut = []
        for axis in range(3):
            others = tuple(a for a in range(3) if a != axis)
            hits = np.flatnonzero(inside.any(axis=others))
            # A box beside the field of view is empty: every painter then paints nothing.
            cut.append(slice(int(hits[0]), int(hits[-1]) + 1) if hits.size else slice(0, 0))
        local: Window = (cut[0], cut[1], cut[2])
        window = tuple(slice(w.start + c.start, w.start + c.stop) for w, c in zip(self.window, local, strict=True))
        volumes = {f.name: getattr(self, f.name)[local] for f in fields(self) if f.type == "Volume"}
        return replace(self, **volumes, window=(window[0], window[1], window[2]))

    def coverage(self, depth: Volume) -> Volume:
        """Share of each voxel inside the surface where `depth` is zero (a locally flat surface)."""
        share: Volume = np.clip(np.float32(0.5) + depth / np.float32(self.spacing_mm), 0, 1)
        return share

    def sheet(self, distance: Volume, half_width_mm: float | Volume) -> Volume:
        """Share of each voxel inside a sheet, thinner than a voxel or not, at `distance` from its middle."""
        reach = self.spacing_mm / 2
        far = np.minimum(half_width_mm, distance + reach)
        near = np.maximum(-np.asarray(half_width_mm, dtype=np.float32), distance - reach)
        share: Volume = np.clip((far - near) / np.float32(self.spacing_mm), 0, 1).astype(np.float32)
        return share

    def ellipsoid(self, centre: Point, radii: Point, *, paired: bool = False) -> Volume:
        """Depth inside an ellipsoid at (z, y, x); `paired` draws it on both sides of the midline."""
        lateral = self.side if paired else self.x
        scaled = np.zeros(self.z.shape, np.float32)
        gradient = np.zeros(self.z.shape, np.float32)
        for coordinate, middle, radius in zip((self.z, self.y, lateral), centre, radii, strict=True):
            ratio = (coordinate - np.float32(middle)) * np.float32(1 / radius)
            ratio *= ratio
            scaled += ratio
            gradient += ratio * np.float32(1 / radius**2)
        # First order distance: f / |grad f| with f = k (1 - k), which keeps the middle finite as well.
        scaled = np.sqrt(scaled) + np.float32(1e-4)
        depth: Volume = (scaled * (1 - scaled) / (np.sqrt(gradient) + np.float32(1e-6))).astype(np.float32, copy=False)
        return depth

    def tube(self, nodes: Sequence[tuple[Point, float]], *, paired: bool = True, blend: float = 3.0) -> Volume:
        """Depth inside a tube through nodes ((z, y, x), radius), with the radius changing linearly."""
        lateral = self.side if paired else self.x
        depth: Volume | None = None
        for (start, start_radius), (end, end_radius) in pairwise(nodes):
            axis = [np.float32(e - s) for s, e in zip(start, end, strict=True)]
            offset = [c - np.float32(s) for c, s in zip((self.z, self.y, lateral), start, strict=True)]
            along = (offset[0] * axis[0] + offset[1] * axis[1] + offset[2] * axis[2]) / sum(a * a for a in axis)
            along = np.clip(along, 0, 1)
            radial = np.sqrt(sum((o - along * a) ** 2 for o, a in zip(offset, axis, strict=True)))
            part = np.float32(start_radius) + along * np.float32(end_radius - start_radius) - radial
            depth = part if depth is None else union(depth, part, blend)
        if depth is None:
            raise ValueError(f"a tube needs at least 2 nodes, found {len(nodes)}")
        return depth


def union(first: Volume, second: Volume, blend: float) -> Volume:
    """Depth inside either shape, with the seam filled over about `blend` millimetres."""
    overlap = np.maximum(np.float32(blend) - np.abs(first - second), 0)
    joined: Volume = np.maximum(first, second) + overlap * overlap * np.float32(0.25 / blend)
    return joined


def intersection(first: Volume, second: Volume, blend: float) -> Volume:
    """Depth inside both shapes, with the edge rounded over about `blend` millimetres."""
    return -union(-first, -second, blend)


def step(value: Volume, width: float) -> Volume:
    """Smooth step from 0 to 1 around `value` = 0."""
    risen: Volume = np.float32(0.5) + np.float32(0.5) * np.tanh(value * np.float32(0.5 / width))
    return risen


@dataclass(frozen=True)
class NoiseLattice:
    """Periodic band-pass Gaussian noise on a coarse cube, independent of the grid that samples it."""

    values: Volume

    @property
    def pitch_mm(self) -> float:
        """Distance between lattice points."""
        return NOISE_PERIOD_MM / len(self.values)

    def on_grid(self, axes: Sequence[NDArray[np.float64]]) -> Volume:
        """Sample on the regular grid spanned by three axes in millimetres (separable cubic splines)."""
        count = self.values.shape[0]
        knots = np.arange(count + 1) * self.pitch_mm
        identity = np.eye(count)
        basis = CubicSpline(knots, np.vstack([identity, identity[:1]]), bc_type="periodic")
        sampled = self.values
        for axis in axes:
            weights = basis(np.mod(axis, NOISE_PERIOD_MM)).astype(np.float32)
            # Contracting the first axis each time brings the new axis last: after three it is in order again.
            sampled = np.tensordot(sampled, weights, axes=([0], [1]))
        return np.ascontiguousarray(sampled)

    def at_points(self, z: Volume, y: Volume, x: Volume) -> Volume:
        """Sample at free points in millimetres (trilinear)."""
        scale = np.float32(1 / self.pitch_mm)
        # One full period on, no head coordinate is negative, and 'grid-wrap' has nothing special to do.
        points = np.stack([np.mod(c * scale, self.values.shape[0]) for c in (z, y, x)])
        sampled: Volume = map_coordinates(self.values, points, order=1, mode="grid-wrap", output=np.float32)
        return sampled


def wave_noise(
    rng: np.random.Generator, wavelength_mm: float, *, bandwidth: float = 0.35, points: int = 80
) -> NoiseLattice:
    """Draw band-pass noise of unit variance around a wavelength.

    `bandwidth` is the standard deviation of the Gaussian pass band relative to its centre frequency.
    """
    spectrum = np.fft.rfftn(rng.standard_normal((points,) * 3, dtype=np.float32))
    pitch = NOISE_PERIOD_MM / points
    frequency = np.fft.fftfreq(points, pitch)
    half = np.fft.rfftfreq(points, pitch)
    radius = np.sqrt(frequency[:, None, None] ** 2 + frequency[None, :, None] ** 2 + half[None, None, :] ** 2)
    spectrum *= np.exp(-0.5 * ((radius * wavelength_mm - 1) / bandwidth) ** 2)
    spectrum[0, 0, 0] = 0
    noise = np.fft.irfftn(spectrum, (points,) * 3).astype(np.float32)
    return NoiseLattice(noise / noise.std())
