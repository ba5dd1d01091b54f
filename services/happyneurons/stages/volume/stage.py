"""volume: a stack of sections → a precomputed image volume with its pyramid.

Sections are stored one by one (chunks one voxel thick), so that each can be written alone; what
reads volumes wants cubes. Gaps are filled from the nearest good section, if asked: a black plane
stops a flood-filling network, a doubled one does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field, model_validator

from happyneurons.errors import NotFoundError, UserError
from happyneurons.jobs.stage import (
    Context,
    InputSpec,
    Output,
    OutputSpec,
    Round,
    Stage,
    StageParams,
    StageResult,
    Task,
    TaskResult,
)
from happyneurons.store.artifacts import Bounds

if TYPE_CHECKING:
    from happyneurons.store.volumes import PrecomputedVolume

NO_PICTURE = ("failed", "missing", "blank")
BLOCK_CHUNKS = (1, 8, 8)  # zyx: one layer of chunks deep, so that a task reads each section once
LEVEL_CHUNKS = (4, 4, 4)


class VolumeParams(StageParams):
    """Parameters of the volume stage."""

    chunk_xyz: tuple[int, int, int] = Field((64, 64, 64), description="Size of the stored chunks, voxels")
    sharded: bool = Field(
        False, description="Many chunks in a file (neuroglancer_uint64_sharded_v1); a task is a shard"
    )
    shard_mb: int = Field(
        256, ge=1, le=4000, description="Sharded: most MB of voxels in a shard, which a task holds in memory twice"
    )
    num_mips: int = Field(4, ge=0, le=16, description="Levels of the pyramid above full resolution")
    fill_gaps: bool = Field(True, description="Sections without a picture become copies of the nearest good one")
    max_gap_sections: int = Field(3, ge=0, le=1000, description="Longer gaps stay black")
    crop: Literal["none", "common"] = Field(
        "none", description="common: only the largest box that nearly every section fills; none: the whole canvas"
    )
    bounds_xyz: tuple[tuple[int, int, int], tuple[int, int, int]] | None = Field(
        None, description="Part of the stack: minimum and maximum (exclusive), px and sections; default: all of it"
    )

    @model_validator(mode="after")
    def _check(self) -> VolumeParams:
        if min(self.chunk_xyz) < 1:
            raise ValueError("chunk_xyz: each at least 1")
        return self


def _canvas(context: Context[VolumeParams]) -> Bounds:
    """The part of the stack that is asked for."""
    stack = context.input("stack").bounds
    if stack is None:
        raise UserError("input stack: it has no bounds")
    wanted = context.params.bounds_xyz
    if wanted is None:
        return stack
    low = np.maximum(wanted[0], stack.minimum_xyz).tolist()
    high = np.minimum(wanted[1], stack.maximum_xyz).tolist()
    if any(a >= b for a, b in zip(low, high, strict=True)):
        raise UserError(f"params.bounds_xyz: lies outside of the stack, {stack.minimum_xyz} to {stack.maximum_xyz}")
    return Bounds(minimum_xyz=tuple(low), maximum_xyz=tuple(high))


class FindSections(Round):
    """Task: a section; whether it has a picture and, where it matters, which rectangle it fills."""

    name = "sections"

    def plan(self, context: Context[VolumeParams]) -> Iterable[Task]:
        bounds = _canvas(context)
        for z in range(bounds.minimum_xyz[2], bounds.maximum_xyz[2]):
            yield Task(f"{z:06d}", {"z": z})

    def run(self, task: Task, context: Context[VolumeParams]) -> TaskResult:
        z = task.payload["z"]
        store = context.once("documents", context.input("stack").store)
        try:
            status = str(store.get_json(f"sections/{z:06d}.json")["status"])
        except NotFoundError:
            status = "missing"
        if status in NO_PICTURE:
            return TaskResult({"z": z})
        if context.params.crop == "none":
            return TaskResult({"z": z, "good": True})
        (x0, y0, _), (x1, y1, _) = _canvas(context).minimum_xyz, _canvas(context).maximum_xyz
        section = _source(context).read((z, y0, x0), (z + 1, y1, x1))[0]
        box = filled_box(section > 0)
        if box is None:
            return TaskResult({"z": z})
        (left, top), (right, bottom) = box
        return TaskResult({"z": z, "good": True, "box": [x0 + left, y0 + top, x0 + right, y0 + bottom]})


def filled_box(filled: np.ndarray, least: float = 0.97) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Upper left and lower right (exclusive) corner, x and y, of a large box inside a (y, x) mask.

    Begins with all of it and takes off whichever border row or column is filled least, until each is
    filled to `least`. None if nothing is left. Exact enough for pictures that are nearly rectangles.
    """
    sums = np.zeros(np.add(filled.shape, 1), np.int64)
    sums[1:, 1:] = filled.cumsum(0).cumsum(1)
    y0, x0, (y1, x1) = 0, 0, filled.shape
    while y0 < y1 and x0 < x1:
        rows = [(sums[y, x1] - sums[y, x0] - sums[y - 1, x1] + sums[y - 1, x0]) / (x1 - x0) for y in (y0 + 1, y1)]
        columns = [(sums[y1, x] - sums[y0, x] - sums[y1, x - 1] + sums[y0, x - 1]) / (y1 - y0) for x in (x0 + 1, x1)]
        worst = int(np.argmin([*rows, *columns]))
        if min(*rows, *columns) >= least:
            return (x0, y0), (x1, y1)
        y0, y1, x0, x1 = y0 + (worst == 0), y1 - (worst == 1), x0 + (worst == 2), x1 - (worst == 3)
    return None


def _bounds(context: Context[VolumeParams]) -> Bounds:
    """What is written. Needs the results of FindSections."""

    def find() -> Bounds:
        canvas, boxes = _canvas(context), [d["box"] for _, d in context.results(FindSections.name) if "box" in d]
        if not boxes:
            return canvas
        left, top = (int(max(b[i] for b in boxes)) for i in (0, 1))
        right, bottom = (int(min(b[i] for b in boxes)) for i in (2, 3))
        if left >= right or top >= bottom:
            raise UserError("params.crop: no box is filled by every section; use none, or bounds_xyz")
        z0, z1 = canvas.minimum_xyz[2], canvas.maximum_xyz[2]
        return Bounds(minimum_xyz=(left, top, z0), maximum_xyz=(right, bottom, z1))

    bounds: Bounds = context.once("bounds", find)
    return bounds


def _shown(context: Context[VolumeParams]) -> Mapping[int, int]:
    """Which section stands for a gap: z of the gap → z of the nearest good section."""

    def find() -> dict[int, int]:
        found = {d["z"]: d.get("good", False) for _, d in context.results(FindSections.name)}
        z0, z1 = _canvas(context).minimum_xyz[2], _canvas(context).maximum_xyz[2]
        good = [z for z in range(z0, z1) if found.get(z)]
        if not good:
            raise UserError("input stack: no section of it has a picture")
        shown = {}
        for z in sorted(set(range(z0, z1)) - set(good)):
            nearest = min(good, key=lambda g: (abs(g - z), g))
            if context.params.fill_gaps and abs(nearest - z) <= context.params.max_gap_sections:
                shown[z] = nearest
        return shown

    shown: Mapping[int, int] = context.once("shown", find)
    return shown


def _source(context: Context[VolumeParams]) -> PrecomputedVolume:
    from happyneurons.store.volumes import PrecomputedVolume

    source: PrecomputedVolume = context.once(
        "source", lambda: PrecomputedVolume(f"{context.input('stack').data_uri}/image")
    )
    return source


class WriteBlocks(Round):
    """Task: a block of chunks at full resolution."""

    name = "blocks"

    def prepare(self, context: Context[VolumeParams]) -> None:
        from happyneurons.store.pyramid import add_levels
        from happyneurons.store.volumes import create_volume

        stack, bounds = context.input("stack"), _bounds(context)
        shard_bytes = context.params.shard_mb * 1_000_000 if context.params.sharded else 0
        create_volume(
            context.output_uri("image"),
            start_zyx=bounds.minimum_xyz[::-1],
            stop_zyx=bounds.maximum_xyz[::-1],
            voxel_size_nm_xyz=stack.voxel_size_nm_xyz or (1.0, 1.0, 1.0),
            dtype="uint8",
            layer_type="image",
            chunk_zyx=context.params.chunk_xyz[::-1],
            shard_bytes=shard_bytes,
        )
        add_levels(context.output_uri("image"), context.params.num_mips, shard_bytes)

    def plan(self, context: Context[VolumeParams]) -> Iterable[Task]:
        yield from _block_tasks(context, 0, BLOCK_CHUNKS)

    def run(self, task: Task, context: Context[VolumeParams]) -> TaskResult:
        from happyneurons.store.volumes import PrecomputedVolume

        source, shown = _source(context), _shown(context)
        target = context.once("target", lambda: PrecomputedVolume(context.output_uri("image")))
        (z0, y0, x0), (z1, y1, x1) = task.payload["box"]
        block = np.zeros((z1 - z0, y1 - y0, x1 - x0), np.uint8)
        for z in range(z0, z1):
            at = shown.get(z, z)
            block[z - z0] = source.read((at, y0, x0), (at + 1, y1, x1))[0]
        target.write((z0, y0, x0), block)
        return TaskResult({"sum": int(block.sum(dtype=np.int64))}, voxels=block.size, bytes=block.nbytes)


class WriteLevel(Round):
    """Task: a block of one level of the pyramid."""

    def __init__(self, level: int) -> None:
        self.level = level
        self.name = f"mip_{level}"  # type: ignore[misc]

    def plan(self, context: Context[VolumeParams]) -> Iterable[Task]:
        yield from _block_tasks(context, self.level, LEVEL_CHUNKS)

    def run(self, task: Task, context: Context[VolumeParams]) -> TaskResult:
        from happyneurons.store.pyramid import write_level

        start, stop = task.payload["box"]
        box = (tuple(start), tuple(stop))
        return TaskResult(voxels=write_level(context.output_uri("image"), self.level, box, "mean"))


def _block_tasks(context: Context[VolumeParams], level: int, chunks: tuple[int, int, int]) -> Iterable[Task]:
    from happyneurons.store.pyramid import blocks
    from happyneurons.store.volumes import PrecomputedVolume

    if level >= PrecomputedVolume(context.output_uri("image")).mips:
        return  # the volume is too small for so many levels
    for start, stop in blocks(PrecomputedVolume(context.output_uri("image"), level), chunks):
        name = "_".join(f"{a}-{b}" for a, b in zip(start, stop, strict=True))
        yield Task(name.replace("--", "-m"), {"box": [list(start), list(stop)]})


class Volume(Stage[VolumeParams]):
    name, version, summary = "volume", "1", "Sections to a chunked volume with its pyramid"
    Params = VolumeParams
    inputs = {"stack": InputSpec("section_stack", "sections, usually aligned")}
    outputs = {"image": OutputSpec("image_volume", "the volume, with its pyramid")}

    def check(self, context: Context[VolumeParams]) -> None:
        _canvas(context)

    def rounds(self, context: Context[VolumeParams]) -> Sequence[Round]:
        levels = [WriteLevel(level) for level in range(1, context.params.num_mips + 1)]
        return [FindSections(), WriteBlocks(), *levels]

    def finish(self, context: Context[VolumeParams]) -> StageResult:
        stack, bounds = context.input("stack"), _bounds(context)
        good = sum(1 for _, data in context.results(FindSections.name) if data.get("good"))
        depth, height, width = bounds.shape_zyx
        mean = sum(data["sum"] for _, data in context.results(WriteBlocks.name)) / (depth * height * width)
        output = Output(
            "image_volume", stack.voxel_size_nm_xyz, bounds,
            {"source": stack.uri, "filled_sections": {str(z): shown for z, shown in _shown(context).items()}},
        )  # fmt: skip
        metrics = {
            "voxels": float(depth * height * width),
            "mean": round(mean, 4),
            "gap_sections": float(depth - good),
            "filled_sections": float(len(_shown(context))),
        }
        return StageResult({"image": output}, metrics)
