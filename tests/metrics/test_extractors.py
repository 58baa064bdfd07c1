"""Extractors: local weights by name and digest, pickles refused, Inception equal to its published port."""

import pickle
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ctmr.errors import EnvironmentFault, InputError
from ctmr.metrics.extractors import Extractor, features, load_extractor
from ctmr.metrics.inception import FEATURES, FidInception, load_inception
from ctmr.system.digest import file_digest

torch.set_num_threads(1)


def weights_by_name(network):
    """Weights that follow from each parameter's name, so that two implementations can be filled alike."""
    out = {}
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        rng = np.random.default_rng(sum(ord(c) * (k + 1) for k, c in enumerate(name)))
        shape = tuple(value.shape)
        if name.endswith("conv.weight"):
            filled = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        elif name.endswith("running_var"):
            filled = rng.uniform(0.5, 1.5, shape)
        elif name.endswith("bn.weight"):
            filled = rng.uniform(0.8, 1.2, shape)
        else:
            filled = rng.normal(0, 0.1, shape)
        out[name] = torch.from_numpy(filled.astype(np.float32))
    return out


@pytest.fixture(scope="module")
def weights():
    return weights_by_name(FidInception())


def two_images():
    rng = np.random.default_rng(5)
    y, x = np.mgrid[0:40, 0:52]
    return np.stack([np.clip(0.5 + 0.4 * np.sin(x / 5) * np.cos(y / 7), 0, 1), rng.random((40, 52))]).astype(np.float32)


# Computed by pytorch-fid's InceptionV3 on torchvision's blocks, filled with the weights above; the last two features
# come from the pool of the last block.
SAMPLED = [0, 256, 512, 768, 1024, 1280, 1536, 1792, 1896, 1932]
PUBLISHED = np.array(
    [
        [3.1755846, 0.4071892, 4.0243263, 2.1298792, 0.0912811, 0.0224182, 0.7668951, 0.0, 0.0, 4.2865038],
        [
            4.3197346,
            0.4802285,
            5.373973,
            2.5020669,
            0.0311894,
            0.1086288,
            0.9260942,
            0.0057443,
            3.6178809e-4,
            5.9530206,
        ],
    ]
)


def test_inception_gives_the_features_of_the_published_port(tmp_path, weights):
    path = tmp_path / "inception.safetensors"
    save_file(weights | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, path)
    extractor = load_extractor(path)
    found = features(two_images(), extractor)
    assert found.shape == (2, FEATURES)
    assert np.abs(found[:, SAMPLED] - PUBLISHED).max() < 1e-4
    assert extractor.variant == f"Inception-v3 of inception.safetensors sha256 {file_digest(path)[:16]}"


def test_inception_has_the_parameters_of_the_published_network():
    assert sum(p.numel() for p in FidInception().parameters()) == 21_785_568


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("Mixed_5b.branch1x1.conv.weight"), r"missing 1 \['Mixed_5b"),
        (lambda w: w.update(extra=torch.zeros(1)), r"unknown 1 \['extra'\]"),
        (lambda w: w.update({"Conv2d_1a_3x3.bn.bias": torch.zeros(3)}), r"has shape \(3,\), not \(32,\)"),
    ],
)
def test_weights_of_another_network_are_refused(weights, change, words):
    other = dict(weights)
    change(other)
    with pytest.raises(ValueError, match=words):
        load_inception(other)


class WithWord(torch.nn.Module):
    """Takes uint8 and knows `return_features`, as the published TorchScript of Inception does."""

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        pooled = img.to(torch.float32).mean(dim=(2, 3))
        return pooled if return_features else pooled[:, :1]


class Plain(torch.nn.Module):
    """Leaves its features as 1 × 1 images."""

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        return img.to(torch.float32).mean(dim=(2, 3), keepdim=True)


@pytest.mark.parametrize("module", [WithWord(), Plain()])
def test_a_torchscript_takes_eight_bit_images_and_is_named_with_its_digest(tmp_path, module):
    path = tmp_path / "net.pt"
    torch.jit.script(module).save(str(path))
    extractor = load_extractor(str(path))
    found = features(np.full((3, 8, 8), 0.2), extractor)
    assert found.shape == (3, 3) and (found == 51.0).all()
    assert extractor.variant == f"TorchScript of net.pt sha256 {file_digest(path)[:16]}"


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was run",))


@pytest.mark.parametrize("name", ["weights.pth", "weights.pt", "weights.safetensors"])
def test_a_pickle_is_refused_whatever_it_is_called_and_never_run(tmp_path, name):
    torch.save({"bomb": Bomb()}, tmp_path / name)
    with pytest.raises(InputError, match=r"are a pickle.*convert them to safetensors"):
        load_extractor(tmp_path / name)
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match="are a pickle"):
        load_extractor(tmp_path / name)


def zipped_code(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/constants.pkl", b"")
        archive.writestr("net/code/__torch__.py", b"")


@pytest.mark.parametrize(
    "write",
    [
        lambda p: p.write_bytes(b"not weights at all"),
        lambda p: p.write_bytes(b"PK\x03\x04cut"),
        zipped_code,
        lambda p: save_file({"a": torch.zeros(2)}, p),
    ],
)
def test_a_file_that_is_neither_is_refused_in_one_sentence(tmp_path, write):
    path = tmp_path / "weights.bin"
    write(path)
    with pytest.raises(InputError, match="cannot be used") as caught:
        load_extractor(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no file of extractor weights at .*gone\.pt"):
        load_extractor(tmp_path / "gone.pt")


def test_an_extractor_that_returns_images_is_refused():
    class Bad:
        name = "bad"

        @staticmethod
        def network(x):
            return x

    with pytest.raises(ValueError, match=r"not \[N, F\]"):
        features(np.zeros((2, 4, 4)), Bad())


def test_a_missing_extractor_is_a_fault_of_the_environment(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(EnvironmentFault, match="install efficientnet-lite-pytorch"):
        load_extractor()


def test_features_tell_a_disc_from_noise_and_do_not_depend_on_the_batch():
    extractor = load_extractor()
    rng = np.random.default_rng(0)
    grid = np.hypot(*np.mgrid[-32:32, -32:32])
    images = np.stack([(grid < 20).astype(float), (grid < 21).astype(float), rng.random((64, 64))])
    found = features(images, extractor)
    assert found.shape == (3, 1280) and extractor.weights_sha256[:16] in extractor.variant
    assert np.allclose(found, features(images, extractor, batch=1), atol=1e-5)
    assert np.linalg.norm(found[0] - found[1]) < 0.5 * np.linalg.norm(found[0] - found[2])


def test_images_outside_zero_to_one_are_refused():
    with pytest.raises(ValueError, match=r"values in \[0, 1\]"):
        features(np.full((2, 8, 8), 40.0), Extractor("any", "", lambda x: x))
