"""Neuroglancer states: layers with all their sources, in nm, with the largest segments selected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

from happyneurons.errors import UserError
from happyneurons.store.artifacts import Artifact, Bounds
from happyneurons.viewer import link, neuroglancer_state, start_viewer
from happyneurons.viewer.links import has_data

BOUNDS = Bounds(minimum_xyz=(10, 20, 30), maximum_xyz=(110, 70, 50))


def artifact(kind: Any, name: str, **properties: Any) -> Artifact:
    placed: dict[str, Any] = {"voxel_size_nm_xyz": (8, 8, 40), "bounds": BOUNDS}
    return Artifact(
        kind=kind, uri=f"u:{name}", data_uri=f"file:///d/{name}", digest="0", properties=properties, **placed
    )


ARTIFACTS = {
    "em": artifact("section_stack", "em", mask=True),
    "neurons": artifact("segmentation", "seg"),
    "truth": artifact("segmentation", "gt"),
    "meshes": artifact("mesh_layer", "mesh", source="u:seg", largest_segments=[5, 2**60, 7]),
    "skeletons": artifact("skeleton_layer", "skel", source="u:seg", largest_segments=[7, 8, 5]),
    "report": artifact("report", "report"),
}


def state_of(artifacts: dict[str, Artifact], **options: Any) -> dict[str, Any]:
    state = neuroglancer_state(artifacts, lambda name: f"http://h/{name}", **options)
    assert json.loads(json.dumps(state)) == state
    return state


def test_layers_get_their_sources_and_the_view_its_place() -> None:
    state = state_of(ARTIFACTS)
    layers = {layer["name"]: layer for layer in state["layers"]}
    assert list(layers) == ["em", "em mask", "neurons", "truth"]
    assert layers["em"]["source"] == "precomputed://http://h/em/image"
    assert layers["neurons"]["source"] == [f"precomputed://http://h/{n}" for n in ("neurons", "meshes", "skeletons")]
    assert layers["truth"]["source"] == ["precomputed://http://h/truth"]
    assert layers["neurons"]["segments"] == ["5", "7"], "what has a mesh and a skeleton, the largest mesh first"
    assert set(layers["neurons"]["segmentColors"]) == {"5", "7"}
    meshes_only = state_of({name: a for name, a in ARTIFACTS.items() if name != "skeletons"})
    assert meshes_only["layers"][2]["segments"] == ["5", str(2**60), "7"]
    assert state["dimensions"] == {"x": [8e-9, "m"], "y": [8e-9, "m"], "z": [4e-8, "m"]}
    assert state["position"] == [60, 45, 40]
    assert state["crossSectionScale"] == pytest.approx(100 / 400)


def test_segments_can_be_chosen_and_meshes_shown_alone() -> None:
    state = state_of({"meshes": ARTIFACTS["meshes"]}, selected=[9])
    assert state["layers"][0]["segments"] == ["9"]
    assert state["layers"][0]["source"] == ["precomputed://http://h/meshes"]


def test_figures_of_segments_join_the_segmentation_and_are_served() -> None:
    """Of a table only its list of segment properties is; points are in the state."""
    figures = artifact("table", "table", source="u:seg", segment_properties="segment_properties", rows=[], columns=[])
    points = artifact("table", "points", rows=[[1, 2, 3]], columns=["x", "y", "z"])
    state = state_of({**ARTIFACTS, "figures": figures, "points": points})
    layers = {layer["name"]: layer for layer in state["layers"]}
    assert layers["neurons"]["source"][-1] == "precomputed://http://h/figures/segment_properties"
    assert layers["neurons"]["segments"] == ["5", "7"], "a list without a choice of segments changes nothing"
    assert layers["truth"]["source"] == ["precomputed://http://h/truth"]
    assert "figures" not in layers
    assert "points" in layers
    assert [has_data(a) for a in (ARTIFACTS["neurons"], figures, points)] == [True, True, False]


def test_a_link_carries_the_state() -> None:
    state = state_of(ARTIFACTS)
    base, _, fragment = link(state).partition("#!")
    assert base == "https://neuroglancer-demo.appspot.com/"
    assert json.loads(unquote(fragment)) == state


def test_nothing_to_show_is_refused() -> None:
    with pytest.raises(UserError, match="nothing to show"):
        start_viewer({"report": ARTIFACTS["report"]})


def test_meshes_are_drawn_into_a_file(tmp_path: Path) -> None:
    from happyneurons.stages.preview.png import read_png
    from happyneurons.store.artifacts import load_artifact
    from happyneurons.store.documents import Store
    from happyneurons.store.volumes import create_volume
    from happyneurons.viewer import render_neurons
    from happyneurons.worker.local import run_stage

    pytest.importorskip("zmesh")
    labels = np.zeros((32, 32, 32), np.uint64)
    labels[4:28, 8:16, 8:24] = 3
    uri = (tmp_path / "labels").as_uri()
    create_volume(
        uri, start_zyx=(0, 0, 0), stop_zyx=labels.shape, voxel_size_nm_xyz=(8, 8, 8), dtype="uint64",
        layer_type="segmentation",
    ).write((0, 0, 0), labels)  # fmt: skip
    manifest = run_stage(Store((tmp_path / "store").as_uri()), "mesh", inputs={"segmentation": uri})
    layer = load_artifact(manifest.outputs["mesh"].uri)
    assert render_neurons(layer, tmp_path / "n.png", width_px=200, height_px=150) == [3]
    assert np.ptp(read_png((tmp_path / "n.png").read_bytes())) > 100
    with pytest.raises(UserError, match="mesh_layer"):
        render_neurons(load_artifact(uri), tmp_path / "n.png")
