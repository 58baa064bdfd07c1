"""Connection to a Triton server: TLS, message sizes, no proxy, the key of restricted protocols."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctmr.errors import InputError
from ctmr.system.environment import TRITON_CA, TRITON_CERTIFICATE, TRITON_KEY

MESSAGE_BYTES = 2**31 - 1
"""gRPC's largest message; the served model's own `max_voxels` is the bound that matters."""
CONTROL_HEADER = "ctmr-control"
"""Key name of Triton's restricted protocols; the header is ``triton-grpc-protocol-<key name>``."""
# gRPC honours http_proxy even for loopback; images of patients go to the server that was named, or nowhere.
NO_PROXY: list[tuple[str, int]] = [("grpc.enable_http_proxy", 0)]


@dataclass(frozen=True)
class Tls:
    """Files, in PEM, of an encrypted connection.

    Attributes
    ----------
    ca
        Certificates that the server's must lead to; ``None``: those of gRPC.
    certificate, key
        This client's own, where the server asks for one (mutual TLS); both or none.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) is not (self.key is None):
            raise InputError(
                f"mutual TLS needs certificate and key, and one was given; set {TRITON_CERTIFICATE} and {TRITON_KEY}"
            )
        for file in (self.ca, self.certificate, self.key):
            if file is not None and not file.is_file():
                raise InputError(f"{file} is no file; TLS with Triton needs it in PEM")

    @staticmethod
    def of_environment() -> Tls | None:
        """Return what the environment says; ``None``: connections are not encrypted."""
        ca, certificate, key = (os.environ.get(name, "") for name in (TRITON_CA, TRITON_CERTIFICATE, TRITON_KEY))
        if not (ca or certificate or key):
            return None
        return Tls(*(Path(value) if value else None for value in (ca, certificate, key)))


def arguments(tls: Tls | None) -> dict[str, Any]:
    """Return what `tritonclient` connects with."""
    options = [
        ("grpc.max_send_message_length", MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MESSAGE_BYTES),
        *NO_PROXY,
    ]
    if tls is None:
        return {"channel_args": options}
    files = {"root_certificates": tls.ca, "private_key": tls.key, "certificate_chain": tls.certificate}
    return {"channel_args": options, "ssl": True} | {k: None if f is None else str(f) for k, f in files.items()}


def control_headers(key: str) -> dict[str, str]:
    """Return the headers of calls that the server keeps to those who know its key."""
    return {f"triton-grpc-protocol-{CONTROL_HEADER}": key} if key else {}
