"""Python-based Triton backend ``onnxruntime``: serves ONNX models where Triton's C++ backend is not built in.

It reads the model repository that the C++ backend reads, makes that backend's checks at load time, and refuses input
that is not finite: one NaN would otherwise turn a whole answer into NaN with status OK.

Tensors cross by DLPack. The stub of the bundled server was built for NumPy 1: under NumPy 2 its own conversions
(``as_numpy`` and ``Tensor(name, array)``) take every item for 0 bytes long and silently repeat the first one.
"""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

TYPE_OF_ONNX = {
    "tensor(float)": "TYPE_FP32",
    "tensor(float16)": "TYPE_FP16",
    "tensor(double)": "TYPE_FP64",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
}


class TritonPythonModel:
    """One version of one ONNX model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load ``<version>/model.onnx`` and compare it with config.pbtxt."""
        config = json.loads(args["model_config"])
        self.name = args["model_name"]
        self.batched = config["max_batch_size"] > 0
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = onnxruntime.InferenceSession(str(path), providers=_providers(args))
        self.inputs = [entry["name"] for entry in config["input"]]
        self.outputs = [entry["name"] for entry in config["output"]]
        self._compare("input", config["input"], self.session.get_inputs())
        self._compare("output", config["output"], self.session.get_outputs())

    def _compare(self, kind: str, configured: list[Any], found: list[Any]) -> None:
        by_name = {tensor.name: tensor for tensor in found}
        for entry in configured:
            tensor = by_name.get(entry["name"])
            if tensor is None:
                raise pb_utils.TritonModelException(
                    f"{self.name}: config.pbtxt names the {kind} {entry['name']!r}; the graph has {sorted(by_name)}"
                )
            if TYPE_OF_ONNX.get(tensor.type) != entry["data_type"]:
                raise pb_utils.TritonModelException(
                    f"{self.name}: {kind} {tensor.name!r} is {tensor.type}, config.pbtxt says {entry['data_type']}"
                )
            dims = [int(d) for d in entry["dims"]]
            shape = [d if isinstance(d, int) else -1 for d in tensor.shape]
            expected = [-1, *dims] if self.batched else dims
            if len(shape) != len(expected) or any(s not in (-1, e) for s, e in zip(shape, expected, strict=True)):
                raise pb_utils.TritonModelException(
                    f"{self.name}: {kind} {tensor.name!r} has shape {shape}, config.pbtxt says {expected}"
                )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer a batch of requests; what cannot be answered gets an error of its own and harms no other."""
        responses: list[Any] = [None] * len(requests)
        feeds = {}
        for number, request in enumerate(requests):
            feed = {name: np.from_dlpack(pb_utils.get_input_tensor_by_name(request, name)) for name in self.inputs}
            spoilt = next((n for n, a in feed.items() if a.dtype.kind == "f" and not np.isfinite(a).all()), None)
            if spoilt is None:
                feeds[number] = feed
            else:
                message = f"{self.name}: input '{spoilt}' holds values that are not finite; all must be numbers"
                responses[number] = _error(message, pb_utils.TritonError.INVALID_ARG)
        for members in [list(feeds)] if self.batched and feeds else [[number] for number in feeds]:
            for number, answer in zip(members, self._run([feeds[m] for m in members]), strict=True):
                responses[number] = _response(answer, requests[number])
        return responses

    def _run(self, feeds: list[dict[str, Any]]) -> list[Any]:
        """Return, for each feed, its outputs by name, or the error that all of them share."""
        try:
            joined = {name: np.concatenate([f[name] for f in feeds]) for name in self.inputs}
            results = self.session.run(self.outputs, joined)
        except Exception as error:
            # The server's log gets the details; callers get no path and no memory key of the server.
            pb_utils.Logger.log_error(f"{self.name}: {error}")
            return [f"{self.name}: ONNX Runtime failed ({type(error).__name__}); see the server's log"] * len(feeds)
        if len(feeds) == 1:
            return [dict(zip(self.outputs, results, strict=True))]
        cuts = np.cumsum([len(f[self.inputs[0]]) for f in feeds])[:-1]
        parts = [np.split(result, cuts) for result in results]
        return [dict(zip(self.outputs, part, strict=True)) for part in zip(*parts, strict=True)]


def _providers(args: dict[str, str]) -> list[Any]:
    if args["model_instance_kind"] == "GPU" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        device = {"device_id": int(args["model_instance_device_id"])}
        return [("CUDAExecutionProvider", device), "CPUExecutionProvider"]
    return ["CPUExecutionProvider"]


def _response(answer: Any, request: Any) -> Any:
    if isinstance(answer, str):
        return _error(answer, pb_utils.TritonError.INTERNAL)
    wanted = set(request.requested_output_names())
    return pb_utils.InferenceResponse(
        [_tensor(name, np.ascontiguousarray(value)) for name, value in answer.items() if name in wanted]
    )


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
