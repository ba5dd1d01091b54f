"""The rounds of reconciliation. What they leave for one another lies in the output `merges`:

overlaps/{box}.npz     keys (box number, local id; see components): `segments` of the box, `pairs` (n, 2)
                       that agree, `whole` (n,) whether over the whole overlap, `doubted` segments
components/{box}.npz   local, target: local id → component
sizes/{block}.npz      ids, counts: voxels of the components in a block of the output
mapping/{box}.npz      local, target: local id → id in the segmentation, 0 if it was too small
sizes.npz              voxels[i]: voxels of segment i + 1
table.json             figures by subvolume

Memory: `overlaps`, `sizes` and `remap` hold two boxes or a block and a box; `components` and
`selection` hold a few numbers for each segment and each accepted pair of the whole volume.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from happyneurons.errors import NotFoundError
from happyneurons.imaging.subvolumes import Subvolume, SubvolumeGrid
from happyneurons.jobs.stage import Context, Round, Task, TaskResult
from happyneurons.stages.reconcile.blocks import (
    CHUNK,
    Block,
    assemble,
    blocks,
    counts,
    crop,
    grid_of,
    number_of,
    read_box,
)
from happyneurons.stages.reconcile.components import components, local_ids, numbers, segment_keys
from happyneurons.store.documents import Store
from happyneurons.store.volumes import PrecomputedVolume, create_volume

if TYPE_CHECKING:
    from happyneurons.stages.reconcile.stage import ReconcileParams

SEGMENTATION, MERGES = "segmentation", "merges"


def _grid(context: Context[Any]) -> SubvolumeGrid:
    return grid_of(context.input("subvolumes"))


def _work(context: Context[Any]) -> Store:
    return context.output_store(MERGES)


def _box(task: Task, grid: SubvolumeGrid) -> Subvolume:
    z, y, x = task.payload["index_zyx"]
    return grid[(z, y, x)]


class Overlaps(Round):
    """Task: one box against those of its neighbours that come later in the grid's order."""

    name = "overlaps"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        for box in _grid(context):
            yield Task(key=box.name, payload={"index_zyx": list(box.index_zyx)})

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        from happyneurons.stages.reconcile.overlaps import OverlapRules, compare

        params: ReconcileParams = context.params
        rules = OverlapRules(params.min_overlap_voxels, params.min_agreement, params.min_coverage)
        grid, source = _grid(context), context.input("subvolumes").store()
        box = _box(task, grid)
        own = read_box(source, box)
        if own is None:
            context.log.warning("subvolume %s is missing or damaged: its place stays empty", box.name)
            return TaskResult(data={"missing": 1, "segments": 0, "edges": 0, "rejected": 0})
        ids = np.unique(own)
        number = number_of(grid, box)
        segments = segment_keys(number, ids[ids > 0])
        pairs, whole, doubted = [np.zeros((0, 2), np.int64)], [np.zeros(0, bool)], [np.zeros(0, np.int64)]
        rejected = 0
        for other in grid.neighbours(box, faces_only=params.neighbours == "faces"):
            region = box.intersection(other)
            theirs = read_box(source, other)
            if region is None or theirs is None:
                continue
            found = compare(crop(own, box, *region), crop(theirs, other, *region), rules)
            its = number_of(grid, other)
            pairs.append(
                np.stack([segment_keys(number, found.edges[:, 0]), segment_keys(its, found.edges[:, 1])], axis=1)
            )
            whole.append(found.whole)
            doubted += [segment_keys(number, found.doubted_a), segment_keys(its, found.doubted_b)]
            rejected += found.rejected
        _work(context).put_arrays(
            f"overlaps/{box.name}.npz",
            segments=segments,
            pairs=np.concatenate(pairs),
            whole=np.concatenate(whole),
            doubted=np.unique(np.concatenate(doubted)),
        )
        edges = sum(len(p) for p in pairs)
        figures = {"missing": 0, "segments": len(segments), "edges": edges, "rejected": rejected}
        return TaskResult(data=figures, voxels=own.size)


class Components(Round):
    """One task: connected components of all accepted pairs."""

    name = "components"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        yield Task(key="all")

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        grid, work = _grid(context), _work(context)
        # Boxes come in grid order and ids sorted within each: all keys together are sorted.
        keys = np.concatenate([np.zeros(0, np.int64), *(arrays["segments"] for _, arrays in _overlaps(grid, work))])
        doubted = np.zeros(len(keys) + 1, bool)  # the last place is for what is not there (-1)
        for _, arrays in _overlaps(grid, work):
            doubted[numbers(keys, arrays["doubted"])] = True
        accepted, doubtful = [], 0
        for _, arrays in _overlaps(grid, work):
            pairs = numbers(keys, arrays["pairs"])
            there = (pairs >= 0).all(axis=1)  # the other box's own task may have been given up
            agreed = arrays["whole"] | ~doubted[pairs].any(axis=1)
            accepted.append(pairs[there & agreed])
            doubtful += int((there & ~agreed).sum())
        labels = components(len(keys), accepted)
        for box, arrays in _overlaps(grid, work):
            own = numbers(keys, arrays["segments"])
            work.put_arrays(f"components/{box.name}.npz", local=local_ids(arrays["segments"]), target=labels[own])
        total = int(labels.max(initial=0))
        return TaskResult(
            data={
                "subvolume_segments": len(keys),
                "components": total,
                "merges": len(keys) - total,
                "doubted_segments": int(doubted[:-1].sum()),
                "doubtful_pairs": doubtful,
            }
        )


def _overlaps(grid: SubvolumeGrid, work: Store) -> Iterator[tuple[Subvolume, dict[str, np.ndarray]]]:
    """What the comparisons of each box found, in grid order, without boxes that have nothing."""
    for box in grid:
        arrays = _find(work, f"overlaps/{box.name}.npz")
        if arrays is not None:
            yield box, arrays


class _BlockRound(Round):
    def plan(self, context: Context[Any]) -> Iterable[Task]:
        for block in blocks(_grid(context)):
            yield Task(key=block.name, payload=block.payload)

    def assemble(self, task: Task, context: Context[Any], mapping: str) -> tuple[Block, np.ndarray]:
        block = Block.of(task.payload)
        source = context.input("subvolumes").store()
        return block, assemble(block, _grid(context), source, _work(context), mapping, fill=context.params.fill)


class Sizes(_BlockRound):
    """Task: a block of the output; counts the voxels of each component in it."""

    name = "sizes"

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        block, ids = self.assemble(task, context, Components.name)
        _work(context).put_arrays(f"sizes/{block.name}.npz", **counts(ids))
        return TaskResult(voxels=ids.size)


class Selection(Round):
    """One task: drops what is too small, numbers the rest 1, 2, … and writes the final mappings."""

    name = "selection"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        yield Task(key="all")

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        grid, work = _grid(context), _work(context)
        total = next((data["components"] for _, data in context.results(Components.name)), 0)
        sizes = np.zeros(total + 1, np.int64)
        for block in blocks(grid):
            found = _find(work, f"sizes/{block.name}.npz")
            if found:
                sizes[found["ids"].astype(np.int64)] += found["counts"]
        keep = sizes >= max(1, context.params.min_size_voxels)
        keep[0] = False
        final = np.zeros(total + 1, np.uint64)
        final[keep] = np.arange(1, int(keep.sum()) + 1, dtype=np.uint64)
        figures = dict(context.results(Overlaps.name))
        rows = []
        for box in grid:
            found = _find(work, f"components/{box.name}.npz")
            if found:
                target = final[found["target"].astype(np.int64)]
                work.put_arrays(f"mapping/{box.name}.npz", local=found["local"], target=target)
            figure = figures.get(box.name, {})
            columns = (figure.get(name, 0) for name in ("segments", "edges", "rejected"))
            rows.append([box.name, "missing" if figure.get("missing", 1) else "ok", *columns])
        work.put_arrays("sizes.npz", voxels=sizes[keep])
        work.put_json("table.json", {"columns": ["subvolume", "status", "segments", "edges", "rejected"], "rows": rows})
        dropped = int(((sizes[1:] > 0) & ~keep[1:]).sum())
        data = {"segments": int(keep.sum()), "dropped_segments": dropped, "voxels": int(sizes[keep].sum())}
        return TaskResult(data=data)


class Remap(_BlockRound):
    """Task: a block of the output; writes its chunks."""

    name = "remap"

    def prepare(self, context: Context[Any]) -> None:
        from happyneurons.store.pyramid import add_levels

        source = context.input("subvolumes")
        bounds = _grid(context).bounds
        create_volume(
            context.output_uri(SEGMENTATION),
            start_zyx=bounds.minimum_xyz[::-1],
            stop_zyx=bounds.maximum_xyz[::-1],
            voxel_size_nm_xyz=source.voxel_size_nm_xyz or (1.0, 1.0, 1.0),
            dtype="uint64",
            layer_type="segmentation",
            chunk_zyx=(CHUNK, CHUNK, CHUNK),
        )
        add_levels(context.output_uri(SEGMENTATION), context.params.num_mips)

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        block, ids = self.assemble(task, context, "mapping")
        PrecomputedVolume(context.output_uri(SEGMENTATION)).write(block.start_zyx, ids)
        return TaskResult(data={"labelled": int((ids > 0).sum())}, voxels=ids.size, bytes=ids.nbytes)


class Level(Round):
    """Task: a block of one level of the pyramid. A level that the volume is too small for has none."""

    def __init__(self, level: int) -> None:
        self.level = level
        self.name = f"mip_{level}"  # type: ignore[misc]

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        from happyneurons.store.pyramid import blocks

        uri = context.output_uri(SEGMENTATION)
        if self.level < PrecomputedVolume(uri).mips:
            for box in blocks(PrecomputedVolume(uri, self.level), (4, 4, 4)):
                block = Block(*box)
                yield Task(key=block.name, payload=block.payload)

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        from happyneurons.store.pyramid import write_level

        block = Block.of(task.payload)
        box = (block.start_zyx, block.stop_zyx)
        return TaskResult(voxels=write_level(context.output_uri(SEGMENTATION), self.level, box, "mode"))


def _find(work: Store, path: str) -> dict[str, np.ndarray] | None:
    try:
        return work.get_arrays(path)
    except NotFoundError:
        return None
