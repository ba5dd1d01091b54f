"""The grid of overlapping subvolumes that a large volume is segmented in.

Segmentation writes one file per subvolume, reconciliation joins them: both compute the same grid
from the same three things (bounds, size, overlap), so that nothing has to be listed anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from happyneurons.errors import UserError
from happyneurons.store.artifacts import Bounds
from happyneurons.store.triples import Triple, triple


@dataclass(frozen=True)
class Subvolume:
    """One box of the grid, all in (z, y, x): `index_zyx` in the grid, voxels [start, stop)."""

    index_zyx: Triple
    start_zyx: Triple
    stop_zyx: Triple

    @property
    def shape_zyx(self) -> Triple:
        return triple(b - a for a, b in zip(self.start_zyx, self.stop_zyx, strict=True))

    @property
    def name(self) -> str:
        """`{z}_{y}_{x}` of its first voxel: the stem of its file in a `subvolumes` artifact."""
        return "_".join(str(v) for v in self.start_zyx)

    def intersection(self, other: Subvolume) -> tuple[Triple, Triple] | None:
        """(start_zyx, stop_zyx) of the voxels common to both, None if there are none."""
        start = triple(map(max, self.start_zyx, other.start_zyx))
        stop = triple(map(min, self.stop_zyx, other.stop_zyx))
        return (start, stop) if all(a < b for a, b in zip(start, stop, strict=True)) else None


class SubvolumeGrid:
    """Overlapping boxes that cover `bounds`, in a fixed order (z slowest, x fastest).

    Along each axis boxes start every `size - overlap` voxels. The last one is shifted back so that
    it ends at the bound with full size (a shrunken one would lack context); where it would add no
    more than half an overlap of new voxels, the box before it is enlarged instead. An axis shorter
    than `size` has one box.

    bounds: the volume, (x, y, z), minimum inclusive, maximum exclusive, voxels.
    size_xyz, overlap_xyz: voxels. Raises UserError unless 0 <= overlap < size.
    """

    def __init__(self, bounds: Bounds, size_xyz: Sequence[int], overlap_xyz: Sequence[int]) -> None:
        self.bounds = bounds
        self.size_xyz = triple(size_xyz)
        self.overlap_xyz = triple(overlap_xyz)
        axes = []
        for axis, name in ((2, "z"), (1, "y"), (0, "x")):
            low, high = bounds.minimum_xyz[axis], bounds.maximum_xyz[axis]
            axes.append(_intervals(low, high, self.size_xyz[axis], self.overlap_xyz[axis], name))
        self._axes: list[list[tuple[int, int]]] = axes
        # Cores meet in the middle of the overlap, where both boxes have the most context.
        self._cuts = [[a[0][0], *((p[1] + q[0]) // 2 for p, q in pairwise(a)), a[-1][1]] for a in axes]

    @property
    def shape_zyx(self) -> Triple:
        """Number of boxes along each axis."""
        return triple(len(a) for a in self._axes)

    def __len__(self) -> int:
        z, y, x = self.shape_zyx
        return z * y * x

    def __iter__(self) -> Iterator[Subvolume]:
        for index in product(*(range(n) for n in self.shape_zyx)):
            yield self[triple(index)]

    def __getitem__(self, index_zyx: Triple) -> Subvolume:
        pairs = [axis[i] for axis, i in zip(self._axes, index_zyx, strict=True)]
        return Subvolume(triple(index_zyx), triple(p[0] for p in pairs), triple(p[1] for p in pairs))

    def core(self, box: Subvolume) -> tuple[Triple, Triple]:
        """(start_zyx, stop_zyx) of the voxels that belong to this box: each voxel has one owner."""
        pairs = [(cuts[i], cuts[i + 1]) for cuts, i in zip(self._cuts, box.index_zyx, strict=True)]
        return triple(p[0] for p in pairs), triple(p[1] for p in pairs)

    def neighbours(self, box: Subvolume, *, later_only: bool = True, faces_only: bool = False) -> Iterator[Subvolume]:
        """Boxes that share voxels with `box`, in grid order.

        later_only: only those after it in the order, so that going over the grid meets each pair once.
        faces_only: only those that differ along a single axis (edge and corner neighbours left out).
        """
        for other in self.overlapping(box.start_zyx, box.stop_zyx):
            differing = sum(a != b for a, b in zip(box.index_zyx, other.index_zyx, strict=True))
            later = other.index_zyx > box.index_zyx
            if differing and (later or not later_only) and (differing == 1 or not faces_only):
                yield other

    def overlapping(self, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> Iterator[Subvolume]:
        """Boxes that share voxels with the region [start, stop), in grid order."""
        ranges = [
            [i for i, (a, b) in enumerate(axis) if a < stop and b > start]
            for axis, start, stop in zip(self._axes, start_zyx, stop_zyx, strict=True)
        ]
        for index in product(*ranges):
            yield self[triple(index)]

    def owners(self, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> Iterator[Subvolume]:
        """Boxes whose cores share voxels with the region [start, stop), in grid order."""
        for box in self.overlapping(start_zyx, stop_zyx):
            low, high = self.core(box)
            if all(a < d and c < b for a, b, c, d in zip(low, high, start_zyx, stop_zyx, strict=True)):
                yield box


def _intervals(low: int, high: int, size: int, overlap: int, axis: str) -> list[tuple[int, int]]:
    """[start, stop) of the boxes along one axis; starts and stops both strictly increase."""
    if not 0 <= overlap < size:
        raise UserError(
            f"subvolumes: the overlap along {axis} ({overlap}) must be at least 0 and below the size ({size})"
        )
    if high <= low:
        raise UserError(f"subvolumes: the volume is empty along {axis} ({low}..{high})")
    intervals = [(low, min(low + size, high))]
    while intervals[-1][1] < high:
        start, stop = intervals[-1]
        if high - stop <= overlap // 2:
            intervals[-1] = (start, high)
        else:
            following = min(start + size - overlap, high - size)
            intervals.append((following, following + size))
    return intervals
