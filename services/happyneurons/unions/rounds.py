"""Rounds that join the segments of all cells of a lattice and hand out ids, for stages that need it.

What they read and leave lies in one output of the job:

found/{cell}.npz           what an earlier round found in a cell; see `joining.Found`
join/{level}/{group}.npz   the components of a group; see `joining.Joined`; at level 0 also `segments`
ids/{level}/{group}.npz    first, open: the ids that a group was given
mapping/{cell}.npz         local, target: local id → id in the segmentation, 0 if it was too small
sizes/{level}/{group}.npz  first, voxels: sizes of the segments first, first + 1, … that a group closed

The number of rounds follows from the lattice: twice the levels of its tree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from happyneurons.errors import NotFoundError, UserError
from happyneurons.jobs.stage import Context, Round, Task, TaskResult
from happyneurons.store.documents import Store
from happyneurons.store.triples import Triple
from happyneurons.unions.joining import Ids, Joined, join_cells, join_groups, local_ids, number
from happyneurons.unions.tree import GroupTree


@dataclass(frozen=True)
class Lattice:
    """Cells of a stage.

    name: stem of a cell's files. neighbours: indices of the cells, earlier and later, whose findings
    may name segments of a cell.
    """

    tree: GroupTree
    name: Callable[[Triple], str]
    neighbours: Callable[[Triple], Iterable[Triple]]


@dataclass(frozen=True)
class Unions:
    """The rounds of a stage. output: where their files lie. min_voxels: smaller components are dropped."""

    output: str
    lattice: Lattice
    min_voxels: int

    def rounds(self) -> list[Round]:
        """Joining from the smallest groups to the whole, then numbering the other way."""
        levels = range(self.lattice.tree.levels)
        return [*(Join(self, level) for level in levels), *(Number(self, level) for level in reversed(levels))]

    def figures(self, context: Context[Any]) -> dict[str, int]:
        """Totals of `Joined.figures`, and `segments`: how many there were before anything was joined.

        Raises UserError if the work on a group was given up: what it knew, nobody else knows.
        """
        totals = dict.fromkeys(("segments", "nodes", "merges", "kept", "dropped", "doubted", "doubtful_pairs"), 0)
        for round_ in self.rounds():
            if context.quarantined(round_.name):
                raise UserError("the segments could not be joined; see the job's quarantined tasks")
        for level in range(self.lattice.tree.levels):
            for _, data in context.results(_join_name(level)):
                for name, value in data.items():
                    totals[name] += value
                totals["segments"] += data["nodes"] if level == 0 else 0
        return totals


def found_path(name: str) -> str:
    """Where the findings of a cell are written."""
    return f"found/{name}.npz"


def mapping_path(name: str) -> str:
    """Where a cell's map from local to final ids lies."""
    return f"mapping/{name}.npz"


def find_arrays(store: Store, path: str) -> dict[str, np.ndarray] | None:
    """The arrays of a document, None if there is none."""
    try:
        return store.get_arrays(path)
    except NotFoundError:
        return None


def _join_name(level: int) -> str:
    return f"join_{level}"


def _group_path(folder: str, level: int, group_zyx: Triple) -> str:
    return f"{folder}/{level}/{_key(group_zyx)}.npz"


def _key(group_zyx: Triple) -> str:
    return "_".join(str(i) for i in group_zyx)


class _GroupRound(Round):
    def __init__(self, unions: Unions, level: int) -> None:
        self.unions, self.level = unions, level
        self.tree = unions.lattice.tree

    def plan(self, context: Context[Any]) -> Iterator[Task]:
        for group in self.tree.groups(self.level):
            yield Task(key=_key(group), payload={"group_zyx": list(group)})

    def group(self, task: Task) -> Triple:
        z, y, x = task.payload["group_zyx"]
        return (z, y, x)

    def store(self, context: Context[Any]) -> Store:
        return context.output_store(self.unions.output)


class Join(_GroupRound):
    """Task: a group of cells; unites what it can see of, and passes up what is joined with the outside."""

    def __init__(self, unions: Unions, level: int) -> None:
        super().__init__(unions, level)
        self.name = _join_name(level)  # type: ignore[misc]

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        group, store, lattice = self.group(task), self.store(context), self.unions.lattice
        extra = {}
        if self.level == 0:
            extra["segments"], joined = join_cells(
                self.tree,
                group,
                lambda cell: find_arrays(store, found_path(lattice.name(cell))),
                lattice.neighbours,
                self.unions.min_voxels,
            )
        else:
            children = [_load(store, self.level - 1, child)[0] for child in self.tree.children(self.level, group)]
            joined = join_groups(self.tree, self.level, group, children, self.unions.min_voxels)
        store.put_arrays(_group_path("join", self.level, group), **joined.arrays(), **extra)
        return TaskResult(data=joined.figures)


class Number(_GroupRound):
    """Task: a group; numbers what it closed, and gives its children theirs."""

    def __init__(self, unions: Unions, level: int) -> None:
        super().__init__(unions, level)
        self.name = f"number_{level}"  # type: ignore[misc]

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        group, store, lattice = self.group(task), self.store(context), self.unions.lattice
        ids = Ids(1, np.zeros(0, np.uint64))
        if self.level + 1 < self.tree.levels:
            given = store.get_arrays(_group_path("ids", self.level, group))
            ids = Ids(int(given["first"][0]), given["open"])
        joined, segments = _load(store, self.level, group)
        store.put_arrays(
            _group_path("sizes", self.level, group),
            first=np.array([ids.first], np.uint64),
            voxels=joined.voxels[joined.kept],
        )
        below = number(joined, ids)
        if self.level:
            for child, its in zip(self.tree.children(self.level, group), below, strict=True):
                path = _group_path("ids", self.level - 1, child)
                store.put_arrays(path, first=np.array([its.first], np.uint64), open=its.open)
        else:
            parts = np.split(segments, np.cumsum(joined.child_nodes)[:-1])
            for cell, its, keys in zip(self.tree.cells(0, group), below, parts, strict=True):
                store.put_arrays(mapping_path(lattice.name(cell)), local=local_ids(keys), target=its.open)
        return TaskResult(data={"kept": int(joined.kept.sum()), "voxels": int(joined.voxels[joined.kept].sum())})


def _load(store: Store, level: int, group_zyx: Triple) -> tuple[Joined, np.ndarray]:
    """(components of a group, keys of its segments if it is one of level 0)."""
    arrays = store.get_arrays(_group_path("join", level, group_zyx))
    segments = arrays.pop("segments", np.zeros(0, np.int64))
    return Joined(**arrays), segments
