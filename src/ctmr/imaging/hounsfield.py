"""Hounsfield units: what is air, what stands outside an image, where values are clipped, what parts air from tissue."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from ctmr.imaging.volume import Unit

AIR_HU = -1000.0
"""Air as it is, by definition of the unit. Who draws a head draws this around it: the phantom, and the baselines."""
FLOOR_HU = -1024.0
"""The lowest value that 12 bits hold, which scanners write where they measured nothing. It stands for padding, beyond
the field of view and where a step takes something away; the challenges' protocols clip to it and shift by it."""

OUTSIDE_VALUE: dict[Unit, float] = {Unit.HU: FLOOR_HU, Unit.ARBITRARY: 0.0, Unit.GREY8: 0.0}
"""What stands where nothing was measured, in each unit."""
MISSING_MARKS = (AIR_HU, FLOOR_HU, -999.0, -2000.0, -2048.0, -3024.0, -4096.0, -9999.0, -32767.0, -32768.0)
"""What scanners and converters write into an MR where nothing was measured. Its signal is not negative, so one of these
below values that are not is such a mark; in an image that was shifted as a whole, others follow close above."""
DRAWN_OUTSIDE: dict[Unit, float] = {**OUTSIDE_VALUE, Unit.HU: AIR_HU}
"""What a baseline draws around a head."""

SCANNER_RANGE_HU = (FLOOR_HU, 3071.0)
"""What 12 bits hold; the protocol of SynthRAD2025's evaluation code and the phantom's scanner clip to it."""
CLIP_HU = (FLOOR_HU, 3000.0)
"""SynthRAD2023's range, to which all other errors in HU are clipped."""
WINDOW_HU = (FLOOR_HU, 2000.0)
"""Default of the recipe's ``normalise.hu``."""
PATIENT_RANGE_HU = (-2048.0, 4096.0)
"""Default of the recipe's ``validation.hu_range``: values outside cannot be Hounsfield units of a patient."""

SKIN_HU = -500.0
"""Half-way between air and water: where a CT shows the skin. What is below is air, foam or cloth."""
HU_EVIDENCE = SKIN_HU
"""A CT whose lowest value is above this shows no air in Hounsfield units (Cormack units, rescaled pictures)."""
THINNEST_HU = -1500.0
"""Air is at -1000 HU, and noise and sharp kernels reach a few hundred less. What scanners and converters write where
they measured nothing (-1500, -2000, -3024, ...) is not above this."""
AIR_BELOW_HU = -200.0
"""Voxels of a truth below are air in the errors by tissue."""
BONE_ABOVE_HU = 250.0
"""Voxels of a truth above are bone in the errors by tissue and in the Dice of bone."""
AIR_INSIDE_BELOW_HU = -400.0
"""Smoothed voxels of a truth below are air in the table of tissues."""


def outside_of(array: NDArray[Any], unit: Unit) -> float:
    """Return what continues an image beyond its edge: an MR with negative values has its background at the lowest."""
    return min(0.0, float(array.min())) if unit is Unit.ARBITRARY else OUTSIDE_VALUE[unit]
