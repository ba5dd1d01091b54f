"""Connected objects of a truth that is larger than memory: 26-connected parts, block by block.

parts     a block → `parts/{block}.npz`: numbers of its parts on its six sides
joins     a block → `joins/{block}.npz`: pairs of parts, its own and its neighbours', that are one
objects   one task: a union over all pairs → `objects/{block}.npz`: local, target: part → object

A block is labelled together with the first layer of voxels beyond its three far sides. Of two
voxels that touch, by a face, an edge or a corner, both lie in the enlarged block that holds the
smaller z, the smaller y and the smaller x of the two, so some block sees each contact; and each
voxel of a far layer is on a near side of its own block, where the two numbers it has are found to
be one part. So the objects are those of the whole, whatever the blocks.

An object's number is that of its first part: block number * 2**32 + number in the block. Blocks
are labelled again when they are read, which is quicker than to write and to read them; the numbers
are the same each time. Memory: a block at a time; `objects` holds PAIR_BYTES for each pair of parts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from happyneurons.errors import NotFoundError
from happyneurons.imaging.blocks import Block, BlockGrid
from happyneurons.jobs.stage import Context, Round, Task, TaskResult
from happyneurons.metrics.run_length import connected_parts
from happyneurons.metrics.segmentation import connected_objects
from happyneurons.stages.evaluate.stage import REPORT
from happyneurons.store.documents import Store
from happyneurons.store.triples import Triple
from happyneurons.store.volumes import Volume

PAIR_BYTES = 100
_HELD_BLOCKS = 8
"""A slab of turned sections looks at up to four blocks again and again, at a corner at eight."""
_FORWARD = [step for step in product((0, 1), repeat=3) if any(step)]


@dataclass(frozen=True)
class PartGrid:
    """The blocks of the part of the truth that is scored."""

    volume: Volume
    blocks: BlockGrid

    @property
    def shape_zyx(self) -> Triple:
        grid = self.blocks
        z, y, x = (
            -(-(b - a) // s) for a, b, s in zip(grid.low_zyx, grid.high_zyx, grid.size_zyx, strict=True)
        )  # fmt: skip
        return (z, y, x)

    def number(self, index_zyx: Iterable[int]) -> int:
        z, y, x = index_zyx
        _, ny, nx = self.shape_zyx
        return (z * ny + y) * nx + x

    def index(self, number: int) -> Triple:
        _, ny, nx = self.shape_zyx
        return (number // (ny * nx), number // nx % ny, number % nx)

    def block(self, index_zyx: Iterable[int]) -> Block:
        grid = self.blocks
        start = [a + i * s for a, i, s in zip(grid.low_zyx, index_zyx, grid.size_zyx, strict=True)]
        stop = [min(a + s, b) for a, s, b in zip(start, grid.size_zyx, grid.high_zyx, strict=True)]
        return Block((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))

    def touching(self, start_zyx: Triple, stop_zyx: Triple) -> Iterator[int]:
        """Numbers of the blocks that a box of the region reaches into."""
        grid = self.blocks
        ranges = (
            range((a - low) // s, (b - 1 - low) // s + 1)
            for a, b, low, s in zip(start_zyx, stop_zyx, grid.low_zyx, grid.size_zyx, strict=True)
        )
        for index in product(*ranges):
            yield self.number(index)

    def neighbours(self, number: int) -> Iterator[tuple[Triple, int]]:
        """(step, number) of the blocks that come after one along one, two or three axes."""
        index = self.index(number)
        for step in _FORWARD:
            there = tuple(i + d for i, d in zip(index, step, strict=True))
            if all(i < n for i, n in zip(there, self.shape_zyx, strict=True)):
                yield (step[0], step[1], step[2]), self.number(there)

    def labelled(self, block: Block) -> np.ndarray:
        """(z, y, x) uint32 parts of a block with one more layer of voxels on its far sides."""
        return connected_objects(self.volume.read(block.start_zyx, self.blocks.beyond(block, 1)))


class _PartRound(Round):
    def __init__(self, grid: PartGrid) -> None:
        self.grid = grid

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        for number, block in enumerate(self.grid.blocks):
            yield Task(key=block.key, payload={"number": number}, cost=block.voxels / 1e6)


class Parts(_PartRound):
    """Task: a block of the truth."""

    name = "parts"

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        block = self.grid.block(self.grid.index(task.payload["number"]))
        labelled = self.grid.labelled(block)
        z, y, x = shape = np.subtract(block.stop_zyx, block.start_zyx)
        sides = {}
        for axis, size in enumerate(shape):
            sides[f"near_{axis}"] = labelled[:z, :y, :x].take(0, axis=axis)
            if labelled.shape[axis] > size:
                sides[f"far_{axis}"] = labelled.take(size, axis=axis)
        context.output_store(REPORT).put_arrays(f"parts/{block.key}.npz", **sides)
        return TaskResult(voxels=block.voxels)


class Joins(_PartRound):
    """Task: a block's far sides against the near sides of its neighbours."""

    name = "joins"

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        store, number = context.output_store(REPORT), int(task.payload["number"])
        block = self.grid.block(self.grid.index(number))
        own = _find(store, f"parts/{block.key}.npz")
        pairs = [np.zeros((0, 2), np.int64)]
        for step, other in self.grid.neighbours(number) if own else ():
            theirs = _find(store, f"parts/{self.grid.block(self.grid.index(other)).key}.npz")
            if theirs is None:  # that task was given up
                continue
            pairs.append(_shared(own or {}, theirs, step, block, number, other))
        found = np.unique(np.concatenate(pairs), axis=0)
        store.put_arrays(f"joins/{block.key}.npz", pairs=found)
        return TaskResult(data={"pairs": len(found)})


def _shared(
    own: dict[str, np.ndarray], theirs: dict[str, np.ndarray], step: Triple, block: Block, number: int, other: int
) -> np.ndarray:
    """(n, 2) keys of the parts that a block and its neighbour at `step` give the same voxels."""
    axis = step.index(1)
    near = theirs[f"near_{axis}"]
    # The neighbour's voxels in our far layer: its first ones along each axis of the step, all along the others.
    rest = [i for i in range(3) if i != axis]
    size = np.subtract(block.stop_zyx, block.start_zyx)
    ours = own[f"far_{axis}"][tuple(slice(size[i], size[i] + 1) if step[i] else slice(0, size[i]) for i in rest)]
    near = near[tuple(slice(0, 1) if step[i] else slice(None) for i in rest)]
    there = ours > 0
    return np.unique(np.stack([_keys(number, ours[there]), _keys(other, near[there])], axis=1), axis=0)


def _keys(number: int, parts: np.ndarray) -> np.ndarray:
    return np.int64(number) << np.int64(32) | parts.astype(np.int64)


class JoinedObjects(_PartRound):
    """One task: which parts are one object."""

    name = "objects"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        yield Task(key="all")

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        store = context.output_store(REPORT)
        pairs = np.concatenate(
            [np.zeros((0, 2), np.int64)]
            + [store.get_arrays(f"joins/{key}.npz")["pairs"] for key, _ in context.results(Joins.name)]
        )
        keys, places = np.unique(pairs, return_inverse=True)
        _, group = np.unique(connected_parts(len(keys), places.reshape(-1, 2)), return_inverse=True)
        first = np.full(int(group.max(initial=-1)) + 1, np.iinfo(np.int64).max)
        np.minimum.at(first, group, keys)
        target = first[group]
        owner = keys >> 32
        borders = np.searchsorted(owner, np.arange(int(owner.max(initial=-1)) + 2))
        for number in np.unique(owner).tolist():
            rows = slice(borders[number], borders[number + 1])
            store.put_arrays(
                f"objects/{self.grid.block(self.grid.index(number)).key}.npz",
                local=(keys[rows] & 0xFFFFFFFF).astype(np.uint32),
                target=target[rows].astype(np.uint64),
            )
        return TaskResult(data={"joined_parts": len(keys), "joined_objects": len(first)})


class StreamedObjects:
    """The objects that those rounds found, read box by box."""

    def __init__(self, grid: PartGrid, store: Store) -> None:
        self._grid, self._store = grid, store
        self._held: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()

    def read(self, start_zyx: Triple, stop_zyx: Triple) -> np.ndarray:
        out = np.zeros(tuple(np.subtract(stop_zyx, start_zyx)), np.uint64)
        for number in self._grid.touching(start_zyx, stop_zyx):
            block = self._grid.block(self._grid.index(number))
            parts, objects = self._block(number, block)
            low, high = np.maximum(start_zyx, block.start_zyx), np.minimum(stop_zyx, block.stop_zyx)
            source = tuple(slice(a, b) for a, b in zip(low - block.start_zyx, high - block.start_zyx, strict=True))
            target = tuple(slice(a, b) for a, b in zip(low - start_zyx, high - start_zyx, strict=True))
            out[target] = objects[parts[source]]
        return out

    def _block(self, number: int, block: Block) -> tuple[np.ndarray, np.ndarray]:
        """(parts of the block and the layer beyond, object of each part)."""
        if number not in self._held:
            parts = self._grid.labelled(block)
            objects = _keys(number, np.arange(int(parts.max(initial=0)) + 1)).astype(np.uint64)
            objects[0] = 0
            found = _find(self._store, f"objects/{block.key}.npz")
            if found:
                objects[found["local"]] = found["target"]
            self._held[number] = (parts, objects)
            if len(self._held) > _HELD_BLOCKS:
                self._held.popitem(last=False)
        self._held.move_to_end(number)
        return self._held[number]


def _find(store: Store, path: str) -> dict[str, np.ndarray] | None:
    try:
        return store.get_arrays(path)
    except NotFoundError:
        return None
