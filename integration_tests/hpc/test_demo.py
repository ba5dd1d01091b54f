"""The demo's pipeline, unchanged, on Balsam, Slurm and real images: the bytes are those of this machine's own run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from integration_tests.hpc.daemons import REPOSITORY
from integration_tests.hpc.images import Images, site_options
from integration_tests.hpc.rig import PLUGIN, Rig

from happyneurons.client import Client
from happyneurons.demo.command import PIPELINE
from happyneurons.demo.prepare import MODEL
from happyneurons.orchestrator.pipeline import parse_pipeline
from happyneurons.orchestrator.server import OrchestratorServer
from happyneurons.store.documents import Store

SIZE = "128,128,32"  # a part of the demo's phantom: what is promised does not depend on size
HPN = [sys.executable, "-m", "happyneurons.cli.main"]


@pytest.fixture
def site_with_images(rig: Rig, images: Images, tmp_path: Path) -> Iterator[Path]:
    """A sites file with the rig's site, whose ranks run in images; tests' paths can be seen inside."""
    parameters = {"acquisition": "x", "model": "x"}
    stages = {job.stage for job in parse_pipeline(PIPELINE.read_text(), parameters).jobs.values()}
    folder = images.sifs(sorted(stages))
    rig.make_site(images=folder, options=site_options(PLUGIN, REPOSITORY, tmp_path))
    access = {"api": rig.api, "site": rig.site_name, "token_file": str(rig.token_file), "poll_s": 1}
    pool = {"max_nodes": 2, "nodes_per_batch": 1, "walltime_min": 60, "idle_s": 30}
    site = {"executor": "balsam", "folder": str(rig.site_folder), "balsam": access, "pool": pool}
    path = tmp_path / "sites.yaml"
    path.write_text(yaml.safe_dump({"hpc": site}))
    yield path
    rig.make_site()


def artifact_bytes(store: Store) -> dict[str, bytes]:
    """Everything that jobs made, but the notebook beside a preview: it names the store."""
    return {p: store.get(p) for p in store.list("artifacts") if not p.endswith(".ipynb")}


def test_the_demo_gives_the_same_bytes_on_balsam_as_here(rig: Rig, site_with_images: Path, tmp_path: Path) -> None:
    output = rig.stores / "demo"
    command = [*HPN, "demo", "--output", str(output), "--size", SIZE, "--sites", str(site_with_images), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{rig.logs()}"
    report = json.loads(done.stdout)
    assert report["segmentation"]["adapted_rand_error"] < 0.1

    here = Store(str(tmp_path / "here"))
    parameters = {"acquisition": str(output / "acquisition"), "model": str(MODEL), "ranks": 2}
    with OrchestratorServer(here) as server, Client(server.address) as client:
        run = client.submit(PIPELINE, parameters).wait()
    there = Store(str(output / "store"))
    for job in run.proto.jobs:
        manifest = there.get_json(f"jobs/{job.job.key}/manifest.json")
        assert manifest["provenance"]["image"]["name"], f"{job.name} ran in an image"
        assert {n: o["digest"] for n, o in manifest["outputs"].items()} == {
            n: o.digest for n, o in job.job.outputs.items()
        }
    ours, theirs = artifact_bytes(here), artifact_bytes(there)
    assert ours.keys() == theirs.keys()
    differing = [path for path in ours if ours[path].replace(here.uri.encode(), there.uri.encode()) != theirs[path]]
    assert differing == []
    shutil.rmtree(output)
