"""examples/annotate.yaml from crop to the next crop, a person's corrections in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from happyneurons.acquisition.phantom import make_phantom
from happyneurons.ffn.architecture import Architecture, initial_weights
from happyneurons.ffn.model import Model, save_model
from happyneurons.orchestrator.state import RUN_FINAL, RunPhase
from happyneurons.store.artifacts import load_artifact
from happyneurons.store.documents import Store
from happyneurons.store.volumes import PrecomputedVolume, create_volume, open_volume
from tests.annotations.files import VOLUME, annotation, data_zip
from tests.formats.volumes import opened, whole

from ..worker.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
SIZE_NM = (8.0, 8.0, 8.0)


def volume(store: Store, name: str, array: np.ndarray) -> str:
    uri, labels = store.url(f"source/{name}"), name == "labels"
    create_volume(
        uri, start_zyx=(0, 0, 0), stop_zyx=array.shape, voxel_size_nm_xyz=SIZE_NM, dtype=array.dtype.name,
        layer_type="segmentation" if labels else "image", chunk_zyx=(64, 64, 64),
    )  # fmt: skip
    PrecomputedVolume(uri).write((0, 0, 0), array)
    return f"precomputed://{uri}"


def network(store: Store) -> str:
    """A small one that knows nothing: what it segments is not the point here."""
    architecture = Architecture(depth=2, features=4, fov_zyx=(9, 9, 9), deltas_zyx=(2, 2, 2))
    save_model(Store(store.url("source/model")), Model(architecture, initial_weights(architecture, 1)))
    return store.url("source/model")


@pytest.mark.slow
def test_annotate_train_segment_annotate(orchestrator: Any, store: Store, tmp_path: Path) -> None:
    phantom = make_phantom(shape_zyx=(48, 64, 64), seed=3)
    truth = phantom.labels.astype(np.uint64)
    wrong = truth.copy()
    wrong[:32, :32, :32] = 0  # what a person will mend: one block
    work = tmp_path / "round"
    driver = orchestrator.submit(
        {
            "yaml": (ROOT / "examples" / "annotate.yaml").read_text(),
            "parameters": {
                "image": volume(store, "image", phantom.image), "segmentation": volume(store, "labels", wrong),
                "model": network(store), "work": str(work),
                "bounds_xyz": "[[0, 0, 0], [64, 64, 48]]", "steps": "2", "block_steps": "2", "batch_size": "1",
                "validation_patches": "2",
                "subvolume_size_xyz": "[64, 64, 48]", "overlap_xyz": "[24, 24, 24]",
            },
            "source_name": "annotate.yaml",
            "base_uri": "",
        }
    )  # fmt: skip
    wait_for(lambda: driver.status.phase in (RunPhase.WAITING, *RUN_FINAL), "the gate", 90)
    assert driver.status.phase is RunPhase.WAITING, driver.status
    np.testing.assert_array_equal(whole(opened(f"{work}/dataset?segmentation")), wrong)
    name = json.loads((work / "dataset" / "datasource-properties.json").read_text())["id"]["name"]
    mended = VOLUME.format(fallback=' fallbackLayer="segmentation"')
    data = data_zip(tmp_path, truth[:32, :32, :32].astype(np.uint32), (0, 0, 0), "webknossos-zarr3")
    annotation(work / "annotation.zip", mended, data, dataset=name, size=SIZE_NM)
    driver.decide("annotated", True, "ann", "")
    wait_for(lambda: driver.status.phase in RUN_FINAL, "the run's end", 300)
    assert driver.status.phase is RunPhase.SUCCEEDED, [e for e in driver.events if "failed" in e.type]
    labels = open_volume(load_artifact(driver.status.jobs["pull"].outputs["labels"]).data_uri)
    np.testing.assert_array_equal(labels.read(labels.start_zyx, labels.stop_zyx), truth)
    next_round = opened(f"{work}/next?segmentation")
    assert next_round.stop_zyx == truth.shape
