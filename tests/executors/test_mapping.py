"""A pipeline file runs unchanged on a laptop and on a 64-core node: sites fill in what it leaves out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from happyneurons.errors import UserError
from happyneurons.executors.base import ProcessState, Submission
from happyneurons.executors.mapping import NodeSize, StageResources, map_resources, merge_resources
from happyneurons.jobs.spec import Resources, job_uri
from happyneurons.orchestrator.sites import load_sites, make_executor
from happyneurons.store.documents import Store
from tests.worker.waiting import wait_for

LAPTOP, KNL, K80 = NodeSize(4), NodeSize(64), NodeSize(12, gpus=2)


def site(**stages: dict) -> dict[str, StageResources]:
    return {name: StageResources.model_validate(value) for name, value in stages.items()}


@pytest.mark.parametrize(
    ("node", "stages", "asked", "expected"),
    [
        (KNL, {}, {}, Resources()),
        # 64 MPI ranks of a node: 63 work, one coordinates.
        (KNL, {"default": {"ranks": "auto"}}, {}, Resources(ranks=63)),
        (LAPTOP, {"default": {"ranks": "auto"}}, {}, Resources(ranks=3)),
        # One that works and one that only coordinates would waste a core of two.
        (NodeSize(2), {"default": {"ranks": "auto"}}, {}, Resources(ranks=1)),
        # The pipeline's own words count first, one by one.
        (KNL, {"default": {"ranks": "auto"}}, {"ranks": 5}, Resources(ranks=5)),
        (KNL, {"default": {"threads_per_rank": "auto"}}, {"ranks": 3}, Resources(ranks=3, threads_per_rank=16)),
        (KNL, {"default": {"threads_per_rank": "auto"}}, {}, Resources(threads_per_rank=64)),
        (KNL, {"default": {"ranks": "auto"}}, {"threads_per_rank": 16}, Resources(ranks=3, threads_per_rank=16)),
        # Asked for what is the default anyway is asked for all the same.
        (KNL, {"default": {"ranks": "auto"}}, {"ranks": 1}, Resources(ranks=1)),
        # The stage's entry overrides single fields of the default.
        (KNL, {"default": {"ranks": 9, "walltime_min": 30}, "montage": {"ranks": 3}}, {},
         Resources(ranks=3, walltime_min=30)),
        (KNL, {"default": {"ranks": 9}, "segment": {"ranks": 3}}, {}, Resources(ranks=9)),
        # A rank for each GPU; the coordinating rank has none, but takes its share of the cores.
        (K80, {"montage": {"gpus_per_rank": 1, "ranks": "auto", "threads_per_rank": "auto"}}, {},
         Resources(ranks=2, gpus_per_rank=1, threads_per_rank=4)),
        (K80, {"montage": {"gpus_per_rank": 0.5, "ranks": "auto"}}, {}, Resources(ranks=4, gpus_per_rank=0.5)),
        # More ranks than a node has cores: several nodes, one thread each.
        (KNL, {"default": {"threads_per_rank": "auto"}}, {"ranks": 200}, Resources(ranks=200)),
    ],
)  # fmt: skip
def test_what_the_pipeline_leaves_out_comes_from_the_site(node, stages, asked, expected):
    assert map_resources("montage", Resources(**asked), site(**stages), node) == expected


def test_the_sites_file_overrides_single_fields_of_the_site_folder():
    folder = site(default={"ranks": "auto"}, segment={"ranks": 2, "gpus_per_rank": 1})
    mine = site(segment={"ranks": 64}, align={"memory_gb": 3})
    assert merge_resources(folder, mine) == site(
        default={"ranks": "auto"}, segment={"ranks": 64, "gpus_per_rank": 1}, align={"memory_gb": 3}
    )


@pytest.mark.parametrize(
    "text",
    [
        "here: {executor: local, resources: {default: {ranks: 0}}}",
        "here: {executor: local, resources: {default: {threads: 2}}}",
        "here: {executor: local, resources: {default: {ranks: some}}}",
    ],
)
def test_wrong_resources_of_a_site_are_a_user_error(text: str, tmp_path: Path):
    path = tmp_path / "sites.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="resources.default"):
        load_sites(path)


def test_auto_needs_a_known_machine(tmp_path: Path):
    path = tmp_path / "sites.yaml"
    path.write_text("far: {executor: service, address: 'localhost:1', resources: {default: {ranks: auto}}}")
    with pytest.raises(UserError, match="need `cores:`"):
        make_executor("far", load_sites(path)["far"])


def test_jobs_run_and_are_refused_with_what_the_site_says(store: Store, new_job: Callable[..., str], tmp_path: Path):
    path = tmp_path / "sites.yaml"
    path.write_text("here: {executor: local, cores: 2, resources: {sandbox: {ranks: 2}, default: {ranks: 9}}}")
    executor = make_executor("here", load_sites(path)["here"])
    assert "needs 9 cores" in (executor.refuse("preview", Resources()) or "")
    assert executor.refuse("preview", Resources(ranks=1)) is None
    assert executor.refuse("sandbox", Resources()) is None

    key = new_job(tasks=4)
    handle = executor.submit(Submission(job_uri(store, key), "sandbox", Resources()))
    wait_for(lambda: executor.poll([handle])[handle].state is ProcessState.EXITED, "the job")
    executor.close()
    assert store.get_json(f"jobs/{key}/manifest.json")["provenance"]["workers"] == 2
