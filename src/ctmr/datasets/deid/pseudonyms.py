"""Pseudonyms, kept by the hospital: the key that makes pseudonyms, and the file that maps them back."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctmr.errors import EnvironmentFault, InputError
from ctmr.imaging.origin import PHANTOM_PREFIX
from ctmr.system.files import sweep, write_file, written
from ctmr.system.locks import locked

DEFAULT_FILE = Path("~/.ctmr-identities")
_MAPS = ("subjects", "uids", "files")
_KEY_BYTES = 32
_LONGEST_SHIFT_DAYS = 3652


@dataclass(frozen=True)
class Key:
    """The secret of one hospital; the same key gives the same pseudonyms, and nobody without it can make them."""

    secret: bytes = field(repr=False)

    def pseudonym(self, subject: str, *, phantom: bool = False) -> str:
        """Return the pseudonym of a subject: 16 hexadecimal digits, which begin with a word for a phantom."""
        return f"{PHANTOM_PREFIX if phantom else ''}{self._digest('subject', subject)[:8].hex()}"

    def uid(self, original: str) -> str:
        """Return the UID that stands for another one everywhere, derived from a UUID (PS3.5 B.2)."""
        return f"2.25.{uuid.UUID(bytes=self._digest('uid', original)[:16], version=5).int}"

    def label(self, name: str) -> str:
        """Return what stands for a name that a person gave a part of an image: 16 hexadecimal digits."""
        return self._digest("label", name).hex()[:16]

    def order(self, name: str) -> str:
        """Return a key to sort by that says nothing about the name."""
        return self._digest("order", name).hex()

    def shift_days(self, subject: str) -> int:
        """Return by how many days all dates of a subject are moved into the past, 1 to ten years."""
        return 1 + int.from_bytes(self._digest("dates", subject)[:8]) % _LONGEST_SHIFT_DAYS

    def _digest(self, purpose: str, text: str) -> bytes:
        return hmac.digest(self.secret, f"{purpose}\0{text}".encode("utf-8", "surrogateescape"), hashlib.sha256)


@dataclass
class Originals:
    """Names and dates that the pseudonyms of one dataset stand for.

    Attributes
    ----------
    subjects
        Pseudonym → identifier in the source.
    uids
        New UID → original UID.
    files
        File in the dataset → file or folder in the source.
    """

    subjects: dict[str, str] = field(default_factory=dict)
    uids: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


class IdentityFile:
    """The file with key and map: mode 0600, replaced atomically, never inside a data repository.

    Parameters
    ----------
    path
        Where it lies; made when it is not there.

    Raises
    ------
    InputError
        When others can read it, or it cannot be understood; it is never overwritten then.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        with self._locked():
            tree = self._read()
            if not tree:
                tree = {"key": secrets.token_hex(_KEY_BYTES)} | {name: {} for name in _MAPS}
                self._write(tree)
        self.key = Key(bytes.fromhex(tree["key"]))

    @property
    def subjects(self) -> tuple[str, ...]:
        """Identifiers of everybody who has a pseudonym already."""
        with self._locked():
            return tuple(str(s) for s in self._read().get("subjects", {}).values())

    def add(self, originals: Originals) -> None:
        """Put a dataset's originals into the map, beside what another process may have put there meanwhile."""
        with self._locked():
            tree = self._read()
            if not tree or bytes.fromhex(tree["key"]) != self.key.secret:
                raise EnvironmentFault(f"{self.path} was removed or replaced meanwhile; nothing was added, try again")
            for name in _MAPS:
                tree[name] |= getattr(originals, name)
            self._write(tree)

    def _read(self) -> dict[str, Any]:
        if not self.path.exists():
            return {}
        mode = stat.S_IMODE(self.path.stat().st_mode)
        if mode & 0o077:
            raise InputError(
                f"the identity file {self.path} has mode {mode:04o}, so others can read it; `chmod 600` it"
            )
        try:
            tree = json.loads(self.path.read_text(encoding="utf-8"))
            if len(bytes.fromhex(tree["key"])) < _KEY_BYTES or not all(isinstance(tree[n], dict) for n in _MAPS):
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(
                f"the identity file {self.path} cannot be read as one; restore it from a backup, or name another with "
                "--identity-file: with a new key the same patients get other pseudonyms"
            ) from None
        return dict(tree)

    def _write(self, tree: Mapping[str, object]) -> None:
        write_file(self.path, json.dumps(tree, indent=1, sort_keys=True).encode(), replace=True, mode=0o600)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with written(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path.with_name(self.path.name + ".lock"), mode=0o600):
            sweep(self.path.parent, self.path.name)
            yield


def refuse_below(path: Path, folders: Mapping[str, Path]) -> None:
    """Raise InputError when the identity file would lie in one of the named folders, from where it would travel on."""
    for what, folder in folders.items():
        if path.expanduser().resolve().is_relative_to(folder.resolve()):
            raise InputError(
                f"the identity file {path} lies in the {what} {folder}; keep it elsewhere, with --identity-file: it "
                "tells who the patients are"
            )
