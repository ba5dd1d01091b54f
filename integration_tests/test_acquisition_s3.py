"""Promise: an open run takes tiles from an S3 store, and gives what it gives for the same files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from happyneurons.acquisition.phantom import make_phantom, write_phantom
from happyneurons.acquisition.simulate import simulate_acquisition
from happyneurons.client import Client
from happyneurons.client.sections import section_message
from happyneurons.orchestrator.server import OrchestratorServer
from happyneurons.orchestrator.sites import SiteConfig
from happyneurons.store.artifacts import load_artifact
from happyneurons.store.documents import Store, local_path
from happyneurons.store.volumes import open_volume
from happyneurons.v1 import acquisition_pb2
from happyneurons.worker.local import run_stage

OPEN = """
acquisition: {batch: 2, wait_s: 3600}
jobs:
  ingest: {each: batch, params: {source: "${batch}", missing: mark}}
  montage: {each: batch, inputs: {tiles: ingest.tiles}, params: {optics_sections: 0}}
  stack: {inputs: {stacks: montage.stack}}
"""


def uploaded(store: Store, section: acquisition_pb2.Section, lost: tuple[int, int] | None = None) -> object:
    """The section with its tiles copied into a store; `lost` (z, column) never gets there."""
    for tile in section.tiles:
        path = local_path(tile.uri)
        assert path is not None
        name = f"scope/{section.z}/{path.name}"
        if (section.z, tile.column) != lost:
            store.put(name, path.read_bytes())
        tile.uri = store.url(name)
    return section


def pictures(uri: str) -> np.ndarray:
    volume = open_volume(f"{load_artifact(uri).data_uri}/image")
    return volume.read(volume.start_zyx, volume.stop_zyx)


def test_tiles_on_s3_give_what_files_give(s3_store: Store, tmp_path: Path) -> None:
    image, labels = write_phantom(make_phantom((8, 192, 192), seed=3), (tmp_path / "phantom").as_uri())
    simulate_acquisition(image, tmp_path / "a", labels_uri=labels, sections=(0, 4), tiles=(2, 1), seed=3)
    sections = [section_message(tmp_path / f"a/sections/{z:06d}/section.json") for z in range(4)]
    lost = (2, 1)
    sites = {"local": SiteConfig(executor="local", cores=2)}
    with OrchestratorServer(s3_store, sites=sites) as server, Client(server.address) as client:
        run = client.submit(OPEN)
        run.report_sections([uploaded(s3_store, s, lost) for s in sections], last=True)  # type: ignore[misc]
        run.wait()
        on_s3 = pictures(run.output("stack"))
        assert run.jobs["ingest[0002]"].job.metrics["tiles_missing"] == 1

    (tmp_path / "a/sections/000002/tile_r0_c1.tif").unlink()
    files = Store((tmp_path / "files").as_uri())
    tiles = run_stage(files, "ingest", params={"source": str(tmp_path / "a"), "missing": "mark"}).outputs["tiles"]
    params = {"optics_sections": 0}
    montage = run_stage(files, "montage", inputs={"tiles": tiles.uri}, params=params).outputs["stack"]
    np.testing.assert_array_equal(on_s3, pictures(montage.uri))
