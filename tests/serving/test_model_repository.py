"""The repository holds what both Triton servers need, one content a version, and never half a version."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import pytest

from ctmr.errors import EnvironmentFault, InputError
from ctmr.imaging.grid import picture_grid
from ctmr.imaging.volume import Direction, Modality, Unit
from ctmr.serving import model_repository as repo
from ctmr.serving.export import ServedModality
from ctmr.serving.model_repository import Release
from ctmr.tracking.names import Part, served_name

MODEL = "tiny_mr2ct"


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_version_is_three_models_of_one_version_number(exported, tmp_path):
    assert served_name("tiny", Direction.MR2CT) == MODEL
    assert repo.write_version(tmp_path, exported[0].release(MODEL, 7))
    files = tree(tmp_path)
    assert set(files) == {
        f"{MODEL}/config.pbtxt",
        f"{MODEL}/7/model.onnx",
        f"{MODEL}_range/config.pbtxt",
        f"{MODEL}_range/7/model.onnx",
        f"{MODEL}_volume/config.pbtxt",
        f"{MODEL}_volume/7/model.py",
        f"{MODEL}_volume/7/spec.json",
    }
    assert hashlib.sha256(files[f"{MODEL}/7/model.onnx"]).hexdigest() == exported[0].spec.generator_sha256
    assert json.loads(files[f"{MODEL}_volume/7/spec.json"])["lineage"]["model_name"] == "tiny"
    assert repo.models(tmp_path) == (MODEL, f"{MODEL}_range", f"{MODEL}_volume")
    assert repo.versions(tmp_path, MODEL) == ("7",)


def test_the_configuration_suits_both_servers(exported, tmp_path):
    repo.write_version(tmp_path, exported[0].release(MODEL, 7))
    generator, meter, volume = ((tmp_path / f"{MODEL}{p}" / "config.pbtxt").read_text() for p in Part)
    for config in (generator, meter):
        assert 'backend: "onnxruntime"' in config and "KIND_AUTO" in config
    assert "max_batch_size: 64" in generator and "dims: [ 2, 24, 32 ]" in generator
    assert 'backend: "python"' in volume and "KIND_CPU" in volume
    for line in (
        'input [ { name: "image" data_type: TYPE_INT16 dims: [ -1 ] optional: true } ]',
        'input [ { name: "image_fp32" data_type: TYPE_FP32 dims: [ -1 ] optional: true } ]',
        'input [ { name: "shape" data_type: TYPE_INT64 dims: [ -1 ] optional: true } ]',
        'input [ { name: "affine" data_type: TYPE_FP64 dims: [ 4, 4 ] optional: true } ]',
        'input [ { name: "spacing" data_type: TYPE_FP64 dims: [ 3 ] optional: true } ]',
        'input [ { name: "source" data_type: TYPE_UINT8 dims: [ -1 ] optional: true } ]',
        'input [ { name: "volume" data_type: TYPE_UINT16 dims: [ 2, -1, 24, 32 ] optional: true } ]',
        'output [ { name: "translation" data_type: TYPE_INT16 dims: [ -1, -1, -1 ] } ]',
        'output [ { name: "uncertainty" data_type: TYPE_FP32 dims: [ -1, -1, -1 ] } ]',
    ):
        assert line in volume.splitlines()
    for config in (generator, meter, volume):
        free = [line.count("-1") for line in config.splitlines() if line.startswith("input")]
        assert max(free) <= 1, "two negative extents would agree with the bytes that were sent"
    for config in (generator, meter, volume):
        assert "max_queue_size" in config and "runtime:" not in config and "KIND_GPU" not in config


def test_the_generator_alone_is_hastened_and_warmed_up_and_triton_understands_how(exported, tmp_path):
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    repo.write_version(tmp_path, exported[0].release(MODEL, 7))
    read = {p: text_format.Parse((tmp_path / f"{MODEL}{p}" / "config.pbtxt").read_text(), ModelConfig()) for p in Part}
    (accelerator,) = read[Part.GENERATOR].optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert (
        accelerator.parameters["precision_mode"] == "FP16" and accelerator.parameters["trt_engine_cache_enable"] == "1"
    )
    (warm_up,) = read[Part.GENERATOR].model_warmup
    shapes = {name: list(entry.dims) for name, entry in warm_up.inputs.items()}
    assert shapes == {i.name: list(i.dims) for i in read[Part.GENERATOR].input}
    # The percentiles of a volume must stay those of float32.
    assert not read[Part.RANGE].HasField("optimization") and not read[Part.VOLUME].model_warmup


def test_a_repository_from_before_the_options_takes_a_further_version(exported, tmp_path):
    repo.write_version(tmp_path, exported[0].release(MODEL, 7))
    config = tmp_path / MODEL / "config.pbtxt"
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if not line.startswith(("optimization", "model_warmup"))))
    assert repo.write_version(tmp_path, exported[1].release(MODEL, 8))


def test_pictures_are_served_in_8_bit_and_ct_in_16(exported, tmp_path):
    spec = exported[0].spec.model_copy(
        update={
            "direction": Direction.CT2MR,
            "source": ServedModality(modality=Modality.CT, unit=Unit.GREY8),
            "target": ServedModality(modality=Modality.MR, unit=Unit.GREY8),
            "grid": picture_grid((24, 32)),
        }
    )
    repo.write_version(tmp_path, dataclasses.replace(exported[0].release("p_ct2mr", 1), spec=spec))
    config = (tmp_path / "p_ct2mr_volume" / "config.pbtxt").read_text()
    for side, name in (("input", "image"), ("input", "volume"), ("output", "translation")):
        (line,) = [w for w in config.splitlines() if w.startswith(f'{side} [ {{ name: "{name}"')]
        assert "TYPE_UINT8" in line
    hounsfield = spec.model_copy(update={"source": ServedModality(modality=Modality.CT, unit=Unit.HU)})
    repo.write_version(tmp_path, dataclasses.replace(exported[0].release("h_ct2mr", 1), spec=hounsfield))
    assert '"volume" data_type: TYPE_INT16' in (tmp_path / "h_ct2mr_volume" / "config.pbtxt").read_text()


def test_writing_the_same_again_changes_nothing_and_other_content_is_refused(exported, tmp_path):
    assert repo.write_version(tmp_path, exported[0].release(MODEL, 7))
    before = tree(tmp_path)
    assert not repo.write_version(tmp_path, exported[0].release(MODEL, 7))
    with pytest.raises(InputError, match="exists with other content"):
        repo.write_version(tmp_path, exported[1].release(MODEL, 7))
    assert tree(tmp_path) == before


def test_an_upgrade_of_ctmr_refreshes_the_script_of_the_same_version(exported, tmp_path):
    repo.write_version(tmp_path, exported[0].release(MODEL, 7))
    before = tree(tmp_path)
    (tmp_path / f"{MODEL}_volume" / "7" / "model.py").write_text("# of an older ctmr")
    assert not repo.write_version(tmp_path, exported[0].release(MODEL, 7))
    assert tree(tmp_path) == before


def test_a_setting_of_deployment_and_lineage_are_no_part_of_what_a_version_is(exported, tmp_path):
    release = exported[0].release(MODEL, 7)
    repo.write_version(tmp_path, release)
    for change in ({"chunk": 3}, {"max_voxels": 5}, {"lineage": {"run_id": "another"}}):
        changed = dataclasses.replace(release, spec=release.spec.model_copy(update=change))
        assert not repo.write_version(tmp_path, changed)
        assert repo.written_spec(tmp_path, MODEL, "7") == changed.spec.to_json().encode()
    precise = release.spec.model_copy(update={"neighbours": 1})
    with pytest.raises(InputError):
        repo.write_version(tmp_path, dataclasses.replace(release, spec=precise))


def test_a_new_version_lies_beside_the_old_one_and_is_not_served_yet(exported, tmp_path):
    repo.write_version(tmp_path, exported[0].release(MODEL, 7))
    repo.write_version(tmp_path, exported[1].release(MODEL, 10))
    assert repo.versions(tmp_path, MODEL) == ("7", "10")
    assert {repo.served_versions(tmp_path, MODEL, p) for p in Part} == {("7",)}
    repo.set_versions(tmp_path, MODEL, Part.RANGE, {"10", "7"})
    assert repo.served_versions(tmp_path, MODEL, Part.RANGE) == ("7", "10")


def test_a_version_of_another_geometry_is_refused(exported, tmp_path):
    repo.write_version(tmp_path, exported[0].release(MODEL, 7))
    other = exported[1].spec.model_copy(update={"grid": exported[1].spec.grid.model_copy(update={"size": (48, 48)})})
    with pytest.raises(InputError, match="other channels, size or units"):
        repo.write_version(tmp_path, dataclasses.replace(exported[1].release(MODEL, 8), spec=other))
    assert repo.versions(tmp_path, MODEL) == ("7",)


def test_graphs_that_are_not_the_specs_are_refused(exported, tmp_path):
    mixed = dataclasses.replace(exported[0].release(MODEL, 7), spec=exported[1].spec)
    with pytest.raises(InputError, match="sha256"):
        repo.write_version(tmp_path, mixed)
    assert tree(tmp_path) == {}


def test_a_full_disk_leaves_no_half_version(exported, tmp_path, monkeypatch):
    write, calls = repo.new_folder, []

    def fails_at_the_second(target):
        calls.append(target)
        if len(calls) == 2:
            raise EnvironmentFault("no space left on device")
        return write(target)

    monkeypatch.setattr(repo, "new_folder", fails_at_the_second)
    with pytest.raises(EnvironmentFault, match="no space"):
        repo.write_version(tmp_path, exported[0].release(MODEL, 7))
    assert not [p for p in tree(tmp_path) if "/7/" in p]


def test_removing_the_only_version_removes_the_models(exported, tmp_path):
    repo.write_version(tmp_path, exported[0].release(MODEL, 7))
    repo.write_version(tmp_path, exported[1].release(MODEL, 8))
    repo.remove_version(tmp_path, MODEL, "8")
    assert repo.versions(tmp_path, MODEL) == ("7",)
    repo.remove_version(tmp_path, MODEL, "7")
    assert list(tmp_path.iterdir()) == []


def test_leftover_candidates_are_not_loaded_at_start(exported, tmp_path):
    repo.write_version(tmp_path, exported[0].release(MODEL, 7).as_candidate())
    assert repo.models(tmp_path) == ()
    assert len(repo.leftover_candidates(tmp_path)) == 3


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden", "x y", 'q"uote'])
def test_names_that_are_not_folder_names_are_refused(exported, name):
    with pytest.raises(InputError, match="cannot be a Triton model"):
        dataclasses.replace(exported[0].release(MODEL, 7), model=name)


@pytest.mark.parametrize("version", ["0", "-1", "1.5", "latest", "../1"])
def test_version_numbers_are_whole(exported, version):
    with pytest.raises(InputError, match="whole number"):
        Release(MODEL, version, exported[0].files.generator, exported[0].files.range, exported[0].spec)


EARLIER = """name: "{name}"
backend: "{backend}"
max_batch_size: 0
{inputs}
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
dynamic_batching {{ default_queue_policy {{ timeout_action: REJECT max_queue_size: 16 }} }}
version_policy: {{ specific: {{ versions: [ 3 ] }} }}
"""
VOLUME = """input [ { name: "volume" data_type: TYPE_UINT16 dims: [ 2, -1, 24, 32 ] optional: true } ]
output [ { name: "translation" data_type: TYPE_INT16 dims: [ -1, 24, 32 ] } ]"""
RANGE = """input [ { name: "volume" data_type: TYPE_FP32 dims: [ 2, -1, -1, -1 ] } ]
output [ { name: "range" data_type: TYPE_FP32 dims: [ 2, 2 ] } ]"""


def write_earlier(repository, volume=VOLUME):
    for part, backend, inputs in (("_range", "onnxruntime", RANGE), ("_volume", "python", volume)):
        text = EARLIER.format(name=f"{MODEL}{part}", backend=backend, inputs=inputs)
        (repository / f"{MODEL}{part}" / "config.pbtxt").write_text(text)


def test_a_model_of_an_earlier_interface_gets_todays_and_keeps_its_version(exported, tmp_path):
    repo.write_version(tmp_path, exported[0].release(MODEL, 3))
    today = repo.configs(tmp_path, MODEL)
    write_earlier(tmp_path)
    assert not repo.is_reshaped(tmp_path, exported[1].release(MODEL, 4))
    assert repo.write_version(tmp_path, exported[1].release(MODEL, 4))
    assert repo.configs(tmp_path, MODEL) == today and repo.served_versions(tmp_path, MODEL) == ("3",)


def test_other_units_or_extents_in_an_earlier_interface_are_another_geometry(exported, tmp_path):
    repo.write_version(tmp_path, exported[0].release(MODEL, 3))
    for other in (
        VOLUME.replace("TYPE_UINT16", "TYPE_UINT8"),
        VOLUME.replace("TYPE_INT16", "TYPE_UINT8"),
        VOLUME.replace("2, -1, 24, 32", "2, -1, 24, 40"),
    ):
        write_earlier(tmp_path, other)
        with pytest.raises(InputError, match="is served with other channels, size or units"):
            repo.write_version(tmp_path, exported[1].release(MODEL, 4))
