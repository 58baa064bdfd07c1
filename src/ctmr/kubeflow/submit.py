"""Submit a compiled pipeline to a Kubeflow Pipelines server, watch it, and end as it ended."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ctmr.errors import CtmrError, EnvironmentFault, InputError
from ctmr.kubeflow.local_api.faults import FaultCode

POLL_S = 1.0
PATIENCE_S = 60.0
"""How long a server may be unreachable while a run is watched."""
_FINAL = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")
_KINDS = {
    FaultCode.INVALID_ARGUMENT: InputError,
    FaultCode.UNAVAILABLE: EnvironmentFault,
    FaultCode.ABORTED: EnvironmentFault,
}
"""Code of a failed run → the error that it is here."""

Say = Callable[[str], None]


def _print(line: str) -> None:
    print(line, flush=True)


def submit(
    endpoint: str,
    experiment: str,
    package_file: str | Path,
    arguments: Sequence[str],
    run_name: str = "",
    watch: bool = True,
    timeout: float = 0,
    say: Say = _print,
    token: str = "",
) -> None:
    """Do what ``kfp run submit`` does, and fail when the run fails, which that command does not.

    Parameters
    ----------
    endpoint
        Address of the server, as ``http://127.0.0.1:8888``.
    experiment
        Name of the experiment; made when there is none.
    package_file
        Compiled pipeline.
    arguments
        ``name=value`` of its parameters; values are read as ``kfp run submit`` reads them.
    run_name
        Name of the run; empty is the experiment's.
    watch
        Wait for the end of the run.
    timeout
        Seconds to wait at most, and then to wait although `watch` is off; 0 is without limit.
    say
        Takes a line for every change of the run and of its tasks.
    token
        Bearer token that every call carries; empty leaves it to kfp's client how to log in.

    Raises
    ------
    InputError
        The server refuses the pipeline or its parameters, an argument or the file cannot be read, or the run failed
        on its input.
    EnvironmentFault
        The server does not answer, or the run failed through no fault of its input.
    CtmrError
        The run failed, was canceled, or took longer than `timeout`.
    """
    values = parameters_of(arguments)
    if not endpoint.startswith(("http://", "https://")):
        raise InputError(f"the endpoint {endpoint!r} is no address; write it as http://127.0.0.1:8888")
    if not Path(package_file).is_file():
        raise InputError(f"there is no compiled pipeline {package_file}")
    with _told(endpoint):
        _probe(endpoint, token)
        with _quiet():
            client = _client(endpoint, token)
            experiment_id = _experiment(client, experiment)
            with _readable(package_file):
                run = client.run_pipeline(
                    experiment_id=experiment_id,
                    job_name=run_name or experiment,
                    pipeline_package_path=str(package_file),
                    params=values,
                )
        say(f"run {run.run_id} ({run.display_name}) submitted to {endpoint}")
        if not watch and not timeout:
            return
        ended = _wait(client, run.run_id, timeout, say)
    if ended.state != "SUCCEEDED":
        raise failure(ended)


def parameters_of(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the pipeline's parameters that ``name=value`` arguments give, read as kfp reads them."""
    from kfp.cli.utils.parsing import parse_parameter_value

    values: dict[str, Any] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or not name:
            raise InputError(f"the argument {argument!r} is not name=value")
        if name in values:
            raise InputError(f"the parameter {name} is given twice")
        values[name] = parse_parameter_value(value)
    return values


def _probe(endpoint: str, token: str) -> None:
    """Ask whether a pipeline server is there: kfp's own client would try for half a minute and print tracebacks."""
    import urllib3

    address = f"{endpoint.rstrip('/')}/apis/v2beta1/healthz"
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answer = urllib3.request("GET", address, headers=headers, retries=False, timeout=10.0)
    tree, sentence = _tree(answer.data), _sentence(answer.data)
    # A proxy in front may ask for a login, which kfp's client knows how to give.
    login = answer.status in (302, 303, 307) or (answer.status in (401, 403) and not sentence)
    if not login and (answer.status != 200 or tree is None):
        why = sentence or "it has no Kubeflow Pipelines API"
        raise EnvironmentFault(f"the server at {endpoint} answers with status {answer.status}: {why}")


def _client(endpoint: str, token: str) -> Any:
    import kfp

    return kfp.Client(host=endpoint, existing_token=token or None)


def _experiment(client: Any, name: str) -> str:
    """Return the id of an experiment; of two who make the same one at once, the second one takes the first one's."""
    from kfp_server_api import ApiException

    try:
        return str(client.create_experiment(name).experiment_id)
    except ApiException as error:
        if error.status != FaultCode.ALREADY_EXISTS.http:
            raise
        return str(client.get_experiment(experiment_name=name).experiment_id)


def _wait(client: Any, run_id: str, timeout: float, say: Say) -> Any:
    begun = time.monotonic()
    shown: dict[str, str] = {}
    while True:
        run = _look(client, run_id)
        tasks = (run.run_details.task_details if run.run_details else None) or []
        for name, state in [*((t.display_name, t.state) for t in tasks), ("run", run.state)]:
            if state and shown.get(name) != state:
                shown[name] = state
                say(f"  {name:<14} {state}")
        if run.state in _FINAL:
            return run
        if timeout and time.monotonic() - begun > timeout:
            raise CtmrError(f"run {run_id} is still {run.state} after {timeout:g} s; it goes on without being watched")
        time.sleep(POLL_S)


def _look(client: Any, run_id: str) -> Any:
    """Return a run, with patience for a server that restarts."""
    from kfp_server_api import ApiException
    from urllib3.exceptions import HTTPError

    until = time.monotonic() + PATIENCE_S
    # It would print a line for every try.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    while True:
        try:
            return client.get_run(run_id)
        except (HTTPError, ApiException) as error:
            passing = not isinstance(error, ApiException) or error.status >= 500
            if not passing or time.monotonic() > until:
                raise
            time.sleep(POLL_S)


def failure(run: Any) -> CtmrError:
    """Return the error of a run that ended badly, of the kind of its exit code."""
    if run.state == "CANCELED":
        return CtmrError(f"run {run.run_id} was canceled")
    tasks = (run.run_details.task_details if run.run_details else None) or []
    errors = [e for e in (run.error, *(t.error for t in tasks if t.state == "FAILED")) if e is not None and e.message]
    if not errors:
        return CtmrError(f"run {run.run_id} ended as {run.state} and the server does not say why; look at its logs")
    return _KINDS.get(errors[0].code, CtmrError)(errors[0].message)


@contextlib.contextmanager
def _told(endpoint: str) -> Iterator[None]:
    """Turn what the client raises into the errors of this program."""
    from kfp_server_api import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        sentence = _sentence(error.body) or str(error.reason)
        if error.status in (400, 404, 409, 413):
            raise InputError(sentence) from None
        raise EnvironmentFault(f"the server at {endpoint} answers with status {error.status}: {sentence}") from None
    except HTTPError as error:
        raise EnvironmentFault(
            f"no pipeline server answers at {endpoint} ({' '.join(str(error).split())}); `ctmr up` starts the local one"
        ) from None


@contextlib.contextmanager
def _readable(package_file: str | Path) -> Iterator[None]:
    import yaml
    from google.protobuf.json_format import ParseError

    try:
        yield
    except (ParseError, yaml.YAMLError, ValueError, TypeError, AttributeError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())[:300]
        raise InputError(f"{package_file} is not a compiled pipeline: {why}") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what kfp prints beside its answer: warnings, and links to a web page that may not be there."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _sentence(body: object) -> str:
    """Return the message of the API's error JSON, if it is one."""
    tree = _tree(body) or {}
    return str(tree.get("message") or tree.get("error") or "")


def _tree(body: object) -> dict[str, Any] | None:
    try:
        tree = json.loads(body) if isinstance(body, str | bytes) else None
    except ValueError:
        return None
    return tree if isinstance(tree, dict) else None
