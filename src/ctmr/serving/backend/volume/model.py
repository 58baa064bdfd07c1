"""Triton model (business logic scripting) of one served version: a whole volume in, the translated volume out.

It measures the range over the volume and sends slices to the generator in chunks, always to the models of its own
version number, so hospitals never normalise by themselves and a volume never mixes two versions.

Tensors cross by DLPack, and text as UTF-8 bytes in UINT8 tensors. The stub of the bundled server was built for NumPy 1:
under NumPy 2 its own conversions (``as_numpy``, ``Tensor(name, array)``, strings among them) take every item for 0
bytes long and silently repeat the first one.
"""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

QUEUE_FULL = "Exceeds maximum queue size"


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

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request by itself."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        wanted = set(request.requested_output_names())
        try:
            tensors = []
            if "translation" in wanted:
                volume = pb_utils.get_input_tensor_by_name(request, "volume")
                if volume is None:
                    raise Refused("the request holds no volume; give the input 'volume' [C, D, H, W]")
                tensors.append(_tensor("translation", self._translate(np.from_dlpack(volume), request)))
        except Refused as error:
            return _error(str(error), pb_utils.TritonError.INVALID_ARG)
        except Failed as error:
            return _error(str(error), error.code)
        if "generator_version" in wanted:
            tensors.append(_tensor("generator_version", np.array([int(self.version)], np.int64)))
        if "spec" in wanted:
            tensors.append(_tensor("spec", np.array(list(self.spec), np.uint8)))
        return pb_utils.InferenceResponse(tensors)

    def _translate(self, volume: np.ndarray[Any, Any], request: Any) -> np.ndarray[Any, Any]:
        if volume.size == 0:
            raise Refused(f"the volume of shape {list(volume.shape)} is empty; at least one slice is needed")
        if volume.size > self.max_voxels:
            raise Refused(
                f"the volume has {volume.size} voxels, at most {self.max_voxels} are allowed; send fewer slices"
            )
        for number, channel in enumerate(volume, start=1):
            if channel.min() == channel.max():
                raise Refused(f"channel {number} of the volume is {channel.flat[0]} everywhere; an image is needed")
        limits = self._call(self.range, "range", {"volume": volume.astype(np.float32)})
        slices = np.moveaxis(volume, 0, 1)
        out = np.empty((len(slices), *slices.shape[2:]), self.dtype)
        bounds = np.iinfo(self.dtype)
        for first in range(0, len(slices), self.chunk):
            if request.is_cancelled():
                # Whoever waits behind a volume that nobody wants any more would wait for all of it.
                gone = f"the caller has gone after {first} of {len(slices)} slices"
                pb_utils.Logger.log_warn(f"{self.generator} version {self.version}: {gone}")
                raise Failed(gone, pb_utils.TritonError.CANCELLED)
            here = np.arange(first, min(first + self.chunk, len(slices)))
            # Neighbours come from the whole volume, so that no chunk has edges of its own.
            rows = (here[:, None] + self.offsets).clip(0, len(slices) - 1)
            part = slices[rows].reshape(len(here), -1, *slices.shape[2:]).astype(np.float32)
            repeated = np.repeat(limits[None], len(part), axis=0)
            made = self._call(self.generator, "translation", {"slices": part, "range": repeated})
            if not np.isfinite(made).all():
                raise Failed(f"version {self.version} made values that are not finite", pb_utils.TritonError.INTERNAL)
            out[first : first + self.chunk] = np.clip(np.rint(made[:, 0]), bounds.min, bounds.max)
        return out

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


def _error(message: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
