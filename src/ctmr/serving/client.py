"""Triton client: an image in native geometry in, its translation on the same voxels out, over gRPC."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ctmr.errors import EnvironmentFault, InputError
from ctmr.imaging.inference_path import finish, prepare
from ctmr.imaging.storage_types import STORAGE_DTYPE
from ctmr.imaging.volume import Volume
from ctmr.serving.export import ServedSpec
from ctmr.system.environment import TRITON_CONTROL_KEY
from ctmr.tracking.names import Part

DEADLINE_S = 600.0
"""For one volume, queueing and retries included."""
CONTROL_DEADLINE_S = 120.0
"""For loading and unloading."""
MESSAGE_BYTES = 2**31 - 1
"""gRPC's largest message; the served model's own `max_voxels` is the bound that matters."""
RETRY_PAUSE_S = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Pauses while the queue is full; the last one repeats until the deadline."""
VERSION_CHANGES = 5
"""Times a call follows the server to a newer version when the one that it prepared for is retired meanwhile."""

CONTROL_HEADER = "ctmr-control"
"""Key name of Triton's restricted protocols; the header is ``triton-grpc-protocol-<key name>``."""
# gRPC honours http_proxy even for loopback; images of patients go to the server that was named, or nowhere.
NO_PROXY: list[tuple[str, int]] = [("grpc.enable_http_proxy", 0)]

_QUEUE_FULL = "Exceeds maximum queue size"
_RESTRICTED = "protocol is restricted"
_NOISE = re.compile(r"\[request id: [^\]]*\]\s*|^in ensemble '[^']*',\s*")
_PATH = re.compile(r"(?<![\w.])/(?:[\w.@+-]+/)+[\w.@+-]*")

T = TypeVar("T")


class QueueFull(EnvironmentFault):
    """The server's queue stayed full until the deadline."""


class NotServed(EnvironmentFault):
    """The server does not serve the model, or not in this version."""


class Translated(NamedTuple):
    """Answer of the server: the image on its native voxels, and what made it."""

    volume: Volume
    spec: ServedSpec
    version: str


class ModelState(NamedTuple):
    """One line of the server's repository index."""

    model: str
    version: str
    state: str
    reason: str


class TritonClient:
    """Client of one Triton server. Use one client a thread, or as a context manager.

    Parameters
    ----------
    url
        gRPC address, ``host:port``.
    control_key
        What the server wants to hear before it loads, unloads or lists models; translating needs none.

    Examples
    --------
    T1 and T2 of one subject, as `ctmr.io.read_image` gives them, become a CT on their own voxels.

    >>> with TritonClient(url) as client:
    ...     ct, spec, version = client.translate_volume("tiny_mr2ct", [t1, t2])
    >>> ct.modality.value, ct.unit.value, version
    ('CT', 'HU', '2')
    >>> ct.array.shape == t1.array.shape
    True
    """

    def __init__(self, url: str, *, control_key: str = "") -> None:
        import tritonclient.grpc as triton

        self.url = url
        self._headers = {f"triton-grpc-protocol-{CONTROL_HEADER}": control_key} if control_key else {}
        options = [
            ("grpc.max_send_message_length", MESSAGE_BYTES),
            ("grpc.max_receive_message_length", MESSAGE_BYTES),
            *NO_PROXY,
        ]
        self._triton = triton
        self._client = triton.InferenceServerClient(url, channel_args=options)

    def __enter__(self) -> TritonClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def spec(self, model: str, version: str | None = None, *, deadline_s: float = 30.0) -> tuple[ServedSpec, str]:
        """Return the spec of a served version, and its number.

        Parameters
        ----------
        model
            ``<registered name>_<direction>``.
        version
            ``None``: the one that answers by default.

        Raises
        ------
        NotServed
            No such model or version is served.
        EnvironmentFault
            The server cannot be reached or fails.
        """
        answer, found = self._infer(model, None, ["spec"], version, deadline_s)
        return ServedSpec.from_json(answer["spec"].tobytes().decode(), where=f"spec of {model} at {self.url}"), found

    def translate_volume(
        self,
        model: str,
        volumes: Volume | Sequence[Volume],
        version: str | None = None,
        *,
        deadline_s: float = DEADLINE_S,
    ) -> Translated:
        """Translate an image.

        Parameters
        ----------
        model
            ``<registered name>_<direction>``.
        volumes
            One volume, or one a channel in the order of the spec's sequences.
        version
            ``None``: the one that answers by default; when it is replaced meanwhile, the image is prepared again for
            its successor, so that grid and weights are always of one version.
        deadline_s
            For everything together.

        Returns
        -------
        Translated
            Volume, spec and version; it unpacks like a tuple.

        Raises
        ------
        InputError
            The image does not fit the model, or the server refused it as unusable.
        EnvironmentFault
            The server cannot be reached, is too busy or fails.
        """
        channels = [volumes] if isinstance(volumes, Volume) else list(volumes)
        end = time.monotonic() + deadline_s
        for attempt in range(VERSION_CHANGES + 1):
            try:
                spec, served = self.spec(model, version, deadline_s=_left(end))
                _require_source(model, spec, channels)
                array, placement = prepare(channels, spec.grid)
                answer = self.translate_array(model, array, served, deadline_s=_left(end))
            except NotServed:
                if version is not None or attempt == VERSION_CHANGES:
                    raise
                time.sleep(min(0.05 * 2**attempt, _left(end)))
                continue
            volume = finish(answer, placement, modality=spec.target.modality, unit=spec.target.unit)
            return Translated(volume, spec, served)
        raise AssertionError("the last attempt returns or raises")

    def translate_array(
        self, model: str, array: NDArray[Any], version: str, *, deadline_s: float = DEADLINE_S
    ) -> NDArray[Any]:
        """Translate a prepared array ``[C, D, H, W]`` (from `prepare`) by one version; returns ``[D, H, W]``."""
        wanted = ["translation", "generator_version"]
        answer, _ = self._infer(model, array, wanted, version, deadline_s)
        by = str(int(answer["generator_version"][0]))
        if by != version:
            raise EnvironmentFault(
                f"{model} version {version} was answered by generator version {by}; "
                "do not trust the image, and deploy the model again"
            )
        return answer["translation"]

    def live_version(self, model: str) -> str | None:
        """Return the version that answers by default, None when the model is not served."""
        try:
            return self.spec(model)[1]
        except NotServed:
            return None

    def load(self, *triton_models: str) -> None:
        """Load Triton models, side by side, as the repository has them now.

        EnvironmentFault when a version that a policy names cannot be loaded; the other models are loaded all the same.
        """
        with ThreadPoolExecutor(len(triton_models)) as pool:
            calls = [pool.submit(self._load, name) for name in triton_models]
        for call in calls:
            call.result()

    def _load(self, name: str) -> None:
        self._control(
            f"{name} could not be loaded",
            lambda: self._client.load_model(name, headers=self._headers, client_timeout=CONTROL_DEADLINE_S),
        )

    def unload(self, triton_model: str) -> None:
        """Unload a Triton model; requests that it already has are answered first."""
        self._control(
            f"{triton_model} could not be unloaded",
            lambda: self._client.unload_model(triton_model, headers=self._headers, client_timeout=CONTROL_DEADLINE_S),
        )

    def index(self) -> tuple[ModelState, ...]:
        """Return the server's repository index."""
        found = self._control(
            "the models could not be listed",
            lambda: self._client.get_model_repository_index(headers=self._headers, client_timeout=30.0),
        )
        return tuple(ModelState(m.name, m.version, m.state, m.reason) for m in found.models)

    def _infer(
        self, model: str, array: NDArray[Any] | None, outputs: list[str], version: str | None, deadline_s: float
    ) -> tuple[dict[str, NDArray[Any]], str]:
        """Ask a volume model; returns its outputs by name and the version that answered."""
        inputs = []
        if array is not None:
            inputs = [self._triton.InferInput("volume", array.shape, array.dtype.name.upper())]
            inputs[0].set_data_from_numpy(np.ascontiguousarray(array))
        end = time.monotonic() + deadline_s
        for pause_s in _pauses():
            try:
                with self._translated_errors(f"{model}" + (f" version {version}" if version else "")):
                    result = self._client.infer(
                        f"{model}{Part.VOLUME}",
                        inputs,
                        model_version=version or "",
                        outputs=[self._triton.InferRequestedOutput(name) for name in outputs],
                        client_timeout=_left(end),
                    )
            except QueueFull:
                if time.monotonic() + pause_s >= end:
                    raise
                time.sleep(pause_s)
                continue
            return {name: result.as_numpy(name) for name in outputs}, str(result.get_response().model_version)
        raise AssertionError("the pauses never end")

    def _control(self, what: str, call: Callable[[], T]) -> T:
        with self._translated_errors(what):
            return call()

    @contextlib.contextmanager
    def _translated_errors(self, what: str) -> Iterator[None]:
        """Turn the client library's errors into one sentence that gives away nothing of the server's disk."""
        from tritonclient.utils import InferenceServerException

        try:
            yield
        except InferenceServerException as error:
            status = str(error.status() or "").removeprefix("StatusCode.")
            message = _PATH.sub("…", _NOISE.sub("", str(error.message()))).strip().rstrip(".").split("\n")[0]
            place = f"{what} at {self.url}"
            if status == "INVALID_ARGUMENT":
                raise InputError(f"{place}: {message}") from None
            if status == "UNAVAILABLE" and _QUEUE_FULL in message:
                raise QueueFull(f"{place}: the server's queue stayed full; try again later or add replicas") from None
            if status == "UNAVAILABLE" and _RESTRICTED in message:
                raise EnvironmentFault(
                    f"{place}: the server keeps this to those who know its key; set {TRITON_CONTROL_KEY} to it"
                ) from None
            if status == "NOT_FOUND" or "is not ready" in message or "not at ready state" in message:
                raise NotServed(f"{place}: {message}; deploy it, or start Triton with `ctmr up`") from None
            if status == "DEADLINE_EXCEEDED":
                raise EnvironmentFault(f"{place}: no answer before the deadline; look at the server's log") from None
            if status == "UNAVAILABLE":
                raise EnvironmentFault(f"{place}: {message}; is Triton running (`ctmr status`)?") from None
            raise EnvironmentFault(f"{place}: {message}") from None


def _require_source(model: str, spec: ServedSpec, channels: list[Volume]) -> None:
    source = spec.source
    if len(channels) != spec.channels:
        named = f" ({', '.join(source.sequences)})" if source.sequences else ""
        raise InputError(f"{model} takes {spec.channels} volumes{named}; {len(channels)} were given")
    for number, volume in enumerate(channels):
        label = volume.uid or volume.subject or f"channel {number + 1}"
        if (volume.modality, volume.unit) != (source.modality, source.unit):
            raise InputError(
                f"image {label!r} is {volume.modality} in unit {volume.unit}; "
                f"{model} takes {source.modality} in unit {source.unit}"
            )
        wanted = source.sequences[number] if source.sequences else ""
        if wanted and volume.sequence and volume.sequence != wanted:
            raise InputError(f"image {label!r} is {volume.sequence}; channel {number + 1} of {model} takes {wanted}")


def probe(spec: ServedSpec) -> NDArray[Any]:
    """Return a small made-up volume ``[C, 2, H, W]`` that every version can take: a ramp, never constant."""
    dtype = STORAGE_DTYPE[spec.source.unit]
    (height, width), top = spec.grid.size, 255 if dtype.itemsize == 1 else 1000
    ramp = np.add.outer(np.arange(height), np.arange(width)) * top // (height + width - 2)
    return np.broadcast_to(ramp, (spec.channels, 2, height, width)).astype(dtype)


def _left(end: float) -> float:
    return max(0.001, end - time.monotonic())


def _pauses() -> Iterator[float]:
    yield from RETRY_PAUSE_S
    while True:
        yield RETRY_PAUSE_S[-1]
