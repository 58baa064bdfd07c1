"""Clients of a Triton server: an image on its own voxels in, its translation on the same voxels out, over gRPC."""

from ctmr.serving.client.answers import Lost, NotServed, QueueFull
from ctmr.serving.client.asynchronous import AsyncTritonClient
from ctmr.serving.client.connection import CONTROL_HEADER, NO_PROXY, Tls
from ctmr.serving.client.request import ModelState, SeriesUncertainty, Translated, probe
from ctmr.serving.client.sync import TritonClient

__all__ = [
    "CONTROL_HEADER",
    "NO_PROXY",
    "AsyncTritonClient",
    "Lost",
    "ModelState",
    "NotServed",
    "QueueFull",
    "SeriesUncertainty",
    "Tls",
    "Translated",
    "TritonClient",
    "probe",
]
