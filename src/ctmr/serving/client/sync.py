"""Client of one Triton server that waits for each answer, and that loads and unloads models."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

from numpy.typing import NDArray

from ctmr.imaging.volume import Volume
from ctmr.serving import interface
from ctmr.serving.client import connection, request
from ctmr.serving.client.answers import NotServed, fault_of
from ctmr.serving.client.connection import Tls
from ctmr.serving.client.request import SPEC_ONLY, ModelState, Request, Translated
from ctmr.serving.client.retry import Attempts, Retried
from ctmr.serving.export import ServedSpec
from ctmr.system.progress import Progress, silent
from ctmr.tracking.names import Part

DEADLINE_S = 600.0
"""For one volume, queueing and retries included."""
SPEC_DEADLINE_S = 30.0
CONTROL_DEADLINE_S = 120.0
"""For loading and unloading."""

T = TypeVar("T")


class TritonClient:
    """Client of one Triton server. Use one client a thread, or as a context manager.

    Parameters
    ----------
    url
        gRPC address, ``host:port``. No proxy of the environment is ever used.
    control_key
        What the server wants to hear before it loads, unloads or lists models; translating needs none.
    tls
        Files of an encrypted connection; ``None``: plain.
    patience_s
        How long a translation waits for a server or model process that is gone and may come back; 0: not at all.

    Examples
    --------
    T1 and T2 of one subject, as `ctmr.io.read_image` gives them, become a CT on their own voxels.

    >>> with TritonClient(url) as client:
    ...     answer = client.translate_volume("tiny_mr2ct", [t1, t2], uncertainty=True)
    >>> answer.volume.modality.value, answer.volume.unit.value, answer.version
    ('CT', 'HU', '2')
    >>> answer.volume.array.shape == t1.array.shape == answer.uncertainty.map.shape
    True
    """

    def __init__(self, url: str, *, control_key: str = "", tls: Tls | None = None, patience_s: float = 0.0) -> None:
        import tritonclient.grpc as triton

        self.url, self.patience_s = url, patience_s
        self._headers = connection.control_headers(control_key)
        self._triton = triton
        self._client = triton.InferenceServerClient(url, **connection.arguments(tls))

    def __enter__(self) -> TritonClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def spec(
        self, model: str, version: str | None = None, *, deadline_s: float = SPEC_DEADLINE_S
    ) -> tuple[ServedSpec, str]:
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
        answer, found = self._infer(model, SPEC_ONLY, version, Attempts(deadline_s))
        return request.spec_of(answer, f"{model} at {self.url}"), found

    def translate_volume(
        self,
        model: str,
        volumes: Volume | Sequence[Volume],
        version: str | None = None,
        *,
        uncertainty: bool = False,
        deadline_s: float = DEADLINE_S,
        report: Progress = silent,
    ) -> Translated:
        """Translate an image.

        Parameters
        ----------
        model
            ``<registered name>_<direction>``.
        volumes
            One volume, or one a channel in the order of the spec's sequences.
        version
            ``None``: the one that answers by default. Grid and weights are always of one version.
        uncertainty
            Ask for the uncertainty map and figure; the server then works twice as long.
        deadline_s
            For everything together.
        report
            Told what is sent, and of every pause.

        Returns
        -------
        Translated
            Volume, spec, version, findings and, on request, uncertainty.

        Raises
        ------
        InputError
            The image does not fit the model, or the server refused it as unusable.
        EnvironmentFault
            The server cannot be reached, is too busy or fails.
        """
        channels = [volumes] if isinstance(volumes, Volume) else list(volumes)
        asked = request.image_request(channels, uncertainty=uncertainty)
        report(f"sending {request.megabytes(asked):.1f} MB to {self.url}", 0.0)
        attempts = Attempts(deadline_s, patience_s=self.patience_s, follow=version is None, report=report)
        answer, served = self._infer(model, asked, version, attempts)
        return request.translated(answer, served, channels, model, self.url)

    def translate_array(
        self, model: str, array: NDArray[Any], version: str, *, deadline_s: float = DEADLINE_S
    ) -> NDArray[Any]:
        """Translate an array ``[C, D, H, W]`` that lies on the model's grid; returns ``[D, H, W]``."""
        attempts = Attempts(deadline_s, patience_s=self.patience_s)
        answer, _ = self._infer(model, request.grid_request(array), version, attempts)
        request.require_version(answer, version, model)
        return answer[interface.TRANSLATION]

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
        self, model: str, asked: Request, version: str | None, attempts: Attempts
    ) -> tuple[dict[str, NDArray[Any]], str]:
        """Ask a volume model; returns its outputs by name and the version that answered."""
        inputs, outputs = asked.tensors(self._triton)
        while True:
            try:
                with self._translated_errors(f"{model}" + (f" version {version}" if version else "")):
                    result = self._client.infer(
                        f"{model}{Part.VOLUME}",
                        inputs,
                        model_version=version or "",
                        outputs=outputs,
                        client_timeout=attempts.left_s,
                    )
                return {n: result.as_numpy(n) for n in asked.outputs}, str(result.get_response().model_version)
            except Retried as error:
                time.sleep(attempts.pause_s(error))

    def _control(self, what: str, call: Callable[[], T]) -> T:
        with self._translated_errors(what):
            return call()

    @contextlib.contextmanager
    def _translated_errors(self, what: str) -> Iterator[None]:
        from tritonclient.utils import InferenceServerException

        try:
            yield
        except InferenceServerException as error:
            raise fault_of(error, what, self.url) from None
