"""The live version and its successor answer the same images; what differs too much does not go live."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctmr.errors import EnvironmentFault, InputError
from ctmr.imaging.volume import Modality, Unit, Volume
from ctmr.io import FORMATS
from ctmr.recipe.recipe import Shadow
from ctmr.serving.client import Translated
from ctmr.serving.export import ServedSpec
from ctmr.serving.rollout import RolloutFailed, deploy
from ctmr.serving.shadow import Difference, ShadowRun, compare
from ctmr.tracking.names import is_candidate
from tests.serving.conftest import Exported, Server

LIVE, CANDIDATE = "tiny_mr2ct", "tiny_mr2ct_candidate"
VOLUME = Volume(np.arange(200, dtype=np.int16).reshape(2, 10, 10), np.eye(4), Modality.MR, Unit.ARBITRARY)


@dataclass
class TwoVersions:
    """A client of a server whose candidate answers `apart` more than its live version in one voxel of a hundred."""

    spec_: ServedSpec
    before: str | None = "1"
    apart: float = 200.0
    old_spec: dict[str, Any] = field(default_factory=dict)
    fails: str = ""

    def live_version(self, model: str) -> str | None:
        return self.before

    def spec(self, model: str, version: str) -> tuple[ServedSpec, str]:
        return self.spec_.model_copy(update=self.old_spec if model == LIVE else {}), version

    def translate_volume(self, model: str, volumes: list[Volume], version: str) -> Translated:
        if model == self.fails:
            raise EnvironmentFault("no answer")
        array = volumes[0].array.astype(np.int16).copy()
        if model == CANDIDATE:
            array[:, 0, 0] += int(self.apart)
        return Translated(replace(volumes[0], array=array), self.spec_, version)

    def compare(self, settings: Shadow | None = None) -> ShadowRun:
        client: Any = self
        return compare(client, LIVE, CANDIDATE, "2", ("golden", [VOLUME]), settings or Shadow())


@pytest.fixture
def two(exported: list[Exported]) -> TwoVersions:
    return TwoVersions(exported[0].spec.model_copy(update={"channels": 1}))


def test_mean_and_percentile_of_each_case_are_stored(two: TwoVersions) -> None:
    found = two.compare()
    assert (found.against, found.left_out) == ("1", "")
    (case,) = found.cases
    assert case.case == "golden" and case.mean == pytest.approx(2.0)
    assert case.p99 == pytest.approx(np.percentile([200] * 2 + [0] * 198, 99))
    assert found.to_json()["cases"] == [{"case": "golden", "mean": case.mean, "p99": case.p99}]


def test_a_folder_of_images_is_compared_too_up_to_the_count(two: TwoVersions, tmp_path: Path) -> None:
    for name in ("b.nii.gz", "a.nii.gz", "c.nii.gz"):
        FORMATS["nifti"].reader.write(tmp_path / name, VOLUME)
    (tmp_path / ".hidden").touch()
    found = two.compare(Shadow(folder=str(tmp_path), cases=2))
    assert [case.case for case in found.cases] == ["golden", "a.nii.gz", "b.nii.gz"]


@pytest.mark.parametrize(("limits", "word"), [({"max_mean_hu": 1.9}, "mean"), ({"max_p99_hu": 0.5}, "99th percentile")])
def test_what_is_above_a_limit_is_refused_and_says_what_to_do(limits: dict[str, float], word: str) -> None:
    found = ShadowRun("1", (Difference("golden", 2.0, 1.0),))
    found.require(Shadow())
    found.require(Shadow(max_mean_hu=2.0, max_p99_hu=1.0))
    with pytest.raises(EnvironmentFault, match=rf"golden: the {word} of .* from version 1 is .*deploy\.shadow"):
        found.require(Shadow(**limits))
    with pytest.raises(EnvironmentFault, match="nan"):
        ShadowRun("1", (Difference("golden", float("nan"), 0.0),)).require(Shadow(max_mean_hu=1.0))


def test_a_live_version_that_cannot_answer_keeps_no_successor_away(two: TwoVersions) -> None:
    two.fails = LIVE
    found = two.compare(Shadow(max_mean_hu=0.0))
    assert found.cases == () and "version 1 did not answer case golden" in found.left_out
    found.require(Shadow(max_mean_hu=0.0))
    two.fails = CANDIDATE
    with pytest.raises(EnvironmentFault, match="no answer"):
        two.compare()


@pytest.mark.parametrize("before", [None, "2"])
def test_without_another_live_version_there_is_nothing_to_compare(two: TwoVersions, before: str | None) -> None:
    two.before = before
    assert two.compare() == ShadowRun(None, left_out="no other version was live")


def test_versions_of_other_images_are_not_compared(two: TwoVersions) -> None:
    target = two.spec_.target.model_copy(update={"unit": Unit.GREY8})
    two.old_spec = {"target": target}
    assert "takes or gives other images" in two.compare().left_out


def test_a_folder_that_cannot_be_used_is_named(two: TwoVersions, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"deploy\.shadow\.folder: there is no folder .*nowhere"):
        two.compare(Shadow(folder=str(tmp_path / "nowhere")))
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match=r"notes\.txt is of no known format"):
        two.compare(Shadow(folder=str(tmp_path)))
    two.spec_ = two.spec_.model_copy(update={"channels": 2})
    with pytest.raises(InputError, match="reads 2 sequences"):
        two.compare(Shadow(folder=str(tmp_path)))


@pytest.mark.slow
def test_a_version_too_far_from_the_live_one_does_not_go_live(
    server: Server, exported: list[Exported], head: list[Volume]
) -> None:
    model, found = "shadow_mr2ct", list[ShadowRun]()
    limits = Shadow(max_mean_hu=1.0)
    with server.client() as client:

        def prove(name: str, version: str) -> None:
            if is_candidate(name):
                found.append(compare(client, model, name, version, ("head", head), limits))
                found[-1].require(limits)

        deploy(client, server.repository, exported[0].release(model, 1), prove)
        with pytest.raises(RolloutFailed, match=r"shadow case head: the mean .*; version 1 is still live"):
            deploy(client, server.repository, exported[1].release(model, 2), prove)
        assert client.live_version(model) == "1"
        assert found[0].against is None and found[-1].cases[0].mean > 1
        deploy(client, server.repository, exported[0].release(model, 3), prove)
        assert found[-1].cases == (Difference("head", 0.0, 0.0),) and client.live_version(model) == "3"
