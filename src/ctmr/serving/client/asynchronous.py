"""Client of one Triton server for asyncio: many translations at a time in one thread."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from ctmr.imaging.volume import Volume
from ctmr.serving.client import connection, request
from ctmr.serving.client.answers import fault_of
from ctmr.serving.client.connection import Tls
from ctmr.serving.client.request import SPEC_ONLY, Request, Translated
from ctmr.serving.client.retry import Attempts, Retried
from ctmr.serving.export import ServedSpec
from ctmr.system.progress import Progress, silent
from ctmr.tracking.names import Part


class AsyncTritonClient:
    """Client of one Triton server; its methods do what those of `TritonClient` do, and are awaited.

    A task that is cancelled ends its call, and the server stops translating at the next slices.

    Parameters
    ----------
    url, tls, patience_s
        As of `TritonClient`.
    """

    def __init__(self, url: str, *, tls: Tls | None = None, patience_s: float = 0.0) -> None:
        import tritonclient.grpc.aio as triton

        self.url, self.patience_s = url, patience_s
        self._triton = triton
        self._client = triton.InferenceServerClient(url, **connection.arguments(tls))

    async def __aenter__(self) -> AsyncTritonClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()

    async def spec(self, model: str, version: str | None = None, *, deadline_s: float = 30.0) -> tuple[ServedSpec, str]:
        """Return the spec of a served version, and its number."""
        answer, found = await self._infer(model, SPEC_ONLY, version, Attempts(deadline_s))
        return request.spec_of(answer, f"{model} at {self.url}"), found

    async def translate_volume(
        self,
        model: str,
        volumes: Volume | Sequence[Volume],
        version: str | None = None,
        *,
        uncertainty: bool = False,
        deadline_s: float = 600.0,
        report: Progress = silent,
    ) -> Translated:
        """Translate an image; see `TritonClient.translate_volume`."""
        channels = [volumes] if isinstance(volumes, Volume) else list(volumes)
        asked = request.image_request(channels, uncertainty=uncertainty)
        report(f"sending {request.megabytes(asked):.1f} MB to {self.url}", 0.0)
        attempts = Attempts(deadline_s, patience_s=self.patience_s, follow=version is None, report=report)
        answer, served = await self._infer(model, asked, version, attempts)
        return request.translated(answer, served, channels, model, self.url)

    async def _infer(
        self, model: str, asked: Request, version: str | None, attempts: Attempts
    ) -> tuple[dict[str, NDArray[Any]], str]:
        from tritonclient.utils import InferenceServerException

        inputs, outputs = asked.tensors(self._triton)
        while True:
            try:
                try:
                    result = await self._client.infer(
                        f"{model}{Part.VOLUME}",
                        inputs,
                        model_version=version or "",
                        outputs=outputs,
                        client_timeout=attempts.left_s,
                    )
                except InferenceServerException as error:
                    raise fault_of(error, model + (f" version {version}" if version else ""), self.url) from None
                return {n: result.as_numpy(n) for n in asked.outputs}, str(result.get_response().model_version)
            except Retried as error:
                await asyncio.sleep(attempts.pause_s(error))
