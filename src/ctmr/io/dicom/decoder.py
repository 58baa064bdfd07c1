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
from typing import BinaryIO

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
            values = np.ascontiguousarray(dataset.pixel_array)
            values = values.reshape(frames, int(dataset.Rows), int(dataset.Columns))
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
