"""The grid of subvolumes: covers everything, each voxel has one owner, sizes stay bounded."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from happyneurons.errors import UserError
from happyneurons.imaging.subvolumes import SubvolumeGrid
from happyneurons.store.artifacts import Bounds


def bounds(low: tuple[int, int, int], shape_xyz: tuple[int, int, int]) -> Bounds:
    x, y, z = (a + n for a, n in zip(low, shape_xyz, strict=True))
    return Bounds(minimum_xyz=low, maximum_xyz=(x, y, z))


CASES = [
    ((0, 0, 0), (256, 256, 64), (144, 144, 64), (32, 32, 16)),
    ((-7, 13, 100), (50, 41, 33), (20, 16, 40), (6, 9, 3)),
    ((5, 0, 0), (21, 20, 19), (20, 20, 20), (4, 4, 4)),
    ((0, 0, 0), (47, 48, 49), (16, 16, 16), (0, 0, 15)),
]


@pytest.mark.parametrize(("low", "shape", "size", "overlap"), CASES)
def test_every_voxel_is_covered_and_has_one_owner(
    low: tuple[int, int, int], shape: tuple[int, int, int], size: tuple[int, int, int], overlap: tuple[int, int, int]
) -> None:
    grid = SubvolumeGrid(bounds(low, shape), size, overlap)
    owners, covered = np.zeros(shape[::-1], int), np.zeros(shape[::-1], int)
    origin = np.array(low[::-1])
    for box in grid:
        start, stop = grid.core(box)
        assert all(a <= c < d <= b for a, b, c, d in zip(box.start_zyx, box.stop_zyx, start, stop, strict=True))
        owners[tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, origin, strict=True))] += 1
        covered[tuple(slice(a - o, b - o) for a, b, o in zip(box.start_zyx, box.stop_zyx, origin, strict=True))] += 1
        assert all(n <= s + v // 2 for n, s, v in zip(box.shape_zyx, size[::-1], overlap[::-1], strict=True))
        assert grid[box.index_zyx] == box
    assert (owners == 1).all()
    assert (covered >= 1).all()
    assert len(grid) == len({box.name for box in grid})


@pytest.mark.parametrize(("low", "shape", "size", "overlap"), CASES)
def test_neighbours_are_the_boxes_that_share_voxels(
    low: tuple[int, int, int], shape: tuple[int, int, int], size: tuple[int, int, int], overlap: tuple[int, int, int]
) -> None:
    grid = SubvolumeGrid(bounds(low, shape), size, overlap)
    pairs = {(a.name, b.name) for a in grid for b in grid.neighbours(a)}
    assert pairs == {(a.name, b.name) for a, b in combinations(grid, 2) if a.intersection(b)}


def test_neighbouring_boxes_share_at_least_the_overlap() -> None:
    grid = SubvolumeGrid(bounds((0, 0, 0), (300, 64, 64)), (100, 64, 64), (30, 0, 0))
    shared = [a.intersection(b) for a in grid for b in grid.neighbours(a, faces_only=True)]
    assert all(s and s[1][2] - s[0][2] >= 30 for s in shared)


def test_regions_find_their_owners() -> None:
    grid = SubvolumeGrid(bounds((0, 0, 0), (100, 100, 100)), (40, 40, 40), (10, 10, 10))
    region = ((20, 30, 65), (50, 70, 71))
    voxels = 0
    for box in grid.owners(*region):
        start, stop = grid.core(box)
        voxels += int(np.prod(np.minimum(stop, region[1]) - np.maximum(start, region[0])))
    assert voxels == 30 * 40 * 6


def test_impossible_grids_are_refused() -> None:
    with pytest.raises(UserError, match="overlap along x"):
        SubvolumeGrid(bounds((0, 0, 0), (64, 64, 64)), (32, 32, 32), (32, 0, 0))
    with pytest.raises(UserError, match="empty along z"):
        SubvolumeGrid(bounds((0, 0, 0), (64, 64, 0)), (32, 32, 32), (8, 8, 8))
