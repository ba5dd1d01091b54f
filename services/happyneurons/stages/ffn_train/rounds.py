"""The first round of ffn-train: coordinates of its examples. Those of the training itself: happyneurons.training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product

import numpy as np

from happyneurons.ffn.sampling import BlockCoordinates, partition_map
from happyneurons.jobs.stage import Context, Round, Task, TaskResult
from happyneurons.stages.ffn_train.params import FfnTrainParams
from happyneurons.stages.ffn_train.session import PARTITIONS_ROUND, Session
from happyneurons.stages.ffn_train.volumes import Region

BLOCK = 192
"""Edge of the blocks that regions are partitioned in, voxels."""

Ffn = Context[FfnTrainParams]


def _boxes(region: Region) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    axes = (range(a, b, BLOCK) for a, b in zip(region.start_zyx, region.stop_zyx, strict=True))
    for start in product(*axes):
        yield start, tuple(min(a + BLOCK, b) for a, b in zip(start, region.stop_zyx, strict=True))


class Partitions(Round):
    """Task: a block of a region. Writes its coordinates; tells how many there are, and grey values."""

    name = PARTITIONS_ROUND

    def plan(self, context: Ffn) -> Iterable[Task]:
        for region in Session.of(context).regions:
            for start, stop in _boxes(region):
                ends = "-".join("_".join(str(v) for v in corner) for corner in (start, stop))
                yield Task(
                    key=f"{region.number:04d}-{ends}",
                    payload={"region": region.number, "start_zyx": list(start), "stop_zyx": list(stop)},
                    cost=float(np.prod(np.subtract(stop, start))),
                )

    def run(self, task: Task, context: Ffn) -> TaskResult:
        session = Session.of(context)
        region, geometry = session.regions[task.payload["region"]], session.geometry
        block = np.array(task.payload["start_zyx"]), np.array(task.payload["stop_zyx"])
        low, high = session.inner_box(region, geometry)
        low, high = np.maximum(low, block[0]), np.minimum(high, block[1])
        partitions = np.zeros((0, 0, 0), np.uint8)
        if (low < high).all():
            half = np.array(geometry.fov_zyx) // 2
            labels = session.cells.labels(region.labels, (low - half).tolist(), (high + half).tolist())
            inner = tuple(slice(int(h), int(n - h)) for h, n in zip(half, labels.shape, strict=True))
            partitions = partition_map(labels, geometry.fov_zyx, inner)
        rng = np.random.default_rng([context.params.seed, region.number, *np.abs(block[0]).tolist()])
        found = BlockCoordinates.of(partitions, low, rng)
        path = f"coordinates/{task.key}.npz"
        context.output_store("model").put_arrays(path, **found.arrays())
        data = {"region": region.number, "coordinates": path, "partitions": found.counts}
        if session.needs_grey_values and not region.validation:
            image = session.cells.volume(region.image).read(block[0].tolist(), block[1].tolist())
            whole = image.dtype.kind in "ui"
            grey = image.astype(np.int64 if whole else np.float64)
            sums = image.size, grey.sum().item(), (grey * grey).sum().item()
            data.update(zip(("count", "total", "squares"), sums, strict=True))
        return TaskResult(data=data, voxels=int(np.prod(block[1] - block[0])))
