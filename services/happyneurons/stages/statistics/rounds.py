"""The rounds of the statistics:

blocks    a block → `_blocks/{block}.npz`: what it knows of its segments and of the faces between them
gather    4³ blocks → `_gathered/segments|contacts/{group}.bin`: their tables added up, sorted by id
segments  a part, a run of ids → `segments/{part}.csv`
contacts  a part, a run of pairs of ids → `contacts/{part}.csv`
summary   one task: the largest segments, Neuroglancer's list, totals
tidy      a group → its files of the first two rounds deleted

Which ids make up a part follows from a sample of them that the blocks leave in the journal: about
`rows_per_part` rows each, whatever the ids look like. A part's task reads its rows of each group,
and nothing else, so no process ever holds all ids. All tables are integers until they are written,
so their bytes depend neither on ranks nor on the order of tasks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from happyneurons.errors import NotFoundError
from happyneurons.imaging.blocks import Block
from happyneurons.jobs.stage import Context, Round, Task, TaskResult
from happyneurons.stages.statistics import listing
from happyneurons.stages.statistics.counting import count_block
from happyneurons.stages.statistics.subject import Subject
from happyneurons.stages.statistics.tables import (
    CONTACTS,
    SEGMENTS,
    Layout,
    ids_of,
    read_part,
    reduce,
    sample,
    splitters,
    write_parts,
)
from happyneurons.store.documents import Store, canonical_json
from happyneurons.store.triples import Triple

if TYPE_CHECKING:
    from happyneurons.stages.statistics.stage import StatisticsParams

TABLE = "table"
LAYOUTS = (SEGMENTS, CONTACTS)
SAMPLES_PER_PART = 64


class Blocks(Round):
    """Task: one block."""

    name = "blocks"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        subject = Subject.of(context)
        for group in subject.tree.groups(0):
            for block in _blocks(subject, group):
                payload = {"start_zyx": list(block.start_zyx), "stop_zyx": list(block.stop_zyx)}
                yield Task(key=block.key, payload=payload, cost=block.voxels / 1e6)

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        params: StatisticsParams = context.params
        subject = Subject.of(context)
        block = Block(tuple(task.payload["start_zyx"]), tuple(task.payload["stop_zyx"]))
        (z0, y0, x0), (z1, y1, x1) = block.start_zyx, block.stop_zyx
        labels = subject.read_beyond(block)
        found = count_block(labels, block.start_zyx, (z1 - z0, y1 - y0, x1 - x0), contacts=params.contacts)
        tables = {layout.folder: rows for layout, rows in zip(LAYOUTS, found, strict=True)}
        context.output_store(TABLE).put_arrays(_block_path(block.key), **tables)
        samples = {
            layout.folder: sample(ids_of(layout, tables[layout.folder]), _one_in(context)).tolist()
            for layout in LAYOUTS
        }
        return TaskResult(data=samples, voxels=block.voxels)


def _blocks(subject: Subject, group_zyx: Triple) -> Iterator[Block]:
    return (subject.block(index) for index in subject.tree.cells(0, group_zyx))


def _block_path(key: str) -> str:
    return f"_blocks/{key}.npz"


def _one_in(context: Context[Any]) -> int:
    return max(1, context.params.rows_per_part // SAMPLES_PER_PART)


@dataclass(frozen=True)
class Parts:
    """Where parts begin, by folder. stamp: stands for them and for the blocks that could be read.

    Tasks carry it in their keys: once blocks that had been given up are there after all, everything is added up again.
    """

    starts: dict[str, list[list[int]]]
    stamp: str

    @staticmethod
    def of(context: Context[Any]) -> Parts:
        def make() -> Parts:
            results = list(context.results(Blocks.name))
            starts = {
                layout.folder: splitters(
                    layout, (data[layout.folder] for _, data in results), _one_in(context), context.params.rows_per_part
                )
                for layout in LAYOUTS
            }
            known = canonical_json([[key for key, _ in results], starts])
            return Parts(starts, hashlib.sha256(known).hexdigest()[:12])

        parts: Parts = context.once("parts", make)
        return parts

    def count(self, layout: Layout) -> int:
        return len(self.starts[layout.folder]) + 1

    def results(self, context: Context[Any], round_name: str) -> list[tuple[str, Any]]:
        """Results of a later round that were made with these parts."""
        ending = f"-{self.stamp}"
        return [(k.removesuffix(ending), data) for k, data in context.results(round_name) if k.endswith(ending)]


class _GroupRound(Round):
    def plan(self, context: Context[Any]) -> Iterable[Task]:
        stamp = Parts.of(context).stamp
        for group in Subject.of(context).tree.groups(0):
            name = "_".join(str(i) for i in group)
            yield Task(key=f"{name}-{stamp}", payload={"group_zyx": list(group), "name": name})


class Gather(_GroupRound):
    """Task: a group of blocks."""

    name = "gather"

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        store, subject, parts = context.output_store(TABLE), Subject.of(context), Parts.of(context)
        tables = [
            arrays
            for block in _blocks(subject, tuple(task.payload["group_zyx"]))
            if (arrays := _find(store, _block_path(block.key))) is not None
        ]
        size, counts = 0, {}
        for layout in LAYOUTS:
            rows = reduce(layout, [arrays[layout.folder] for arrays in tables])
            path = _gathered_path(layout, task.payload["name"])
            size += write_parts(store, path, layout, rows, parts.starts[layout.folder])
            counts[layout.folder] = len(rows)
        return TaskResult(data=counts, bytes=size)


def _gathered_path(layout: Layout, group: str) -> str:
    return f"_gathered/{layout.folder}/{group}.bin"


def _find(store: Store, path: str) -> dict[str, np.ndarray] | None:
    try:
        return store.get_arrays(path)
    except NotFoundError:  # its block could not be read
        return None


class _PartRound(Round):
    layout: Layout

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        parts = Parts.of(context)
        for number in range(parts.count(self.layout)):
            yield Task(key=f"{number:06d}-{parts.stamp}", payload={"part": number})

    def whole(self, task: Task, context: Context[Any]) -> NDArray[np.int64]:
        """The part's rows, added up over all groups; in memory are about twice as many."""
        store, parts = context.output_store(TABLE), Parts.of(context)
        groups: list[str] = context.once(
            "gathered", lambda: [group for group, _ in parts.results(context, Gather.name)]
        )
        held, rows = [self.layout.empty()], 0
        for group in groups:
            path = _gathered_path(self.layout, group)
            held.append(read_part(store, path, self.layout, task.payload["part"], parts.count(self.layout)))
            rows += len(held[-1])
            if rows > max(len(held[0]), context.params.rows_per_part):
                held, rows = [reduce(self.layout, held)], 0
        return reduce(self.layout, held)


class Segments(_PartRound):
    """Task: the segments of a run of ids."""

    name = "segments"
    layout = SEGMENTS

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        rows = self.whole(task, context)
        kept = rows[rows[:, 1] >= context.params.min_voxels]
        store, number = context.output_store(TABLE), int(task.payload["part"])
        size = listing.write_segments(store, number, kept, Subject.of(context).volume.voxel_size_nm_xyz)
        if context.params.min_voxels > 1:
            # Segments that lie in the layers beyond lost blocks only have no voxels, and are dropped as well.
            store.put_arrays(_kept_path(number), ids=ids_of(SEGMENTS, kept)[:, 0])
        data = {"rows": len(kept), "voxels": int(kept[:, 1].sum()), "dropped": len(rows) - len(kept)}
        return TaskResult(data={**data, **listing.span(ids_of(SEGMENTS, kept)[:, 0])}, bytes=size)


def _kept_path(part: int) -> str:
    return f"_kept/{part:06d}.npz"


class Contacts(_PartRound):
    """Task: the contacts of a run of pairs."""

    name = "contacts"
    layout = CONTACTS

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        return super().plan(context) if context.params.contacts else []

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        rows = self.whole(task, context)
        store, number = context.output_store(TABLE), int(task.payload["part"])
        if context.params.min_voxels > 1:
            rows = rows[_both_kept(store, ids_of(CONTACTS, rows), Parts.of(context).results(context, Segments.name))]
        size = listing.write_contacts(store, number, rows, Subject.of(context).volume.voxel_size_nm_xyz)
        data = {"rows": len(rows), "faces": int(rows[:, 2:5].sum())}
        return TaskResult(data={**data, **listing.span(ids_of(CONTACTS, rows)[:, 0])}, bytes=size)


def _both_kept(store: Store, pairs: NDArray[np.uint64], parts: list[tuple[str, Any]]) -> NDArray[np.bool_]:
    """Which pairs are of two segments that are large enough. The parts' ids are looked through one by one."""
    kept = np.zeros(pairs.shape, bool)
    for number, data in parts:
        if not data["rows"]:
            continue
        near = (pairs >= np.uint64(data["first"])) & (pairs <= np.uint64(data["last"]))
        if near.any():
            ids = store.get_arrays(_kept_path(int(number)))["ids"]
            kept[near] = np.isin(pairs[near], ids)
    return np.asarray(kept.all(axis=1))


class Summary(Round):
    """One task: what is small, or read from one place."""

    name = "summary"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        yield Task(key=f"all-{Parts.of(context).stamp}")

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        parts, subject = Parts.of(context), Subject.of(context)
        files = {round_.name: parts.results(context, round_.name) for round_ in (Segments, Contacts)}
        largest = listing.write_summary(
            context.output_store(TABLE),
            files["segments"],
            files["contacts"] if context.params.contacts else None,
            {
                "mip": context.params.mip,
                "voxel_size_nm_xyz": list(subject.volume.voxel_size_nm_xyz),
                "bounds": subject.bounds.model_dump(mode="json"),
                "min_voxels": context.params.min_voxels,
                "missing_blocks": list(context.quarantined(Blocks.name)),
            },
        )
        return TaskResult(data={"largest": largest})


class Tidy(_GroupRound):
    """Task: a group of blocks, whose partial tables nobody needs any more."""

    name = "tidy"

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        store, subject = context.output_store(TABLE), Subject.of(context)
        rounds = (Blocks.name, Gather.name, Segments.name, Contacts.name, Summary.name)
        if context.once("given up", lambda: any(context.quarantined(name) for name in rounds)):
            return TaskResult()  # another attempt may need them
        for block in _blocks(subject, tuple(task.payload["group_zyx"])):
            store.delete(_block_path(block.key))
        for layout in LAYOUTS:
            store.delete(_gathered_path(layout, task.payload["name"]))
        return TaskResult()
