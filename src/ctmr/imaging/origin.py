"""Origin of an image that no scanner made: what its file says of itself, whatever the format."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ctmr.errors import InputError, visible

PHANTOM_PREFIX = "phantom-"
"""What the pseudonym of every phantom subject begins with."""
PROVENANCE = "Provenance"
"""Keyword of the text that holds, as JSON, the model and the data that made a synthetic image."""
PHANTOMS_ONLY = "trained on phantoms only: not for patients"
NO_TRUTH = (
    "it can be neither training nor truth, or a model would be judged on what a model made; take it out, or give the "
    "image that a scanner acquired"
)
_CT_WORDS = re.compile(r"\b((synthetic|synthesi[sz]ed|pseudo|syn)[- ]?ct|(?-i:s-?CT)|mrcat)\b", re.IGNORECASE)
_MR_WORDS = re.compile(r"\bsynthetic mri? (by|\(?from|computed from)\b", re.IGNORECASE)
"""Words with which ctmr and the makers of synthetic CT describe one; a scanner's own "synthetic T1" is none of them."""
_OWN_WORDS = re.compile(r"SYNTHETIC (CT|MR) by \S+ version \S+")
_LONGEST = 200


@dataclass(frozen=True)
class Synthetic:
    """Statement of a file that it was computed by a model.

    Attributes
    ----------
    words
        The statement, in one line.
    facts
        Model, run and data that made it; empty where the file does not say.
    """

    words: str
    facts: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        line = " ".join(visible(self.words).split())
        object.__setattr__(self, "words", line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…")


class SyntheticImage(InputError):
    """Refusal of an image that a model made as training or truth."""

    def __init__(self, name: str, synthetic: Synthetic) -> None:
        self.synthetic = synthetic
        super().__init__(f"{name} is synthetic ({synthetic.words}); {NO_TRUTH}")


def says_synthetic(text: str, modality: str = "") -> bool:
    """Return whether a description calls the image synthetic.

    An MR that was acquired to make a synthetic CT of it often says so, which does not make it synthetic: where the
    modality is known to be MR, words on CT mean nothing.

    Examples
    --------
    >>> says_synthetic("SYNTHETIC CT by head version 3"), says_synthetic("sCT_head"), says_synthetic("CT soft tissue")
    (True, True, False)
    """
    line = text.replace("_", " ")
    return _MR_WORDS.search(line) is not None or (modality != "MR" and _CT_WORDS.search(line) is not None)


def told_by(texts: Mapping[str, str]) -> Synthetic | None:
    """Return what the texts of a file, keyword → text, say of its origin; ``None`` when nothing."""
    facts = _facts(texts.get(PROVENANCE, ""))
    described = [text for text in texts.values() if says_synthetic(text)]
    if not described and not facts:
        return None
    # Any other text than ctmr's own may name a patient, and is not repeated.
    return Synthetic(next((t for t in described if _OWN_WORDS.fullmatch(t)), "its text says so"), facts)


def _facts(text: str) -> dict[str, str]:
    try:
        tree = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return {str(k): str(v) for k, v in tree.items()} if isinstance(tree, dict) else {}
