"""A watcher feeds a real open run: its tiles end up as those of a folder that was read when it was complete."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from happyneurons.cli.main import main
from happyneurons.client import Client
from happyneurons.orchestrator.server import OrchestratorServer
from happyneurons.orchestrator.sites import SiteConfig
from happyneurons.store.artifacts import load_artifact
from happyneurons.store.documents import Store
from happyneurons.worker.local import run_stage
from tests.acquisition.microscope import begin, photograph
from tests.worker.waiting import wait_for

OPEN = """
name: live
acquisition: {batch: 3, wait_s: 3600}
jobs:
  ingest: {stage: ingest, each: batch, params: {source: "${batch}"}}
"""
SECTIONS = 8


def watch(folder: Path, run_id: str, address: str) -> subprocess.Popen[bytes]:
    arguments = ["acquire", "watch", str(folder), "--run", run_id, "--orchestrator", address, "--poll-s", "0.02"]
    return subprocess.Popen([sys.executable, "-m", "happyneurons.cli.main", *arguments, "--until-complete"])


def sections_of(uri: str, numbers: range) -> dict[int, Any]:
    store = load_artifact(uri).store()
    found = {z: store.find_json(f"sections/{z:06d}.json") for z in numbers}
    return {z: document for z, document in found.items() if document is not None}


def serving(store: Store) -> OrchestratorServer:
    return OrchestratorServer(store, sites={"local": SiteConfig(executor="local", cores=2)})


def test_sections_photographed_again_and_a_forgetful_watcher(tmp_path: Path, store: Store) -> None:
    folder = begin(tmp_path / "scope", (0, SECTIONS))
    with serving(store) as server, Client(server.address) as client:
        run = client.submit(OPEN)

        def once(*options: str) -> tuple[int, int]:
            arguments = ["--run", run.id, "--orchestrator", server.address, "--once", *options]
            result = CliRunner().invoke(main, ["acquire", "watch", str(folder), *arguments])
            known = run.refresh().proto.acquisition
            return int(known.sections_imaged_again), result.exit_code

        photograph(folder, 0)
        photograph(folder, 1)
        assert once() == (0, 0)
        photograph(folder, 1, attempt=1)
        assert once() == (1, 0)
        (folder / ".hpn-watch" / f"{run.id}.jsonl").unlink()
        assert once() == (1, 0)
        (folder / ".hpn-watch" / f"{run.id}.jsonl").unlink()
        photograph(folder, 0, attempt=1)
        assert once() == (1, 1)  # it does not know whether it is the right folder
        assert once("--imaged-again") == (2, 0)
        run.cancel()
        photograph(folder, 2)
        assert once() == (2, 2)


def test_a_run_fed_by_a_watcher_that_was_killed_has_every_section_once(tmp_path: Path, store: Store) -> None:
    folder = begin(tmp_path / "scope", (0, SECTIONS))
    with serving(store) as server, Client(server.address) as client:
        run = client.submit(OPEN)

        def reported() -> int:
            return int(run.refresh().proto.acquisition.sections_reported)

        killed = watch(folder, run.id, server.address)
        for z in (2, 0, 1):  # out of order
            photograph(folder, z)
        wait_for(reported, "a first report")
        for z in range(3, SECTIONS):
            photograph(folder, z)
        killed.kill()
        killed.wait()
        assert watch(folder, run.id, server.address).wait(120) == 0
        assert reported() == SECTIONS
        run.wait()
        outputs = {name: job.job.outputs["tiles"].uri for name, job in run.jobs.items()}
    assert sorted(outputs) == ["ingest[0001]", "ingest[0002]", "ingest[0003]"]
    parts = [sections_of(uri, range(SECTIONS)) for uri in outputs.values()]
    assert sorted(z for part in parts for z in part) == list(range(SECTIONS))
    whole = run_stage(store, "ingest", params={"source": str(folder)}).outputs["tiles"]
    assert {z: d for part in parts for z, d in part.items()} == sections_of(whole.uri, range(SECTIONS))
