"""Resources that a site fills in are what is submitted, shown and counted; the result does not depend on them."""

from __future__ import annotations

from pathlib import Path

from happyneurons.executors.local import LocalExecutor
from happyneurons.executors.mapping import MappedExecutor, NodeSize, StageResources
from happyneurons.orchestrator.convert import run_message
from happyneurons.orchestrator.orchestrator import Orchestrator
from happyneurons.orchestrator.state import RUN_FINAL
from happyneurons.store.artifacts import load_manifest
from happyneurons.store.documents import Store
from tests.worker.waiting import wait_for

YAML = """
jobs:
  open: {stage: sandbox, params: {tasks: 4}}
  said: {stage: sandbox, params: {tasks: 5}, resources: {ranks: 1}}
"""


def test_the_site_fills_in_what_the_pipeline_leaves_open(store: Store, tmp_path: Path) -> None:
    site = MappedExecutor(LocalExecutor(4), {"default": StageResources(ranks=2)}, NodeSize(4))
    orchestrator = Orchestrator(store, {"node": site}, "node")
    orchestrator.start()
    try:
        run = orchestrator.submit({"yaml": YAML, "parameters": {}, "source_name": "", "base_uri": ""})
        wait_for(lambda: run.status.phase in RUN_FINAL, "the run's end")
    finally:
        orchestrator.close()
    jobs = {job.name: job.job for job in run_message(store, run.status, {}).jobs}
    assert {name: job.spec.resources.ranks for name, job in jobs.items()} == {"open": 2, "said": 1}
    workers = {}
    for name, job in jobs.items():
        manifest = load_manifest(store, job.key)
        assert manifest is not None
        workers[name] = manifest.provenance["workers"]
    assert workers == {"open": 2, "said": 1}
    again = Orchestrator(store, {"node": site}, "node").driver(run.status.run_id)
    assert again.status.jobs["open"].resources.ranks == 2, "known after a restart, too"
