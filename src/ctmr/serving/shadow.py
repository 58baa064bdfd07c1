"""Shadow: the version that is live and the one that is to follow it answer the same images, and are compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ctmr.errors import CtmrError, EnvironmentFault, InputError
from ctmr.imaging.volume import Volume
from ctmr.io import read_image
from ctmr.recipe.recipe import Shadow
from ctmr.serving.client import TritonClient
from ctmr.serving.export import ServedSpec


@dataclass(frozen=True)
class Difference:
    """Absolute difference of two versions' answers to one image, over all its voxels, in the answer's unit.

    Attributes
    ----------
    case
        Name of the image.
    mean, p99
        Mean and 99th percentile.
    """

    case: str
    mean: float
    p99: float


@dataclass(frozen=True)
class ShadowRun:
    """Outcome of a shadow run.

    Attributes
    ----------
    against
        The version that was live; ``None``: there was none.
    cases
        One an image.
    left_out
        Why the two were not compared, or not on every image; empty when they were.
    """

    against: str | None
    cases: tuple[Difference, ...] = ()
    left_out: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "cases": [asdict(case) for case in self.cases]}

    def require(self, limits: Shadow) -> None:
        """Raise EnvironmentFault when an image's difference is above a limit of the recipe."""
        for case in self.cases:
            for name, value, limit in (
                ("mean", case.mean, limits.max_mean_hu),
                ("99th percentile", case.p99, limits.max_p99_hu),
            ):
                if limit is not None and not value <= limit:
                    raise EnvironmentFault(
                        f"shadow case {case.case}: the {name} of the absolute difference from version "
                        f"{self.against} is {value:.4g}, at most {limit:g} is allowed (deploy.shadow); look at both, "
                        "then raise the limit or keep the old version"
                    )


def compare(
    client: TritonClient,
    live: str,
    candidate: str,
    version: str,
    golden: tuple[str, Sequence[Volume]],
    settings: Shadow,
) -> ShadowRun:
    """Have the live version and a candidate answer the golden case and the images of `Shadow.folder`.

    Parameters
    ----------
    live, candidate, version
        Model that callers meet, and name and version of the candidate.
    golden
        Name and images of a case that is at hand.

    Raises
    ------
    InputError
        An image of the folder cannot be read or does not fit the candidate.
    EnvironmentFault
        The candidate does not answer. A live version that does not is told in `ShadowRun.left_out`: it must not keep
        its successor away.
    """
    before = client.live_version(live)
    if before is None or before == version:
        return ShadowRun(None, left_out="no other version was live")
    old, new = client.spec(live, before)[0], client.spec(candidate, version)[0]
    if (old.source, old.target.unit) != (new.source, new.target.unit):
        return ShadowRun(before, left_out=f"version {before} takes or gives other images")
    found = list[Difference]()
    for name, volumes in _cases(golden, new, settings):
        ours = client.translate_volume(candidate, volumes, version).volume.array
        try:
            theirs = client.translate_volume(live, volumes, before).volume.array
        except CtmrError as error:
            return ShadowRun(before, tuple(found), f"version {before} did not answer case {name}: {error}")
        difference = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
        found.append(Difference(name, float(difference.mean()), float(np.percentile(difference, 99))))
    return ShadowRun(before, tuple(found))


def _cases(
    golden: tuple[str, Sequence[Volume]], spec: ServedSpec, settings: Shadow
) -> Iterator[tuple[str, Sequence[Volume]]]:
    """Yield the golden case, then the folder's images by name, each read when it is its turn."""
    yield golden
    if settings.folder is None:
        return
    folder = Path(settings.folder)
    if not folder.is_dir():
        raise InputError(f"deploy.shadow.folder: there is no folder {folder}; name one that holds images, or null")
    if spec.channels != 1:
        raise InputError(
            f"deploy.shadow.folder: the model reads {spec.channels} sequences, and a file of the folder holds one; set "
            "it to null"
        )
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    for path in paths[: settings.cases]:
        yield path.name, [read_image(path, modality=spec.source.modality)]
