"""The rounds of agglomeration. What they leave for one another lies in the output `decisions`:

contacts/{block}.npz    contacts of a block (see contacts.Contacts), ids and voxels of its segments
segments.npz            ids, voxels of all segments
candidates/{n}.npz      pairs, faces, points, voxels: the nth portion of the pairs to ask about
scores/{n}.npz          what the floods recovered of them (see judging)
scores.npz              all portions together, and what they were made from: `scoring.json`
mapping.npz             old, new: ids of segments that were joined to a larger one
table.json, decisions.csv   the decisions, for people

Memory: `contacts`, `resegment` and `remap` hold a block or a box; `candidates` and `decide`, one
task each, hold a few numbers for each segment and each touching pair of the whole volume, and
`remap` two numbers for each segment that was joined to another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from happyneurons.imaging.blocks import Block, BlockGrid
from happyneurons.jobs.stage import Context, Round, Task, TaskResult
from happyneurons.stages.agglomerate.boxes import Sources, model_of, radius_zyx, step_of
from happyneurons.store.documents import Store
from happyneurons.store.volumes import PrecomputedVolume, create_volume

if TYPE_CHECKING:
    from happyneurons.stages.agglomerate.stage import AgglomerateParams

SEGMENTATION, DECISIONS = "segmentation", "decisions"
CHUNK, BLOCK = 64, 192
"""Edges of the output's chunks and of the blocks that the volume is gone through in, voxels."""
PORTION = 16
"""Pairs that one task asks about: a minute or some of one rank."""


def _work(context: Context[Any]) -> Store:
    return context.output_store(DECISIONS)


def _grid(context: Context[Any]) -> BlockGrid:
    volume = Sources.of(context).segmentation
    return BlockGrid.of(volume.start_zyx, volume.stop_zyx, (BLOCK, BLOCK, BLOCK))


class _BlockRound(Round):
    def plan(self, context: Context[Any]) -> Iterable[Task]:
        for block in _grid(context):
            yield Task(key=block.key, payload=_payload(block), cost=float(block.voxels))


def _payload(block: Block) -> dict[str, Any]:
    return {"start_zyx": list(block.start_zyx), "stop_zyx": list(block.stop_zyx)}


def _block(task: Task) -> Block:
    (z0, y0, x0), (z1, y1, x1) = task.payload["start_zyx"], task.payload["stop_zyx"]
    return Block((z0, y0, x0), (z1, y1, x1))


class Contacts(_BlockRound):
    """Task: a block; finds what touches in it and counts the voxels of its segments."""

    name = "contacts"

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        from happyneurons.stages.agglomerate.contacts import find_contacts, grow, halo

        params: AgglomerateParams = context.params
        block, volume = _block(task), Sources.of(context).segmentation
        edge = halo(params.max_gap_px)
        z, y, x = (max(a - edge, low) for a, low in zip(block.start_zyx, volume.start_zyx, strict=True))
        stop = [min(b + edge, high) for b, high in zip(block.stop_zyx, volume.stop_zyx, strict=True)]
        labels = volume.read((z, y, x), stop)
        core = tuple(slice(a - o, b - o) for a, b, o in zip(block.start_zyx, block.stop_zyx, (z, y, x), strict=True))
        ids, voxels = np.unique(labels[core], return_counts=True)
        grown = grow(labels, params.max_gap_px, Sources.of(context).voxel_size_zyx)
        found = find_contacts(grown, (z, y, x), (block.start_zyx, block.stop_zyx))
        _work(context).put_arrays(
            f"contacts/{block.key}.npz",
            **vars(found),
            ids=ids[ids > 0].astype(np.uint64),
            voxels=voxels[ids > 0].astype(np.int64),
        )
        return TaskResult(data={"pairs": len(found.pairs)}, voxels=block.voxels)


class Candidates(Round):
    """One task: chooses the pairs to ask about, over the whole volume, and cuts them into portions."""

    name = "candidates"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        yield Task(key="all")

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        from happyneurons.stages.agglomerate.candidates import choose, count_segments

        params: AgglomerateParams = context.params
        work = _work(context)
        tables = [work.get_arrays(f"contacts/{key}.npz") for key, _ in context.results(Contacts.name)]
        segments = count_segments(tables)
        chosen = choose(
            tables,
            segments,
            min_contact_faces=params.min_contact_faces,
            max_partners=params.max_partners,
            min_segment_voxels=params.min_segment_voxels,
            block_zyx=(BLOCK, BLOCK, BLOCK),
        )
        work.put_arrays("segments.npz", ids=segments.ids, voxels=segments.voxels)
        for n, start in enumerate(range(0, len(chosen), PORTION)):
            part = slice(start, start + PORTION)
            work.put_arrays(
                _portion("candidates", n),
                pairs=chosen.pairs[part],
                faces=chosen.faces[part],
                points=chosen.points[part],
                voxels=chosen.voxels[part],
            )
        figures = {"segments": len(segments.ids), "touching_pairs": chosen.touching, "pairs": len(chosen)}
        return TaskResult(data={**figures, "portions": -(-len(chosen) // PORTION)})


def _portion(folder: str, n: int) -> str:
    return f"{folder}/{n:06d}.npz"


class Resegment(Round):
    """Task: some pairs that lie near one another; asks the network about each."""

    name = "resegment"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        for _, data in context.results(Candidates.name):
            for n in range(data["portions"]):
                pairs = min(PORTION, data["pairs"] - n * PORTION)
                yield Task(key=f"{n:06d}-{pairs}", payload={"portion": n}, cost=float(pairs))

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        from happyneurons.ffn.resegmentation import PairResegmentation, Start
        from happyneurons.stages.agglomerate.judging import COUNTS, FIGURES, figures

        params: AgglomerateParams = context.params
        n: int = task.payload["portion"]
        portion = _work(context).get_arrays(_portion("candidates", n))
        sources, architecture, step = Sources.of(context), model_of(context).architecture, step_of(context)
        radius = radius_zyx(context, architecture)
        rows = []
        for (a, b), point, voxels in zip(portion["pairs"], portion["points"], portion["voxels"], strict=True):
            box = sources.read(point.tolist(), radius, architecture)
            pair = PairResegmentation(
                box.image,
                box.labels,
                int(a),
                int(b),
                radius,  # the point is the box's middle
                step,
                params.inference_options(),
                excluded=box.excluded,
                voxel_size_zyx=sources.voxel_size_zyx,
                attempts=params.attempts,
            )
            small = voxels.min() < params.small_voxels
            larger: Start = "b" if voxels[1] > voxels[0] else "a"
            rows.append(figures(pair.scores(first=larger if small else None, skip_below=params.skip_below)))
        columns: dict[str, np.ndarray] = {name: np.array([r[name] for r in rows], np.float32) for name in FIGURES}
        columns |= {name: np.array([r[name] for r in rows], np.int64) for name in COUNTS}
        _work(context).put_arrays(_portion("scores", n), **columns)
        box_voxels = int(np.prod([2 * r + 1 for r in radius]))
        return TaskResult(data={"steps": int(columns["steps"].sum())}, voxels=len(rows) * box_voxels)


class Decide(Round):
    """One task: judges every pair, joins what belongs together, writes the tables."""

    name = "decide"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        yield Task(key="all")

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        from happyneurons.stages.agglomerate.deciding import decide

        return TaskResult(data=decide(context, _work(context), lambda: _scored_portions(context)))


def _scored_portions(context: Context[Any]) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray] | None]]:
    """Candidates and scores of each portion; scores are None where the task was given up."""
    work = _work(context)
    done = {int(key.split("-")[0]) for key, _ in context.results(Resegment.name)}
    for _, data in context.results(Candidates.name):
        for n in range(data["portions"]):
            scores = work.get_arrays(_portion("scores", n)) if n in done else None
            yield work.get_arrays(_portion("candidates", n)), scores


class Remap(_BlockRound):
    """Task: a block of the output; writes its chunks."""

    name = "remap"

    def prepare(self, context: Context[Any]) -> None:
        from happyneurons.store.pyramid import add_levels

        volume = Sources.of(context).segmentation
        create_volume(
            context.output_uri(SEGMENTATION),
            start_zyx=volume.start_zyx,
            stop_zyx=volume.stop_zyx,
            voxel_size_nm_xyz=volume.voxel_size_nm_xyz,
            dtype="uint64",
            layer_type="segmentation",
            chunk_zyx=(CHUNK, CHUNK, CHUNK),
        )
        add_levels(context.output_uri(SEGMENTATION), context.params.num_mips)

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        block = _block(task)
        mapping = context.once("mapping", lambda: _work(context).get_arrays("mapping.npz"))
        ids = Sources.of(context).segmentation.read(block.start_zyx, block.stop_zyx).astype(np.uint64)
        old, new = mapping["old"], mapping["new"]
        if len(old):
            place = np.minimum(np.searchsorted(old, ids), len(old) - 1)
            ids = np.where(old[place] == ids, new[place], ids)
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
                yield Task(key=block.key, payload=_payload(block))

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        from happyneurons.store.pyramid import write_level

        block = _block(task)
        box = (block.start_zyx, block.stop_zyx)
        return TaskResult(voxels=write_level(context.output_uri(SEGMENTATION), self.level, box, "mode"))
