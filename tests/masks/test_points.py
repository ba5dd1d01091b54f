"""Points as people's tools write them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from happyneurons.annotations.points import read_points
from happyneurons.errors import UserError

SIZE = (8.0, 8.0, 40.0)


def test_csv_in_voxels_and_nm(tmp_path):
    voxels, nm = tmp_path / "voxels.csv", tmp_path / "nm.csv"
    voxels.write_text("id, x, y, z\nb,1,2,3\na,4,5,6\nb,7,8,9\n")
    nm.write_text("x_nm,y_nm,z_nm\n8,16,120\n")
    points = read_points(str(voxels), SIZE)
    assert points.zyx.tolist() == [[3, 2, 1], [6, 5, 4], [9, 8, 7]]
    assert points.object.tolist() == [1, 0, 1]
    assert read_points(str(nm), SIZE).zyx.tolist() == [[3, 2, 1]]


def test_neuroglancer_state(tmp_path):
    state = tmp_path / "state.json"
    annotations = [
        {"type": "point", "point": [10.5, 20.5, 3.5], "id": "a"},
        {"type": "ellipsoid", "center": [0, 0, 0], "radii": [1, 1, 1], "id": "b"},
    ]
    layers = [{"type": "image", "source": "x"}, {"type": "annotation", "annotations": annotations}]
    dimensions = {"x": [16e-9, "m"], "y": [16e-9, "m"], "z": [40e-9, "m"]}
    state.write_text(json.dumps({"dimensions": dimensions, "layers": layers}))
    assert np.array_equal(read_points(str(state), SIZE).zyx, [[3, 41, 21]])


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "a,b\n1,2\n", "it has the columns a, b"),
        ("b.csv", "x,y,z\n1,2,\n", "line 2"),
        ("c.csv", "x,y,z\n", "no points"),
        ("d.json", "{}", "not a Neuroglancer state"),
        ("e.txt", "1 2 3", "ends in .txt"),
    ],
)
def test_other_files_are_refused(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=words):
        read_points(str(tmp_path / name), SIZE)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_points(str(tmp_path / "none.csv"), SIZE)
