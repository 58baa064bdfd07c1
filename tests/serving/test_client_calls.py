"""Clients against a server that answers as told: TLS, deadlines, retries, keys, proxies, and both kinds of client."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tritonclient.grpc import service_pb2, service_pb2_grpc

from ctmr.errors import CtmrError, EnvironmentFault, InputError
from ctmr.imaging.grid import Plane, volume_grid
from ctmr.imaging.volume import Direction, Modality, Unit, Volume
from ctmr.serving.client import AsyncTritonClient, Lost, NotServed, QueueFull, Tls, Translated, TritonClient
from ctmr.serving.export import ServedModality, ServedSpec
from ctmr.system.environment import TRITON_CA, TRITON_CERTIFICATE, TRITON_KEY

SPEC = ServedSpec(
    direction=Direction.MR2CT,
    source=ServedModality(modality=Modality.MR, unit=Unit.ARBITRARY),
    target=ServedModality(modality=Modality.CT, unit=Unit.HU),
    grid=volume_grid(Plane.AXIAL, (32, 32), (1.0, 1.0)),
    generator_sha256="ab" * 32,
    range_sha256="cd" * 32,
)
AFFINE = np.diag([2.5, 1, 1, 1]).astype(float)
MR = Volume(np.arange(60, dtype=np.uint16).reshape(3, 4, 5), AFFINE, Modality.MR, Unit.ARBITRARY, "P1", "T1")
FULL = (grpc.StatusCode.UNAVAILABLE, "[request id: <id_unknown>] Exceeds maximum queue size")
GONE = (grpc.StatusCode.UNAVAILABLE, "Socket closed")
DEAD = (grpc.StatusCode.INTERNAL, "Stub process 'head_0_0' is not healthy.")
LOCKED = (grpc.StatusCode.UNAVAILABLE, "This protocol is restricted, expecting header 'triton-grpc-protocol-x'")
NOT_THERE = (
    grpc.StatusCode.UNAVAILABLE,
    "Request for unknown model: 'head_volume' has no available versions; is not ready",
)
BAD = (grpc.StatusCode.INVALID_ARGUMENT, "the image is 7 everywhere; an image is needed")


class Answering(service_pb2_grpc.GRPCInferenceServiceServicer):
    """A server that fails as it is told to, then answers."""

    def __init__(self) -> None:
        self.faults: list[tuple[grpc.StatusCode, str]] = []
        self.seen: list[service_pb2.ModelInferRequest] = []
        self.headers: dict[str, str] = {}
        self.pause_s = 0.0

    def ModelInfer(self, request: Any, context: Any) -> Any:
        self.seen.append(request)
        time.sleep(self.pause_s)
        if self.faults:
            context.abort(*self.faults.pop(0))
        answer = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="3")
        made = -np.arange(60, dtype=np.int16).reshape(3, 4, 5)
        told = {"figure": 4.5, "expected_error": 80.0, "rank_correlation": 0.8, "cases": 9}
        values = {
            "translation": ("INT16", made),
            "findings": ("UINT8", np.frombuffer(json.dumps(["a finding"]).encode(), np.uint8)),
            "generator_version": ("INT64", np.array([3])),
            "spec": ("UINT8", np.frombuffer(SPEC.to_json().encode(), np.uint8)),
            "uncertainty": ("FP32", np.full((3, 4, 5), 4.5, np.float32)),
            "series_uncertainty": ("UINT8", np.frombuffer(json.dumps(told).encode(), np.uint8)),
        }
        for output in request.outputs:
            kind, array = values[output.name]
            answer.outputs.add(name=output.name, datatype=kind, shape=array.shape)
            answer.raw_output_contents.append(array.tobytes())
        return answer

    def RepositoryIndex(self, request: Any, context: Any) -> Any:
        self.headers = dict(context.invocation_metadata())
        return service_pb2.RepositoryIndexResponse()


@pytest.fixture
def server() -> Iterator[tuple[Answering, str]]:
    yield from serving(None)


def serving(credentials: Any) -> Iterator[tuple[Answering, str]]:
    answering = Answering()
    running = grpc.server(ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(answering, running)
    if credentials is None:
        port = running.add_insecure_port("127.0.0.1:0")
    else:
        port = running.add_secure_port("127.0.0.1:0", credentials)
    running.start()
    yield answering, f"127.0.0.1:{port}"
    running.stop(None)


def translate(url: str, kind: str = "sync", **more: Any) -> Translated:
    own = {k: more.pop(k) for k in ("tls", "patience_s") if k in more}
    if kind == "sync":
        with TritonClient(url, **own) as client:
            return client.translate_volume("head_mr2ct", MR, **more)

    async def ask() -> Translated:
        async with AsyncTritonClient(url, **own) as client:
            return await client.translate_volume("head_mr2ct", MR, **more)

    return asyncio.run(ask())


both = pytest.mark.parametrize("kind", ["sync", "asyncio"])


@both
def test_an_image_is_sent_as_it_is_and_the_answer_lies_on_its_voxels(server: Any, kind: str) -> None:
    answering, url = server
    said: list[str] = []
    answer = translate(url, kind, uncertainty=True, report=lambda m, f=None: said.append(m))
    assert answer.volume.array[2, 3, 4] == -59 and np.array_equal(answer.volume.affine, AFFINE)
    assert (answer.version, answer.findings, answer.volume.notes) == ("3", ("a finding",), ("a finding",))
    assert answer.uncertainty is not None and answer.uncertainty.map.shape == (3, 4, 5)
    assert "a mean error of 80 HU" in answer.uncertainty.words
    (request,) = answering.seen
    sent = {
        i.name: (i.datatype, list(i.shape), raw)
        for i, raw in zip(request.inputs, request.raw_input_contents, strict=True)
    }
    assert sent["image"] == ("INT16", [60], MR.array.astype(np.int16).tobytes())
    assert sent["shape"][2] == np.array([3, 4, 5]).tobytes() and sent["affine"][2] == AFFINE.tobytes()
    source = json.loads(sent["source"][2])
    assert source == {"modality": "MR", "unit": "arbitrary", "sequences": ["T1"], "phantom": False}
    assert b"P1" not in request.SerializeToString() and said[0].startswith("sending 0.0 MB to 127.0.0.1")


@both
def test_what_was_not_answered_is_asked_again_until_the_deadline(server: Any, kind: str) -> None:
    answering, url = server
    answering.faults = [FULL, FULL, FULL]
    said: list[str] = []
    assert translate(url, kind, report=lambda m, f=None: said.append(m)).version == "3"
    assert [s for s in said if "queue is full; again in" in s] == said[1:] and len(answering.seen) == 4
    answering.faults = [FULL] * 100
    with pytest.raises(QueueFull, match="queue stayed full"):
        translate(url, kind, deadline_s=0.6)


@both
def test_a_server_that_comes_back_is_waited_for_only_by_the_patient(server: Any, kind: str) -> None:
    answering, url = server
    for fault in (GONE, DEAD):
        answering.faults = [fault, fault]
        assert translate(url, kind, patience_s=20).version == "3"
        answering.faults = [fault]
        with pytest.raises(Lost):
            translate(url, kind)


@both
@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (BAD, InputError, "the image is 7 everywhere"),
        (LOCKED, EnvironmentFault, "set CTMR_TRITON_CONTROL_KEY"),
        ((grpc.StatusCode.INTERNAL, "failed; see the server's log"), EnvironmentFault, "see the server's log"),
        ((grpc.StatusCode.CANCELLED, "the caller has gone"), EnvironmentFault, "caller has gone"),
    ],
)
def test_what_would_be_answered_alike_is_not_asked_again(
    server: Any, kind: str, fault: Any, error: type[CtmrError], words: str
) -> None:
    answering, url = server
    answering.faults = [fault]
    with pytest.raises(error, match=words):
        translate(url, kind, patience_s=20)
    assert len(answering.seen) == 1


def test_a_model_that_another_replaces_is_waited_for_a_named_version_is_not(server: Any) -> None:
    answering, url = server
    answering.faults = [NOT_THERE, NOT_THERE]
    assert translate(url).version == "3"
    answering.faults = [NOT_THERE]
    with pytest.raises(NotServed):
        translate(url, version="3")


@both
def test_a_deadline_holds_for_everything_together(server: Any, kind: str) -> None:
    answering, url = server
    answering.pause_s = 2.0
    began = time.monotonic()
    with pytest.raises(EnvironmentFault, match="no answer before the deadline"):
        translate(url, kind, deadline_s=0.3)
    assert time.monotonic() - began < 1.5 and len(answering.seen) == 1


@both
@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY"])
def test_no_proxy_of_the_environment_gets_an_image(
    server: Any, kind: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    assert translate(server[1], kind).version == "3"


def test_many_translations_run_side_by_side_in_one_thread(server: Any) -> None:
    answering, url = server
    answering.pause_s = 0.3

    async def ask() -> list[Translated]:
        async with AsyncTritonClient(url) as client:
            return await asyncio.gather(*(client.translate_volume("head_mr2ct", MR) for _ in range(4)))

    began = time.monotonic()
    assert len(asyncio.run(ask())) == 4 and time.monotonic() - began < 1.1


def test_the_key_of_restricted_protocols_goes_with_control_and_not_with_images(server: Any) -> None:
    answering, url = server
    with TritonClient(url, control_key="secret") as client:
        client.index()
    assert answering.headers["triton-grpc-protocol-ctmr-control"] == "secret"


def test_an_image_beyond_grpcs_largest_message_is_refused_before_it_is_sent(server: Any) -> None:
    answering, url = server
    # Zeros that nobody wrote take no memory.
    huge = Volume(np.zeros((1100, 1000, 1000), np.int16), AFFINE, Modality.MR, Unit.ARBITRARY)
    with TritonClient(url) as client, pytest.raises(InputError, match=r"2.0 GiB is larger .* cannot be cut") as caught:
        client.translate_volume("head_mr2ct", huge)
    assert "2 GiB" in str(caught.value) and not answering.seen


def pem(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An authority, and what it gave a server and a client."""
    folder = tmp_path_factory.mktemp("tls")
    now = datetime.datetime.now(datetime.UTC)
    files: dict[str, Path] = {}
    authority: tuple[Any, Any] | None = None
    for name in ("ca", "server", "client"):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer, signer = authority or (subject, key)
        built = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=name == "ca", path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
            .sign(signer, hashes.SHA256())
        )
        authority = authority or (subject, key)
        private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        files[name] = pem(folder / f"{name}.pem", built.public_bytes(serialization.Encoding.PEM))
        files[f"{name}.key"] = pem(folder / f"{name}.key", key.private_bytes(serialization.Encoding.PEM, *private))
    return files


@pytest.fixture
def guarded(certificates: dict[str, Path]) -> Iterator[tuple[Answering, str]]:
    pair = certificates["server.key"].read_bytes(), certificates["server"].read_bytes()
    credentials = grpc.ssl_server_credentials([pair], certificates["ca"].read_bytes(), require_client_auth=True)
    yield from serving(credentials)


@both
def test_a_server_that_asks_for_a_certificate_gets_it(
    guarded: Any, certificates: dict[str, Path], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, file in ((TRITON_CA, "ca"), (TRITON_CERTIFICATE, "client"), (TRITON_KEY, "client.key")):
        monkeypatch.setenv(name, str(certificates[file]))
    assert translate(guarded[1], kind, tls=Tls.of_environment()).version == "3"


@pytest.mark.parametrize("wrong", ["no TLS", "no certificate", "another authority"])
def test_whom_the_server_does_not_know_gets_no_answer(guarded: Any, certificates: dict[str, Path], wrong: str) -> None:
    own = {"certificate": certificates["client"], "key": certificates["client.key"]}
    tls: dict[str, Callable[[], Tls | None]] = {
        "no TLS": lambda: None,
        "no certificate": lambda: Tls(certificates["ca"]),
        "another authority": lambda: Tls(certificates["client"], **own),
    }
    with pytest.raises(EnvironmentFault):
        translate(guarded[1], tls=tls[wrong](), deadline_s=5)
    assert not guarded[0].seen


def test_half_a_pair_of_files_is_refused(certificates: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs certificate and key, and one was given"):
        Tls(certificates["ca"], certificate=certificates["client"])
    with pytest.raises(InputError, match="is no file"):
        Tls(tmp_path / "nothing.pem")
