"""Requests to a volume model, and what their answers mean: what the clients share, whatever carries it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ctmr.errors import EnvironmentFault, InputError
from ctmr.imaging.inference_path import require_together
from ctmr.imaging.origin import PHANTOM_PREFIX
from ctmr.imaging.storage_types import STORAGE_DTYPE
from ctmr.imaging.volume import Unit, Volume
from ctmr.serving import interface
from ctmr.serving.client.connection import MESSAGE_BYTES
from ctmr.serving.export import ServedSpec

_ROOM_BYTES = 2**20
"""For everything of a message but its voxels."""


class ModelState(NamedTuple):
    """One line of the server's repository index."""

    model: str
    version: str
    state: str
    reason: str


@dataclass(frozen=True)
class SeriesUncertainty:
    """Uncertainty of one translation.

    Attributes
    ----------
    map
        float32 ``[D, H, W]`` on the image's own voxels, in `unit`: half the difference between the translation and
        that of the mirrored image.
    figure
        Its mean inside the head.
    expected_error
        Mean absolute error inside the head that goes with the figure; ``None``: nothing was calibrated.
    rank_correlation, cases
        Of figure and true error over the held-out images, and disturbed copies of them, of the calibration.
    """

    map: NDArray[np.float32]
    unit: Unit
    figure: float
    expected_error: float | None
    rank_correlation: float | None
    cases: int

    @property
    def words(self) -> str:
        """A sentence on the figure."""
        if self.expected_error is None:
            return f"uncertainty {self.figure:.1f} {self.unit.value}, not calibrated: no error goes with it"
        return (
            f"uncertainty {self.figure:.1f}: a mean error of {self.expected_error:.0f} {self.unit.value} inside the "
            f"head is expected (rank correlation {self.rank_correlation:.2f} on {self.cases} held-out cases)"
        )


class Translated(NamedTuple):
    """Answer of the server: the image on its native voxels, what made it, and what to know before it is used."""

    volume: Volume
    spec: ServedSpec
    version: str
    findings: tuple[str, ...] = ()
    uncertainty: SeriesUncertainty | None = None


@dataclass(frozen=True)
class Request:
    """Inputs by name, and the outputs that are asked for."""

    inputs: Mapping[str, NDArray[Any]]
    outputs: tuple[str, ...]

    def tensors(self, triton: Any) -> tuple[list[Any], list[Any]]:
        """Return the inputs and outputs of `tritonclient`."""
        given = []
        for name, array in self.inputs.items():
            given.append(triton.InferInput(name, array.shape, interface.triton_type(array.dtype)))
            given[-1].set_data_from_numpy(np.ascontiguousarray(array))
        return given, [triton.InferRequestedOutput(name) for name in self.outputs]


def megabytes(request: Request) -> float:
    """Return how much a request sends."""
    return sum(array.nbytes for array in request.inputs.values()) / 1e6


SPEC_ONLY = Request({}, (interface.SPEC,))


def image_request(volumes: Sequence[Volume], *, uncertainty: bool) -> Request:
    """Return the request for an image on its own voxels.

    Parameters
    ----------
    volumes
        One a channel.
    uncertainty
        Ask for the map and the figure too.

    Raises
    ------
    InputError
        The channels do not go together, or image or answer are larger than a message can be.
    """
    require_together(volumes)
    first = volumes[0]
    image = np.stack([v.array for v in volumes]) if len(volumes) > 1 else first.array
    name, image = _sent(image, first.unit)
    answer = first.array.size * (2 + 4 * uncertainty)
    if max(image.nbytes, answer) > MESSAGE_BYTES - _ROOM_BYTES:
        raise InputError(
            f"the image of {max(image.nbytes, answer) / 2**30:.1f} GiB is larger than gRPC's largest message, 2 GiB, "
            "and it cannot be cut: the range of values and the place of the head are measured over all of it; crop it "
            "to the head"
        )
    said = {
        "modality": first.modality.value,
        "unit": first.unit.value,
        "sequences": [v.sequence or "" for v in volumes],
        "phantom": first.phantom or first.subject.startswith(PHANTOM_PREFIX),
    }
    shape = np.array(image.shape, np.int64)
    inputs = {
        name: image.ravel(),
        interface.SHAPE: shape,
        interface.SOURCE: np.frombuffer(json.dumps(said).encode(), np.uint8),
    }
    if first.affine is not None:
        inputs[interface.AFFINE] = first.affine
    outputs = [interface.TRANSLATION, interface.FINDINGS, interface.VERSION, interface.SPEC]
    if uncertainty:
        outputs += [interface.UNCERTAINTY, interface.SERIES_UNCERTAINTY]
    return Request(inputs, tuple(outputs))


def _sent(image: NDArray[Any], unit: Unit) -> tuple[str, NDArray[Any]]:
    """Return an image as it is sent: in 16 bits where they hold it, else in single precision."""
    small = interface.image_dtype(unit)
    if image.dtype == small:
        return interface.IMAGE, image
    bounds = np.iinfo(small)
    if image.dtype.kind in "iu" and image.min() >= bounds.min and image.max() <= bounds.max:
        return interface.IMAGE, image.astype(small)
    return interface.IMAGE_FP32, image.astype(np.float32)


def grid_request(array: NDArray[Any]) -> Request:
    """Return the request for an array ``[C, D, H, W]`` that lies on the model's grid already."""
    return Request({interface.ON_GRID: array}, (interface.TRANSLATION, interface.VERSION))


def spec_of(answer: Mapping[str, NDArray[Any]], where: str) -> ServedSpec:
    """Read the spec of an answer."""
    return ServedSpec.from_json(answer[interface.SPEC].tobytes().decode(), where=f"spec of {where}")


def translated(
    answer: Mapping[str, NDArray[Any]], version: str, volumes: Sequence[Volume], model: str, url: str
) -> Translated:
    """Return what an answer means."""
    require_version(answer, version, model)
    spec, first = spec_of(answer, f"{model} at {url}"), volumes[0]
    findings = tuple(json.loads(answer[interface.FINDINGS].tobytes()))
    made, target = answer[interface.TRANSLATION], spec.target
    volume = Volume(made, first.affine, target.modality, target.unit, subject=first.subject, notes=findings)
    found = None
    if interface.SERIES_UNCERTAINTY in answer:
        tree = json.loads(answer[interface.SERIES_UNCERTAINTY].tobytes())
        kept = {key: tree[key] for key in ("figure", "expected_error", "rank_correlation", "cases")}
        found = SeriesUncertainty(answer[interface.UNCERTAINTY], target.unit, **kept)
    return Translated(volume, spec, version, findings, found)


def require_version(answer: Mapping[str, NDArray[Any]], version: str, model: str) -> None:
    """Raise EnvironmentFault when the generator was of another version than the model that was asked."""
    by = str(int(answer[interface.VERSION][0]))
    if by != version:
        raise EnvironmentFault(
            f"{model} version {version} was answered by generator version {by}; "
            "do not trust the image, and deploy the model again"
        )


def probe(spec: ServedSpec) -> NDArray[Any]:
    """Return a small made-up volume ``[C, 2, H, W]`` that every version can take: a ramp, never constant."""
    dtype = STORAGE_DTYPE[spec.source.unit]
    (height, width), top = spec.grid.size, 255 if dtype.itemsize == 1 else 1000
    ramp = np.add.outer(np.arange(height), np.arange(width)) * top // (height + width - 2)
    return np.broadcast_to(ramp, (spec.channels, 2, height, width)).astype(dtype)
