"""`ctmr synthesize`: wrong inputs and outputs are refused before anything is translated, and doubts are told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_files import enhanced, save
from typer.testing import CliRunner

from ctmr.cli.app import app
from ctmr.errors import InputError
from ctmr.imaging.volume import Direction, Modality, Unit, Volume
from ctmr.io import FORMATS, read_image
from ctmr.io.dicom import SyntheticProvenance, write_series, write_synthetic_series
from ctmr.serving import synthesis
from ctmr.serving.client import SeriesUncertainty, Translated
from ctmr.system.progress import silent
from ctmr.tracking.lineage import trace

RNG = np.random.default_rng(11)
AFFINE = np.array([[0.0, 0, -1, 10], [0, -1, 0, 20], [2.5, 0, 0, -30], [0, 0, 0, 1]])
MR = Volume(RNG.integers(0, 900, (4, 24, 24)).astype(np.uint16), AFFINE, Modality.MR, Unit.ARBITRARY, subject="P1")
CT = Volume(np.full((4, 24, 24), -1000, np.int16), AFFINE, Modality.CT, Unit.HU, subject="P1")
CT.array[:, 6:18, 6:18] = 40


FINDINGS = ("3% of the head lies outside",)


class Server:
    """A Triton that answers with a constant and counts."""

    calls = 0

    def __init__(self, url: str, *, control_key: str, tls: object) -> None:
        self.url = url

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def translate_volume(self, name: str, volume: Volume, *, uncertainty: bool) -> Translated:
        Server.calls += 1
        direction = Direction.MR2CT if volume.modality is Modality.MR else Direction.CT2MR
        unit = Unit.GREY8 if volume.unit is Unit.GREY8 else Unit.HU if direction is Direction.MR2CT else Unit.ARBITRARY
        array = np.full(volume.array.shape, 40, np.uint8 if unit is Unit.GREY8 else np.int16)
        array[0, 0, 0] += Server.calls
        lineage = {"model_name": "head", "run_id": "run-1"}
        spec: Any = SimpleNamespace(lineage=lineage, generator_sha256="ab" * 32, direction=direction)
        made = Volume(array, volume.affine, direction.target, unit, notes=FINDINGS)
        doubt = np.full(array.shape, 7.25, np.float32)
        found = SeriesUncertainty(doubt, unit, 7.25, 80.0, 0.9, 12) if uncertainty else None
        return Translated(made, spec, "3", FINDINGS, found)


class Registry:
    """An MLflow that knows no model."""

    uri = "http://mlflow.invalid"

    def __init__(self, home: Any) -> None:
        pass

    def version(self, name: str, version: str) -> None:
        raise InputError(f"no version {version} of {name}")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> type[Server]:
    monkeypatch.setattr("ctmr.serving.server.TritonClient", Server)
    monkeypatch.setattr(Server, "calls", 0)
    return Server


@pytest.fixture
def translate(server: type[Server], home: Any, tmp_path: Path) -> Any:
    def run(source: Path, out: str, **more: Any) -> dict[str, Any]:
        to = more.pop("to", "CT")
        return synthesis.synthesize(
            source, tmp_path / out, to=to, model="head", url="there:1", home=home, report=silent, **more
        )

    return run


def nifti(path: Path, volume: Volume) -> Path:
    return FORMATS["nifti"].reader.write(path, volume)


def picture(path: Path) -> Path:
    from PIL import Image

    Image.linear_gradient("L").save(path)
    return path


def test_one_slice_of_a_series_is_refused_before_it_is_translated(tmp_path: Path, translate: Any, server: Any) -> None:
    files = write_series(tmp_path / "mr", MR, uid_seed="mr")
    with pytest.raises(InputError, match="is one slice of a DICOM series; give the folder"):
        translate(files[0], "out")
    assert server.calls == 0 and not (tmp_path / "out").exists()


def test_a_multi_frame_file_is_a_series_and_is_translated(tmp_path: Path, translate: Any) -> None:
    frames = RNG.integers(0, 900, (4, 24, 24)).astype(np.int16)
    save(tmp_path / "mr", [enhanced(frames, [(0, 0, 2.0 * k) for k in range(4)])])
    written = translate(next((tmp_path / "mr").iterdir()), "out")
    assert written["files"] == 4 and read_image(tmp_path / "out").modality is Modality.CT


@pytest.mark.parametrize(
    ("make", "out", "words"),
    [
        (lambda p: nifti(p / "a.nii.gz", MR), "out", "is not DICOM"),
        (lambda p: nifti(p / "a.nii.gz", MR), "out.png", r"name OUT \.nii\.gz"),
        (lambda p: picture(p / "a.png"), "out.nii.gz", r"name OUT \.png"),
        (lambda p: picture(p / "a.png"), "out", "is not DICOM"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before(
    make: Any, out: str, words: str, tmp_path: Path, translate: Any, server: Any
) -> None:
    with pytest.raises(InputError, match=words):
        translate(make(tmp_path), out)
    assert server.calls == 0


def test_a_synthetic_image_of_any_format_is_not_translated(tmp_path: Path, translate: Any, server: Any) -> None:
    write_series(tmp_path / "ct", CT, uid_seed="ct")
    provenance = SyntheticProvenance("head", "3", "ab" * 32, "r", "v", "m", "c", Direction.CT2MR)
    write_synthetic_series(tmp_path / "mr", MR, tmp_path / "ct", provenance)
    translate(tmp_path / "ct", "made.nii.gz", to="MR")
    translate(picture(tmp_path / "a.png"), "made.png", to="MR")
    assert server.calls == 2
    for source, out in (("mr", "x"), ("made.nii.gz", "x.nii.gz"), ("made.png", "x.png")):
        with pytest.raises(
            InputError, match=r"synthetic image, not acquired|is synthetic \(SYNTHETIC MR by head version 3\)"
        ):
            translate(tmp_path / source, out)
    assert server.calls == 2


def test_a_ct_given_as_mr_is_refused_by_its_values(tmp_path: Path, translate: Any, server: Any) -> None:
    with pytest.raises(InputError, match=r"taken for MR, but .* near -1000"):
        translate(nifti(tmp_path / "a.nii.gz", CT), "out.nii.gz")
    write_series(tmp_path / "ct", CT)
    with pytest.raises(InputError, match=r"holds no MR image .*CT, not MR"):
        translate(tmp_path / "ct", "out")
    assert server.calls == 0


@pytest.mark.parametrize("kind", ["dicom", "nii.gz"])
def test_the_uncertainty_map_is_written_beside_the_image(kind: str, tmp_path: Path, translate: Any) -> None:
    if kind == "dicom":
        source, out, name = tmp_path / "mr", "out", "map.dcm"
        write_series(source, MR, uid_seed="mr")
    else:
        source, out, name = nifti(tmp_path / "a.nii.gz", MR), "out.nii.gz", "map.nii.gz"
    written = translate(source, out, uncertainty=tmp_path / name)
    assert written["notes"] == list(FINDINGS)
    found = written["uncertainty"]
    assert (found["path"], found["figure"], found["expected_error"]) == (str(tmp_path / name), 7.25, 80.0)
    assert "a mean error of 80 HU inside the head is expected" in found["words"]
    if kind == "dicom":
        made = pydicom.dcmread(tmp_path / name)
        assert made.Modality == "OT" and made.NumberOfFrames == 4 and "NOT FOR DIAGNOSIS" in made.SeriesDescription
    else:
        made = read_image(tmp_path / name, modality=Modality.MR)
        assert np.all(made.array == 7.25) and np.allclose(made.affine, MR.affine) and made.synthetic is not None


@pytest.mark.parametrize(
    ("source", "out", "name", "words"),
    [
        ("a.nii.gz", "out.nii.gz", "map.dcm", r"is written as \.nii"),
        ("a.png", "out.png", "map.png", "8 bits hold no uncertainty map"),
        ("a.nii.gz", "out.nii.gz", "a.nii.gz", "exists already"),
    ],
)
def test_a_map_that_cannot_be_written_is_refused_before(
    source: str, out: str, name: str, words: str, tmp_path: Path, translate: Any, server: Any
) -> None:
    path = picture(tmp_path / source) if source.endswith("png") else nifti(tmp_path / source, MR)
    with pytest.raises(InputError, match=words):
        translate(path, out, uncertainty=tmp_path / name)
    assert server.calls == 0


def test_what_the_reader_doubts_is_told(tmp_path: Path, translate: Any) -> None:
    import nibabel

    image = nibabel.Nifti1Image(RNG.integers(0, 900, (24, 24, 4)).astype(np.int16), np.eye(4))
    image.set_sform(np.eye(4), 1)
    image.set_qform(np.diag([1.0, 1, 2, 1]), 1)
    image.to_filename(tmp_path / "a.nii.gz")
    (warning,) = translate(tmp_path / "a.nii.gz", "out.nii.gz")["warnings"]
    assert "qform and sform place voxels" in warning


@pytest.mark.parametrize("kind", ["dicom", "nii.gz", "png"])
def test_a_translation_is_traced_by_its_file_and_by_its_content(
    kind: str, tmp_path: Path, translate: Any, home: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctmr.tracking.mlflow.Tracking", Registry)
    if kind == "dicom":
        write_series(tmp_path / "mr", MR, uid_seed="mr")
        source, out = tmp_path / "mr", "out"
    elif kind == "png":
        source, out = picture(tmp_path / "a.png"), "out.png"
    else:
        source, out = nifti(tmp_path / "a.nii.gz", MR), "out.nii.gz"
    written = translate(source, out)
    path = (tmp_path / out).rename(tmp_path / "renamed")
    links = {link.what: link.value for link in trace(str(path), home)}
    assert links["synthetic series"] == written["series_uid"] and links["MLflow run"] == "run-1"
    # What another program wrote anew says nothing any more.
    volume = read_image(path) if kind == "dicom" else None
    if volume is not None:
        write_series(tmp_path / "anew", volume)
        links = {link.what: link.value for link in trace(str(tmp_path / "anew"), home)}
        assert links["synthetic series"] == written["series_uid"]


@pytest.mark.parametrize("name", ["head.nii.gz", "head.png"])
def test_a_format_without_modality_asks_for_it_unless_the_name_says_it(
    name: str, tmp_path: Path, server: Any, home: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(path: Path) -> Path:
        return nifti(path, MR) if path.name.endswith("gz") else picture(path)

    def run(source: Path, *more: str) -> Any:
        out = tmp_path / f"out{len(more)}{source.name}"
        line = ["synthesize", str(source), str(out), "--url", "there:1", "--model", "head", *more]
        return CliRunner().invoke(app, line, standalone_mode=True)

    source = make(tmp_path / name)
    answer = run(source)
    assert isinstance(answer.exception, InputError) and "say --from CT or --from MR" in str(answer.exception)
    assert isinstance(run(source, "--from", "CT").exception, InputError)
    assert isinstance(run(source, "--from", "PET").exception, InputError)
    assert server.calls == 0
    assert run(source, "--from", "mr").exit_code == 0
    assert run(make(tmp_path / name.replace("head", "p1_mr"))).exit_code == 0
    assert server.calls == 2
