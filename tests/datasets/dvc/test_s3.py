"""The S3 remote against a local endpoint: data goes there and back, and a fault is one sentence without secrets."""

from __future__ import annotations

import http.server
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager

import boto3
import nibabel
import numpy as np
import pytest
from PIL import Image

from ctmr.datasets.dvc import materialise, resolve
from ctmr.datasets.dvc.objects import ObjectState, Where
from ctmr.datasets.dvc.remotes import Remote, preflight
from ctmr.datasets.names import FolderLayout
from ctmr.datasets.operations import AddOptions, add, pull, push, verify
from ctmr.errors import EnvironmentFault

pytestmark = pytest.mark.slow
SECRET = "sEcReTsEcReTsEcReT"
KEY = "AKIATESTTESTTEST"
POLICY = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Action": ["s3:ListBucket", "s3:GetObject"], "Resource": "*"}],
}


@pytest.fixture(scope="module")
def server():
    """moto's S3 on loopback."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    yield "http://{}:{}".format(*running.get_host_and_port())
    running.stop()


@pytest.fixture(autouse=True)
def credentials(monkeypatch, tmp_path):
    """Credentials in the environment, and none of this machine's own."""
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))


@pytest.fixture
def bucket(server):
    client = boto3.client("s3", endpoint_url=server)
    client.create_bucket(Bucket="data")
    yield client
    urllib.request.urlopen(urllib.request.Request(f"{server}/moto-api/reset", method="POST"))


def at(url, endpoint, **settings):
    return Remote("storage", url, {"url": url, "endpointurl": endpoint, **settings})


def refusal(remote, *, write=False):
    with pytest.raises(EnvironmentFault) as caught:
        preflight(remote, write=write)
    sentence = str(caught.value)
    assert "\n" not in sentence and SECRET not in sentence and KEY not in sentence
    assert caught.value.exit_code == 3
    return sentence


@pytest.fixture
def dataset(server, bucket, tmp_path, said):
    """A repository whose remote is the bucket, with one dataset that was pushed."""
    rng = np.random.default_rng(0)
    for name in ("CT/1.png", "MR/1.png", "CT/2.png", "MR/2.png"):
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40), dtype=np.uint8)).save(tmp_path / "source" / name)
    options = AddOptions(FolderLayout.PAIRED, "s3://data/head/sets", server, identity_file=tmp_path / "ids")
    add("pairs", tmp_path / "source", tmp_path / "repo", options, said)
    push("pairs", tmp_path / "repo", said)
    return tmp_path


def keys(bucket):
    return {o["Key"]: o["Size"] for o in bucket.list_objects_v2(Bucket="data").get("Contents", [])}


def test_data_goes_to_the_bucket_and_comes_back_to_a_clone(dataset, bucket, said):
    assert len(keys(bucket)) == 2 and all(k.startswith("head/sets/files/md5/") for k in keys(bucket))
    assert verify("pairs", dataset / "repo", said)[2] == []
    subprocess.run(["git", "clone", "-q", dataset / "repo", dataset / "clone"], check=True, capture_output=True)
    pull("pairs", dataset / "clone", said)
    assert verify("pairs", dataset / "clone", said)[2] == []
    shutil.rmtree(dataset / "clone" / ".dvc" / "cache")
    source = resolve(str(dataset / "clone"))
    materialise(source, dataset / "raw", said)
    assert len(list((dataset / "raw").rglob("*.png"))) == 4


def test_no_credential_is_written_anywhere(dataset):
    for file in (p for p in dataset.rglob("*") if p.is_file()):
        content = file.read_bytes()
        assert SECRET.encode() not in content and KEY.encode() not in content, file
    everything = subprocess.run(
        ["git", "cat-file", "--batch-all-objects", "--batch"], cwd=dataset / "repo", check=True, capture_output=True
    )
    assert SECRET.encode() not in everything.stdout


@pytest.mark.parametrize("how", list(ObjectState))
def test_a_faulty_object_in_the_bucket_is_named_and_mended(dataset, bucket, said, how):
    victim = next(k for k in keys(bucket) if not k.endswith(".dir"))
    if how is ObjectState.MISSING:
        bucket.delete_object(Bucket="data", Key=victim)
    else:
        bucket.put_object(Bucket="data", Key=victim, Body=b"damaged")
    _, _, (fault,) = verify("pairs", dataset / "repo", said)
    assert (fault.where, fault.state, fault.path) == (Where.REMOTE, how, "pictures-000.zip")
    assert victim.endswith(fault.object)
    assert push("pairs", dataset / "repo", said, repair=True) == 1
    assert verify("pairs", dataset / "repo", said)[2] == []


def test_a_push_and_a_pull_that_were_killed_go_on(server, bucket, tmp_path, said):
    rng = np.random.default_rng(0)
    for k in range(30):
        (tmp_path / "source" / f"p{k}").mkdir(parents=True)
        volume = nibabel.Nifti1Image(rng.integers(0, 2**15, (60, 60, 60), dtype=np.int16), np.eye(4))
        volume.to_filename(tmp_path / "source" / f"p{k}" / "ct.nii")
    options = AddOptions(FolderLayout.PLAIN, "s3://data/sets", server, identity_file=tmp_path / "ids")
    add("big", tmp_path / "source", tmp_path / "repo", options, said)

    def killed(verb, repo, there):
        script = "from pathlib import Path; from ctmr.datasets import operations\nprint('here', flush=True)\n"
        script += f"operations.{verb}('big', Path({str(repo)!r}), lambda message, fraction=None: None)\n"
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        process.stdout.readline()
        while process.poll() is None and there() < 2:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()

    killed("push", tmp_path / "repo", lambda: len(keys(bucket)))
    sent = len(keys(bucket))
    assert sent < 31, "the push was over before it was killed"
    push("big", tmp_path / "repo", said)
    assert len(keys(bucket)) == 31 and verify("big", tmp_path / "repo", said)[2] == []
    subprocess.run(["git", "clone", "-q", tmp_path / "repo", tmp_path / "clone"], check=True, capture_output=True)
    cache = tmp_path / "clone" / ".dvc" / "cache"
    killed("pull", tmp_path / "clone", lambda: sum(p.is_file() for p in cache.rglob("*")))
    pull("big", tmp_path / "clone", said)
    assert verify("big", tmp_path / "clone", said)[2] == []


def test_an_object_in_parts_is_read_because_its_etag_is_no_md5(dataset, bucket, said):
    victim = next(k for k in keys(bucket) if not k.endswith(".dir"))
    body = bucket.get_object(Bucket="data", Key=victim)["Body"].read()
    for content, faults in ((body, 0), (b"x" + body[1:], 1)):
        upload = bucket.create_multipart_upload(Bucket="data", Key=victim)["UploadId"]
        part = bucket.upload_part(Bucket="data", Key=victim, UploadId=upload, PartNumber=1, Body=content)
        parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
        bucket.complete_multipart_upload(Bucket="data", Key=victim, UploadId=upload, MultipartUpload=parts)
        assert "-1" in bucket.head_object(Bucket="data", Key=victim)["ETag"]
        assert len(verify("pairs", dataset / "repo", said, places=(Where.REMOTE,))[2]) == faults


# What the preflight says


def test_a_bucket_that_can_be_used_passes_and_keeps_no_trace(server, bucket):
    preflight(at("s3://data/a", server), write=True)
    assert keys(bucket) == {}


def test_a_missing_bucket_is_named(server, bucket):
    assert "there is no bucket nonesuch" in refusal(at("s3://nonesuch/a", server))


def test_missing_credentials_are_said(server, bucket, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "there are no credentials; set AWS_ACCESS_KEY_ID" in refusal(at("s3://data", server))


def test_half_a_pair_of_credentials_is_none(server, bucket, monkeypatch):
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "there are no credentials" in refusal(at("s3://data", server))


def test_a_profile_that_is_not_there_is_said(server):
    assert "its AWS profile is not in ~/.aws" in refusal(at("s3://data", server, profile="nonesuch"))


def test_nobody_at_the_endpoint_is_said():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        sentence = refusal(at("s3://data", f"http://127.0.0.1:{unused.getsockname()[1]}"))
    assert "nobody answers there" in sentence


@contextmanager
def enforced(server):
    """From here on moto asks who calls."""

    def post(count):
        plain = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"{server}/moto-api/reset-auth", count, plain, method="POST")
        urllib.request.urlopen(request)

    post(b"0")
    try:
        yield
    finally:
        post(b"inf")


@pytest.fixture
def reader(server, bucket, monkeypatch):
    """An IAM user who may list and read, and whose credentials are in the environment."""
    iam = boto3.client("iam", endpoint_url=server)
    iam.create_user(UserName="reader")
    iam.put_user_policy(UserName="reader", PolicyName="read", PolicyDocument=json.dumps(POLICY))
    made = iam.create_access_key(UserName="reader")["AccessKey"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", made["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", made["SecretAccessKey"])
    return made


def test_an_unknown_key_is_said(server, bucket):
    with enforced(server):
        assert "does not know the access key (403)" in refusal(at("s3://data", server))


def test_a_wrong_secret_is_said(server, reader, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with enforced(server):
        assert "the secret key does not fit the access key (403)" in refusal(at("s3://data", server))


def test_who_may_only_read_is_told_before_a_push(server, reader):
    with enforced(server):
        preflight(at("s3://data", server), write=False)
        sentence = refusal(at("s3://data", server), write=True)
    assert "writing is denied (403); ask for the right to write in bucket data" in sentence


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("RequestTimeTooSkewed", 403, "this machine's clock is too far from the server's"),
        ("ExpiredToken", 400, "the session token has expired"),
        ("AuthorizationHeaderMalformed", 400, "lies in another region"),
        ("AccessDenied", 403, "listing is denied (403)"),
        ("InternalError", 500, "it answered InternalError"),
    ],
)
def test_what_a_real_store_answers_is_said_in_words(code, status, words):
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as answering:
        threading.Thread(target=answering.serve_forever, daemon=True).start()
        assert words in refusal(at("s3://data", f"http://127.0.0.1:{answering.server_port}"))
        answering.shutdown()


def test_a_fetch_that_cannot_reach_the_bucket_says_why(dataset, bucket, said):
    shutil.rmtree(dataset / "repo" / ".dvc" / "cache")
    source = resolve(str(dataset / "repo"))
    for name in keys(bucket):
        bucket.delete_object(Bucket="data", Key=name)
    bucket.delete_bucket(Bucket="data")
    with pytest.raises(EnvironmentFault, match=r"dataset pairs at revision .* could not be fetched: .*no bucket data"):
        materialise(source, dataset / "raw", said)
