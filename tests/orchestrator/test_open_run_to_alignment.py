"""A microscope's sections, shuffled, late, imaged again and missing, give the very pictures that a closed run gives."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from happyneurons.acquisition.phantom import make_phantom
from happyneurons.acquisition.simulate import simulate_acquisition
from happyneurons.client import Client
from happyneurons.orchestrator.server import OrchestratorServer
from happyneurons.orchestrator.sites import SiteConfig
from happyneurons.store.artifacts import load_artifact
from happyneurons.store.documents import Store
from happyneurons.store.volumes import open_volume
from happyneurons.worker.local import run_stage

from ..stages.batches import section_of, write_batch
from ..worker.waiting import wait_for

OPEN = """
name: open
acquisition: {batch: 3, wait_s: 3600}
jobs:
  ingest: {each: batch, params: {source: "${batch}", missing: mark}}
  montage: {each: batch, inputs: {tiles: ingest.tiles}, params: {optics_sections: 0}}
  stack: {inputs: {stacks: montage.stack}}
  align: {inputs: {stack: stack.stack}}
"""
Z0, MISSING, LATE, AGAIN, Z1 = 3, 6, 4, 5, 10


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sections as they were imaged first, one of them bad, and on another day."""
    folder = tmp_path_factory.mktemp("scope")
    with h5py.File(folder / "em.h5", "w") as f:
        f["em"] = make_phantom((12, 160, 224), seed=3).image
        f["em"].attrs["voxel_size_nm_xyz"] = (8.0, 8.0, 40.0)
    for day, faults in enumerate(({MISSING: "missing_section", AGAIN: "blank_section"}, {})):
        simulate_acquisition(
            f"h5://{folder}/em.h5?em", folder / f"day{day}", sections=(Z0, Z1), tiles=(2, 1), seed=day, faults=faults
        )
    return folder / "day0", folder / "day1"


def pictures(uri: str) -> np.ndarray:
    volume = open_volume(f"{load_artifact(uri).data_uri}/image")
    return volume.read(volume.start_zyx, volume.stop_zyx)


def test_an_open_run_ends_with_the_pictures_of_a_closed_one(
    store: Store, tmp_path: Path, days: tuple[Path, Path]
) -> None:
    sites = {"local": SiteConfig(executor="local", cores=2)}
    with OrchestratorServer(store, sites=sites) as server, Client(server.address) as client:
        run = client.submit(OPEN)
        for z in (9, AGAIN, 3, 8, 7):
            run.report_section(section_of(days[0], z))
        wait_for(lambda: run.refresh().proto.acquisition.sections_done == 3, "the first batch")
        run.report_section(section_of(days[1], AGAIN), imaged_again=True)
        run.report_section(section_of(days[0], LATE), last=True)
        run.wait()
        assert [(g.first_z, g.last_z) for g in run.proto.acquisition.gaps] == [(MISSING, MISSING)]
        stacked, aligned = run.output("stack"), run.output("align")

    other = Store((tmp_path / "closed").as_uri())
    final = [section_of(days[z == AGAIN], z) for z in range(Z0, Z1) if z != MISSING]
    tiles = run_stage(other, "ingest", params={"source": write_batch(other, "all", final), "missing": "mark"})
    found = tiles.outputs["tiles"].uri
    montage = run_stage(other, "montage", inputs={"tiles": found}, params={"optics_sections": 0})
    stack = run_stage(other, "stack", inputs={"stacks": montage.outputs["stack"].uri}).outputs["stack"]
    align = run_stage(other, "align", inputs={"stack": stack.uri}).outputs["stack"]
    np.testing.assert_array_equal(pictures(stacked), pictures(stack.uri))
    np.testing.assert_array_equal(pictures(aligned), pictures(align.uri))
    shown = pictures(aligned).any(axis=(1, 2))
    assert [z for z in range(Z0, Z1) if not shown[z - Z0]] == [MISSING]
