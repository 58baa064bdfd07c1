"""start: pins what a run must not look up twice; never cached, so that a moved branch is seen."""

from typing import NamedTuple

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def start(
    dataset_repo: str,
    dataset_rev: str,
    dataset_path: str,
    recipe: str,
    overrides: list,
    limits: dict,
    tracking_uri: str,
    triton_url: str,
) -> NamedTuple(
    "Started",
    [
        ("dataset", str),
        ("champion", str),
        ("workspace", str),
        # Kubeflow runs this function's text alone, where no import stands above it.
        *((stage, str) for stage in __import__("ctmr.pipeline.stages", fromlist=["names"]).names()),
    ],
):
    """Pin the dataset's revision and md5, find the champion, and split the recipe into each stage's settings."""
    from collections import namedtuple

    from ctmr.kubeflow import tasks

    begun = tasks.start(
        dataset_repo=dataset_repo,
        dataset_rev=dataset_rev,
        dataset_path=dataset_path,
        recipe=recipe,
        overrides=overrides,
        limits=limits,
        triton_url=triton_url,
        tracking_uri=tracking_uri,
    )
    fields = {"dataset": begun.dataset, "champion": begun.champion, "workspace": begun.workspace, **begun.settings}
    return namedtuple("Started", fields)(**fields)
