"""Writing an uncertainty map as a DICOM Parametric Map of the synthetic series that it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.sr.codedict import codes

from ctmr.errors import InputError
from ctmr.imaging.volume import Unit, Volume
from ctmr.io.dicom.geometry import planes_of
from ctmr.io.dicom.provenance import MANUFACTURER, PRIVATE_CREATOR, PRIVATE_GROUP, provenance_of
from ctmr.io.dicom.writing import content_seed, seeded_uid
from ctmr.system.files import write_file

NOT_FOR_DIAGNOSIS = "NOT FOR DIAGNOSIS"
SERIES_NUMBER_OFFSET = 1
"""Added to the synthetic series' number."""


def write_uncertainty_map(path: Path, uncertainty: Volume, series: Sequence[Path], words: str) -> str:
    """Write a map as one Parametric Map file; return its series UID.

    Parameters
    ----------
    path
        New; ends in ``.dcm``.
    uncertainty
        float32 ``[D, H, W]`` on the voxels of the synthetic series.
    series
        Files of the synthetic series, as `ctmr.io.dicom.write_synthetic_series` returns them.
    words
        A sentence on the figure of the series.

    Raises
    ------
    InputError
        The path exists, the map does not lie on the series' voxels, or the series was not written by ctmr.
    """
    import highdicom

    images = [pydicom.dcmread(file, stop_before_pixels=True) for file in series]
    provenance = provenance_of(images[0])
    if provenance is None:
        raise InputError(f"{series[0]} carries no provenance of ctmr; a map belongs to a series that ctmr wrote")
    frames = _frames(uncertainty, images, str(path))
    target, first = provenance.direction.target.value, images[0]
    seed = content_seed("uncertainty", str(first.SeriesInstanceUID), array=frames)
    high = max(float(frames.max()), 1.0)
    unit = codes.UCUM.HounsfieldUnit if uncertainty.unit is Unit.HU else codes.UCUM.NoUnits
    mapping = highdicom.pm.RealWorldValueMapping(
        lut_label="UNCERTAINTY",
        lut_explanation=f"half the difference of mirrored translations, {uncertainty.unit.value}"[:64],
        unit=unit,
        value_range=(0.0, high),
        slope=1.0,
        intercept=0.0,
    )
    made = highdicom.pm.ParametricMap(
        source_images=images,
        pixel_array=frames,
        series_instance_uid=seeded_uid(seed, "series"),
        series_number=int(first.SeriesNumber) + SERIES_NUMBER_OFFSET,
        sop_instance_uid=seeded_uid(seed, "image"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=provenance.model_name[:64],
        software_versions=provenance.model_version[:64],
        device_serial_number=provenance.onnx_sha256[:16],
        contains_recognizable_visual_features=True,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[highdicom.VOILUTTransformation(window_center=high / 2, window_width=high)],
        content_label="UNCERTAINTY",
        content_description=f"SYNTHETIC {target} uncertainty, {NOT_FOR_DIAGNOSIS}"[:64],
    )
    made.SeriesDescription = f"SYNTHETIC {target} uncertainty {NOT_FOR_DIAGNOSIS}"[:64]
    for keyword in ("BodyPartExamined", "Laterality"):
        if keyword in first:
            setattr(made, keyword, first[keyword].value)
    made.SyntheticData = "YES"
    made.ImageComments = f"{NOT_FOR_DIAGNOSIS}. Uncertainty of a SYNTHETIC {target}: {words}"
    made.DerivationDescription = f"{first.DerivationDescription}; uncertainty map, {NOT_FOR_DIAGNOSIS}"[:1024]
    block = made.private_block(PRIVATE_GROUP, PRIVATE_CREATOR, create=True)
    for offset, value in enumerate(vars(provenance).values()):
        block.add_new(offset, "LT", str(value))
    content = BytesIO()
    made.save_as(content)
    write_file(path, content.getvalue())
    return str(made.SeriesInstanceUID)


def _frames(uncertainty: Volume, images: Sequence[pydicom.Dataset], name: str) -> NDArray[np.float32]:
    """Return the map's slices in the order of the series' images."""
    planes, order = planes_of(uncertainty.require_affine(), uncertainty.array.shape, name)
    frames = np.ascontiguousarray(uncertainty.array[order], dtype=np.float32)
    places = [np.allclose(p.position, i.ImagePositionPatient, atol=1e-2) for p, i in zip(planes, images, strict=False)]
    shape = (len(images), int(images[0].Rows), int(images[0].Columns))
    if frames.shape != shape or not all(places):
        raise InputError(f"{name}: the map of shape {frames.shape} does not lie on the series of shape {shape}")
    return frames
