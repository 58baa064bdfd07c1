"""The HTTP side of the local runner: routes, who may call them, the API's JSON in and out."""

from __future__ import annotations

import io
import json
import logging
import secrets
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.message import Message
from typing import Any, NamedTuple, NoReturn

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.formparser import FormDataParser

from ctmr.kubeflow.local_api import FOLDER, NAME, TOKEN_FILE, TOKEN_VARIABLE
from ctmr.kubeflow.local_api.api import Api
from ctmr.kubeflow.local_api.faults import ApiError, FaultCode, invalid
from ctmr.kubeflow.local_api.queue import RunQueue
from ctmr.system.environment import HOME

BASE = "/apis/v2beta1"
LARGEST_BODY_BYTES = 32 * 2**20
SERVED = "experiments, runs (create, get, list, terminate, archive, delete) and uploaded pipelines with their versions"
_JSON, _FORM = "application/json", "multipart/form-data"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Call:
    """Contents of a request.

    Attributes
    ----------
    path, query
        Variables of the path, parameters of the URL.
    body
        JSON object of the body; empty without one.
    upload
        Content of the uploaded file.
    """

    path: Mapping[str, str]
    query: Mapping[str, str]
    body: dict[str, Any] = field(default_factory=dict)
    upload: bytes = b""


class _Served(NamedTuple):
    method: str
    path: str
    answer: Callable[[Api, Call], dict[str, Any]]
    takes: str = _JSON


_CALLS = (
    _Served("GET", "/healthz", lambda api, call: api.health()),
    _Served("POST", "/experiments", lambda api, call: api.create_experiment(call.body)),
    _Served("GET", "/experiments", lambda api, call: api.list_experiments(call.query)),
    _Served("POST", "/experiments/{id}:archive", lambda api, call: api.store_experiment(call.path["id"], "ARCHIVED")),
    _Served(
        "POST", "/experiments/{id}:unarchive", lambda api, call: api.store_experiment(call.path["id"], "AVAILABLE")
    ),
    _Served("GET", "/experiments/{id}", lambda api, call: api.get_experiment(call.path["id"])),
    _Served("DELETE", "/experiments/{id}", lambda api, call: api.delete_experiment(call.path["id"])),
    _Served("POST", "/pipelines/upload", lambda api, call: api.upload_pipeline(call.query, call.upload), _FORM),
    _Served("POST", "/pipelines/upload_version", lambda api, call: api.upload_version(call.query, call.upload), _FORM),
    _Served("GET", "/pipelines", lambda api, call: api.list_pipelines(call.query)),
    _Served("GET", "/pipelines/names/{name}", lambda api, call: api.get_pipeline_by_name(call.path["name"])),
    _Served("GET", "/pipelines/{id}", lambda api, call: api.get_pipeline(call.path["id"])),
    _Served("DELETE", "/pipelines/{id}", lambda api, call: api.delete_pipeline(call.path["id"])),
    _Served("GET", "/pipelines/{id}/versions", lambda api, call: api.list_versions(call.path["id"], call.query)),
    _Served(
        "GET",
        "/pipelines/{id}/versions/{version}",
        lambda api, call: api.get_version(call.path["id"], call.path["version"]),
    ),
    _Served(
        "DELETE",
        "/pipelines/{id}/versions/{version}",
        lambda api, call: api.delete_version(call.path["id"], call.path["version"]),
    ),
    _Served("POST", "/runs", lambda api, call: api.create_run(call.body)),
    _Served("GET", "/runs", lambda api, call: api.list_runs(call.query)),
    _Served("POST", "/runs/{id}:terminate", lambda api, call: api.terminate_run(call.path["id"])),
    _Served("POST", "/runs/{id}:archive", lambda api, call: api.store_run(call.path["id"], "ARCHIVED")),
    _Served("POST", "/runs/{id}:unarchive", lambda api, call: api.store_run(call.path["id"], "AVAILABLE")),
    _Served("GET", "/runs/{id}", lambda api, call: api.get_run(call.path["id"])),
    _Served("DELETE", "/runs/{id}", lambda api, call: api.delete_run(call.path["id"])),
)


def application(api: Api, queue: RunQueue, port: int, token: str) -> Starlette:
    """Return the ASGI application; its lifespan starts and stops the queue.

    Parameters
    ----------
    port
        Where it is served on loopback: requests must name it.
    token
        What its owner alone can read, and every call must carry.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        queue.start()
        yield
        await run_in_threadpool(queue.stop)

    return Starlette(
        routes=[Route(BASE + c.path, _endpoint(api, c), methods=[c.method]) for c in _CALLS],
        middleware=[Middleware(OwnerOnly, port=port, token=token)],
        exception_handlers={
            ApiError: _refused,
            HTTPException: _not_served,
            OSError: _unavailable,
            sqlite3.Error: _unavailable,
            Exception: _internal,
        },
        lifespan=lifespan,
    )


class OwnerOnly:
    """Refuses what a web page could make a browser send here, and what another user of the machine sends.

    A page of another site reaches loopback by a name of its own (DNS rebinding), which ``Host`` tells, or across
    origins, which ``Origin`` and ``Sec-Fetch-Site`` tell. Beside that, a call that changes something must come as JSON,
    which a browser sends to another origin only after asking, or is an upload. Every call carries the token, as ``kfp``
    does with ``--existing-token``: a pipeline runs as the owner of this server.

    Parameters
    ----------
    app
        What is behind.
    port
        Port of this server.
    token
        The bearer token.
    """

    def __init__(self, app: ASGIApp, port: int, token: str) -> None:
        self._app = app
        self._bearer = f"Bearer {token}".encode()
        self._hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer why not."""
        if scope["type"] == "http" and (why := self._objection(Request(scope))):
            await _answer(why)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _objection(self, request: Request) -> ApiError | None:
        headers = request.headers
        hosts = headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return _forbidden(f"the Host header is {hosts}; allowed are {sorted(self._hosts)}")
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in {f"http://{host}" for host in self._hosts}:
            return _forbidden(f"the request comes from a page of {origin!r}; web pages may not call this server")
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return _forbidden("the request comes from a page of another site; web pages may not call this server")
        if not secrets.compare_digest(headers.get("authorization", "").encode(), self._bearer):
            sentence = (
                "the call carries no token, or a wrong one; this server obeys its owner alone: export "
                f'{TOKEN_VARIABLE}="$(cat "${{{HOME}:-.ctmr}}/{FOLDER}/{TOKEN_FILE}")"'
            )
            return ApiError(FaultCode.UNAUTHENTICATED, f"{sentence} (this is the {NAME})")
        return None


def _endpoint(api: Api, served: _Served) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        call = Call(request.path_params, request.query_params)
        if served.method != "GET":
            kind, options = _content_type(request)
            if kind != served.takes:
                sentence = f"the Content-Type is {kind}; this call takes {served.takes}"
                raise ApiError(FaultCode.INVALID_ARGUMENT, sentence, 415)
            content = await _body(request)
            if served.takes == _FORM:
                call = Call(call.path, call.query, upload=_upload(content, options))
            else:
                call = Call(call.path, call.query, body=_tree(content))
        return JSONResponse(await run_in_threadpool(served.answer, api, call))

    return endpoint


async def _body(request: Request) -> bytes:
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > LARGEST_BODY_BYTES:
            limit = LARGEST_BODY_BYTES // 2**20
            raise ApiError(FaultCode.INVALID_ARGUMENT, f"the request's body exceeds {limit} MiB", 413)
    return bytes(content)


def _tree(content: bytes) -> dict[str, Any]:
    if not content.strip():
        return {}
    try:
        tree = json.loads(content, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise invalid(f"the request's body is not JSON: {error}") from None
    if not isinstance(tree, dict):
        raise invalid("the request's body is not a JSON object")
    return tree


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _upload(content: bytes, options: dict[str, str]) -> bytes:
    parser = FormDataParser(max_form_memory_size=LARGEST_BODY_BYTES, max_form_parts=20, silent=False)
    try:
        _, _, files = parser.parse(io.BytesIO(content), _FORM, len(content), options)
        uploaded: bytes = files["uploadfile"].read()
    except (ValueError, KeyError, RequestEntityTooLarge) as error:
        raise invalid(f"the upload has no file 'uploadfile' ({error})") from None
    return uploaded


def _content_type(request: Request) -> tuple[str, dict[str, str]]:
    header = Message()
    header["content-type"] = request.headers.get("content-type", "")
    return header.get_content_type(), {k: v for k, v in header.get_params(failobj=[]) if v}


def _forbidden(sentence: str) -> ApiError:
    return ApiError(FaultCode.PERMISSION_DENIED, f"{sentence} (this is the {NAME})")


def _answer(error: ApiError) -> JSONResponse:
    return JSONResponse(error.document(), status_code=error.status)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _answer(error)


async def _not_served(request: Request, error: Exception) -> Response:
    known = request.url.path.startswith("/apis/")
    what = f"does not serve {request.method} {request.url.path}" if known else "has no web page"
    sentence = f"this is the {NAME}, not Kubeflow; it {what}. It serves {SERVED}, below {BASE}"
    return _answer(ApiError(FaultCode.UNIMPLEMENTED if known else FaultCode.NOT_FOUND, sentence))


async def _unavailable(request: Request, error: Exception) -> Response:
    log.error("%s %s: %s", request.method, request.url.path, error)
    sentence = f"the {NAME} cannot write or read its records: {error}; make room on the disk or look at its rights"
    return _answer(ApiError(FaultCode.UNAVAILABLE, sentence))


async def _internal(request: Request, error: Exception) -> Response:
    sentence = f"the {NAME} failed on {request.method} {request.url.path}: {type(error).__name__}; its log says more"
    return _answer(ApiError(FaultCode.INTERNAL, sentence))
