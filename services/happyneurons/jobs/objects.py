"""Rounds over the blocks of a segmentation whose results belong to its objects: meshes, skeletons.

count   voxels of each label in a block, in `_counts/{block}.npz`: what is dust is known only when
        the whole volume has been counted (an object's part in one block may be small)
(own)   a block → the pieces of objects in it, in `_work/{block}.npz|bin`; the stage's own round
merge   some objects: their pieces joined and written; the stage's own round, tasks planned here
tidy    Neuroglancer's list of the objects; pieces deleted

A stage has one input `segmentation` and the parameters `mip`, `block_size_xyz`,
`dust_threshold_voxels` and `objects_per_task`. How pieces are stored: happyneurons.store.fragments.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from happyneurons.imaging.blocks import Block, BlockGrid, count_voxels
from happyneurons.imaging.spatial_index import SpatialGrid
from happyneurons.jobs.stage import Context, Round, Task, TaskResult
from happyneurons.store.artifacts import Bounds
from happyneurons.store.fragments import FragmentIndex, label_groups, write_fragments
from happyneurons.store.shards import shard_numbers, sharding_of
from happyneurons.store.volumes import Hdf5Volume, PrecomputedVolume, open_volume

COUNT, MERGE = "count", "merge"
COUNTS, WORK = "_counts", "_work"
LISTED_SEGMENTS = 100_000  # in Neuroglancer's list, the largest first: it is read whole by the browser


def input_volume(context: Context[Any]) -> PrecomputedVolume | Hdf5Volume:
    """The segmentation's level `mip`, opened once per process."""
    volume: PrecomputedVolume | Hdf5Volume = context.once(
        "volume", lambda: open_volume(context.input("segmentation").data_uri, context.params.mip)
    )
    return volume


def block_grid(context: Context[Any]) -> BlockGrid:
    """Blocks of that level. Raises UserError if they are too thin."""
    volume = input_volume(context)
    return BlockGrid.of(volume.start_zyx, volume.stop_zyx, context.params.block_size_xyz)


def spatial_grid(context: Context[Any]) -> SpatialGrid:
    """The blocks as a spatial index."""
    return SpatialGrid(block_grid(context), input_volume(context).voxel_size_nm_xyz)


def bounds(context: Context[Any]) -> Bounds:
    """Bounds of that level, in its voxels."""
    grid = block_grid(context)
    (z0, y0, x0), (z1, y1, x1) = grid.low_zyx, grid.high_zyx
    return Bounds(minimum_xyz=(x0, y0, z0), maximum_xyz=(x1, y1, z1))


def task_block(task: Task) -> Block:
    """The block of a task of a BlockRound."""
    return Block(tuple(task.payload["start_zyx"]), tuple(task.payload["stop_zyx"]))


@dataclass(frozen=True)
class ObjectLayer:
    """What the rounds of one stage share: its output, and the name of the round that leaves pieces."""

    output: str
    pieces_round: str
    shard_encoding: str = "raw"
    """How a shard holds an object's bytes: `raw` where they are compressed already, or `gzip`."""

    def counts(self, context: Context[Any]) -> tuple[np.ndarray, np.ndarray]:
        """(labels ascending, their voxels in the whole volume)."""

        def load() -> tuple[np.ndarray, np.ndarray]:
            blocks = (key for key, _ in context.results(COUNT))
            return FragmentIndex.load(context.output_store(self.output), COUNTS, blocks, ["voxels"]).totals("voxels")

        counts: tuple[np.ndarray, np.ndarray] = context.once("counts", load)
        return counts

    def dust(self, context: Context[Any], labels_zyx: np.ndarray) -> np.ndarray:
        """Those of a block's labels that are too small in the whole volume, ascending."""
        counted, voxels = self.counts(context)
        return np.intersect1d(labels_zyx, counted[voxels < context.params.dust_threshold_voxels])

    def write_pieces(self, context: Context[Any], task: Task, pieces: Mapping[int, bytes]) -> int:
        """Leave a block's pieces for `index`; returns their bytes."""
        return write_fragments(context.output_store(self.output), WORK, task.key, pieces, {})

    def index(self, context: Context[Any]) -> FragmentIndex:
        """Which object has a piece in which block."""

        def load() -> FragmentIndex:
            blocks = (key for key, _ in context.results(self.pieces_round))
            return FragmentIndex.load(context.output_store(self.output), WORK, blocks)

        index: FragmentIndex = context.once("index", load)
        return index

    def read_pieces(self, context: Context[Any], labels: np.ndarray) -> dict[int, list[bytes]]:
        """Pieces of some objects (labels ascending), in block order."""
        return self.index(context).read(context.output_store(self.output), WORK, labels)

    def group_tasks(self, context: Context[Any], max_bytes: int) -> Iterator[Task]:
        """Runs of labels: at most `objects_per_task`, with pieces of about `max_bytes`."""
        labels, size = self.index(context).totals("length")
        for first, last in label_groups(labels, size, context.params.objects_per_task, max_bytes):
            cost = float(size[_between(labels, first, last)].sum()) / 1e6
            yield Task(key=f"{first}-{last}", payload={"first": first, "last": last}, cost=cost)

    def sharding(self, context: Context[Any]) -> dict[str, Any]:
        """How the objects are distributed over shards of about `objects_per_task`."""
        labels = self.index(context).totals("length")[0]
        sharding: dict[str, Any] = context.once(
            "sharding", lambda: sharding_of(labels, context.params.objects_per_task, self.shard_encoding)
        )
        return sharding

    def shard_tasks(self, context: Context[Any]) -> Iterator[Task]:
        """A task for each shard that has objects."""
        labels, size = self.index(context).totals("length")
        numbers = shard_numbers(labels, self.sharding(context))
        for number in np.unique(numbers):
            cost = float(np.maximum(size[numbers == number], 1).sum()) / 1e6
            yield Task(key=f"shard-{number}", payload={"shard": int(number)}, cost=cost)

    def task_labels(self, context: Context[Any], task: Task) -> np.ndarray:
        """The labels of a task of `group_tasks` or `shard_tasks`, ascending."""
        labels = self.index(context).totals("length")[0]
        if "shard" in task.payload:
            return labels[shard_numbers(labels, self.sharding(context)) == task.payload["shard"]]
        return labels[_between(labels, task.payload["first"], task.payload["last"])]

    def write_spatial_index(self, context: Context[Any], block: Block, vertices_nm: Mapping[int, np.ndarray]) -> None:
        """Leave the bounds of a block's pieces for queries by box. vertices_nm: label → (n, 3), x y z."""
        spatial_grid(context).write(context.output_store(self.output), block, vertices_nm)

    def layer_entries(self, context: Context[Any]) -> dict[str, Any]:
        """What a layer's `info` says besides its own format."""
        return {
            "segment_properties": "segment_properties",
            "mip": context.params.mip,
            "spatial_index": spatial_grid(context).info(),
        }


def _between(labels: np.ndarray, first: int, last: int) -> np.ndarray:
    return (labels >= np.uint64(first)) & (labels <= np.uint64(last))


class LayerRound(Round):
    """A round of a stage that makes an object layer."""

    def __init__(self, layer: ObjectLayer) -> None:
        self.layer = layer


class BlockRound(LayerRound):
    """Task: one block."""

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        for block in block_grid(context):
            payload = {"start_zyx": list(block.start_zyx), "stop_zyx": list(block.stop_zyx)}
            yield Task(key=block.key, payload=payload, cost=block.voxels / 1e6)


class Count(BlockRound):
    """Task: one block."""

    name = COUNT

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        block = task_block(task)
        counts = count_voxels(input_volume(context).read(block.start_zyx, block.stop_zyx))
        columns = {label: {"voxels": n} for label, n in counts.items()}
        write_fragments(context.output_store(self.layer.output), COUNTS, task.key, {}, columns)
        return TaskResult(data={"labels": len(counts)}, voxels=block.voxels)


class Tidy(LayerRound):
    """Task: the whole layer; small work."""

    name = "tidy"

    @abstractmethod
    def sizes(self, context: Context[Any]) -> tuple[np.ndarray, np.ndarray]:
        """(labels, how large each is) of the layer's objects."""

    @abstractmethod
    def listed_property(self, sizes: np.ndarray) -> dict[str, Any]:
        """Those sizes as a property of Neuroglancer's list."""

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        yield Task(key="layer")

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        store = context.output_store(self.layer.output)
        labels, sizes = self.sizes(context)
        order = np.lexsort((labels, -sizes))[:LISTED_SEGMENTS]
        # Format: google/neuroglancer, segment_properties.md
        ids = [str(int(label)) for label in labels[order]]
        inline = {"ids": ids, "properties": [self.listed_property(sizes[order])]}
        store.put_json("segment_properties/info", {"@type": "neuroglancer_segment_properties", "inline": inline})
        # Only when nothing is left that a later attempt would need them for.
        if not context.quarantined(MERGE):
            for block in self.layer.index(context).blocks:
                store.delete(f"{WORK}/{block}.bin")
        return TaskResult(data={"largest": [int(v) for v in labels[order][:50]]})
