"""Stored pixel values of DICOM files: native ones straight from the file, compressed ones through a decoder process."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.pixels import get_decoder
from pydicom.uid import JPEGExtended12Bit

from ctmr.errors import InputError
from ctmr.io.bounds import require_bounded
from ctmr.io.dicom.headers import Header, opened, photometric_of, short

DECODE_TIMEOUT_S = 300.0
"""A file that takes longer to decode hangs its codec."""
_WORD = 16
_JPEG_BITS = 8


def stored_frames(header: Header, shape: tuple[int, int], count: int) -> Iterator[NDArray[Any]]:
    """Yield a file's frames in stored order, as integers of the type that the header describes.

    Parameters
    ----------
    header
        Of the file.
    shape, count
        Rows and columns, number of frames.

    Yields
    ------
    array
        ``[rows, columns]``; overwritten by the next one.

    Raises
    ------
    InputError
        No pixel data, too little of it, or a compression that nothing here decodes.
    """
    if header.pixels_at >= 0 and header.number("BitsAllocated") == _WORD:
        yield from _native_words(header, shape, count)
        return
    try:
        values = _decoded(header, count * shape[0] * shape[1])
    except InputError:
        raise
    except Exception as error:
        # pydicom raises many types here; each means that this file gives no pixels.
        raise InputError(f"{header.name} has damaged pixel data ({short(error)}); export the series again") from error
    if values.shape != (count, *shape):
        raise InputError(
            f"{header.name} has damaged pixel data (shape {values.shape}, the header says {(count, *shape)}); "
            "export the series again"
        )
    for frame in values:
        yield _meaningful(frame, header)


def _meaningful(values: NDArray[Any], header: Header) -> NDArray[Any]:
    """Return values without what stands in bits above BitsStored, which means nothing (PS3.5 8.1.1).

    Old files keep overlays there, and a codec hands them out as it found them.
    """
    width = 8 * values.dtype.itemsize
    unused = width - int(header.number("BitsStored") or width)
    return (values << unused) >> unused if values.dtype.kind in "iu" and 0 < unused < width else values


def _native_words(header: Header, shape: tuple[int, int], count: int) -> Iterator[NDArray[Any]]:
    """Read uncompressed 16-bit pixels into one buffer: no copy of the file, no parsing of it a second time."""
    kind = "i2" if header.number("PixelRepresentation") == 1 else "u2"
    needed = shape[0] * shape[1] * (_WORD // 8) * count
    # A byte of padding and the like may follow; a whole plane more than the header tells of is another image's data.
    if not needed <= header.pixels_length < needed + needed // count:
        raise InputError(
            f"{header.name} has damaged pixel data ({header.pixels_length} bytes, {needed} are needed); "
            "export the series again"
        )
    buffer = np.empty(shape, (">" if not header.syntax.is_little_endian else "<") + kind)
    with opened(header.source) as stream:
        stream.seek(header.pixels_at)
        for _ in range(count):
            content = buffer.view(np.uint8).data.cast("B")
            if _read_into(stream, content) < len(content):
                raise InputError(f"{header.name} has damaged pixel data (the file is cut off); export the series again")
            values = buffer if buffer.dtype.isnative else buffer.astype(buffer.dtype.newbyteorder("="))
            yield _meaningful(values, header)


def _read_into(stream: Any, content: memoryview) -> int:
    if hasattr(stream, "readinto"):
        return int(stream.readinto(content))
    data = stream.read(len(content))
    content[: len(data)] = data
    return len(data)


def _decoded(header: Header, count: int) -> NDArray[Any]:
    """Return ``[frames, rows, columns]`` through pydicom: here for what is native, else in the decoder."""
    if header.syntax.is_transfer_syntax and header.syntax.is_encapsulated:
        _require_codec(header)
        with opened(header.source) as stream:
            content = stream.read()
        size = count * int(header.number("BitsAllocated") or _WORD) // 8
        require_bounded(size, len(content), header.name)
        return _decoder.decode(content, size, header.name)
    with opened(header.source) as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(stream, force=True)
        if not getattr(dataset, "file_meta", None):
            dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = header.syntax
        dataset.PhotometricInterpretation = photometric_of(dataset)
        values: NDArray[Any] = dataset.pixel_array
    return values.reshape(-1, *values.shape[-2:])


def _require_codec(header: Header) -> None:
    try:
        decoder = get_decoder(header.syntax)
    except NotImplementedError:
        decoder = None
    available = decoder is not None and decoder.is_available
    if header.syntax == JPEGExtended12Bit and header.number("BitsStored") != _JPEG_BITS:
        # pydicom finds its decoders available, and each then says that it knows 8 bits only.
        available = find_spec("gdcm") is not None
    if not available:
        raise InputError(
            f"{header.name} is compressed ({header.syntax.name}, {header.number('BitsStored') or 0:g} bits) and no "
            "decoder here reads it; export the series uncompressed"
        )


class _Decoder:
    """The decoder process: started when it is first needed, replaced when it dies, ended with this process."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def decode(self, content: bytes, size: int, name: str) -> NDArray[Any]:
        """Return ``[frames, rows, columns]`` of a compressed file; InputError when its stream is damaged.

        Parameters
        ----------
        size
            Bytes of the answer, as the header says: the decoder gets memory for that, whatever the stream claims.
        """
        with self._lock:
            process = self._running()
            watch = threading.Timer(DECODE_TIMEOUT_S, process.kill)
            watch.start()
            try:
                values = _ask(process, content, size)
            except (OSError, EOFError) as error:
                # A codec that crashes, or hangs until it is killed, takes the process along.
                self.close()
                raise InputError(
                    f"{name} has damaged pixel data (its compressed stream crashes the codec); export the series again"
                ) from error
            finally:
                watch.cancel()
        if isinstance(values, str):
            raise InputError(f"{name} has damaged pixel data ({values}); export the series again")
        return values

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()

    def _running(self) -> subprocess.Popen[bytes]:
        # After a fork the pipes belong to the parent.
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            script = Path(__file__).with_name("decoder.py")
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            self._owner = os.getpid()
        return self._process


def _ask(process: subprocess.Popen[bytes], content: bytes, size: int) -> NDArray[Any] | str:
    """Return the decoded values, or the sentence that the codec failed with; EOFError when the process died."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(size.to_bytes(8, "little") + len(content).to_bytes(8, "little"))
    process.stdin.write(content)
    process.stdin.flush()
    line = process.stdout.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    about = json.loads(line)
    if "error" in about:
        return str(about["error"])
    values = np.empty(tuple(about["shape"]), np.dtype(about["dtype"]))
    if _read_into(process.stdout, values.view(np.uint8).data.cast("B")) < values.nbytes:
        raise EOFError
    return values


_decoder = _Decoder()
atexit.register(_decoder.close)
