"""The rounds of masks, besides those that join objects (:mod:`happyneurons.unions.rounds`) and make pyramids.

predict   a block → the volume `probability`
seeds     a block → `seeds/{block}.npz`: places in it where objects grow from
label     a block and a margin → `cells/{block}.npz`: classes, and the block's objects with ids of its own
match     a block and those behind it → `found/{block}.npz`: which objects are one
remap     a block → the volumes `mask` and `instances`
table     one task → `table.json`: objects, their classes, sizes and middles

What lies between is in the output `objects`. Memory: a task holds its block and, of classes whose objects grow from
seeds, `max_diameter_nm` around it. No task holds more of the volume than that; `table` holds a row for each object.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from happyneurons.jobs.stage import Context, Round, Task, TaskResult
from happyneurons.stages.mask.objects import (
    Window,
    class_margin,
    classify,
    distances,
    find_seeds,
    flood,
    object_margin,
    seed_margin,
)
from happyneurons.stages.mask.subject import INSTANCES, MASK, OBJECTS, PROBABILITY, Subject
from happyneurons.store.documents import Store
from happyneurons.store.triples import Triple
from happyneurons.store.volumes import PrecomputedVolume, create_volume
from happyneurons.unions.joining import segment_keys
from happyneurons.unions.output import Block, BlockGrid, Level, LocalToGlobal, create_segmentation
from happyneurons.unions.rounds import Lattice, Unions, found_path
from happyneurons.unions.tree import GroupTree

NO_SEED = -1


class Predict(Round):
    """Task: a block of probabilities."""

    name = "predict"

    def prepare(self, context: Context[Any]) -> None:
        subject = Subject.of(context)
        create_volume(
            context.output_uri(PROBABILITY), start_zyx=subject.bounds.minimum_xyz[::-1],
            stop_zyx=subject.bounds.maximum_xyz[::-1], voxel_size_nm_xyz=subject.voxel_size_nm_xyz, dtype="uint8",
            layer_type="image", channels=len(subject.class_names),
        )  # fmt: skip

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        return _tasks(Subject.of(context).grid)

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        subject, block = Subject.of(context), Block.of(task.payload)
        found = subject.predictor(subject.source, block.start_zyx, block.stop_zyx)
        PrecomputedVolume(context.output_uri(PROBABILITY)).write_channels(block.start_zyx, found)
        return TaskResult(data={"over": (found > 127).sum(axis=(1, 2, 3)).tolist()}, voxels=found[0].size)


def _tasks(grid: BlockGrid) -> Iterator[Task]:
    for block in grid:
        stop = "_".join(str(v) for v in block.stop_zyx)
        cost = float(np.prod(block.shape_zyx))
        yield Task(key=f"{block.name}-{stop}", payload=block.payload, cost=cost)


def classes_in(context: Context[Any], window: Window) -> NDArray[np.uint8]:
    """(z, y, x) class numbers in a window."""
    subject = Subject.of(context)
    around = window.grown(class_margin(subject.rules, subject.size_zyx))
    if subject.given:
        volume: Any = subject.source
    else:
        volume = context.once("probability", lambda: PrecomputedVolume(context.output_uri(PROBABILITY)))
    if isinstance(volume, PrecomputedVolume):
        probability = volume.read_channels(around.start_zyx, around.stop_zyx)
    else:
        probability = volume.read(around.start_zyx, around.stop_zyx)[np.newaxis]
    classes = classify(probability, subject.rules, subject.size_zyx, around)
    return np.ascontiguousarray(classes[window.inside(around)])


class Seeds(Round):
    """Task: a block; where its objects are thickest."""

    name = "seeds"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        return _tasks(Subject.of(context).cells)

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        subject, block = Subject.of(context), Block.of(task.payload)
        own = subject.window(block.start_zyx, block.stop_zyx)
        places, numbers = [np.zeros((0, 3), np.int64)], [np.zeros(0, np.int64)]
        for number, rule in subject.grown.items():
            around = own.grown(seed_margin(rule, subject.size_zyx))
            mask = classes_in(context, around) == number
            if not mask.any():
                continue
            found = find_seeds(distances(mask, subject.size_zyx), rule, subject.size_zyx) + around.start_zyx
            found = found[((found >= own.start_zyx) & (found < own.stop_zyx)).all(axis=1)]
            places.append(found)
            numbers.append(np.full(len(found), number))
        zyx = np.concatenate(places)
        context.output_store(OBJECTS).put_arrays(_seeds_path(block), zyx=zyx, number=np.concatenate(numbers))
        return TaskResult(data={"seeds": len(zyx)}, voxels=int(np.prod(block.shape_zyx)))


def _seeds_path(block: Block) -> str:
    return f"seeds/{block.name}.npz"


def _seeds_in(context: Context[Any], window: Window, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(zyx voxels, keys) of the seeds of a class in a window. A key is the same wherever the seed is seen."""
    subject = Subject.of(context)
    if subject.points is not None:
        zyx, keys = subject.points.zyx, subject.points.object
    else:
        grid, store = subject.cells, context.output_store(OBJECTS)
        tree = GroupTree(grid.shape_zyx)
        found_zyx, found_keys = [np.zeros((0, 3), np.int64)], [np.zeros(0, np.int64)]
        ranges = [
            range((a - o) // e, (b - 1 - o) // e + 1)
            for a, b, o, e in zip(window.start_zyx, window.stop_zyx, window.low_zyx, grid.edge_zyx, strict=True)
        ]
        for z, y, x in product(*ranges):
            arrays = store.get_arrays(_seeds_path(grid[(z, y, x)]))
            own = np.flatnonzero(arrays["number"] == number)
            found_zyx.append(arrays["zyx"][own])
            found_keys.append(segment_keys(tree.number((z, y, x)), own))
        zyx, keys = np.concatenate(found_zyx), np.concatenate(found_keys)
    inside = ((zyx >= window.start_zyx) & (zyx < window.stop_zyx)).all(axis=1)
    return zyx[inside], keys[inside]


class Label(Round):
    """Task: a block; its classes, and its objects with ids of its own."""

    name = "label"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        return _tasks(Subject.of(context).cells)

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        subject, block = Subject.of(context), Block.of(task.payload)
        own = subject.window(block.start_zyx, block.stop_zyx)
        # One voxel more behind each far face, where the next block's objects are met.
        high = tuple(min(b + 1, h) for b, h in zip(own.stop_zyx, own.high_zyx, strict=True))
        met = subject.window(own.start_zyx, (high[0], high[1], high[2]))
        classes = classes_in(context, met)
        cell = _Cell(np.zeros(classes.shape, np.uint32))
        unreached = 0
        for number, rule in enumerate(subject.rules, 1):
            if rule.instances == "components":
                cell.add_parts(classes == number, number)
            elif rule.instances == "watershed" and (classes == number).any():
                around = met.grown(object_margin(rule, subject.size_zyx))
                mask = classes_in(context, around) == number
                zyx, keys = _seeds_in(context, around, number)
                unique, numbers = np.unique(keys, return_inverse=True)
                seen = met.inside(around)
                grown = flood(mask, seen, zyx - around.start_zyx, numbers + 1, subject.size_zyx)[seen]
                cell.add_grown(grown, unique, number)
                unreached += int(((classes == number) & (grown == 0))[own.inside(met)].sum())
        core = own.inside(met)
        context.output_store(OBJECTS).put_arrays(
            _cell_path(block), classes=classes[core], labels=cell.labels[core], number=cell.number, seed=cell.seed,
            **_faces(cell.labels, block.shape_zyx),
        )  # fmt: skip
        counts = np.bincount(classes[core].ravel(), minlength=len(subject.rules) + 1)[1:]
        return TaskResult(
            data={"voxels": counts.tolist(), "objects": len(cell.number), "unreached": unreached},
            voxels=int(np.prod(block.shape_zyx)),
        )


def _cell_path(block: Block) -> str:
    return f"cells/{block.name}.npz"


class _Cell:
    """Objects of a block. labels: their local ids, 1, 2, …; number: class of each; seed: key of each, or NO_SEED."""

    def __init__(self, labels: NDArray[np.uint32]) -> None:
        self.labels = labels
        self.number, self.seed = np.zeros(0, np.uint8), np.zeros(0, np.int64)

    def add_parts(self, mask: NDArray[np.bool_], number: int) -> None:
        import cc3d

        parts, count = cc3d.connected_components(
            np.ascontiguousarray(mask).view(np.uint8), connectivity=26, out_dtype=np.uint32, return_N=True
        )
        self._add(parts, np.full(count, NO_SEED), number)

    def add_grown(self, grown: NDArray[np.uint32], keys: NDArray[np.int64], number: int) -> None:
        found, inverse = np.unique(grown, return_inverse=True)
        seeds = found[found > 0]
        local = np.cumsum(found > 0).astype(np.uint32) * (found > 0)
        self._add(local[inverse].reshape(grown.shape), keys[seeds.astype(np.int64) - 1], number)

    def _add(self, labels: np.ndarray, seeds: np.ndarray, number: int) -> None:
        inside = labels > 0
        self.labels[inside] = labels[inside] + np.uint32(len(self.number))
        self.number = np.concatenate([self.number, np.full(len(seeds), number, np.uint8)])
        self.seed = np.concatenate([self.seed, seeds.astype(np.int64)])


BEHIND = [offset for offset in product((0, 1), repeat=3) if any(offset)]


def _faces(labels: NDArray[np.uint32], shape_zyx: Triple) -> dict[str, np.ndarray]:
    """Labels where a block meets those behind it (`far_…`) and those before it (`near_…`), by the step from the
    earlier block to the later one."""
    faces = {}
    for offset in BEHIND:
        name = "".join(str(v) for v in offset)
        far = tuple(slice(n, n + 1) if o else slice(0, n) for o, n in zip(offset, shape_zyx, strict=True))
        near = tuple(slice(0, 1) if o else slice(0, n) for o, n in zip(offset, shape_zyx, strict=True))
        faces[f"far_{name}"], faces[f"near_{name}"] = labels[far], labels[near]
    return faces


class Match(Round):
    """Task: a block; which of its objects are those of blocks behind it.

    Connected parts are one where both blocks see them at the same voxel; grown objects are if they come from one
    seed.
    """

    name = "match"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        return (
            Task(key=task.key, payload={**task.payload, "index_zyx": list(index)})
            for index, task in zip(Subject.of(context).cells.indices(), _tasks(Subject.of(context).cells), strict=True)
        )

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        grid, store = Subject.of(context).cells, context.output_store(OBJECTS)
        tree, index = GroupTree(grid.shape_zyx), tuple(task.payload["index_zyx"])
        block = grid[index]
        own = store.get_arrays(_cell_path(block))
        cell = tree.number(index)
        pairs = [np.zeros((0, 2), np.int64)]
        for other_index in _neighbours(grid.shape_zyx, index):
            step = tuple(b - a for a, b in zip(index, other_index, strict=True))
            if step < (0, 0, 0):
                continue
            other = store.get_arrays(_cell_path(grid[other_index]))
            found = [_same_seed(own, other)]
            if min(step) >= 0:
                name = "".join(str(v) for v in step)
                found.append(_same_part(own, other, own[f"far_{name}"], other[f"near_{name}"]))
            ids = np.concatenate(found)
            keys = segment_keys(cell, ids[:, 0]), segment_keys(tree.number(other_index), ids[:, 1])
            pairs.append(np.stack(keys, axis=1))
        joined = np.concatenate(pairs)
        voxels = np.bincount(own["labels"].ravel(), minlength=len(own["number"]) + 1)[1:].astype(np.int64)
        segments = segment_keys(cell, np.arange(1, len(own["number"]) + 1))
        store.put_arrays(
            found_path(block.name), segments=segments, pairs=joined, whole=np.ones(len(joined), bool),
            doubted=np.zeros(0, np.int64), voxel_keys=segments, voxels=voxels,
        )  # fmt: skip
        return TaskResult(data={"pairs": len(joined)})


def _same_seed(own: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> NDArray[np.int64]:
    """(n, 2) local ids of objects of one class that come from one seed."""
    columns = [a["seed"] * 256 + a["number"] for a in (own, other)]
    keys, first, second = np.intersect1d(*columns, return_indices=True)
    return np.stack([first, second], axis=1)[keys >= 0] + 1


def _same_part(
    own: dict[str, np.ndarray], other: dict[str, np.ndarray], far: np.ndarray, near: np.ndarray
) -> NDArray[np.int64]:
    """(n, 2) local ids of connected parts that hold one voxel."""
    if far.shape != near.shape:  # nothing lies behind
        return np.zeros((0, 2), np.int64)
    both = (far > 0) & (near > 0)
    ids = np.unique(np.stack([far[both], near[both]], axis=1).astype(np.int64), axis=0)
    seeds = own["seed"][ids[:, 0] - 1], other["seed"][ids[:, 1] - 1]
    alike = own["number"][ids[:, 0] - 1] == other["number"][ids[:, 1] - 1]
    return np.asarray(ids[alike & (seeds[0] == NO_SEED) & (seeds[1] == NO_SEED)])


def _neighbours(shape_zyx: Triple, index_zyx: Triple) -> Iterator[Triple]:
    """The up to 26 blocks around one."""
    for offset in product((-1, 0, 1), repeat=3):
        z, y, x = (i + o for i, o in zip(index_zyx, offset, strict=True))
        if any(offset) and 0 <= z < shape_zyx[0] and 0 <= y < shape_zyx[1] and 0 <= x < shape_zyx[2]:
            yield (z, y, x)


def unions_of(context: Context[Any]) -> Unions:
    grid = Subject.of(context).cells
    lattice = Lattice(
        GroupTree(grid.shape_zyx), lambda index: grid[index].name, lambda index: _neighbours(grid.shape_zyx, index)
    )
    # An object without a voxel of its own is one that a neighbour saw behind its face.
    return Unions(OBJECTS, lattice, max(1, context.params.min_size_voxels))


class Remap(Round):
    """Task: a block of the results. Without objects the mask is made at once."""

    name = "remap"

    def prepare(self, context: Context[Any]) -> None:
        from happyneurons.store.pyramid import add_levels

        subject, mips = Subject.of(context), context.params.num_mips
        create_volume(
            context.output_uri(MASK), start_zyx=subject.bounds.minimum_xyz[::-1],
            stop_zyx=subject.bounds.maximum_xyz[::-1], voxel_size_nm_xyz=subject.voxel_size_nm_xyz, dtype="uint8",
            layer_type="segmentation",
        )  # fmt: skip
        add_levels(context.output_uri(MASK), mips)
        if subject.has_objects:
            create_segmentation(context.output_uri(INSTANCES), subject.bounds, subject.voxel_size_nm_xyz, mips)

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        return _tasks(Subject.of(context).cells)

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        subject, block = Subject.of(context), Block.of(task.payload)
        own = subject.window(block.start_zyx, block.stop_zyx)
        if subject.has_objects:
            classes = self._objects(context, block)
        else:
            classes = classes_in(context, own)
        PrecomputedVolume(context.output_uri(MASK)).write(block.start_zyx, classes)
        counts = np.bincount(classes.ravel(), minlength=len(subject.rules) + 1)[1:]
        return TaskResult(data={"voxels": counts.tolist()}, voxels=classes.size)

    def _objects(self, context: Context[Any], block: Block) -> NDArray[np.uint8]:
        store, subject = context.output_store(OBJECTS), Subject.of(context)
        cell = store.get_arrays(_cell_path(block))
        mapping = LocalToGlobal.read(store, block.name)
        labels = cell["labels"]
        ids = np.zeros(labels.shape, np.uint64) if mapping is None else mapping(labels)
        PrecomputedVolume(context.output_uri(INSTANCES)).write(block.start_zyx, ids)
        classes: NDArray[np.uint8] = cell["classes"]
        alone = [n for n, r in enumerate(subject.rules, 1) if r.instances == "none"]
        classes[(ids == 0) & ~np.isin(classes, alone)] = 0
        _table_rows(store, block, ids, classes)
        return classes


def _table_rows(store: Store, block: Block, ids: NDArray[np.uint64], classes: NDArray[np.uint8]) -> None:
    """Leave voxels, class and sums of coordinates of the objects in a block."""
    inside = np.nonzero(ids)
    found, first, inverse = np.unique(ids[inside], return_index=True, return_inverse=True)
    voxels = np.bincount(inverse, minlength=len(found)).astype(np.int64)
    sums = [
        np.bincount(inverse, weights=at + a, minlength=len(found)).astype(np.int64)
        for at, a in zip(inside, block.start_zyx, strict=True)
    ]
    number = classes[inside][first]
    store.put_arrays(f"rows/{block.name}.npz", id=found, voxels=voxels, sums_zyx=np.stack(sums, axis=1), number=number)


class Table(Round):
    """One task: a row for each object."""

    name = "table"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        yield Task(key="all")

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        store, subject = context.output_store(OBJECTS), Subject.of(context)
        parts = [arrays for block in subject.cells if len((arrays := store.get_arrays(f"rows/{block.name}.npz"))["id"])]
        rows: list[list[Any]] = []
        counts = np.zeros(len(subject.rules), np.int64)
        if parts:
            ids, first, inverse = np.unique(
                np.concatenate([p["id"] for p in parts]), return_index=True, return_inverse=True
            )
            voxels, sums = np.zeros(len(ids), np.int64), np.zeros((len(ids), 3), np.int64)
            np.add.at(voxels, inverse, np.concatenate([p["voxels"] for p in parts]))
            np.add.at(sums, inverse, np.concatenate([p["sums_zyx"] for p in parts]))
            number = np.concatenate([p["number"] for p in parts])[first]
            counts = np.bincount(number, minlength=len(subject.rules) + 1)[1:]
            middle_xyz = np.rint(sums / voxels[:, np.newaxis]).astype(np.int64)[:, ::-1]
            names = [subject.class_names[n - 1] for n in number.tolist()]
            rows = [
                [i, name, n, *xyz]
                for i, name, n, xyz in zip(ids.tolist(), names, voxels.tolist(), middle_xyz.tolist(), strict=True)
            ]
        else:
            middle_xyz = np.zeros((0, 3), np.int64)
        store.put_json("table.json", {"columns": ["id", "class", "voxels", "x", "y", "z"], "rows": rows})
        return TaskResult(data={"objects": counts.tolist()})


class MaskLevel(Level):
    """A block of a level of the mask's pyramid; the objects' has rounds of its own."""

    def __init__(self, level: int) -> None:
        super().__init__(MASK, level)
        self.name = f"mask_mip_{level}"  # type: ignore[misc]
