"""Promise: a pipeline on an S3 store gives what it gives on a file store, on real MPI ranks."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from happyneurons.acquisition.phantom import make_phantom, write_phantom
from happyneurons.acquisition.simulate import simulate_acquisition
from happyneurons.executors.local import LocalExecutor
from happyneurons.orchestrator.orchestrator import Orchestrator
from happyneurons.orchestrator.state import RUN_FINAL, RunPhase, RunStatus
from happyneurons.store.artifacts import load_artifact
from happyneurons.store.documents import Store
from happyneurons.store.volumes import open_volume

PIPELINE = """
parameters: {acquisition: }
defaults: {resources: {ranks: 2}}
jobs:
  ingest: {params: {source: "${acquisition}"}}
  montage: {inputs: {tiles: ingest.tiles}}
  align: {inputs: {stack: montage.stack}}
  volume: {inputs: {stack: align.stack}, params: {num_mips: 1}}
"""


def run(store: Store, acquisition: Path) -> RunStatus:
    orchestrator = Orchestrator(store, {"local": LocalExecutor(cores=2)})
    orchestrator.start()
    try:
        driver = orchestrator.submit(
            {"yaml": PIPELINE, "parameters": {"acquisition": str(acquisition)}, "source_name": "", "base_uri": ""}
        )
        with driver.changed:
            driver.changed.wait_for(lambda: driver.status.phase in RUN_FINAL, timeout=240)
        assert driver.status.phase is RunPhase.SUCCEEDED, driver.status.message
        return driver.status
    finally:
        orchestrator.close()


def voxels(status: RunStatus) -> tuple[str, float]:
    volume = open_volume(load_artifact(status.jobs["volume"].outputs["image"]).data_uri)
    data = volume.read(volume.start_zyx, volume.stop_zyx)
    return hashlib.sha256(data.tobytes()).hexdigest(), float(np.mean(data))


def test_same_voxels_on_s3_and_on_files(s3_store: Store, tmp_path: Path) -> None:
    image, labels = write_phantom(make_phantom((8, 192, 192), seed=3), (tmp_path / "phantom").as_uri())
    acquisition = tmp_path / "acquisition"
    simulate_acquisition(image, acquisition, labels_uri=labels, tiles=(2, 1), seed=3)

    on_s3 = run(s3_store, acquisition)
    on_files = run(Store(str(tmp_path / "store")), acquisition)
    assert voxels(on_s3) == voxels(on_files)
    assert {n: j.key for n, j in on_s3.jobs.items()} == {n: j.key for n, j in on_files.jobs.items()}

    again = run(s3_store, acquisition)
    assert all(job.reused for job in again.jobs.values())
