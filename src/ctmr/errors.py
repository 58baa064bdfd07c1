"""Errors that a person can act on, each with the exit code its kind ends a command with."""

import re

_RAW_BYTE = re.compile("[\udc80-\udcff]")
"""How Python keeps a byte of a file name that is not UTF-8 (PEP 383)."""
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What terminals obey instead of showing it: control characters but tab and line feed, and turns of direction."""


_PASSWORD = re.compile(r"(?<=://)([^/:@\s]*):\S*@")
_TOKEN = re.compile(r"\b(https?://)[^/?#:@\s]+@")
"""A user of a web address without a password: how hosts of repositories take tokens."""
_SECRET = re.compile(r"([?&](?:[^=&\s]*(?:password|secret|token|key|signature)[^=&\s]*|sig)=)[^&\s]*", re.IGNORECASE)


def without_secrets(text: str) -> str:
    """Return text in which ``***`` stands for an address's password or token, and for secrets in its query."""
    return _SECRET.sub(r"\1***", _TOKEN.sub(r"\1***@", _PASSWORD.sub(r"\1:***@", text)))


def visible(text: str) -> str:
    r"""Return text that can be printed and stored anywhere.

    Bytes of file names that are not UTF-8, and control characters, become ``\xNN`` or ``\uNNNN``.
    """
    escaped = _RAW_BYTE.sub(lambda c: f"\\x{ord(c[0]) - 0xDC00:02x}", text)
    escaped = _CONTROL.sub(lambda c: f"\\x{ord(c[0]):02x}" if c[0] < "\u0100" else f"\\u{ord(c[0]):04x}", escaped)
    return escaped.encode("utf-8", "backslashreplace").decode()


class CtmrError(Exception):
    """Base of every error that ends a command with one sentence instead of a traceback.

    The message names the thing, the value found, what is allowed and what to do; never a password of an address.
    """

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(visible(without_secrets(message)))


class GateFailed(CtmrError):
    """A model was measured and is not good enough; nothing was registered or deployed. Exit code 1."""

    exit_code = 1


class InputError(CtmrError):
    """Something the user gave (file, recipe, option) cannot be used. Exit code 2."""

    exit_code = 2


class EnvironmentFault(CtmrError):
    """The machine, a server or a store failed, not the input. Exit code 3."""

    exit_code = 3
