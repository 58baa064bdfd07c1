"""Bounds on what a file unpacks to, known before memory is taken for it."""

from __future__ import annotations

import io
import zlib

from ctmr.errors import InputError

ALWAYS_BYTES = 2**29
"""What a file may unpack to whatever its own size: empty images and masks compress well."""
MAXIMUM_BYTES = 2**33
INFLATED_BYTES = 2**28
"""What a deflated file may unpack to that says nothing of it before: all of it is in memory at once."""
MAXIMUM_RATIO = 200
"""Beyond `ALWAYS_BYTES`, as of archives (`ctmr.datasets.dvc.archives`): a file that unpacks to more is a bomb."""
_RAW_DEFLATE = -zlib.MAX_WBITS
_CHUNK_BYTES = 2**20


def require_bounded(size: float, packed: int, name: str) -> None:
    """Raise InputError when a file claims to unpack to more than an image of its size can.

    Parameters
    ----------
    size
        Bytes that it claims.
    packed
        Bytes that it has.
    name
        What messages call it.
    """
    allowed = min(MAXIMUM_BYTES, max(ALWAYS_BYTES, MAXIMUM_RATIO * packed))
    if size > allowed:
        raise InputError(f"{name} claims {size:.3g} bytes of voxels in {packed} bytes; at most {allowed} are read")


def inflate(data: bytes, out: io.BytesIO, name: str) -> None:
    """Unpack a raw deflate stream; InputError beyond `INFLATED_BYTES`, zlib.error when it is damaged."""
    engine = zlib.decompressobj(_RAW_DEFLATE)
    rest = data
    # In pieces: asked for all at once, zlib doubles its buffer up to the limit.
    while rest and not engine.eof:
        out.write(engine.decompress(rest, _CHUNK_BYTES))
        rest = engine.unconsumed_tail
        if out.tell() > INFLATED_BYTES:
            raise InputError(f"{name} unpacks to more than {INFLATED_BYTES} bytes from {len(data)}; export it again")
    if not engine.eof:
        raise zlib.error("the compressed data is cut off")
