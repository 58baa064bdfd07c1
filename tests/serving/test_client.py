"""A served version answers exactly what PyTorch answers, and refuses what it cannot translate in one sentence."""

from __future__ import annotations

import dataclasses
import doctest
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from ctmr.errors import EnvironmentFault, InputError
from ctmr.imaging.inference_path import finish, prepare
from ctmr.imaging.volume import Modality, Unit
from ctmr.serving import model_repository as repo
from ctmr.serving.client import NotServed, TritonClient
from ctmr.tracking.names import Part

pytestmark = pytest.mark.slow

MODEL = "tiny_mr2ct"


@pytest.fixture(scope="module")
def served(server, exported):
    """Versions 1 and 2 of the model, both loaded."""
    for number, model in enumerate(exported, start=1):
        repo.write_version(server.repository, model.release(MODEL, number))
    with server.client() as client:
        for part in (Part.RANGE, Part.GENERATOR, Part.VOLUME):
            repo.set_versions(server.repository, MODEL, part, {"1", "2"})
            client.load(f"{MODEL}{part}")
    return server


@pytest.fixture
def client(served):
    with served.client() as client:
        yield client


def raw(server, model, outputs, version="", **arrays):
    """Ask Triton by its own client library alone."""
    inputs = []
    for name, array in arrays.items():
        kind = {"float32": "FP32", "uint16": "UINT16", "int16": "INT16"}[array.dtype.name]
        inputs.append(triton.InferInput(name, array.shape, kind))
        inputs[-1].set_data_from_numpy(array)
    with triton.InferenceServerClient(server.endpoint.grpc) as client:
        asked = [triton.InferRequestedOutput(name) for name in outputs]
        answer = client.infer(model, inputs, outputs=asked, model_version=version)
    return [answer.as_numpy(name) for name in outputs]


def test_the_generator_answers_bit_for_bit_what_onnx_runtime_answers(served, exported):
    rng = np.random.default_rng(0)
    slices = rng.uniform(0, 3000, (3, 2, 24, 32)).astype(np.float32)
    limits = np.tile(np.array([0, 2500], np.float32), (3, 2, 1))
    for version, model in enumerate(exported, start=1):
        session = onnxruntime.InferenceSession(str(model.files.generator), providers=["CPUExecutionProvider"])
        wanted = session.run(None, {"slices": slices, "range": limits})[0]
        (got,) = raw(served, MODEL, ["translation"], str(version), slices=slices, range=limits)
        assert np.array_equal(got, wanted)


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY"])
def test_a_proxy_of_the_environment_gets_no_image(served, monkeypatch, variable):
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    with served.client() as client:
        assert client.index()


def test_batched_requests_each_get_their_own_answer(served, exported):
    session = onnxruntime.InferenceSession(str(exported[1].files.generator), providers=["CPUExecutionProvider"])

    def ask(number):
        slices = np.random.default_rng(number).uniform(0, 3000, (1 + number % 3, 2, 24, 32)).astype(np.float32)
        limits = np.tile(np.array([0, 2000 + number], np.float32), (len(slices), 2, 1))
        wanted = session.run(None, {"slices": slices, "range": limits})[0]
        (got,) = raw(served, MODEL, ["translation"], slices=slices, range=limits)
        return np.abs(got - wanted).max()

    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(ask, range(40))) < 0.01


@pytest.mark.parametrize("version", [1, 2])
def test_a_volume_equals_pytorch_in_the_version_that_was_asked(served, client, exported, array, version):
    got = client.translate_array(MODEL, array, str(version))
    wanted = exported[version - 1].by_torch(array)
    assert got.dtype == np.int16 and got.shape == array.shape[1:]
    assert np.abs(got - wanted).max() < 0.55
    assert np.unique(got).size > 500


def test_a_volume_says_which_version_made_it(served, array):
    for asked, number in (("1", 1), ("2", 2), ("", 2)):
        _, by = raw(served, f"{MODEL}_volume", ["translation", "generator_version"], asked, volume=array)
        assert by.tolist() == [number]


def test_the_server_hands_out_the_spec_of_each_version(client, exported):
    assert client.spec(MODEL, "1") == (exported[0].spec, "1")
    assert client.spec(MODEL) == (exported[1].spec, "2")
    assert client.live_version(MODEL) == "2"
    assert client.live_version("nothing_mr2ct") is None


def test_an_image_comes_back_on_its_own_voxels_as_evaluate_would_make_it(client, exported, head):
    volume, spec, version, *_ = client.translate_volume(MODEL, head)
    array, placement = prepare(head, spec.grid)
    made = np.rint(exported[1].by_torch(array)).astype(np.int16)
    wanted = finish(made, placement, modality=Modality.CT, unit=Unit.HU)
    assert version == "2" and (volume.modality, volume.unit, volume.subject) == (Modality.CT, Unit.HU, "s1")
    assert np.array_equal(volume.affine, head[0].affine) and volume.array.shape == head[0].array.shape
    assert np.abs(volume.array.astype(int) - wanted.array).max() <= 1


def test_the_example_in_the_clients_docstring_prints_what_it_says(served, head):
    said = []
    known = {"TritonClient": TritonClient, "url": served.endpoint.grpc, "t1": head[0], "t2": head[1]}
    (example,) = doctest.DocTestFinder(recurse=False).find(TritonClient, globs=known)
    done = doctest.DocTestRunner().run(example, out=said.append)
    assert done.attempted == 3 and done.failed == 0, "".join(said)


def test_volumes_that_cannot_be_translated_are_refused_in_one_sentence(client, array):
    spoilt = array.copy()
    spoilt[1] = 7
    for volume, named in (
        (array[:1], "shape"),
        (array[:, :, :20], "shape"),
        (array[:, :, :, :20], "shape"),
        (array[:, :0], "is empty; at least one slice is needed"),
        (spoilt, "channel 2 of the volume is 7 everywhere; an image is needed"),
        (array.astype(np.int16), "data-type"),
        (np.tile(array, (1, 20, 1, 1)), "307200 voxels, at most 200000 are allowed"),
    ):
        with pytest.raises(InputError, match=named) as caught:
            client.translate_array(MODEL, volume, "2")
        assert not [noise for noise in ("\n", "/tmp", "request id") if noise in str(caught.value)]


def test_a_request_without_a_volume_is_refused(served):
    with pytest.raises(InferenceServerException, match="holds no volume"):
        raw(served, f"{MODEL}_volume", ["translation"])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_value_that_is_not_finite_is_refused_by_the_server(served, value):
    slices = np.ones((2, 2, 24, 32), np.float32)
    slices[1, 0, 5, 5] = value
    with pytest.raises(InferenceServerException, match="'slices' holds values that are not finite"):
        raw(served, MODEL, ["translation"], slices=slices, range=np.ones((2, 2, 2), np.float32))


def test_one_bad_request_does_not_harm_its_neighbours_in_the_batch(served):
    good = np.random.default_rng(0).uniform(0, 3000, (1, 2, 24, 32)).astype(np.float32)
    limits = np.tile(np.array([0, 2500], np.float32), (1, 2, 1))

    def ask(number):
        try:
            return raw(served, MODEL, ["translation"], slices=good if number % 2 else good * np.nan, range=limits)[0]
        except InferenceServerException:
            return None

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(24)))
    assert [a is None for a in answers] == [n % 2 == 0 for n in range(24)]
    assert all(np.isfinite(a).all() for a in answers if a is not None)


def test_images_of_the_wrong_kind_are_refused(client, head):
    ct = dataclasses.replace(head[0], modality=Modality.CT, unit=Unit.HU)
    nan = head[0].with_array(np.full(head[0].array.shape, np.nan))
    for volumes, named in (
        (head[0], r"has shape \[9, 26, 30\]; this model takes 2 channels \(T1, T2\), \[2, D, H, W\]"),
        ([ct, dataclasses.replace(ct)], "says modality 'CT'; this model takes MR in arbitrary"),
        ([ct, head[1]], "channel 2 is in unit arbitrary, channel 1 in HU"),
        (head[::-1], "says 'T2' for channel 1; this model takes T1 there"),
        ([nan, head[1]], "not finite"),
    ):
        with pytest.raises(InputError, match=named):
            client.translate_volume(MODEL, volumes)


def test_a_full_queue_is_waited_for_and_nothing_is_lost(served, array):
    volume = array[:, :10]

    def ask(_):
        with served.client() as client:
            return client.translate_array(MODEL, volume, "2", deadline_s=60)

    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(ask, range(60)))
    assert all(np.array_equal(a, answers[0]) for a in answers)


def test_models_and_versions_that_are_not_served_are_named(client, head):
    with pytest.raises(NotServed, match=r"other_mr2ct at .*unknown model"):
        client.translate_volume("other_mr2ct", head)
    with pytest.raises(NotServed, match="tiny_mr2ct version 9 at"):
        client.translate_volume(MODEL, head, "9")


def test_a_deadline_ends_the_wait(client, array):
    with pytest.raises(EnvironmentFault, match="no answer before the deadline"):
        client.translate_array(MODEL, array, "2", deadline_s=0.002)


def test_a_volume_that_nobody_waits_for_any_more_is_not_translated_to_its_end(served, exported, array):
    patient = exported[0].release("patient_mr2ct", 1)
    patient = dataclasses.replace(patient, spec=patient.spec.model_copy(update={"chunk": 1, "max_voxels": 10**8}))
    repo.write_version(served.repository, patient)
    long = np.tile(array, (1, 2000, 1, 1))
    with served.client() as client:
        client.load("patient_mr2ct_range", "patient_mr2ct", "patient_mr2ct_volume")
        with pytest.raises(EnvironmentFault, match="no answer before the deadline"):
            client.translate_array("patient_mr2ct", long, "1", deadline_s=1.0)
        client.translate_array("patient_mr2ct", array, "1", deadline_s=120)
    log = served.triton.daemon().log.read_text()
    (gone,) = re.findall(rf"the caller has gone after (\d+) of {long.shape[1]} slices", log)
    assert int(gone) < long.shape[1]


def test_a_server_that_is_not_there_is_a_fault_of_the_environment():
    with TritonClient("127.0.0.1:1") as client, pytest.raises(EnvironmentFault, match="is Triton running"):
        client.spec(MODEL)


def test_the_bundled_server_keeps_to_loopback_and_inherits_nothing(served):
    running = served.triton.status()
    environment = Path(f"/proc/{running.process.pid}/environ").read_bytes().split(b"\0")
    names = {e.split(b"=")[0].decode() for e in environment if e}
    own = {"PATH", "LD_LIBRARY_PATH", "HOME", "LC_ALL", "PYTHONDONTWRITEBYTECODE", "TRITON_STUB_PACKAGES"}
    memory = {"MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}
    assert names == own | memory | {"HIDDEN_ARGUMENT"}
    for table in ("tcp", "tcp6"):
        rows = [line.split() for line in Path(f"/proc/{running.process.pid}/net/{table}").read_text().splitlines()[1:]]
        ports = set(running.ports.values())
        listening = {r[1].split(":")[0] for r in rows if r[3] == "0A" and int(r[1].split(":")[1], 16) in ports}
        assert listening <= {"0100007F", "0000000000000000FFFF00000100007F"}, "127.0.0.1, also as mapped into IPv6"
