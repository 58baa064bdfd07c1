"""Model repository that a Triton elsewhere loads from, a folder or S3, kept like the home's before every load.

Versions are made, proven and kept in the home. A folder of a version appears complete or not at all where the
repository is a folder. On S3, which knows no rename, ``config.pbtxt`` is written last: only what its version policy
names is ever loaded, so a half-written version is not.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from ctmr.errors import CtmrError, EnvironmentFault, InputError
from ctmr.serving.client import Tls, TritonClient
from ctmr.system.files import new_folder, write_file, written
from ctmr.tracking.names import is_candidate

CONFIG = "config.pbtxt"
_S3 = "s3://"
_AS_HERE = "as-here"
"""Metadata of an object: size and time of the file that it was made of."""


class Mirror(Protocol):
    """Another model repository."""

    def publish(self, folder: Path) -> None:
        """Make a Triton model there like its folder here: versions, then the configuration, then what is no more."""

    def remove(self, model: str) -> None:
        """Remove a Triton model."""


def mirror_of(address: str) -> Mirror:
    """Return the repository at ``s3://bucket/prefix`` or in a folder."""
    if not address.startswith(_S3):
        return FolderMirror(Path(address))
    bucket, _, prefix = address.removeprefix(_S3).partition("/")
    if not bucket or not prefix.strip("/"):
        raise InputError(f"deploy.repository {address!r} must be s3://BUCKET/PREFIX, or a folder")
    return S3Mirror(bucket, prefix.strip("/"))


class FolderMirror:
    """A repository in a folder that the server reads too, such as a mounted volume."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def publish(self, folder: Path) -> None:
        """Copy what differs; each version under a temporary name, then renamed."""
        there = self.root / folder.name
        with written(there):
            there.mkdir(parents=True, exist_ok=True)
        versions = _versions(folder)
        for version in versions:
            if _looks(there / version.name) != _looks(version):
                with new_folder(there / version.name, replace=True) as made:
                    shutil.copytree(version, made, dirs_exist_ok=True)
        write_file(there / CONFIG, (folder / CONFIG).read_bytes(), replace=True)
        for old in {v.name for v in _versions(there)} - {v.name for v in versions}:
            shutil.rmtree(there / old, ignore_errors=True)

    def remove(self, model: str) -> None:
        """Remove a model's folder."""
        shutil.rmtree(self.root / model, ignore_errors=True)


class S3Mirror:
    """A repository below a prefix of a bucket.

    Address and keys come from the environment as boto3 and Triton read them: ``AWS_ENDPOINT_URL``,
    ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_DEFAULT_REGION``, or a profile.
    """

    def __init__(self, bucket: str, prefix: str) -> None:
        import boto3

        self.bucket, self.prefix = bucket, prefix
        with self._faults():
            self._client = boto3.client("s3")

    def publish(self, folder: Path) -> None:
        """Upload what differs, the configuration last, then delete what is no more."""
        with self._faults():
            there = set(self._keys(folder.name))
            wanted = {self._key(folder.name, *file.relative_to(folder).parts): file for file in _files(folder)}
            for key, file in wanted.items():
                looks = f"{file.stat().st_size} {file.stat().st_mtime_ns}"
                if key not in there or self._looks(key) != looks:
                    content = file.read_bytes()
                    self._client.put_object(Bucket=self.bucket, Key=key, Body=content, Metadata={_AS_HERE: looks})
            self._delete(there - set(wanted))

    def remove(self, model: str) -> None:
        """Delete a model's objects."""
        with self._faults():
            self._delete(set(self._keys(model)))

    def _key(self, *parts: str) -> str:
        return "/".join((self.prefix, *parts))

    def _keys(self, model: str) -> Iterator[str]:
        pages = self._client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=self.bucket, Prefix=self._key(model, "")):
            yield from (entry["Key"] for entry in page.get("Contents", ()))

    def _looks(self, key: str) -> str:
        found: dict[str, Any] = self._client.head_object(Bucket=self.bucket, Key=key)
        return str(found["Metadata"].get(_AS_HERE, ""))

    def _delete(self, keys: set[str]) -> None:
        for key in sorted(keys):
            self._client.delete_object(Bucket=self.bucket, Key=key)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """Turn S3's errors into a sentence that holds no key."""
        from botocore.exceptions import BotoCoreError, ClientError

        where = f"the model repository {_S3}{self.bucket}/{self.prefix}"
        try:
            yield
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "an error")
            raise EnvironmentFault(f"{where} answers {code}; check bucket, rights and AWS_* variables") from None
        except BotoCoreError as error:
            raise EnvironmentFault(
                f"{where} cannot be reached ({type(error).__name__}); check AWS_ENDPOINT_URL and the keys"
            ) from None


class MirroringClient(TritonClient):
    """Client of a server that loads from a mirror of the home's repository.

    Parameters
    ----------
    repository
        The home's.
    """

    def __init__(
        self, url: str, mirror: Mirror, repository: Path, *, control_key: str = "", tls: Tls | None = None
    ) -> None:
        super().__init__(url, control_key=control_key, tls=tls)
        self._mirror, self._repository, self._touched = mirror, repository, set[str]()

    def load(self, *triton_models: str) -> None:
        """Publish, then load."""
        for name in triton_models:
            self._touched.add(name)
            self._mirror.publish(self._repository / name)
        super().load(*triton_models)

    def unload(self, triton_model: str) -> None:
        """Unload; a candidate is of no use there any more."""
        self._touched.add(triton_model)
        try:
            super().unload(triton_model)
        finally:
            if is_candidate(triton_model):
                self._mirror.remove(triton_model)

    def close(self) -> None:
        """Publish what was changed or removed without a load, such as the policy of a server that died meanwhile."""
        for name in self._touched:
            with suppress(CtmrError):
                if (self._repository / name / CONFIG).exists():
                    self._mirror.publish(self._repository / name)
                else:
                    self._mirror.remove(name)
        super().close()


def _versions(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.isdecimal())


def _files(folder: Path) -> list[Path]:
    """Return every file of every version, then the configuration."""
    return [*(file for v in _versions(folder) for file in sorted(v.rglob("*")) if file.is_file()), folder / CONFIG]


def _looks(version: Path) -> dict[str, tuple[int, int]]:
    """Return name → size and time of a version's files; time too, because a load again is asked for by touching."""
    files = version.iterdir() if version.is_dir() else ()
    return {file.name: (file.stat().st_size, file.stat().st_mtime_ns) for file in files}
