"""Expected run length, round by round: skeletons are read a group at a time, segments a block at a time.

nodes      some skeletons → `skeletons/{group}.npz`: their graphs in the scored box; and for each
           block of the segmentation which nodes lie in it
(labels)   a block → the segments at its nodes; see `look_up`, called where the block is read anyway
crossings  some skeletons → `node_ids/{group}.npz`: segments of their nodes; `crossed/{group}.npz`:
           segments that one of them shares many nodes with
runs       some skeletons → `runs/{group}.npz`: figures of each skeleton

Memory: a group of skeletons, or a block; and for each rank the list of which group has nodes in
which block (24 bytes each) and the pairs of a skeleton and a segment that share many nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from happyneurons.errors import UserError
from happyneurons.jobs.stage import Context, Round, Task, TaskResult
from happyneurons.metrics.run_length import UNKNOWN, RunLengths, connected_parts, crossings, mergers, run_lengths
from happyneurons.stages.evaluate.stage import REPORT
from happyneurons.store.fragments import FragmentIndex, write_fragments
from happyneurons.store.skeletons import SkeletonLayer

if TYPE_CHECKING:
    from happyneurons.stages.evaluate.subject import Subject

NODES, SEGMENTS = "nodes", "node_segments"
_ROUNDING_VX = 0.01
"""Vertices are float32 nm: one on the face between two voxels must not fall short of it."""


def parts_of(context: Context[Any]) -> tuple[str, ...]:
    """raw, and fill if that is asked for."""
    return ("raw", "fill") if context.params.fill == "nearest" else ("raw",)


class Nodes(Round):
    """Task: some skeletons; what of them is in the scored box, by blocks."""

    name = "nodes"

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        names, size = self.subject.skeletons.names(), context.params.skeletons_per_task
        for number, start in enumerate(range(0, len(names), size)):
            group = names[start : start + size]
            yield Task(key=f"{number:06d}-{len(group)}", payload={"number": number, "names": group})

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        subject, store = self.subject, context.output_store(REPORT)
        graph = _Group()
        for name in task.payload["names"]:
            graph.add(name, *_inside(subject, subject.skeletons, name), split=context.params.relabel_truth)
        store.put_arrays(f"skeletons/{task.key}.npz", **graph.arrays())
        zyx = graph.zyx
        block = subject.block_numbers(zyx)
        # One after the other by block: each block's rows are (group, node, z, y, x).
        rows = np.column_stack([np.full(len(zyx), task.payload["number"]), np.arange(len(zyx)), zyx]).astype("<i8")
        pieces = {int(b): rows[block == b].tobytes() for b in np.unique(block)}
        write_fragments(store, NODES, task.key, pieces, {})
        return TaskResult(data={"nodes": len(zyx), "skeletons": len(graph.names)})


class _Group:
    """Graphs of some skeletons, joined."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._nodes = 0
        self._columns: dict[str, list[np.ndarray]] = {
            "zyx": [np.zeros((0, 3), np.int64)], "skeleton": [np.zeros(0, np.int32)],
            "edges": [np.zeros((0, 2), np.int64)], "length_nm": [np.zeros(0)], "length_vx": [np.zeros(0)],
        }  # fmt: skip

    @property
    def zyx(self) -> np.ndarray:
        return np.concatenate(self._columns["zyx"])

    def add(
        self,
        name: str,
        zyx: np.ndarray,
        edges: np.ndarray,
        length_nm: np.ndarray,
        length_vx: np.ndarray,
        *,
        split: bool,
    ) -> None:
        """split: connected parts count as skeletons of their own."""
        if not len(edges):
            return
        used, edges = np.unique(edges, return_inverse=True)
        edges = edges.reshape(-1, 2)
        part = connected_parts(len(used), edges) if split else np.zeros(len(used), np.int64)
        new = {
            "zyx": zyx[used], "skeleton": (part + len(self.names)).astype(np.int32), "edges": edges + self._nodes,
            "length_nm": length_nm, "length_vx": length_vx,
        }  # fmt: skip
        for key, value in new.items():
            self._columns[key].append(value)
        self._nodes += len(used)
        self.names += [name] * (int(part.max()) + 1)

    def arrays(self) -> dict[str, np.ndarray]:
        columns = {key: np.concatenate(values) for key, values in self._columns.items()}
        return {**columns, "names": np.array(self.names, dtype="U")}


def _inside(subject: Subject, layer: SkeletonLayer, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(voxels zyx (n, 3), edges (m, 2), their lengths in nm, in voxels) of what lies in the scored box."""
    skeleton = layer.read(name)
    size_xyz = np.asarray(subject.skeleton_voxel_nm_xyz)
    voxels_xyz = skeleton.vertices_nm / size_xyz
    zyx = np.floor(voxels_xyz + _ROUNDING_VX).astype(np.int64)[:, ::-1]
    there = np.ones(len(zyx), bool)
    if subject.through_tissue:
        zyx, there = _in_aligned_frame(subject, voxels_xyz, zyx)
    low, high = subject.box
    there &= ((zyx >= low) & (zyx < high)).all(axis=1)
    edges = skeleton.edges[there[skeleton.edges].all(axis=1)] if len(skeleton.edges) else skeleton.edges
    step = voxels_xyz[edges[:, 0]] - voxels_xyz[edges[:, 1]]
    return zyx, edges, np.linalg.norm(step * size_xyz, axis=1), np.linalg.norm(step, axis=1)


def _in_aligned_frame(subject: Subject, voxels_xyz: np.ndarray, zyx: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(voxels (n, 3), whether a section shows them): where nodes of the acquired volume came to lie."""
    moved, there = zyx.copy(), np.zeros(len(zyx), bool)
    z0, z1 = subject.document.z_range
    for z in np.unique(zyx[:, 0]).tolist():
        at = np.flatnonzero(zyx[:, 0] == z)
        if not z0 <= z < z1 or subject.acquisition.section_warp(z) is None:
            continue
        # A voxel's middle is at a whole number of px.
        xy = subject.tissue.aligned(z, voxels_xyz[at, :2] - 0.5)
        shown = np.isfinite(xy).all(axis=1)
        moved[at[shown], 1:] = np.rint(xy[shown])[:, ::-1].astype(np.int64)
        there[at[shown]] = True
    return moved, there


def blocks_with_nodes(context: Context[Any]) -> set[int]:
    """Numbers of the blocks in which nodes lie."""
    return {int(number) for number in _index(context, NODES, Nodes.name).totals("length")[0]}


def look_up(context: Context[Any], task: Task, start_zyx: tuple[int, ...], segments: dict[str, np.ndarray]) -> int:
    """Note the segments at the nodes in a block. segments: part (raw, fill) → (z, y, x) ids of the block."""
    store, number = context.output_store(REPORT), int(task.payload["number"])
    found = _index(context, NODES, Nodes.name).read(store, NODES, np.array([number], np.uint64)).get(number, [])
    pieces: dict[int, bytes] = {}
    for piece in found:
        rows = np.frombuffer(piece, "<i8").reshape(-1, 5)
        place = tuple((rows[:, 2:] - np.asarray(start_zyx)).T)
        ids = [segments[part][place].astype(np.uint64) for part in parts_of(context)]
        pieces[int(rows[0, 0])] = np.column_stack([rows[:, 1].astype(np.uint64), *ids]).astype("<u8").tobytes()
    write_fragments(store, SEGMENTS, task.key, pieces, {})
    return sum(len(piece) for piece in found) // 40


def _index(context: Context[Any], folder: str, round_name: str) -> FragmentIndex:
    def load() -> FragmentIndex:
        return FragmentIndex.load(context.output_store(REPORT), folder, (key for key, _ in context.results(round_name)))

    index: FragmentIndex = context.once(f"index of {folder}", load)
    return index


class _GroupRound(Round):
    def plan(self, context: Context[Any]) -> Iterable[Task]:
        for key, data in context.results(Nodes.name):
            if data["skeletons"]:
                yield Task(key=key, payload={"number": int(key.split("-")[0])})


class Crossings(_GroupRound):
    """Task: some skeletons; the segments of their nodes, and which they share many nodes with."""

    name = "crossings"

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        store, number = context.output_store(REPORT), int(task.payload["number"])
        skeleton = store.get_arrays(f"skeletons/{task.key}.npz")["skeleton"]
        parts = parts_of(context)
        # What lies in blocks that could not be read stays unknown, and is not scored.
        ids = np.full((len(parts), len(skeleton)), UNKNOWN, np.uint64)
        index = _index(context, SEGMENTS, "labels")
        for piece in index.read(store, SEGMENTS, np.array([number], np.uint64)).get(number, []):
            rows = np.frombuffer(piece, "<u8").reshape(-1, 1 + len(parts))
            ids[:, rows[:, 0].astype(np.int64)] = rows[:, 1:].T
        crossed = (crossings(skeleton, segment, context.params.merger_nodes)[1] for segment in ids)
        store.put_arrays(f"node_ids/{task.key}.npz", **dict(zip(parts, ids, strict=True)))
        store.put_arrays(f"crossed/{task.key}.npz", **dict(zip(parts, crossed, strict=True)))
        return TaskResult(data={"unknown": int((ids[0] == UNKNOWN).sum())})


class Runs(_GroupRound):
    """Task: some skeletons; how far one gets along them."""

    name = "runs"

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        store = context.output_store(REPORT)
        graph = store.get_arrays(f"skeletons/{task.key}.npz")
        ids = store.get_arrays(f"node_ids/{task.key}.npz")
        arrays: dict[str, np.ndarray] = {}
        for part in parts_of(context):
            for unit in ("nm", "vx"):
                found = run_lengths(
                    len(graph["names"]), graph["skeleton"], graph["edges"], graph[f"length_{unit}"], ids[part],
                    _mergers(context, part),
                )  # fmt: skip
                arrays |= {f"{part}_{unit}_{name}": array for name, array in found.arrays().items()}
        store.put_arrays(f"runs/{task.key}.npz", **arrays)
        return TaskResult()


def _mergers(context: Context[Any], part: str) -> np.ndarray:
    store = context.output_store(REPORT)
    keys = [key for key, _ in context.results(Crossings.name)]

    def find() -> np.ndarray:
        return mergers(store.get_arrays(f"crossed/{key}.npz")[part] for key in keys)

    found: np.ndarray = context.once(f"mergers of {part}", find)
    return found


def skeleton_rows(context: Context[Any], part: str, unit: str) -> Iterator[tuple[np.ndarray, RunLengths]]:
    """(names, figures) of the skeletons, a group at a time. unit: nm or vx (voxels)."""
    store, prefix = context.output_store(REPORT), f"{part}_{unit}_"
    for key, _ in context.results(Runs.name):
        arrays = store.get_arrays(f"runs/{key}.npz")
        own = {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
        yield store.get_arrays(f"skeletons/{key}.npz")["names"], RunLengths(**own)


def erl_report(context: Context[Any]) -> dict[str, Any]:
    """The part `skeletons` of the report: lengths in nm and in voxels, shares of the path."""
    report: dict[str, Any] = {"merger_nodes": context.params.merger_nodes}
    for part in parts_of(context):
        figures: dict[str, Any] = {}
        for unit, name in (("nm", "nm"), ("vx", "voxels")):
            rows = list(skeleton_rows(context, part, unit))
            found = RunLengths.joined(lengths.arrays() for _, lengths in rows).figures()
            if found is None:
                raise UserError(
                    "evaluate: no skeleton lies in the scored part; are they in the same coordinates, in nm?"
                )
            figures |= {k if k.endswith("_fraction") else f"{k}_{name}": v for k, v in found.items()}
            report["skeletons"] = sum(len(names) for names, _ in rows)
            figures["runs"] = int(sum(lengths.runs.sum() for _, lengths in rows))
        figures["mergers"] = [int(v) for v in _mergers(context, part)[:1000]]
        figures["merger_count"] = len(_mergers(context, part))
        report[part] = figures
    report["unscored_nodes"] = sum(int(data["unknown"]) for _, data in context.results(Crossings.name))
    return report
