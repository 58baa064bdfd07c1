"""Errors of a Triton server as this package's own: one sentence that gives away nothing of the server's disk."""

from __future__ import annotations

import re
from typing import Any

from ctmr.errors import CtmrError, EnvironmentFault, InputError
from ctmr.system.environment import TRITON_CONTROL_KEY

_QUEUE_FULL = "Exceeds maximum queue size"
_RESTRICTED = "protocol is restricted"
_NOT_SERVED = ("is not ready", "not at ready state")
_DEAD = ("stub process", "is not healthy")
_NOISE = re.compile(r"\[request id: [^\]]*\]\s*|^in ensemble '[^']*',\s*")
_PATH = re.compile(r"(?<![\w.])/(?:[\w.@+-]+/)+[\w.@+-]*")


class QueueFull(EnvironmentFault):
    """The server's queue stayed full until the deadline."""


class NotServed(EnvironmentFault):
    """The server does not serve the model, or not in this version."""


class Lost(EnvironmentFault):
    """The server, or the process behind the model, is gone or not there yet."""


def fault_of(error: Any, what: str, url: str) -> CtmrError:
    """Return what an `InferenceServerException` of a call means to whoever made it.

    Parameters
    ----------
    what
        The call's model and version, or what was wanted, as the sentence begins.
    url
        The server's address.
    """
    status = str(error.status() or "").rpartition("StatusCode.")[2]
    message = _PATH.sub("…", _NOISE.sub("", str(error.message()))).strip().rstrip(".").split("\n")[0]
    place = f"{what} at {url}"
    if status == "INVALID_ARGUMENT":
        return InputError(f"{place}: {message}")
    if status == "UNAVAILABLE" and _QUEUE_FULL in message:
        return QueueFull(f"{place}: the server's queue stayed full; try again later or add replicas")
    if status == "UNAVAILABLE" and _RESTRICTED in message:
        return EnvironmentFault(
            f"{place}: the server keeps this to those who know its key; set {TRITON_CONTROL_KEY} to it"
        )
    if any(word in message.lower() for word in _DEAD):
        return Lost(f"{place}: the process behind the model is gone; deploy it again, or restart Triton")
    if status == "NOT_FOUND" or any(words in message for words in _NOT_SERVED):
        return NotServed(f"{place}: {message}; deploy it, or start Triton with `ctmr up`")
    if status == "DEADLINE_EXCEEDED":
        return EnvironmentFault(f"{place}: no answer before the deadline; look at the server's log")
    if status == "UNAVAILABLE":
        return Lost(f"{place}: {message}; is Triton running (`ctmr status`)?")
    return EnvironmentFault(f"{place}: {message}")
