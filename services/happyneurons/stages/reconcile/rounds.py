"""The rounds of reconciliation besides those of :mod:`happyneurons.unions.rounds`, which stand between.

What they leave lies in the output `merges`:

found/{box}.npz    what was found in a box and where it overlaps others: see `unions.joining.Found`
table.json         figures by subvolume

Memory: `overlaps` and `remap` hold two boxes, or a block and a box; see `unions.joining` for the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from happyneurons.imaging.subvolumes import Subvolume, SubvolumeGrid
from happyneurons.jobs.stage import Context, Round, Task, TaskResult
from happyneurons.stages.reconcile.blocks import Supply, assemble, blocks, crop, grid_of, read_box
from happyneurons.store.documents import Store
from happyneurons.store.triples import Triple
from happyneurons.store.volumes import PrecomputedVolume
from happyneurons.unions.joining import segment_keys
from happyneurons.unions.output import Block, create_segmentation
from happyneurons.unions.rounds import Lattice, Unions, found_path
from happyneurons.unions.tree import GroupTree

if TYPE_CHECKING:
    from happyneurons.stages.reconcile.overlaps import OverlapRules
    from happyneurons.stages.reconcile.stage import ReconcileParams

SEGMENTATION, MERGES = "segmentation", "merges"


def _grid(context: Context[Any]) -> SubvolumeGrid:
    return grid_of(context.input("subvolumes"))


def unions_of(context: Context[Any]) -> Unions:
    """The union-find over the boxes of the grid."""
    grid = _grid(context)

    def neighbours(index_zyx: Triple) -> Iterable[Triple]:
        return (other.index_zyx for other in grid.neighbours(grid[index_zyx], later_only=False))

    lattice = Lattice(GroupTree(grid.shape_zyx), lambda index_zyx: grid[index_zyx].name, neighbours)
    return Unions(MERGES, lattice, context.params.min_size_voxels)


class Overlaps(Round):
    """Task: one box. Compares it with those of its neighbours that come later in the grid's order, and
    counts the voxels of the output in its core."""

    name = "overlaps"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        for box in _grid(context):
            yield Task(key=box.name, payload={"index_zyx": list(box.index_zyx)})

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        from happyneurons.stages.reconcile.overlaps import OverlapRules

        params: ReconcileParams = context.params
        rules = OverlapRules(
            params.min_overlap_voxels,
            params.min_agreement,
            params.min_coverage,
            params.min_coverage_of_one,
            params.min_contained_voxels,
        )
        grid, source = _grid(context), context.input("subvolumes").store()
        z, y, x = task.payload["index_zyx"]
        box = grid[(z, y, x)]
        own = read_box(source, box)
        if own is None:
            context.log.warning("subvolume %s is missing or damaged: its place stays empty", box.name)
        findings = _Findings(GroupTree(grid.shape_zyx), box, own, rules)
        supply = Supply(grid, box, own, fill=params.fill)
        if own is not None:
            findings.supplied(box, crop(own, box, supply.start_zyx, supply.stop_zyx))
        compared = {b.index_zyx for b in grid.neighbours(box, faces_only=params.neighbours == "faces")}
        for other in grid.neighbours(box, later_only=False):
            to_compare = own is not None and other.index_zyx in compared
            theirs = read_box(source, other) if to_compare or supply.wants(other) else None
            if theirs is None:
                continue
            findings.supplied(other, supply.take(other, theirs))
            if to_compare:
                findings.compare(other, theirs)
        context.output_store(MERGES).put_arrays(found_path(box.name), **findings.arrays())
        return TaskResult(data=findings.figures(), voxels=0 if own is None else own.size)


class _Findings:
    """What the task of a box finds out: see `unions.joining.Found`."""

    def __init__(self, tree: GroupTree, box: Subvolume, ids: np.ndarray | None, rules: OverlapRules) -> None:
        self.tree, self.box, self.ids, self.rules = tree, box, ids, rules
        none = np.zeros(0, np.int64)
        self.segments = none if ids is None else self._keys(box, _above_zero(ids))
        self.pairs, self.whole, self.doubted = [np.zeros((0, 2), np.int64)], [np.zeros(0, bool)], [none]
        self.voxel_keys, self.voxels = [none], [none]
        self.rejected = 0

    def _keys(self, box: Subvolume, ids: np.ndarray) -> np.ndarray:
        return segment_keys(self.tree.number(box.index_zyx), ids)

    def supplied(self, box: Subvolume, ids: np.ndarray) -> None:
        """Count ids of voxels that a box supplies to the output."""
        unique, counts = np.unique(ids, return_counts=True)
        self.voxel_keys.append(self._keys(box, unique[unique > 0]))
        self.voxels.append(counts[unique > 0].astype(np.int64))

    def compare(self, other: Subvolume, theirs: np.ndarray) -> None:
        """Compare the box with another one where they overlap."""
        from happyneurons.stages.reconcile.overlaps import compare

        region = self.box.intersection(other)
        assert region is not None
        assert self.ids is not None
        found = compare(crop(self.ids, self.box, *region), crop(theirs, other, *region), self.rules)
        ends = self._keys(self.box, found.edges[:, 0]), self._keys(other, found.edges[:, 1])
        self.pairs.append(np.stack(ends, axis=1))
        self.whole.append(found.whole)
        self.doubted += [self._keys(self.box, found.doubted_a), self._keys(other, found.doubted_b)]
        self.rejected += found.rejected

    def arrays(self) -> dict[str, np.ndarray]:
        return {
            "segments": self.segments,
            "pairs": np.concatenate(self.pairs),
            "whole": np.concatenate(self.whole),
            "doubted": np.unique(np.concatenate(self.doubted)),
            "voxel_keys": np.concatenate(self.voxel_keys),
            "voxels": np.concatenate(self.voxels),
        }

    def figures(self) -> dict[str, int]:
        return {
            "missing": int(self.ids is None),
            "segments": len(self.segments),
            "edges": sum(len(p) for p in self.pairs),
            "rejected": self.rejected,
        }


class Table(Round):
    """One task: the table of subvolumes, one row each."""

    name = "table"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        yield Task(key="all")

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        figures = dict(context.results(Overlaps.name))
        rows = []
        for box in _grid(context):
            figure = figures.get(box.name, {})
            columns = (figure.get(name, 0) for name in ("segments", "edges", "rejected"))
            rows.append([box.name, "missing" if figure.get("missing", 1) else "ok", *columns])
        table = {"columns": ["subvolume", "status", "segments", "edges", "rejected"], "rows": rows}
        context.output_store(MERGES).put_json("table.json", table)
        return TaskResult()


class Remap(Round):
    """Task: a block of the output; writes its chunks."""

    name = "remap"

    def prepare(self, context: Context[Any]) -> None:
        uri, voxel_size = context.output_uri(SEGMENTATION), context.input("subvolumes").voxel_size_nm_xyz
        create_segmentation(uri, _grid(context).bounds, voxel_size, context.params.num_mips)

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        return (block.task() for block in blocks(_grid(context)))

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        block, work = Block.of(task.payload), context.output_store(MERGES)
        source: Store = context.input("subvolumes").store()
        ids = assemble(block, _grid(context), source, work, fill=context.params.fill)
        PrecomputedVolume(context.output_uri(SEGMENTATION)).write(block.start_zyx, ids)
        return TaskResult(data={"labelled": int((ids > 0).sum())}, voxels=ids.size, bytes=ids.nbytes)


def _above_zero(ids: np.ndarray) -> np.ndarray:
    unique = np.unique(ids)
    return unique[unique > 0]
