"""Patients behind the subjects of a dataset: pairs of one patient, and subjects whose patient no header names."""

from __future__ import annotations

import pandas as pd

from ctmr.data.manifest import Column

PAIR_MARK = "_pair-"
"""Parts the subject from one of its pairs, where pictures that are slices of a patient pair one by one."""


def patient_of(subject: str) -> str:
    """Return whose a subject's images are: each pair of a patient's pictures has a name of its own, and one patient.

    Examples
    --------
    >>> patient_of("1f0c_pair-77ab"), patient_of("1f0c")
    ('1f0c', '1f0c')
    """
    return subject.partition(PAIR_MARK)[0]


STUDY = "study "
"""How the name of a subject begins whose PatientID is empty or a placeholder: its study stands for it."""


def unknown_patients(table: pd.DataFrame) -> tuple[tuple[str, ...], str]:
    """Return the images of subjects that only their study tells apart, and a sentence; empty for one study or none.

    Parameters
    ----------
    table
        Columns of `ctmr.data.manifest.Column`.
    """
    own = table[table[Column.SUBJECT].str.startswith(STUDY)]
    studies = own[Column.SUBJECT].nunique()
    if studies < 2:
        return (), ""
    words = f"{len(own)} images have no PatientID, or one that everybody has such as 0 or ANONYMOUS, so each of their "
    words += f"{studies} studies counts as a subject; one person with several studies may be in several splits"
    return tuple(sorted(own[Column.IMAGE])), words
