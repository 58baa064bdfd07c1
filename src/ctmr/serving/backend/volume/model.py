"""Triton model (business logic scripting) of one served version: a whole image in, its translation out.

An image on its own voxels (`image` or `image_fp32`, with its geometry) is checked and brought onto the model's grid
here, and the answer goes back onto the same voxels; `ctmr.serving.door` does that, so the server needs the package.
An array that lies on the grid already (`volume`) needs NumPy alone. Either way the range is measured over the whole
volume and slices go to the generator in chunks, always to the models of its own version number.

Tensors cross by DLPack, and text as UTF-8 bytes in UINT8 tensors. The stub of the bundled server was built for NumPy 1:
under NumPy 2 its own conversions (``as_numpy``, ``Tensor(name, array)``, strings among them) take every item for 0
bytes long and silently repeat the first one.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

QUEUE_FULL = "Exceeds maximum queue size"
PACKAGES = "TRITON_STUB_PACKAGES"
"""Folder of the ctmr that started this server; a server without it takes the one that its Python has."""
IMAGES = ("image", "image_fp32")
DESCRIPTIONS = ("shape", "affine", "spacing", "source")
ON_REQUEST = {"uncertainty", "series_uncertainty"}


class Refused(Exception):
    """The volume cannot be translated; the message tells the caller why."""


class Failed(Exception):
    """The server could not translate; `code` is Triton's error code."""

    def __init__(self, message: str, code: Any) -> None:
        super().__init__(message)
        self.code = code


class TritonPythonModel:
    """One version of a volume model; its folder holds this file and spec.json."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the spec that lies beside this file."""
        config = json.loads(args["model_config"])
        self.version = args["model_version"]
        base = args["model_name"].removesuffix("_volume")
        self.generator, self.range = base, f"{base}_range"
        self.spec = (Path(__file__).parent / "spec.json").read_bytes()
        spec = json.loads(self.spec)
        self.chunk, self.max_voxels = spec["chunk"], spec["max_voxels"]
        # A spec from before there were stacks, or of single slices, does not have the key.
        self.offsets = np.arange(-spec.get("neighbours", 0), spec.get("neighbours", 0) + 1)
        types = {entry["name"]: entry["data_type"] for entry in config["output"]}
        self.dtype = np.dtype(pb_utils.triton_string_to_numpy(types["translation"]))
        self._open_door()

    def _open_door(self) -> None:
        """Load what brings images onto the grid; without it only arrays on the grid are translated."""
        self.door = self.served = None
        packages = os.environ.get(PACKAGES, "")
        if packages and packages not in sys.path:
            sys.path.insert(0, packages)
        try:
            from ctmr.serving import door
            from ctmr.serving.export import ServedSpec

            self.served = ServedSpec.from_json(self.spec.decode())
            self.door = door
        except Exception as error:
            pb_utils.Logger.log_warn(f"{self.generator} version {self.version}: no image door: {error}")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request by itself."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        wanted = set(request.requested_output_names())
        given = {name: pb_utils.get_input_tensor_by_name(request, name) for name in (*IMAGES, "volume")}
        images = [name for name, tensor in given.items() if tensor is not None]
        try:
            made: dict[str, Any] = {}
            if len(images) > 1:
                raise Refused(f"the request holds {' and '.join(images)}; give one image")
            if images and images[0] != "volume":
                made = self._image(np.from_dlpack(given[images[0]]), request, wanted)
            elif images:
                made = self._on_grid(np.from_dlpack(given["volume"]), request)
            elif wanted - {"spec", "generator_version"}:
                raise Refused("the request holds no volume; give 'image', its 'shape', and its 'affine' or 'spacing'")
        except Refused as error:
            return _error(str(error), pb_utils.TritonError.INVALID_ARG)
        except Failed as error:
            return _error(str(error), error.code)
        except Exception as error:
            # The server's log gets the details; callers get no path of the server.
            pb_utils.Logger.log_error(f"{self.generator} version {self.version}: {type(error).__name__}: {error}")
            said = f"version {self.version} failed at this image ({type(error).__name__}); see the server's log"
            return _error(said, pb_utils.TritonError.INTERNAL)
        made["generator_version"] = np.array([int(self.version)], np.int64)
        made["spec"] = _text(self.spec)
        return pb_utils.InferenceResponse([_tensor(name, made[name]) for name in made if name in wanted])

    def _on_grid(self, volume: np.ndarray[Any, Any], request: Any) -> dict[str, Any]:
        """Translate ``[C, D, H, W]`` on the grid; uncertainty belongs to images, and is left out."""
        made = self._translate(volume, self._limits(volume), request)
        return {"translation": self._stored(made), "findings": _text(b"[]")}

    def _image(self, image: np.ndarray[Any, Any], request: Any, wanted: set[str]) -> dict[str, Any]:
        """Translate an image on its own voxels, which come in a row."""
        if self.door is None or self.served is None:
            lacking = "this server cannot prepare images: its Python lacks ctmr; install the package beside Triton"
            raise Failed(lacking, pb_utils.TritonError.UNSUPPORTED)
        from ctmr.errors import InputError

        tensors = {name: pb_utils.get_input_tensor_by_name(request, name) for name in DESCRIPTIONS}
        said = {name: None if tensor is None else np.from_dlpack(tensor) for name, tensor in tensors.items()}
        try:
            received = self.door.receive(
                self.served,
                self.door.shaped(image, said["shape"]),
                affine=said["affine"],
                spacing=said["spacing"],
                source=b"" if said["source"] is None else said["source"].tobytes(),
            )
            limits = self._limits(received.array)
            made = self._translate(received.array, limits, request)
            findings, outputs = received.findings, dict[str, Any]()
            if wanted & ON_REQUEST or self.served.uncertainty.limited:
                # Its figure needs a few slices; only the map needs all.
                at = None if "uncertainty" in wanted else received.levels
                mirrored = self._translate(np.ascontiguousarray(received.array[..., ::-1]), limits, request, at)
                doubt, figure = received.doubt(made if at is None else made[at], mirrored[..., ::-1], at)
                tree, told = received.judge(figure)
                findings += told
                outputs["series_uncertainty"] = _text(json.dumps(tree).encode())
                if at is None:
                    outputs["uncertainty"] = np.ascontiguousarray(received.native_doubt(doubt))
            outputs["translation"] = np.ascontiguousarray(received.answer(self._stored(made)))
        except InputError as error:
            raise Refused(str(error)) from None
        return {**outputs, "findings": _text(json.dumps(findings).encode())}

    def _limits(self, volume: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the range of a volume that can be translated."""
        if volume.size == 0:
            raise Refused(f"the volume of shape {list(volume.shape)} is empty; at least one slice is needed")
        if volume.size > self.max_voxels:
            raise Refused(
                f"the volume has {volume.size} voxels, at most {self.max_voxels} are allowed; send fewer slices"
            )
        for number, channel in enumerate(volume, start=1):
            if channel.min() == channel.max():
                raise Refused(f"channel {number} of the volume is {channel.flat[0]} everywhere; an image is needed")
        return self._call(self.range, "range", {"volume": volume.astype(np.float32)})

    def _translate(
        self, volume: np.ndarray[Any, Any], limits: np.ndarray[Any, Any], request: Any, at: list[int] | None = None
    ) -> np.ndarray[Any, Any]:
        """Return all slices, or those `at` some indices, in the target's unit and not yet rounded."""
        slices = np.moveaxis(volume, 0, 1)
        wanted = np.arange(len(slices)) if at is None else np.array(at)
        out = np.empty((len(wanted), *slices.shape[2:]), np.float32)
        for first in range(0, len(wanted), self.chunk):
            if request.is_cancelled():
                # Whoever waits behind a volume that nobody wants any more would wait for all of it.
                gone = f"the caller has gone after {first} of {len(wanted)} slices"
                pb_utils.Logger.log_warn(f"{self.generator} version {self.version}: {gone}")
                raise Failed(gone, pb_utils.TritonError.CANCELLED)
            here = wanted[first : first + self.chunk]
            # Neighbours come from the whole volume, so that no chunk has edges of its own.
            rows = (here[:, None] + self.offsets).clip(0, len(slices) - 1)
            part = slices[rows].reshape(len(here), -1, *slices.shape[2:]).astype(np.float32)
            repeated = np.repeat(limits[None], len(part), axis=0)
            made = self._call(self.generator, "translation", {"slices": part, "range": repeated})
            if not np.isfinite(made).all():
                raise Failed(f"version {self.version} made values that are not finite", pb_utils.TritonError.INTERNAL)
            out[first : first + self.chunk] = made[:, 0]
        return out

    def _stored(self, made: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Round to the type of the answer."""
        bounds = np.iinfo(self.dtype)
        rounded: np.ndarray[Any, Any] = np.clip(np.rint(made), bounds.min, bounds.max).astype(self.dtype)
        return rounded

    def _call(self, model: str, output: str, inputs: dict[str, Any]) -> np.ndarray[Any, Any]:
        """Call a model of this very version number."""
        request = pb_utils.InferenceRequest(
            model_name=model,
            model_version=int(self.version),
            requested_output_names=[output],
            inputs=[_tensor(name, array) for name, array in inputs.items()],
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU),
        )
        response = request.exec()
        if response.has_error():
            # The server's log gets the details; callers get no path and no memory key of the server.
            message = response.error().message()
            pb_utils.Logger.log_error(f"{model} version {self.version}: {message}")
            if QUEUE_FULL in message:
                raise Failed(f"{QUEUE_FULL} of {model}; try again later", pb_utils.TritonError.UNAVAILABLE)
            raise Failed(f"{model} version {self.version} failed; see the server's log", pb_utils.TritonError.INTERNAL)
        # A copy: the answer's memory goes back with the response.
        return np.array(np.from_dlpack(pb_utils.get_output_tensor_by_name(response, output)))


def _tensor(name: str, array: np.ndarray[Any, Any]) -> Any:
    """Hand a fresh array over without a copy.

    The stub renames the capsule in a way that NumPy's destructor does not know, which would write a traceback to the
    log for every tensor; it frees the memory itself, so the destructor is taken off.
    """
    capsule = array.__dlpack__()
    ctypes.pythonapi.PyCapsule_SetDestructor(ctypes.py_object(capsule), None)
    return pb_utils.Tensor.from_dlpack(name, capsule)


def _text(content: bytes) -> np.ndarray[Any, Any]:
    return np.array(list(content), np.uint8)


def _error(message: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
