"""MontageTransforms and AlignTransforms on stores made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from happyneurons.imaging.transforms import AlignTransforms, MontageTransforms, tile_prefix, transforms_path
from happyneurons.imaging.warp import GridWarp
from happyneurons.store.artifacts import Artifact
from happyneurons.store.documents import Store


def artifact(path: Path, **arrays: np.ndarray) -> Artifact:
    store = Store(str(path))
    store.put_arrays(transforms_path(7), **arrays)
    return Artifact(kind="section_stack", uri=store.uri, data_uri=store.uri, digest="0")


def test_montage_points_go_to_the_stack_and_back(tmp_path: Path) -> None:
    arrays: dict[str, np.ndarray] = {}
    for col, x in ((0, 10.0), (1, 90.0)):
        arrays |= GridWarp.translation((x, 5.0)).arrays(tile_prefix(0, col))
        arrays[f"{tile_prefix(0, col)}_size"] = np.array([100, 50])
    transforms = MontageTransforms(artifact(tmp_path, **arrays))
    assert transforms.tiles(7) == [(0, 0), (0, 1)]
    mapped = transforms.map(7, (0, 1), [[1.0, 2.0]])
    assert mapped is not None
    np.testing.assert_allclose(mapped, [[91, 7]])
    back = transforms.inverse(7, [[91.0, 30.0], [108.0, 30.0], [500.0, 30.0]])
    assert back is not None
    (rows, cols), xy = back
    assert rows.tolist() == [0, 0, -1]
    assert cols.tolist() == [0, 1, -1]
    np.testing.assert_allclose(xy[:2], [[81, 25], [18, 25]], atol=1e-6)
    assert np.isnan(xy[2]).all()


def test_what_has_no_place_is_none(tmp_path: Path) -> None:
    made = artifact(tmp_path, **GridWarp.translation((4.0, 0.0)).arrays("section"))
    align = AlignTransforms(made)
    mapped, back = align.map(7, [[0.0, 0.0]]), align.inverse(7, [[4.0, 0.0]])
    assert mapped is not None
    assert back is not None
    np.testing.assert_allclose([mapped[0], back[0]], [[4, 0], [0, 0]], atol=1e-9)
    assert align.map(8, [[0.0, 0.0]]) is None
    assert align.inverse(8, [[0.0, 0.0]]) is None
    montage = MontageTransforms(made)
    assert montage.map(7, (0, 0), [[0.0, 0.0]]) is None
    assert montage.inverse(7, [[0.0, 0.0]]) is None
