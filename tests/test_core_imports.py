"""The core runs where only torch, numpy, scipy and pydantic are installed: GPU machines have no MLOps packages."""

import json
import subprocess
import sys

import pytest
from few_packages import blocked_packages

CORE = (
    *("ctmr.networks", "ctmr.training", "ctmr.metrics", "ctmr.imaging"),
    *(f"ctmr.data.{name}" for name in ("shards", "domain", "sampling", "augment", "examples")),
)

PROGRAM = """
import importlib, json, pkgutil, sys

blocked = set(json.loads(sys.argv[1]))


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} is blocked by the test", name=name)
        return None


sys.meta_path.insert(0, Blocker())
imported = []
for package in sys.argv[2:]:
    module = importlib.import_module(package)
    below = pkgutil.walk_packages(module.__path__, f"{package}.") if hasattr(module, "__path__") else []
    names = [package, *(m.name for m in below)]
    imported += [importlib.import_module(name).__name__ for name in names]
print(json.dumps(imported))
"""


def run(*packages):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(blocked_packages()), *packages], capture_output=True, text=True
    )


def test_the_blocked_packages_are_those_that_gpu_machines_lack():
    blocked = set(blocked_packages())
    assert {"kfp", "mlflow", "dvc", "optuna", "yaml", "pandas", "pydicom", "nibabel", "skimage", "PIL"} <= blocked
    assert not blocked & {"torch", "numpy", "scipy", "pydantic", "pydantic_core", "typing_extensions", "ctmr"}


def test_every_module_of_the_core_imports_with_four_packages_alone():
    done = run(*CORE)
    assert done.returncode == 0, done.stderr[-2000:]
    imported = json.loads(done.stdout)
    assert {"ctmr.training.trainer", "ctmr.networks.generators", "ctmr.data.shards", "ctmr.metrics.fidelity"} <= set(
        imported
    )


def test_the_block_works():
    """A package that needs more must fail, or the test above proves nothing."""
    done = run("ctmr.data")
    assert done.returncode != 0
    assert "is blocked by the test" in done.stderr


@pytest.mark.parametrize(
    "module", ["ctmr.serving.client", "ctmr.pipeline.stages.preprocess", "ctmr.pipeline.stages.fetch"]
)
def test_a_client_and_the_reading_of_data_need_no_pytorch(module: str) -> None:
    code = f"import sys, {module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
