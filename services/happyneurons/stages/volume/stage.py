"""volume: a stack of sections → a precomputed image volume with its pyramid.

Sections are stored one by one (chunks one voxel thick), so that each can be written alone; what
reads volumes wants cubes. Gaps are filled from the nearest good section, if asked: a black plane
stops a flood-filling network, a doubled one does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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

NO_PICTURE = ("failed", "missing", "blank")
BLOCK_CHUNKS = (1, 8, 8)  # zyx: one layer of chunks deep, so that a task reads each section once
LEVEL_CHUNKS = (4, 4, 4)


class VolumeParams(StageParams):
    """Parameters of the volume stage."""

    chunk_xyz: tuple[int, int, int] = Field((64, 64, 64), description="Size of the stored chunks, voxels")
    num_mips: int = Field(4, ge=0, le=16, description="Levels of the pyramid above full resolution")
    fill_gaps: bool = Field(True, description="Sections without a picture become copies of the nearest good one")
    max_gap_sections: int = Field(3, ge=0, le=1000, description="Longer gaps stay black")
    bounds_xyz: tuple[tuple[int, int, int], tuple[int, int, int]] | None = Field(
        None, description="Part of the stack: minimum and maximum (exclusive), px and sections; default: all of it"
    )

    @model_validator(mode="after")
    def _check(self) -> VolumeParams:
        if min(self.chunk_xyz) < 1:
            raise ValueError("chunk_xyz: each at least 1")
        return self


def _bounds(context: Context[VolumeParams]) -> Bounds:
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
    """Task: all section documents once; which section is shown at each z."""

    name = "sections"

    def plan(self, context: Context[VolumeParams]) -> Iterable[Task]:
        yield Task("sections")

    def run(self, task: Task, context: Context[VolumeParams]) -> TaskResult:
        bounds, store = _bounds(context), context.input("stack").store()
        z0, z1 = bounds.minimum_xyz[2], bounds.maximum_xyz[2]
        good = [z for z in range(z0, z1) if self._status(store, z) not in NO_PICTURE]
        if not good:
            raise UserError("input stack: no section of it has a picture")
        shown: dict[str, int] = {}
        for z in sorted(set(range(z0, z1)) - set(good)):
            nearest = min(good, key=lambda g: (abs(g - z), g))
            if context.params.fill_gaps and abs(nearest - z) <= context.params.max_gap_sections:
                shown[str(z)] = nearest
        gaps = z1 - z0 - len(good)
        return TaskResult({"shown": shown, "gaps": gaps, "filled": len(shown)})

    @staticmethod
    def _status(store: Any, z: int) -> str:
        try:
            return str(store.get_json(f"sections/{z:06d}.json")["status"])
        except NotFoundError:
            return "missing"


class WriteBlocks(Round):
    """Task: a block of chunks at full resolution."""

    name = "blocks"

    def prepare(self, context: Context[VolumeParams]) -> None:
        from happyneurons.store.pyramid import add_levels
        from happyneurons.store.volumes import create_volume

        stack, bounds = context.input("stack"), _bounds(context)
        create_volume(
            context.output_uri("image"),
            start_zyx=bounds.minimum_xyz[::-1],
            stop_zyx=bounds.maximum_xyz[::-1],
            voxel_size_nm_xyz=stack.voxel_size_nm_xyz or (1.0, 1.0, 1.0),
            dtype="uint8",
            layer_type="image",
            chunk_zyx=context.params.chunk_xyz[::-1],
        )
        add_levels(context.output_uri("image"), context.params.num_mips)

    def plan(self, context: Context[VolumeParams]) -> Iterable[Task]:
        yield from _block_tasks(context, 0, BLOCK_CHUNKS)

    def run(self, task: Task, context: Context[VolumeParams]) -> TaskResult:
        from happyneurons.store.volumes import PrecomputedVolume

        source = context.once("source", lambda: PrecomputedVolume(f"{context.input('stack').data_uri}/image"))
        target = context.once("target", lambda: PrecomputedVolume(context.output_uri("image")))
        shown = context.once("shown", lambda: _shown(context))
        (z0, y0, x0), (z1, y1, x1) = task.payload["box"]
        block = np.zeros((z1 - z0, y1 - y0, x1 - x0), np.uint8)
        for z in range(z0, z1):
            at = shown.get(str(z), z)
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


def _shown(context: Context[VolumeParams]) -> Mapping[str, int]:
    ((_, data),) = context.results(FindSections.name)
    shown: Mapping[str, int] = data["shown"]
    return shown


class Volume(Stage[VolumeParams]):
    name, version, summary = "volume", "1", "Sections to a chunked volume with its pyramid"
    Params = VolumeParams
    inputs = {"stack": InputSpec("section_stack", "sections, usually aligned")}
    outputs = {"image": OutputSpec("image_volume", "the volume, with its pyramid")}

    def check(self, context: Context[VolumeParams]) -> None:
        _bounds(context)

    def rounds(self, context: Context[VolumeParams]) -> Sequence[Round]:
        levels = [WriteLevel(level) for level in range(1, context.params.num_mips + 1)]
        return [FindSections(), WriteBlocks(), *levels]

    def finish(self, context: Context[VolumeParams]) -> StageResult:
        stack, bounds = context.input("stack"), _bounds(context)
        ((_, found),) = context.results(FindSections.name)
        depth, height, width = bounds.shape_zyx
        mean = sum(data["sum"] for _, data in context.results(WriteBlocks.name)) / (depth * height * width)
        output = Output(
            "image_volume", stack.voxel_size_nm_xyz, bounds,
            {"source": stack.uri, "filled_sections": {int(z): shown for z, shown in found["shown"].items()}},
        )  # fmt: skip
        metrics = {
            "voxels": float(depth * height * width),
            "mean": round(mean, 4),
            "gap_sections": float(found["gaps"]),
            "filled_sections": float(found["filled"]),
        }
        return StageResult({"image": output}, metrics)
