"""A process that decodes compressed DICOM pixels for another one: a damaged stream that crashes a codec ends here.

Run as a script, without ctmr. A request on standard input is twice 8 bytes (little-endian), the size of the values that
are expected and the length of the file, and a DICOM file. The
answer on standard output is one line of JSON: ``{"error": …}`` or ``{"shape": [frames, rows, columns], "dtype": …}``,
the latter followed by the values in C order.
"""

from __future__ import annotations

import io
import json
import logging
import os
import resource
import sys
import warnings
from pathlib import Path
from typing import Any, BinaryIO

_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
SPARE_BYTES = 2**29
COPIES = 8
"""Memory for a file: what it is expected to hold so many times (codecs work in 32 bits), itself, and `SPARE_BYTES`. A
stream that claims terabytes is refused instead of filling the machine."""


def main(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    import numpy as np
    import pydicom

    own = _address_space()
    while len(head := requests.read(16)) == 16:
        size, length = (int.from_bytes(head[k : k + 8], "little") for k in (0, 8))
        _limit(own + SPARE_BYTES + COPIES * size + 2 * length)
        content = requests.read(length)
        try:
            dataset = pydicom.dcmread(io.BytesIO(content), force=True)
            frames = int(dataset.get("NumberOfFrames") or 1)
            if not dataset.get("PhotometricInterpretation"):
                dataset.PhotometricInterpretation = "MONOCHROME2"
            values = _twelve_bits(dataset, frames) if _is_of_twelve_bits(dataset) else dataset.pixel_array
            values = np.ascontiguousarray(values).reshape(frames, int(dataset.Rows), int(dataset.Columns))
        except BaseException as error:  # codecs written in Rust panic with what is no Exception
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
            answers.write(json.dumps({"error": reason}).encode() + b"\n")
        else:
            about = {"shape": values.shape, "dtype": values.dtype.str}
            answers.write(json.dumps(about).encode() + b"\n")
            answers.write(values.data)
        answers.flush()


def _is_of_twelve_bits(dataset: Any) -> bool:
    return bool(dataset.file_meta.TransferSyntaxUID == _JPEG_EXTENDED and dataset.BitsStored != 8)


def _twelve_bits(dataset: Any, frames: int) -> Any:
    """Return the frames of a lossy JPEG of 12 bits, which pydicom hands to none of its decoders, through GDCM.

    GDCM and libjpeg make something of a stream that is cut off or of another size; that is refused here.
    """
    import gdcm
    import numpy as np
    from pydicom.encaps import generate_frames

    rows, columns, stored = int(dataset.Rows), int(dataset.Columns), int(dataset.BitsStored)
    if int(dataset.get("SamplesPerPixel") or 1) != 1 or dataset.BitsAllocated != 16 or not 8 < stored <= 12:
        raise ValueError(f"a JPEG of 12 bits in pixels of {dataset.BitsAllocated} bits, {stored} of them stored")
    made = np.empty((frames, rows, columns), "<i2" if dataset.PixelRepresentation == 1 else "<u2")
    for k, stream in zip(range(frames), generate_frames(dataset.PixelData, number_of_frames=frames), strict=True):
        # A byte that makes the length even may follow the end of the image.
        if _jpeg_header(stream) != (12, rows, columns, 1) or b"\xff\xd9" not in stream[-4:]:
            raise ValueError(f"a JPEG stream that is no whole image of {rows}×{columns} pixels of 12 bits")
        fragment, fragments = gdcm.Fragment(), gdcm.SequenceOfFragments.New()
        fragment.SetByteStringValue(stream)
        fragments.AddFragment(fragment)
        element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
        element.SetValue(fragments.__ref__())
        image = gdcm.Image()
        image.SetNumberOfDimensions(2)
        image.SetDimensions((columns, rows, 1))
        image.SetDataElement(element)
        grey = gdcm.PhotometricInterpretation.GetPIType("MONOCHROME2")
        image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(grey))
        image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(_JPEG_EXTENDED)))
        image.SetPixelFormat(gdcm.PixelFormat(1, 16, 12, 11, 0))
        # GDCM returns bytes as text.
        words = np.frombuffer(image.GetBuffer().encode("utf-8", "surrogateescape"), "<u2").reshape(rows, columns)
        # Losses swing beyond the values that there were, into bits that mean nothing where fewer than 12 are stored.
        made[k] = words if dataset.PixelRepresentation == 1 else words.clip(max=2**stored - 1)
    return made


def _jpeg_header(stream: bytes) -> tuple[int, int, int, int]:
    """Return precision, rows, columns and components of a JPEG stream; zeros without a header of a whole scan."""
    at = 2
    while stream[:2] == b"\xff\xd8" and at + 10 <= len(stream) and stream[at] == 0xFF:
        kind, length = stream[at + 1], int.from_bytes(stream[at + 2 : at + 4], "big")
        if kind == 0xC1:
            rows, columns = (int.from_bytes(stream[at + n : at + n + 2], "big") for n in (5, 7))
            return stream[at + 4], rows, columns, stream[at + 9]
        at += 2 + length
    return 0, 0, 0, 0


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()


def _limit(most: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    out = os.fdopen(os.dup(1), "wb")
    # What a codec prints must not mix with the answers.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    main(sys.stdin.buffer, out)
