"""Annotations read by us and by WEBKNOSSOS's own library: the same voxels, nodes and sizes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from integration_tests.test_formats import webknossos_python  # noqa: F401  # a fixture

from happyneurons.annotations.archive import AnnotationFile
from happyneurons.annotations.volume_data import open_volume_data

pytestmark = pytest.mark.integration

FOREIGN = """
import json, sys
import numpy as np
import webknossos

def main():
    source, target, layer, low, size = json.loads(sys.argv[1])
    annotation = webknossos.Annotation.load(source)
    with annotation.temporary_volume_layer_copy(volume_layer_name=layer) as volume:
        box = webknossos.BoundingBox(low, size)
        np.save(target, volume.get_finest_mag().read(absolute_bounding_box=box)[0].transpose(2, 1, 0))
    nodes = [[n.id, *n.position] for t in annotation.skeleton.flattened_trees() for n in t.nodes]
    print(json.dumps({"nodes": sorted(nodes)}))

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("l4_sample__explorational__suser__94b271", "Volume"),  # Zarr 3
        ("multi_volume_example_CREMI", "Volume_2"),  # WKW
    ],
)
def test_voxels_and_nodes_are_those_that_webknossos_reads(
    name: str,
    layer: str,
    webknossos_python: str,  # noqa: F811
    shared_data: Path,
    tmp_path: Path,
) -> None:
    source = shared_data / "webknossos" / "annotations" / f"{name}.zip"
    ours = AnnotationFile(str(source), tmp_path, 1 << 30)
    entry = next(v for v in ours.nml.volumes if v.name == layer)
    ours.unpack(entry, tmp_path / "volume")
    data = open_volume_data(tmp_path / "volume", name, ours.nml.voxel_size_nm_xyz, 0)
    assert data is not None
    assert data.box is not None
    start, stop = data.box
    low, size = start[::-1], np.subtract(stop, start)[::-1].tolist()
    script = tmp_path / "foreign.py"
    script.write_text(FOREIGN)
    request = json.dumps([str(source), str(tmp_path / "theirs.npy"), layer, low, size])
    done = subprocess.run([webknossos_python, str(script), request], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(data.read(start, stop, None), np.load(tmp_path / "theirs.npy"))
    said = json.loads(done.stdout.strip().rsplit("\n", 1)[-1])
    nodes = [[int(i), *p] for t in ours.nml.trees for i, p in zip(t.node_ids, t.positions_xyz.tolist(), strict=True)]
    assert sorted(nodes) == said["nodes"]
