"""Volumes of another resolution or extent are read where their voxels lie."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from tests.ffn.test_inputs import put

from happyneurons.errors import UserError
from happyneurons.imaging.layers import Layer
from happyneurons.stages.segment.masks import MaskRule
from happyneurons.store.documents import Store
from happyneurons.store.pyramid import add_levels
from happyneurons.store.volumes import create_volume


@pytest.mark.parametrize(("voxel_nm", "at"), [(8.0, 0), (16.0, 3), (32.0, 0), (12.0, 2), (4.0, 5)])
def test_a_layer_is_read_where_its_voxels_lie(store: Store, voxel_nm: float, at: int) -> None:
    values = np.random.default_rng(1).integers(1, 200, (9, 10, 11)).astype(np.uint8)
    layer = Layer.open(put(store, "layer", values, voxel_nm=voxel_nm, at=at), (8.0, 8.0, 8.0))
    start, stop = (1, 2, 3), (14, 21, 17)
    found = layer.read(start, stop, lambda v: v)
    expected = np.zeros_like(found)
    for place in np.ndindex(expected.shape):
        centre_nm = (np.array(place) + start + 0.5) * 8
        own = np.floor(centre_nm / voxel_nm).astype(int) - at
        if (own >= 0).all() and (own < values.shape).all():
            expected[place] = values[tuple(own)]
    np.testing.assert_array_equal(found, expected)
    assert layer.cover(start, stop) == pytest.approx((expected > 0).mean())
    tissue = layer.read(start, stop, MaskRule(invert=True))  # outside of its extent a volume counts as 0
    np.testing.assert_array_equal(tissue, expected == 0)


def test_a_layers_level_is_the_coarsest_that_is_no_coarser_than_the_image(store: Store) -> None:
    uri = put(store, "pyramid", np.zeros((64, 64, 64), np.uint8), voxel_nm=4)
    create_volume(
        uri, start_zyx=(0, 0, 0), stop_zyx=(256, 256, 256), voxel_size_nm_xyz=(4, 4, 4), dtype="uint8",
        layer_type="image",
    )  # fmt: skip
    add_levels(uri, 2)  # 4, 8, 16 nm
    chosen = {nm: Layer.open(uri, (nm, nm, nm)).voxel_size_nm_xyz[0] for nm in (2.0, 4.0, 8.0, 10.0, 16.0, 100.0)}
    assert chosen == {2.0: 4.0, 4.0: 4.0, 8.0: 8.0, 10.0: 8.0, 16.0: 16.0, 100.0: 16.0}


def test_a_layer_that_does_not_tell_its_voxel_size_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "mask.h5", "w") as file:
        file["mask"] = np.ones((4, 4, 4), np.uint8)
    uri = f"h5://{tmp_path}/mask.h5?mask"
    with pytest.raises(UserError, match="does not tell its voxel size.*voxel_size_nm_xyz"):
        Layer.open(uri, (8.0, 8.0, 8.0))
    assert Layer.open(uri, (8.0, 8.0, 8.0), (16.0, 16.0, 16.0)).cover((0, 0, 0), (8, 8, 8)) == 1
    assert Layer.open(uri, (1.0, 1.0, 1.0)).cover((0, 0, 0), (8, 4, 4)) == 0.5  # neither tells: voxel on voxel
