"""Readers under mutated bytes, which atheris chooses by the branches that they reach in the readers.

Run as a script, in a process of its own: KIND COUNT SEED FOLDER. libFuzzer ends it with another code than 0 when an
input ends otherwise than read or refused, takes too long, or the process grows by `MEMORY_MIB`; the input then lies in
the folder. What was tried stands in ``tally.json`` there.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
import warnings
from pathlib import Path

import atheris
import nibabel
import numpy as np
import pydicom.sr.codedict
import SimpleITK

# What is imported before is not compiled anew.
_ = nibabel, pydicom, SimpleITK
with atheris.instrument_imports(include=["ctmr.io", "ctmr.datasets.dvc", "ctmr.datasets.deid"]):
    from fuzzed_readers import HANGS_S, KINDS, MEMORY_MIB, STUCK_S, Wrong, sound_files, spent_mib, told

BEGINNINGS = {b"\x89PNG": "pictures", b"\xff\xd8": "pictures", b"PK": "archives", b"\x1f\x8b": "nifti.gz"}
BEGINNINGS |= {b"\x5c\1\0\0": "nifti"}
FILES = {"dicom": "a.dcm", "nifti": "a.nii", "nifti.gz": "a.nii.gz", "pictures": "a.png", "archives": "a.zip"}
LONGEST = 2**15


def main(kind: str, count: int, number: int, root: Path) -> None:
    """Try so many inputs of a kind, or of `all`, beginning with sound files."""
    tally = {"tried": 0, "read": 0, "compared": 0, "refused": 0, "slowest_ms": 0}
    corpus, place = root / "corpus", root / "in"
    corpus.mkdir()
    for some in FILES if kind == "all" else (kind,):
        for k, content in enumerate(sound_files(some)):
            (corpus / f"{some}{k}").write_bytes(content)

    def one(content: bytes) -> None:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        begins = next((k for begin, k in BEGINNINGS.items() if content.startswith(begin)), "dicom")
        mine = begins if kind == "all" else kind
        _, read, agree = KINDS[mine.partition(".")[0]]
        file = place / FILES[mine]
        file.write_bytes(content)
        tally["tried"] += 1
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            begun, begun_work = time.monotonic(), time.process_time()
            outcome = told(file, read, agree)
        if time.process_time() - begun_work > HANGS_S:
            raise Wrong(f"took {time.process_time() - begun_work:.0f} s")
        tally["slowest_ms"] = max(tally["slowest_ms"], round(1000 * (time.monotonic() - begun)))
        tally["read"] += outcome != "refused"
        tally["refused" if outcome == "refused" else "compared"] += outcome != "read"
        (root / "tally.json").write_text(json.dumps(tally))

    limits = [f"-timeout={STUCK_S}", f"-rss_limit_mb={round(spent_mib()) + MEMORY_MIB}", f"-max_len={LONGEST}"]
    places = [f"-artifact_prefix={root}/", str(corpus)]
    atheris.Setup([sys.argv[0], f"-runs={count}", f"-seed={number}", "-verbosity=0", *limits, *places], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
