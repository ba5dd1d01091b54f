"""The rounds of consensus besides those of :mod:`happyneurons.unions.rounds`, which stand between.

What they leave lies in the output `fragments`:

surface/{block}.npz   the six outermost layers of a block's fragments, their origin (ids in each
                      segmentation) and voxels
found/{block}.npz     fragments, and which go on in a neighbouring block: see `unions.joining.Found`
table.json            figures by block

Fragments of a block are found again when the output is written, which is cheaper than keeping them.
Memory: a block of every segmentation; surfaces of two blocks; see `unions.joining` for the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from happyneurons.jobs.stage import Context, Round, Task, TaskResult
from happyneurons.stages.consensus.fragments import (
    FACES,
    Connectivity,
    Fragments,
    Surface,
    contacts,
    directions,
    fragments,
)
from happyneurons.store.triples import Triple
from happyneurons.store.volumes import PrecomputedVolume, open_volume
from happyneurons.unions.joining import segment_keys
from happyneurons.unions.output import Block, BlockGrid, LocalToGlobal, create_segmentation
from happyneurons.unions.rounds import Lattice, Unions, find_arrays, found_path
from happyneurons.unions.tree import GroupTree

if TYPE_CHECKING:
    from happyneurons.stages.consensus.stage import ConsensusParams

SEGMENTATION, FRAGMENTS = "segmentation", "fragments"


def grid_of(context: Context[Any]) -> BlockGrid:
    """The blocks that the common bounds of the inputs are worked on in."""
    bounds = context.inputs["segmentations"][0].bounds
    assert bounds is not None, "check() refuses such inputs"
    edge = int(context.params.block_px)
    return BlockGrid(bounds, (edge, edge, edge))


def unions_of(context: Context[Any]) -> Unions:
    """The union-find over the blocks."""
    grid = grid_of(context)
    shape = grid.shape_zyx

    def neighbours(index_zyx: Triple) -> Iterator[Triple]:
        z, y, x = (range(max(0, i - 1), min(n, i + 2)) for i, n in zip(index_zyx, shape, strict=True))
        return (other for other in product(z, y, x) if other != index_zyx)

    lattice = Lattice(GroupTree(shape), lambda index_zyx: grid[index_zyx].name, neighbours)
    return Unions(FRAGMENTS, lattice, context.params.min_size_voxels)


class _BlockRound(Round):
    def plan(self, context: Context[Any]) -> Iterable[Task]:
        grid = grid_of(context)
        for index in grid.indices():
            block = grid[index]
            yield Task(key=block.name, payload={**block.payload, "index_zyx": list(index)})

    def fragments(self, block: Block, context: Context[Any]) -> Fragments:
        """The fragments of a block: the same every time."""
        params: ConsensusParams = context.params
        sources = context.once(
            "segmentations", lambda: [open_volume(a.data_uri) for a in context.inputs["segmentations"]]
        )
        ids = [source.read(block.start_zyx, block.stop_zyx) for source in sources]
        return fragments(ids, params.labelled_in, params.connectivity)


class Surfaces(_BlockRound):
    """Task: a block; finds its fragments and leaves what its neighbours need."""

    name = "surfaces"

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        block = Block.of(task.payload)
        found = self.fragments(block, context)
        context.output_store(FRAGMENTS).put_arrays(
            f"surface/{block.name}.npz", **found.faces(), origin=found.origin, voxels=found.voxels
        )
        return TaskResult(
            data={"fragments": len(found.voxels) - 1, "voxels": int(found.voxels.sum())}, voxels=found.labels.size
        )


class Contacts(_BlockRound):
    """Task: a block; finds which of its fragments go on in blocks that come later."""

    name = "contacts"

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        connectivity: Connectivity = context.params.connectivity
        grid, store = grid_of(context), context.output_store(FRAGMENTS)
        tree = GroupTree(grid.shape_zyx)
        z, y, x = task.payload["index_zyx"]
        number = tree.number((z, y, x))
        block = Block.of(task.payload)
        arrays = store.get_arrays(f"surface/{block.name}.npz")
        own = _surface(arrays)
        pairs = [np.zeros((0, 2), np.int64)]
        for direction in directions(connectivity):
            other = (z + direction[0], y + direction[1], x + direction[2])
            if not all(0 <= i < n for i, n in zip(other, grid.shape_zyx, strict=True)):
                continue
            theirs = find_arrays(store, f"surface/{grid[other].name}.npz")
            if theirs is not None:  # else that block was given up
                found = contacts(own, _surface(theirs), direction, connectivity)
                ends = segment_keys(number, found[:, 0]), segment_keys(tree.number(other), found[:, 1])
                pairs.append(np.stack(ends, axis=1))
        keys = segment_keys(number, np.arange(1, len(arrays["voxels"])))
        joined = np.concatenate(pairs)
        store.put_arrays(
            found_path(block.name),
            segments=keys,
            pairs=joined,
            whole=np.ones(len(joined), bool),
            doubted=keys[:0],
            voxel_keys=keys,
            voxels=arrays["voxels"][1:],
        )
        return TaskResult(data={"pairs": len(joined)})


class Table(Round):
    """One task: the table of blocks, one row each."""

    name = "table"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        yield Task(key="all")

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        found, pairs = dict(context.results(Surfaces.name)), dict(context.results(Contacts.name))
        rows = [
            [b.name, found.get(b.name, {}).get("fragments", 0), pairs.get(b.name, {}).get("pairs", 0)]
            for b in grid_of(context)
        ]
        context.output_store(FRAGMENTS).put_json(
            "table.json", {"columns": ["block", "fragments", "pairs with later blocks"], "rows": rows}
        )
        return TaskResult()


class Remap(_BlockRound):
    """Task: a block of the output; writes its chunks."""

    name = "remap"

    def prepare(self, context: Context[Any]) -> None:
        uri, voxel_size = context.output_uri(SEGMENTATION), context.inputs["segmentations"][0].voxel_size_nm_xyz
        create_segmentation(uri, grid_of(context).bounds, voxel_size, context.params.num_mips)

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        block = Block.of(task.payload)
        to_global = LocalToGlobal.read(context.output_store(FRAGMENTS), block.name)
        ids = np.zeros(block.shape_zyx, np.uint64)
        if to_global is not None:
            ids = to_global(self.fragments(block, context).labels)
        PrecomputedVolume(context.output_uri(SEGMENTATION)).write(block.start_zyx, ids)
        return TaskResult(data={"labelled": int((ids > 0).sum())}, voxels=ids.size, bytes=ids.nbytes)


def _surface(arrays: dict[str, np.ndarray]) -> Surface:
    return Surface({name: arrays[name] for name in FACES}, arrays["origin"])
