"""A Triton elsewhere loads from a folder or from S3, and never half a version."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ctmr.errors import CtmrError, EnvironmentFault, InputError
from ctmr.recipe.loading import load
from ctmr.serving import model_repository as repo
from ctmr.serving.mirror import CONFIG, FolderMirror, Mirror, MirroringClient, S3Mirror, mirror_of
from ctmr.serving.rollout import RolloutFailed, canary, canary_proof, deploy
from ctmr.serving.server import PORTS, EmbeddedTriton, Endpoint
from ctmr.system.daemon import Launch, Ports
from ctmr.tracking.names import Part
from tests.serving.conftest import Exported

MODEL = "tiny_mr2ct"
SECRET = "hushhushhush"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    import boto3

    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    made = boto3.resource("s3").Bucket("models")
    made.create()
    made.objects.delete()
    return made


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Mirror, Callable[[], dict[str, bytes]]]:
    """A mirror, and what lies in it by path."""
    if request.param == "s3":
        bucket = request.getfixturevalue("bucket")

        def objects() -> dict[str, bytes]:
            return {o.key.removeprefix("hospital/"): o.get()["Body"].read() for o in bucket.objects.all()}

        return mirror_of("s3://models/hospital/"), objects
    root = tmp_path / "mirror"

    def files() -> dict[str, bytes]:
        return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}

    return mirror_of(str(root)), files


def here(model: Path) -> dict[str, bytes]:
    return {f"{model.name}/{p.relative_to(model)}": p.read_bytes() for p in model.rglob("*") if p.is_file()}


def test_a_model_becomes_there_what_it_is_here(
    place: tuple[Mirror, Callable[[], dict[str, bytes]]], exported: list[Exported], tmp_path: Path
) -> None:
    mirror, content = place
    model = tmp_path / "models" / MODEL
    for version in (1, 2):
        repo.write_version(tmp_path / "models", exported[0].release(MODEL, version))
        mirror.publish(model)
        assert content() == here(model)
    repo.set_versions(tmp_path / "models", MODEL, Part.GENERATOR, {"2"})
    (model / "2" / repo.GRAPH).write_bytes(b"another")
    repo.remove_version(tmp_path / "models", MODEL, "1")
    mirror.publish(model)
    assert content() == here(model) and f"{MODEL}/1/{repo.GRAPH}" not in content()
    mirror.remove(MODEL)
    assert content() == {}


def test_the_configuration_is_uploaded_last_and_what_is_equal_not_again(
    bucket: Any, exported: list[Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3

    put: list[str] = []
    made = boto3.client

    class Recording:
        def __init__(self, service: str) -> None:
            self.real = made(service)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

        def put_object(self, **how: Any) -> Any:
            put.append(how["Key"])
            return self.real.put_object(**how)

    monkeypatch.setattr(boto3, "client", Recording)
    mirror = S3Mirror("models", "hospital")
    repo.write_version(tmp_path, exported[0].release(MODEL, 1))
    mirror.publish(tmp_path / MODEL)
    assert put == [f"hospital/{MODEL}/1/{repo.GRAPH}", f"hospital/{MODEL}/{CONFIG}"]
    mirror.publish(tmp_path / MODEL)
    assert len(put) == 2
    # Triton loads again what is newer.
    (tmp_path / MODEL / "1" / repo.GRAPH).touch()
    mirror.publish(tmp_path / MODEL)
    assert put[2:] == [f"hospital/{MODEL}/1/{repo.GRAPH}"]


def test_a_copy_that_fails_leaves_the_version_that_was_there(
    exported: list[Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror, model = FolderMirror(tmp_path / "mirror"), tmp_path / "models" / MODEL
    repo.write_version(tmp_path / "models", exported[0].release(MODEL, 1))
    mirror.publish(model)
    before = here(model)
    (model / "1" / repo.GRAPH).write_bytes(b"another")

    def full(*words: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copytree", full)
    with pytest.raises(CtmrError, match="space"):
        mirror.publish(model)
    there = tmp_path / "mirror" / MODEL
    assert here(there) == before and [p.name for p in sorted(there.iterdir())] == ["1", CONFIG]


def test_a_bucket_that_is_not_there_is_told_without_a_key(
    bucket: Any, exported: list[Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo.write_version(tmp_path, exported[0].release(MODEL, 1))
    with pytest.raises(EnvironmentFault, match="s3://nowhere/x answers NoSuchBucket") as caught:
        mirror_of("s3://nowhere/x").publish(tmp_path / MODEL)
    assert SECRET not in str(caught.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(EnvironmentFault, match=r"cannot be reached.*AWS_ENDPOINT_URL"):
        mirror_of("s3://nowhere/x").publish(tmp_path / MODEL)


@pytest.mark.parametrize("address", ["s3://", "s3://bucket", "s3://bucket/"])
def test_an_address_without_a_prefix_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="must be s3://BUCKET/PREFIX"):
        mirror_of(address)


def test_the_embedded_server_has_no_other_repository() -> None:
    with pytest.raises(InputError, match="repository needs url"):
        load("default", ["deploy.repository=s3://b/p"])
    assert load("default", ["deploy.repository=s3://b/p", "deploy.url=triton:8001"]).deploy.repository == "s3://b/p"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("pytriton") is None, reason="the bundled Triton is not installed")
@pytest.mark.parametrize("kind", ["s3", "folder"])
def test_a_triton_that_loads_from_elsewhere_follows_rollouts_and_failures(
    bucket: Any, endpoint: str, exported: list[Exported], tmp_path: Path, kind: str
) -> None:
    triton, local = EmbeddedTriton(tmp_path / "state"), tmp_path / "models"
    address = "s3://models/hospital" if kind == "s3" else str(tmp_path / "mirror")
    base = triton.daemon(local, dict.fromkeys(PORTS, 0))

    def elsewhere(ports: Ports, server_id: str) -> Launch:
        how = base.launch(ports, server_id)
        reads = f"s3://{endpoint}/models/hospital" if kind == "s3" else address
        words = [f"--model-repository={reads}" if w.startswith("--model-repository") else w for w in how.command]
        keys = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        return replace(how, command=words, environment={**how.environment, **keys})

    Path(tmp_path / "mirror").mkdir()
    bucket.put_object(Key="hospital/.keep", Body=b"")
    running = replace(base, launch=elsewhere).start()
    try:
        client = MirroringClient(Endpoint.of(running).grpc, mirror_of(address), local, control_key=triton.control_key())
        with client:
            for version in (1, 2):
                release = exported[version - 1].release(MODEL, version)
                deploy(client, local, release, canary_proof(client, [release]))
                assert canary(client, MODEL) == str(version)
                assert client.spec(MODEL)[0].generator_sha256 == release.spec.generator_sha256

            def wrong(name: str, version: str) -> None:
                if name == MODEL:
                    raise CtmrError("wrong in the end")

            with pytest.raises(RolloutFailed, match="wrong in the end; version 2 is still live"):
                deploy(client, local, exported[0].release(MODEL, 3), wrong)
            release = exported[0].release(MODEL, 1)
            deploy(client, local, release, canary_proof(client, [release]))
            assert canary(client, MODEL) == "1"
        there = {o.key.removeprefix("hospital/") for o in bucket.objects.all()} - {".keep"}
        if kind == "folder":
            root = tmp_path / "mirror"
            there = {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}
        assert there == {str(p.relative_to(local)) for p in local.rglob("*") if p.is_file()}
    finally:
        triton.stop()
