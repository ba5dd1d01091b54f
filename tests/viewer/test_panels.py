"""Side by side, points and published places: what the states say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from happyneurons.cli.view import find_panels
from happyneurons.errors import UnavailableError, UserError
from happyneurons.store.artifacts import Artifact, Bounds
from happyneurons.viewer import Panel, neuroglancer_state, panels_state, published_state
from happyneurons.viewer.points import csv_points
from happyneurons.viewer.published import published_layers

BOUNDS = Bounds(minimum_xyz=(0, 0, 0), maximum_xyz=(100, 50, 20))


def artifact(kind: Any, name: str, **properties: Any) -> Artifact:
    placed: dict[str, Any] = {"voxel_size_nm_xyz": (8, 8, 40), "bounds": BOUNDS}
    uri = f"https://place/{name}"
    return Artifact(kind=kind, uri=uri, data_uri=uri, digest=name, properties=properties, **placed)


def run(number: int) -> dict[str, Artifact]:
    source = f"https://place/seg{number}"
    return {
        "image": artifact("image_volume", "em"),
        "seg": artifact("segmentation", f"seg{number}"),
        "mesh": artifact("mesh_layer", f"mesh{number}", source=source, largest_segments=[number, 7]),
    }


def test_two_runs_stand_side_by_side_and_share_what_is_the_same() -> None:
    state = panels_state([Panel("A", run(1)), Panel("B", run(2))], lambda a: a.data_uri, layout="xy-3d")
    layers = {layer["name"]: layer for layer in state["layers"]}
    assert list(layers) == ["image", "A: seg", "B: seg"]
    assert layers["A: seg"]["segments"] == ["1", "7"]
    assert layers["B: seg"]["source"] == ["precomputed://https://place/seg2", "precomputed://https://place/mesh2"]
    assert state["layout"]["type"] == "row"
    assert [c["layers"] for c in state["layout"]["children"]] == [["image", "A: seg"], ["image", "B: seg"]]
    assert {c["layout"] for c in state["layout"]["children"]} == {"xy-3d"}
    assert state["title"] == "A | B"
    alone = panels_state([Panel("A", run(1))], lambda a: a.data_uri)
    assert alone == neuroglancer_state(run(1), lambda name: run(1)[name].data_uri)


def test_data_that_nobody_else_can_read_has_no_published_state() -> None:
    here = artifact("image_volume", "em").model_copy(update={"data_uri": "file:///d/em"})
    with pytest.raises(UserError, match="not published"):
        published_state([Panel("", {"em": here})])


def test_places_in_a_table_become_points() -> None:
    columns = ["x", "y", "z", "score"]
    rows = [[1, 2, 3, 0.5], [4, "", 6, 0.1], [7.5, 8, 9, 0.9]]
    table = artifact("table", "decisions", columns=columns, rows=rows)
    state = neuroglancer_state({"em": artifact("image_volume", "em"), "points": table}, lambda name: name)
    layer = state["layers"][1]
    assert layer["type"] == "annotation"
    assert [a["point"] for a in layer["annotations"]] == [[1, 2, 3], [7.5, 8, 9]], "a row without a place is left out"
    assert layer["annotations"][1]["description"] == "score 0.9"
    assert layer["source"]["transform"]["outputDimensions"]["z"] == [4e-8, "m"]
    triples = artifact("table", "t", columns=["name", "position_xyz"], rows=[["soma", [1, 2, 3]]])
    found = neuroglancer_state({"em": artifact("image_volume", "em"), "t": triples}, lambda name: name)["layers"][1]
    assert (found["annotations"][0]["point"], found["annotations"][0]["description"]) == ([1, 2, 3], "name soma")
    figures = artifact("table", "f", columns=["a", "b"], rows=[[1, 2]])
    assert len(neuroglancer_state({"em": artifact("image_volume", "em"), "f": figures}, lambda n: n)["layers"]) == 1


def test_seeds_in_a_csv_file_are_points_in_nm_or_voxels(tmp_path: Path) -> None:
    (tmp_path / "seeds.csv").write_text("x_nm, y_nm, z_nm\n80,160,400\n")
    panels, _ = find_panels([str(tmp_path / "seeds.csv")], (), False, None, None, None)
    layers = {"em": artifact("image_volume", "em"), **panels[0].layers}
    state = neuroglancer_state(layers, lambda name: name)
    assert state["layers"][1]["annotations"][0]["point"] == [10, 20, 10]
    for text in ("a,b,c\n1,2,3\n", "", "x,y,z\none,2,3\n"):
        (tmp_path / "bad.csv").write_text(text)
        with pytest.raises(UserError, match="expected a header line"):
            csv_points(tmp_path / "bad.csv")


def test_a_mask_hides_behind_segments_only() -> None:
    mask = {"mask": artifact("mask", "mask")}
    assert neuroglancer_state(mask, lambda name: name)["layers"][0]["visible"] is True
    both = neuroglancer_state({**mask, "seg": artifact("segmentation", "s")}, lambda name: name)
    assert both["layers"][0]["visible"] is False


def test_a_place_where_nothing_was_published_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing was published there .published.json is missing"):
        published_layers(tmp_path.as_uri())
    (tmp_path / "published.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        published_layers(tmp_path.as_uri())
    with pytest.raises(UnavailableError, match="is the place reachable"):
        published_layers("http://127.0.0.1:9/place")


def test_wrong_options_of_view_are_one_line(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from happyneurons.cli.main import main

    (tmp_path / "p.csv").write_text("x,y,z\n1,2,3\n")
    for words, message in (
        (["--viewer", "ftp://x"], "--viewer ftp://x: expected http"),
        (["--token", "a/b"], "--token: letters, digits"),
        (["--link", "--state", str(tmp_path / "none" / "s")], "No such file"),
        (["--worst", "3"], "--worst goes with a run"),
    ):
        result = CliRunner().invoke(main, ["view", str(tmp_path / "p.csv"), *words])
        assert result.exit_code == 2, result.output
        assert message in result.output
    written = tmp_path / "state.json"
    result = CliRunner().invoke(main, ["view", str(tmp_path / "p.csv"), "--link", "--state", str(written)])
    assert result.output.startswith("https://neuroglancer-demo.appspot.com/#!")
    assert len(json.loads(written.read_text())["layers"][0]["annotations"]) == 1
