"""A running Triton at its door: plain clients send whole images, and whatever they send, the server lives on."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
from torch import nn
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from ctmr.imaging.calibration import Calibration, head_levels
from ctmr.imaging.grid import Plane, volume_grid
from ctmr.imaging.inference_path import finish, prepare
from ctmr.imaging.mask import head_mask
from ctmr.imaging.resample import from_grid
from ctmr.imaging.volume import Direction, Modality, Unit, Volume
from ctmr.networks.normaliser import Normaliser
from ctmr.networks.translator import Translator
from ctmr.phantom import make_head
from ctmr.phantom.cohort import affine_of
from ctmr.recipe.recipe import Window
from ctmr.serving import model_repository as repo
from ctmr.serving.export import ServedModality, ServedSpec, ServedUncertainty, export_translator
from ctmr.serving.model_repository import Release
from ctmr.system.environment import DRILL

pytestmark = pytest.mark.slow

SHAPE, SPACING_MM, SIZE = (24, 28, 24), 8.0, (32, 32)
AFFINE = affine_of(SHAPE, SPACING_MM)
MODEL = "heads_mr2ct"
KNOWN = Calibration(
    unit=Unit.HU, cases=6, images=4, rank_correlation=0.8, left_out_error=9, figures=(1, 1000), errors=(50, 900)
)


def translator() -> Translator:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1), nn.Tanh())
    window = Normaliser(Window(low=0, high=1500))
    return Translator(window, body, Normaliser(Window(low=-1024, high=2000)), (-1024.0, 2000.0)).eval()


@dataclasses.dataclass(frozen=True)
class Hospital:
    url: str
    model: Translator
    spec: ServedSpec
    log: Path
    stubs: frozenset[int]

    def ask(self, outputs: list[str], model: str = MODEL, **arrays: np.ndarray) -> list[np.ndarray]:
        """Ask by Triton's own client library alone."""
        types = {
            "int16": "INT16",
            "float32": "FP32",
            "float64": "FP64",
            "uint8": "UINT8",
            "int64": "INT64",
            "uint16": "UINT16",
        }
        inputs = []
        for name in {"image", "image_fp32"} & set(arrays):
            arrays = {"shape": np.array(arrays[name].shape), **arrays, name: arrays[name].ravel()}
        for name, array in arrays.items():
            inputs.append(triton.InferInput(name, array.shape, types[array.dtype.name]))
            inputs[-1].set_data_from_numpy(array)
        with triton.InferenceServerClient(self.url) as client:
            asked = [triton.InferRequestedOutput(name) for name in outputs]
            answer = client.infer(f"{model}_volume", inputs, outputs=asked)
        return [answer.as_numpy(name) for name in outputs]


@pytest.fixture(scope="module")
def hospital(server, tmp_path_factory) -> Iterator[Hospital]:
    """One model without limits, and the same as `strict_mr2ct` with limits that every image is beyond."""
    made = translator()
    files = export_translator(made, 1, SIZE, tmp_path_factory.mktemp("export"))
    spec = ServedSpec(
        direction=Direction.MR2CT,
        source=ServedModality(modality=Modality.MR, unit=Unit.ARBITRARY),
        target=ServedModality(modality=Modality.CT, unit=Unit.HU),
        grid=volume_grid(Plane.AXIAL, SIZE, (8.0, 8.0)),
        max_voxels=200_000,
        generator_sha256=files.generator_sha256,
        range_sha256=files.range_sha256,
        uncertainty=ServedUncertainty(calibration=KNOWN),
    )
    models = {
        MODEL: spec,
        "foreign_mr2ct": spec,
        "flagged_mr2ct": spec.with_limits(1.0, None),
        "strict_mr2ct": spec.with_limits(1.0, 2.0),
    }
    for name, of_it in models.items():
        repo.write_version(server.repository, Release(name, "1", files.generator, files.range, of_it))
    # What a server without ctmr, or with one that does not know this spec, does.
    foreign = server.repository / "foreign_mr2ct_volume" / "1" / "spec.json"
    foreign.write_text(json.dumps({**json.loads(foreign.read_text()), "colour": "blue"}))
    with server.client() as client:
        client.load(*(f"{name}{part}" for name in models for part in ("", "_range", "_volume")))
    stubs = frozenset(p.pid for p in server.triton.leftovers()[0])
    yield Hospital(server.endpoint.grpc, made, spec, server.triton.daemon().log, stubs)
    assert {p.pid for p in server.triton.leftovers()[0]} >= stubs, "a process behind a model died"


@pytest.fixture(scope="module")
def head() -> np.ndarray:
    return make_head(3, shape=SHAPE, spacing_mm=SPACING_MM).t1.astype(np.int16)


def by_torch(hospital: Hospital, array: np.ndarray) -> np.ndarray:
    volume = torch.from_numpy(array.astype(np.float32))
    with torch.no_grad():
        limits = hospital.model.source.measure(volume)[None]
        return hospital.model(volume.transpose(0, 1), limits.expand(volume.shape[1], -1, -1)).numpy()[:, 0]


@pytest.mark.parametrize("kind", ["image", "image_fp32"])
def test_an_image_sent_as_it_is_comes_back_as_evaluate_would_make_it(hospital, head, kind):
    sent = head if kind == "image" else head.astype(np.float32)
    made, findings = hospital.ask(["translation", "findings"], **{kind: sent, "affine": AFFINE})
    array, placement = prepare([Volume(head, AFFINE, Modality.MR, Unit.ARBITRARY)], hospital.spec.grid)
    on_grid = np.rint(by_torch(hospital, array)).astype(np.int16)
    wanted = finish(on_grid, placement, modality=Modality.CT, unit=Unit.HU).array
    assert made.dtype == np.int16 and made.shape == SHAPE
    assert np.abs(made.astype(int) - wanted).max() <= 1 and np.unique(made).size > 300
    assert json.loads(findings.tobytes()) == []


def test_uncertainty_is_the_mirrored_difference_on_the_images_voxels(hospital, head):
    doubt, series = hospital.ask(["uncertainty", "series_uncertainty"], image=head, affine=AFFINE)
    volume = Volume(head, AFFINE, Modality.MR, Unit.ARBITRARY)
    array, placement = prepare([volume], hospital.spec.grid)
    mirrored = by_torch(hospital, np.ascontiguousarray(array[..., ::-1]))[..., ::-1]
    wanted = np.abs(by_torch(hospital, array) - mirrored) / 2
    told = json.loads(series.tobytes())
    mask = head_mask(array[0], Unit.ARBITRARY)
    levels = head_levels(mask, 12)
    assert told["figure"] == pytest.approx(wanted[levels][mask[levels]].mean(), rel=1e-3)
    assert told["calibrated"] and told["expected_error"] == pytest.approx(
        KNOWN.expected_error(told["figure"]), abs=0.01
    )
    assert (told["rank_correlation"], told["cases"]) == (0.8, 6)
    assert doubt.shape == SHAPE and doubt.dtype == np.float32
    native = from_grid(wanted.astype(np.float32), placement.on_grid, outside=0.0)
    np.testing.assert_allclose(doubt, native, atol=0.05)


def test_an_answer_beyond_the_first_limit_says_so_and_beyond_the_second_there_is_none(hospital, head):
    _, findings = hospital.ask(["translation", "findings"], "flagged_mr2ct", image=head, affine=AFFINE)
    (finding,) = json.loads(findings.tobytes())
    assert "the expected mean error inside the head is" in finding and "above the limit of 1" in finding
    with pytest.raises(
        InferenceServerException, match="nothing is answered above 2: the model does not know"
    ) as caught:
        hospital.ask(["translation"], "strict_mr2ct", image=head, affine=AFFINE)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


LYING = [
    ([-24, -28, 24], "is none of an image"),
    ([2**62, 4, 4], "73786976294838206464 voxels, and 16128 were sent"),
    ([24, 28, 25], "16800 voxels, and 16128 were sent"),
    ([], r"the shape \[\] is none"),
]


def test_what_is_no_image_is_refused_as_an_invalid_argument_with_one_sentence(hospital, head):
    nan = head.astype(np.float32)
    nan[3, 3, 3] = np.nan
    ct = make_head(3, shape=SHAPE, spacing_mm=SPACING_MM).ct.astype(np.int16)
    for arrays, words in (
        ({"image_fp32": nan, "affine": AFFINE}, "1 values that are NaN or infinite"),
        ({"image": head}, "has no geometry"),
        ({"image": np.full_like(head, 3), "affine": AFFINE}, "is 3 everywhere"),
        ({"image": ct, "affine": AFFINE}, "was taken for MR, but"),
        ({"image": np.zeros((0, 8, 8), np.int16), "affine": AFFINE}, "is empty"),
        ({"image": np.zeros((80, 80, 80), np.int16), "affine": AFFINE}, "512000 voxels, at most 200000"),
        ({"image": head, "spacing": np.array([np.inf, 1, 1])}, "finite"),
        ({"image": head, "image_fp32": nan, "affine": AFFINE}, "image and image_fp32; give one image"),
        ({"image": head, "affine": AFFINE, "source": np.frombuffer(b"{", np.uint8)}, "is no JSON"),
        ({"image": head[0], "affine": AFFINE}, r"the shape \[28, 24\] is none of an image"),
        ({"image": np.stack([head, head]), "affine": AFFINE}, r"takes 1 channels, \[D, H, W\]"),
        *(({"image": head, "affine": AFFINE, "shape": np.array(s, np.int64)}, w) for s, w in LYING),
        ({"image": head, "affine": AFFINE[:3]}, "unexpected shape for input 'affine'"),
        ({"image": head.astype(np.float64), "affine": AFFINE}, "data-type"),
        ({"picture": head}, "unexpected inference input 'picture'"),
        ({"affine": AFFINE}, "holds no volume"),
    ):
        with pytest.raises(InferenceServerException, match=words) as caught:
            hospital.ask(["translation"], **arrays)
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT", words
        assert not [noise for noise in ("\n", "/tmp", ".py", "ctmr_") if noise in str(caught.value.message())], words


@pytest.mark.parametrize(
    ("part", "name", "shape"),
    [
        *(("_volume", "image", s) for s in ([-16128], [2**62], [2**63 - 1], [0], [24, 28, 24], [-24, -28, 24], [])),
        ("_volume", "affine", [-4, -4]),
        *(("_volume", "volume", s) for s in ([1, -1, -16128, 1], [-1, -1, 32, 32], [1, -16, 32, -32])),
        *(("_range", "volume", s) for s in ([1, -4, -32, 32], [1, 2**62, 2, 2], [-1, -4, 32, 32])),
        *(("", "slices", s) for s in ([-4, 1, -32, 32], [2**62, 1, 32, 32], [-4, 1, 32, 32])),
    ],
)
def test_a_tensors_shape_that_lies_is_refused_and_the_server_lives_on(hospital, head, part, name, shape):
    request = service_pb2.ModelInferRequest(model_name=f"{MODEL}{part}")
    sizes = {"image": head.size * 2, "affine": 128, "volume": 4 * 32 * 32 * (2 if part == "_volume" else 4)}
    kinds = {"image": "INT16", "affine": "FP64", "volume": "UINT16" if part == "_volume" else "FP32", "slices": "FP32"}
    tensor = request.inputs.add(name=name, datatype=kinds[name])
    tensor.shape.extend(shape)
    request.raw_input_contents.append(b"\1" * sizes.get(name, 4 * 32 * 32 * 4))
    with grpc.insecure_channel(hospital.url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(request, timeout=60)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, caught.value.details()
    assert "\n" not in caught.value.details() and "/tmp" not in caught.value.details()
    (made,) = hospital.ask(["translation"], image=head, affine=AFFINE)
    assert made.shape == SHAPE


def test_a_server_that_cannot_prepare_images_says_so_and_translates_what_lies_on_the_grid(hospital, head):
    with pytest.raises(InferenceServerException, match="cannot prepare images: its Python lacks ctmr") as caught:
        hospital.ask(["translation"], "foreign_mr2ct", image=head, affine=AFFINE)
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
    on_grid = np.random.default_rng(0).integers(0, 1000, (1, 3, 32, 32)).astype(np.uint16)
    (made,) = hospital.ask(["translation"], "foreign_mr2ct", volume=on_grid)
    assert made.shape == (3, 32, 32)


def test_an_unknown_model_is_not_found(hospital, head):
    with pytest.raises(InferenceServerException, match="unknown model") as caught:
        hospital.ask(["translation"], "nothing_mr2ct", image=head, affine=AFFINE)
    assert caught.value.status() == "StatusCode.NOT_FOUND"


def test_a_full_queue_refuses_at_once_and_says_so(hospital, head):
    def ask(_: int) -> str:
        try:
            hospital.ask(["translation", "uncertainty"], image=head, affine=AFFINE)
        except InferenceServerException as error:
            return f"{error.status()} {error.message()}"
        return "answered"

    with ThreadPoolExecutor(60) as pool:
        answers = list(pool.map(ask, range(120)))
    refused = [a for a in answers if a != "answered"]
    assert answers.count("answered") >= 17
    assert refused and all("UNAVAILABLE" in a and "Exceeds maximum queue size" in a for a in refused)


PAGE = Path(__file__).parents[2] / "docs" / "hospital-api.md"
PROTO = PAGE.parent / "examples" / "open_inference.proto"


def example(language: str) -> str:
    (code,) = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return code


def test_the_pages_python_example_runs_as_it_stands(hospital, head, tmp_path):
    (tmp_path / "synthesize.py").write_text(example("python"))
    np.save(tmp_path / "image.npy", head)
    np.save(tmp_path / "affine.npy", AFFINE)
    words = ["synthesize.py", hospital.url, MODEL, "image.npy", "affine.npy", "out.npy"]
    # A proxy that is not there: whoever asks it fails.
    environment = {"PATH": os.environ["PATH"], "http_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-I", *words], cwd=tmp_path, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[] {") and json.loads(done.stdout[3:])["calibrated"]
    (wanted,) = hospital.ask(["translation"], image=head, affine=AFFINE)
    assert np.array_equal(np.load(tmp_path / "out.npy"), wanted)


def test_the_pages_node_example_runs_as_it_stands(hospital, head, tmp_path):
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    (tmp_path / "package.json").write_text('{"private": true}')
    packages = re.search(r"`npm install (@grpc\S+ @grpc[^`]+)`", PAGE.read_text())[1].split()
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *packages]
    got = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    if got.returncode:
        pytest.skip(f"npm cannot install @grpc/grpc-js: {got.stderr.strip()[-200:]}")
    (tmp_path / "synthesize.mjs").write_text(example("js"))
    shutil.copy(PROTO, tmp_path)
    head.tofile(tmp_path / "image.raw")
    spacing = ",".join(["8"] * 3)
    words = ["synthesize.mjs", hospital.url, MODEL, "image.raw", "24,28,24", spacing, "out.raw"]
    environment = {"PATH": os.environ["PATH"], "http_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(
        ["node", *words], cwd=tmp_path, capture_output=True, text=True, env=environment, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "only a spacing was given" in done.stdout
    (wanted,) = hospital.ask(["translation"], image=head, spacing=np.array([8.0, 8, 8]))
    assert np.array_equal(np.fromfile(tmp_path / "out.raw", np.int16).reshape(SHAPE), wanted)
    words[2] = "nothing_mr2ct"
    done = subprocess.run(
        ["node", *words], cwd=tmp_path, capture_output=True, text=True, env=environment, check=False, timeout=120
    )
    assert done.returncode == 1 and "nothing_mr2ct_volume" in done.stderr


def test_the_proto_for_other_languages_is_part_of_the_public_one():
    """Field by field against the descriptors that tritonclient was made from."""
    scope, found = [], set()
    for line in PROTO.read_text().splitlines():
        if match := re.match(r"\s*message (\w+) \{", line):
            scope.append(match[1])
        elif match := re.match(r"\s*(repeated )?(\w+) (\w+) = (\d+);", line):
            found.add((".".join(scope), match[3], int(match[4]), match[2], bool(match[1])))
        elif line.strip() == "}" and scope:
            scope.pop()
    known = set()
    names = {3: "int64", 8: "bool", 9: "string", 11: "message", 12: "bytes"}
    for message in service_pb2.DESCRIPTOR.message_types_by_name.values():
        for kind in (message, *message.nested_types):
            path = kind.full_name.removeprefix("inference.")
            for field in kind.fields:
                said = field.message_type.name if field.message_type else names.get(field.type)
                known.add((path, field.name, field.number, said, field.is_repeated))
    assert len(found) == 21 and found <= known, found - known


REQUESTS = 1000 if os.environ.get(DRILL) == "full" else 60


@pytest.mark.drill
def test_memory_stays_flat_whatever_is_asked(server, hospital, head):
    """Images of all sizes, with and without uncertainty, refused ones between them."""
    rng = np.random.default_rng(0)

    def resident_mb() -> float:
        pids = [server.triton.status().process.pid, *(p.pid for p in server.triton.leftovers()[0])]
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def ask(number: int) -> str:
        depth = int(rng.integers(8, 60))
        image = np.resize(head, (depth, 28, 24)).astype(np.float32)
        if number % 5 == 4:
            image[0, 0, 0] = np.nan
        outputs = ["translation", "findings", *(["uncertainty"] if number % 2 else [])]
        try:
            hospital.ask(outputs, image_fp32=image, affine=AFFINE)
        except InferenceServerException as error:
            return str(error.status())
        return "answered"

    # The largest comes first: what a server keeps of it is its size, and no growth.
    hospital.ask(["translation", "uncertainty"], image=np.resize(head, (60, 28, 24)), affine=AFFINE)
    answers = [ask(n) for n in range(REQUESTS // 3)]
    before = resident_mb()
    answers += [ask(n) for n in range(REQUESTS - REQUESTS // 3)]
    after = resident_mb()
    print(f"{before:.0f} MB after {REQUESTS // 3} requests, {after:.0f} MB after {REQUESTS}")
    assert set(answers) == {"answered", "StatusCode.INVALID_ARGUMENT"} and answers.count("answered") >= 0.75 * REQUESTS
    assert after - before < 10
