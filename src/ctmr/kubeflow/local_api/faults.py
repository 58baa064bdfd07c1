"""Faults that a caller is told about, in the error form of the Kubeflow Pipelines API."""

from __future__ import annotations

from enum import IntEnum
from typing import Any


class FaultCode(IntEnum):
    """The codes of google.rpc.Code that this server uses."""

    INVALID_ARGUMENT = 3
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    FAILED_PRECONDITION = 9
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16

    @property
    def http(self) -> int:
        """HTTP status that google/rpc/code.proto assigns."""
        return _HTTP[self]


_HTTP = {
    FaultCode.INVALID_ARGUMENT: 400,
    FaultCode.NOT_FOUND: 404,
    FaultCode.ALREADY_EXISTS: 409,
    FaultCode.PERMISSION_DENIED: 403,
    FaultCode.FAILED_PRECONDITION: 400,
    FaultCode.ABORTED: 409,
    FaultCode.UNIMPLEMENTED: 501,
    FaultCode.INTERNAL: 500,
    FaultCode.UNAVAILABLE: 503,
    FaultCode.UNAUTHENTICATED: 401,
}

OF_EXIT_CODE = {1: FaultCode.FAILED_PRECONDITION, 2: FaultCode.INVALID_ARGUMENT, 3: FaultCode.UNAVAILABLE}
"""Exit code of `ctmr.errors` → code in a failed run's ``error``; a client finds the exit code again by it."""


class ApiError(Exception):
    """A request that cannot be answered as asked.

    Parameters
    ----------
    code
        Kind of the fault.
    sentence
        Names the thing, the value found, what is allowed.
    status
        HTTP status, where it is not the code's own.
    """

    def __init__(self, code: FaultCode, sentence: str, status: int = 0) -> None:
        super().__init__(sentence)
        self.code = code
        self.status = status or code.http

    def document(self) -> dict[str, Any]:
        """Return the API's error JSON."""
        return {"error": str(self), "code": int(self.code), "message": str(self), "details": []}


def invalid(sentence: str) -> ApiError:
    """Return the fault of a request that says something impossible."""
    return ApiError(FaultCode.INVALID_ARGUMENT, sentence)


def not_found(what: str, key: str) -> ApiError:
    """Return the fault of a thing that is not there."""
    return ApiError(FaultCode.NOT_FOUND, f"there is no {what} {key!r} here")
