"""The segmentation that unions end in: a precomputed volume written block by block, with its pyramid."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from happyneurons.jobs.stage import Context, Round, Task, TaskResult
from happyneurons.store.artifacts import Bounds
from happyneurons.store.documents import Store
from happyneurons.store.triples import Triple
from happyneurons.store.volumes import PrecomputedVolume, create_volume
from happyneurons.unions.rounds import find_arrays, mapping_path

CHUNK = 64
"""Edge of the output's chunks, voxels."""


@dataclass(frozen=True)
class Block:
    """A box [start, stop) of the output, zyx, with faces on chunk borders or on the volume's faces."""

    start_zyx: Triple
    stop_zyx: Triple

    @classmethod
    def of(cls, payload: Mapping[str, Any]) -> Block:
        """The block of a task's payload."""
        (z0, y0, x0), (z1, y1, x1) = payload["start_zyx"], payload["stop_zyx"]
        return cls((z0, y0, x0), (z1, y1, x1))

    @property
    def payload(self) -> dict[str, Any]:
        return {"start_zyx": list(self.start_zyx), "stop_zyx": list(self.stop_zyx)}

    @property
    def name(self) -> str:
        return "_".join(str(v) for v in self.start_zyx)

    @property
    def shape_zyx(self) -> Triple:
        z, y, x = (b - a for a, b in zip(self.start_zyx, self.stop_zyx, strict=True))
        return (z, y, x)

    def task(self) -> Task:
        return Task(key=self.name, payload=self.payload)


@dataclass(frozen=True)
class BlockGrid:
    """Blocks of `edge_zyx` voxels (multiples of CHUNK) that cover `bounds`; the last ones may be smaller."""

    bounds: Bounds
    edge_zyx: Triple

    @property
    def shape_zyx(self) -> Triple:
        z, y, x = (-(-n // e) for n, e in zip(self.bounds.shape_zyx, self.edge_zyx, strict=True))
        return (z, y, x)

    def __getitem__(self, index_zyx: Triple) -> Block:
        low, high = self.bounds.minimum_xyz[::-1], self.bounds.maximum_xyz[::-1]
        z, y, x = (
            (a + i * e, min(a + (i + 1) * e, b)) for a, b, e, i in zip(low, high, self.edge_zyx, index_zyx, strict=True)
        )
        return Block((z[0], y[0], x[0]), (z[1], y[1], x[1]))

    def indices(self) -> Iterator[Triple]:
        """Indices of the blocks, z slowest."""
        z, y, x = (range(n) for n in self.shape_zyx)
        yield from product(z, y, x)

    def __iter__(self) -> Iterator[Block]:
        return (self[index] for index in self.indices())


class LocalToGlobal:
    """A cell's map from local to final ids (uint64). Ids that it does not know become 0."""

    def __init__(self, local: np.ndarray, target: np.ndarray) -> None:
        self._table = np.zeros(int(local.max(initial=0)) + 1, np.uint64)
        self._table[local] = target

    @classmethod
    def read(cls, store: Store, cell_name: str) -> LocalToGlobal | None:
        """None if the cell has no segments: it is empty, or the work on it was given up."""
        arrays = find_arrays(store, mapping_path(cell_name))
        if arrays is None or not len(arrays["local"]):
            return None
        return cls(arrays["local"], arrays["target"])

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        return self._table[np.where(ids < len(self._table), ids, 0)]


def create_segmentation(
    uri: str, bounds: Bounds, voxel_size_nm_xyz: tuple[float, float, float] | None, num_mips: int
) -> None:
    """Make an empty segmentation with up to `num_mips` levels above the full resolution. Idempotent."""
    from happyneurons.store.pyramid import add_levels

    create_volume(
        uri,
        start_zyx=bounds.minimum_xyz[::-1],
        stop_zyx=bounds.maximum_xyz[::-1],
        voxel_size_nm_xyz=voxel_size_nm_xyz or (1.0, 1.0, 1.0),
        dtype="uint64",
        layer_type="segmentation",
        chunk_zyx=(CHUNK, CHUNK, CHUNK),
    )
    add_levels(uri, num_mips)


class Level(Round):
    """Task: a block of one level of the pyramid. A level that the volume is too small for has none."""

    def __init__(self, output: str, level: int) -> None:
        self.output, self.level = output, level
        self.name = f"mip_{level}"  # type: ignore[misc]

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        from happyneurons.store.pyramid import blocks

        uri = context.output_uri(self.output)
        if self.level < PrecomputedVolume(uri).mips:
            for box in blocks(PrecomputedVolume(uri, self.level), (4, 4, 4)):
                yield Block(*box).task()

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        from happyneurons.store.pyramid import write_level

        block = Block.of(task.payload)
        box = (block.start_zyx, block.stop_zyx)
        return TaskResult(voxels=write_level(context.output_uri(self.output), self.level, box, "mode"))
