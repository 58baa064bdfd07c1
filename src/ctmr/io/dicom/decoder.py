"""A process that decodes compressed DICOM pixels for another one: a damaged stream that crashes a codec ends here.

Run as a script, without ctmr. A request on standard input is 8 bytes (little-endian length) and a DICOM file. The
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
from typing import BinaryIO

MEMORY_BYTES = 16 * 2**30
"""Address space of the process, so that a stream that claims terabytes is refused instead of filling the machine."""


def main(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    import numpy as np
    import pydicom

    while len(head := requests.read(8)) == 8:
        content = requests.read(int.from_bytes(head, "little"))
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


if __name__ == "__main__":
    for kind, most in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    out = os.fdopen(os.dup(1), "wb")
    # What a codec prints must not mix with the answers.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    main(sys.stdin.buffer, out)
