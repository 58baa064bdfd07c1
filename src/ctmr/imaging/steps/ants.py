"""Registration by ANTs (antspyx), an optional extra: linear by mutual information, deformable by SyN."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctmr.errors import EnvironmentFault
from ctmr.imaging.steps.base import Transform
from ctmr.imaging.steps.itk import RAS_LPS, simple_itk, to_itk
from ctmr.imaging.volume import Volume

_KIND = {Transform.RIGID: "Rigid", Transform.AFFINE: "Affine", Transform.DEFORMABLE: "SyN"}
_SEED = 1


def installed() -> bool:
    """True when antspyx can be imported."""
    return importlib.util.find_spec("ants") is not None


def register(
    moving: Volume, fixed: Volume, transform: Transform
) -> tuple[NDArray[np.float64], NDArray[np.float32] | None]:
    """Register float32 volumes.

    B. Avants et al., Symmetric diffeomorphic image registration with cross-correlation, Med. Image Anal. 12(1), 2008.

    Returns
    -------
    tuple
        4×4 matrix and displacement ``[D, H, W, 3]`` (``None`` when linear), as
        `ctmr.imaging.steps.base.Alignment` has them.

    Raises
    ------
    EnvironmentFault
        ANTs is not installed.
    """
    if not installed():
        raise EnvironmentFault(
            "the recipe asks for registration by ANTs, which is not installed; install it with `pip install antspyx`, "
            "or set the step's engine to simpleitk"
        )
    import ants

    with tempfile.TemporaryDirectory(prefix="ctmr-ants-") as folder:
        found = ants.registration(
            fixed=_image(ants, fixed),
            moving=_image(ants, moving),
            type_of_transform=_KIND[transform],
            aff_metric="mattes",
            syn_metric="mattes",
            random_seed=_SEED,
            singleprecision=False,
            outprefix=str(Path(folder) / "found"),
        )
        affine = next(t for t in found["fwdtransforms"] if t.endswith(".mat"))
        matrix = _matrix(ants.read_transform(affine))
        warps = [t for t in found["fwdtransforms"] if not t.endswith(".mat")]
        if not warps:
            return matrix, None
        sitk = simple_itk()
        field = sitk.GetArrayFromImage(sitk.ReadImage(warps[0]))
    # ANTs warps first and turns then: matrix(x + field(x)); the turned field is what is added after the matrix.
    ras = field.reshape(*fixed.array.shape, 3) @ RAS_LPS[:3, :3]
    return matrix, (ras @ matrix[:3, :3].T).astype(np.float32)


def _image(ants: Any, volume: Volume) -> Any:
    image = to_itk(volume)
    return ants.from_numpy(
        np.ascontiguousarray(volume.array.astype(np.float32).transpose(2, 1, 0)),
        origin=image.GetOrigin(),
        spacing=image.GetSpacing(),
        direction=np.array(image.GetDirection()).reshape(3, 3),
    )


def _matrix(transform: Any) -> NDArray[np.float64]:
    """Return ANTs' parameters, 3×3 and translation about a centre in LPS mm, as 4×4 in RAS mm."""
    parameters, centre = np.array(transform.parameters), np.array(transform.fixed_parameters)
    linear = parameters[:9].reshape(3, 3)
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = parameters[9:12] + centre - linear @ centre
    return RAS_LPS @ matrix @ RAS_LPS
