"""DVC remotes, folders and S3: which one a repository has, and what is wrong with it, before DVC is asked."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctmr.datasets.dvc.commands import AWS_FILES, first_line
from ctmr.errors import EnvironmentFault, InputError

CONNECT_LIMIT_S = 10
_REASONS = {
    "NoSuchBucket": "there is no bucket {bucket}; create it, or name another remote",
    "404": "there is no bucket {bucket}; create it, or name another remote",
    "InvalidAccessKeyId": "it does not know the access key (403); check AWS_ACCESS_KEY_ID or the AWS profile",
    "SignatureDoesNotMatch": "the secret key does not fit the access key (403); check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the session token has expired; log in again",
    "InvalidToken": "the session token is not valid; log in again",
    "RequestTimeTooSkewed": "this machine's clock is too far from the server's; set the clock (NTP), then try again",
    "AccessDenied": "{action} is denied (403); ask for the right to {right} in bucket {bucket}",
    "403": "{action} is denied (403); ask for the right to {right} in bucket {bucket}",
    "PermanentRedirect": "bucket {bucket} lies in another region; set the region with AWS_DEFAULT_REGION",
    "AuthorizationHeaderMalformed": "bucket {bucket} lies in another region; set the region with AWS_DEFAULT_REGION",
}


@dataclass(frozen=True)
class Remote:
    """The default DVC remote of a repository.

    Attributes
    ----------
    name
        What DVC calls it.
    url
        Absolute folder, or ``s3://bucket/prefix``, or another URL that DVC knows.
    settings
        DVC's settings of it; may hold credentials from ``.dvc/config.local``, so it is never printed.
    """

    name: str
    url: str
    settings: Mapping[str, Any]

    @property
    def is_folder(self) -> bool:
        """Return whether it is a folder of this machine."""
        return "://" not in self.url


def check_address(url: str, endpoint: str) -> None:
    """Raise InputError when a remote's address cannot be used or carries a credential, which would be committed."""
    for address in (url, endpoint):
        if re.match(r"[a-z0-9]+://[^/]*@", address):
            raise InputError(
                "the remote's address holds a credential; give it without, and set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY or an AWS profile"
            )
    if "://" in url and not re.match(r"s3://[^/]+", url):
        raise InputError(f"--remote {url!r} is neither a folder nor s3://bucket/prefix")
    if endpoint and not (url.startswith("s3://") and re.match(r"https?://[^/]+", endpoint)):
        raise InputError(f"--endpoint-url {endpoint!r} belongs to an s3:// remote and begins with http:// or https://")


def remote_of(repository: Path) -> Remote:
    """Return the default remote.

    Raises
    ------
    InputError
        When the repository has none.
    """
    from dvc.config import Config
    from dvc.exceptions import DvcException

    try:
        config = Config(str(repository / ".dvc"))
        name = config["core"].get("remote")
        settings = config["remote"].get(name, {}) if name else {}
    except DvcException as error:
        raise InputError(f"the DVC configuration of {repository} cannot be read: {first_line(error)}") from None
    if not settings:
        raise InputError(f"{repository} has no default DVC remote; `dvc remote add --default` sets one")
    return Remote(str(name), str(settings["url"]), settings)


def refuse_programs(repository: Path) -> None:
    """Raise InputError when a local repository's DVC configuration names a file that can start programs.

    AWS configuration (``configpath``, ``credentialpath``) may hold ``credential_process``, a command. It is the
    user's to name; `ctmr.datasets.dvc.commands.guarded` keeps DVC from what any other configuration says.
    """
    from dvc.config import Config
    from dvc.exceptions import DvcException

    try:
        remotes = Config(str(repository / ".dvc"))["remote"]
    except DvcException as error:
        raise InputError(f"the DVC configuration of {repository} cannot be read: {first_line(error)}") from None
    for name, settings in remotes.items():
        for key, (variable, usual) in AWS_FILES.items():
            if settings.get(key) and not os.environ.get(variable):
                raise InputError(
                    f"remote {name} of {repository} takes {key} from {settings[key]}, a file that can start programs; "
                    f"take {key} out of its configuration, and use {usual} or set {variable}"
                )


def preflight_of(repository: str, *, write: bool) -> None:
    """Look whether a local repository's remote can be used; of others nothing is known before DVC reads them."""
    if Path(repository, ".dvc").is_dir():
        preflight(remote_of(Path(repository)), write=write)


def preflight(remote: Remote, *, write: bool) -> None:
    """Look whether a remote can be read and, with `write`, written; other schemes than S3 and folders pass.

    Raises
    ------
    EnvironmentFault
        One sentence saying what is wrong.
    """
    if remote.is_folder:
        _folder_preflight(Path(remote.url), write)
    elif remote.url.startswith("s3://"):
        _s3_preflight(remote, write)


def _folder_preflight(folder: Path, write: bool) -> None:
    if not folder.is_dir() and not write:
        raise EnvironmentFault(f"the remote {folder} is not there; mount it, or push to it first")
    nearest = next(p for p in (folder, *folder.parents) if p.exists())
    if not os.access(nearest, os.R_OK | os.X_OK | (os.W_OK if write else 0)):
        what = "written" if write else "read"
        raise EnvironmentFault(f"the remote {folder} cannot be {what}; check the rights of {nearest}")


def _s3_preflight(remote: Remote, write: bool) -> None:
    import boto3
    import botocore.config
    from botocore import exceptions

    bucket, _, prefix = remote.url.removeprefix("s3://").partition("/")
    endpoint = remote.settings.get("endpointurl") or ""
    where = f"the remote s3://{bucket}" + (f" at {endpoint}" if endpoint else "")
    config: dict[str, Any] = {"connect_timeout": CONNECT_LIMIT_S, "read_timeout": CONNECT_LIMIT_S}
    config["retries"] = {"total_max_attempts": 2}
    if remote.settings.get("allow_anonymous_login"):
        config["signature_version"] = botocore.UNSIGNED
    action, right = "listing", "list and read"
    try:
        session = boto3.Session(
            profile_name=remote.settings.get("profile") or None,
            region_name=remote.settings.get("region") or None,
            aws_access_key_id=remote.settings.get("access_key_id") or None,
            aws_secret_access_key=remote.settings.get("secret_access_key") or None,
            aws_session_token=remote.settings.get("session_token") or None,
        )
        client = session.client(
            "s3",
            endpoint_url=endpoint or None,
            verify=remote.settings.get("ssl_verify"),
            config=botocore.config.Config(**config),
        )
        client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
        if write:
            action, right = "writing", "write"
            key = "/".join(w for w in (prefix.strip("/"), f"ctmr-preflight-{uuid.uuid4().hex}") if w)
            client.put_object(Bucket=bucket, Key=key, Body=b"")
            action, right = "deleting", "delete"
            client.delete_object(Bucket=bucket, Key=key)
    except exceptions.ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        words = _REASONS.get(code) or f"it answered {code}: {error.response.get('Error', {}).get('Message', '')}"
        reason = words.format(bucket=bucket, action=action, right=right) if code in _REASONS else words
        raise EnvironmentFault(f"{where} cannot be used: {reason}") from None
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError):
        raise EnvironmentFault(
            f"{where} cannot be used: there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "an AWS profile"
        ) from None
    except exceptions.ProfileNotFound:
        raise EnvironmentFault(f"{where} cannot be used: its AWS profile is not in ~/.aws; add it") from None
    except (exceptions.HTTPClientError, exceptions.BotoCoreError) as error:
        reasons = {
            "EndpointConnectionError": "nobody answers there",
            "ConnectTimeoutError": "nobody answers there",
            "ReadTimeoutError": "it does not answer in time",
            "SSLError": "its certificate is not trusted",
            "ConnectionClosedError": "it closes the connection",
        }
        reason = reasons.get(type(error).__name__, first_line(error))
        raise EnvironmentFault(f"{where} cannot be used: {reason}; check the address and the network") from None
