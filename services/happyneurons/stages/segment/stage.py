"""Segment: flood-filling networks on overlapping subvolumes, each with ids of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from happyneurons.errors import UserError
from happyneurons.ffn.backends import choose, make_step
from happyneurons.ffn.params import NetworkParams
from happyneurons.imaging.layers import Size
from happyneurons.imaging.subvolumes import Subvolume, SubvolumeGrid
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
from happyneurons.stages.segment.inputs import (
    INPUTS,
    InputParams,
    check_inputs,
    image_voxel_size,
    read_excluded,
    read_obstacles,
    read_seeds,
)
from happyneurons.store.artifacts import Bounds
from happyneurons.store.volumes import Volume, open_volume

if TYPE_CHECKING:
    from happyneurons.ffn.canvas import Faces, Step
    from happyneurons.ffn.checkpoint import CanvasCheckpoint
    from happyneurons.ffn.model import Model

OUTPUT = "subvolumes"


class SegmentParams(InputParams, NetworkParams, StageParams):
    subvolume_size_xyz: tuple[int, int, int] = Field((256, 256, 256), description="Size of a subvolume, voxels")
    overlap_xyz: tuple[int, int, int] = Field(
        (48, 48, 48),
        description="Voxels that neighbouring subvolumes share: the field of view or more, for what lies within half "
        "of it from a subvolume's faces is segmented with less context",
    )
    mip: int = Field(0, ge=0, le=20, description="Level of the image's pyramid that is segmented")
    bounds_xyz: tuple[tuple[int, int, int], tuple[int, int, int]] | None = Field(
        None, description="Part of the volume to segment: minimum and maximum (exclusive), voxels of that mip"
    )
    outside_grey: int | None = Field(
        0,
        ge=0,
        le=255,
        description="Grey value of what no section shows; areas of it are not segmented. null: segment everything",
    )
    mirror_faces: bool = Field(
        False,
        description="Continue the image by its mirror image beyond the volume's outer faces, so that objects within "
        "half a field of view of them are segmented too (google/ffn: false)",
    )
    depth: int | None = Field(
        None, ge=2, le=32, description="Modules that the network must have, or it is refused; default: any number"
    )
    checkpoint_s: float = Field(
        600.0,
        ge=0,
        description="Time between two saves of a half segmented subvolume, s, from which another attempt goes on; "
        "0: none",
    )


@dataclass(frozen=True)
class _Source:
    """The opened image, the part of it to segment, and its grid."""

    image: Volume
    voxel_size_nm_xyz: Size
    bounds: Bounds
    grid: SubvolumeGrid


def _source(context: Context[SegmentParams]) -> _Source:
    def make() -> _Source:
        params = context.params
        image = open_volume(context.input("image").data_uri, params.mip)
        low, high = image.start_zyx[::-1], image.stop_zyx[::-1]
        if params.bounds_xyz is not None:
            a, b = params.bounds_xyz
            if any(p < q for p, q in zip(a, low, strict=True)) or any(p > q for p, q in zip(b, high, strict=True)):
                raise UserError(
                    f"segment: params.bounds_xyz {a}..{b} reach beyond the image, {low}..{high} at this mip"
                )
            low, high = a, b
        bounds = Bounds(minimum_xyz=low, maximum_xyz=high)
        grid = SubvolumeGrid(bounds, params.subvolume_size_xyz, params.overlap_xyz)
        return _Source(image, image_voxel_size(image, params), bounds, grid)

    source: _Source = context.once("source", make)
    return source


def _model(context: Context[SegmentParams]) -> Model:
    from happyneurons.ffn.model import load_model

    model: Model = context.once(
        "model", lambda: load_model(context.input("model").data_uri, **context.params.overrides())
    )
    return model


class Subvolumes(Round):
    """One task a subvolume; writes `{z}_{y}_{x}.npz` named by the first voxel of its box."""

    name = OUTPUT

    def plan(self, context: Context[SegmentParams]) -> Iterable[Task]:
        for box in _source(context).grid:
            stop = "_".join(str(v) for v in box.stop_zyx)
            yield Task(
                key=f"{box.name}-{stop}",
                payload={"index_zyx": list(box.index_zyx)},
                cost=float(np.prod(box.shape_zyx)),
            )

    def run(self, task: Task, context: Context[SegmentParams]) -> TaskResult:
        from happyneurons.ffn.canvas import NO_FACES
        from happyneurons.ffn.inference import segment_subvolume

        source = _source(context)
        z, y, x = task.payload["index_zyx"]
        box = source.grid[(z, y, x)]
        step: Step = context.once("step", lambda: make_step(context.params.backend, _model(context), context.threads))
        size = source.voxel_size_nm_xyz
        image = source.image.read(box.start_zyx, box.stop_zyx)
        excluded, unseeded = read_excluded(context, box, image, size)
        obstacles = read_obstacles(context, box, size)
        checkpoint = _checkpoint(box, context)
        outer = _outer_faces(box, source.grid)
        result = segment_subvolume(
            image,
            step,
            context.params.inference_options(),
            excluded=excluded,
            voxel_size_zyx=(size[2], size[1], size[0]),
            mirrored=outer if context.params.mirror_faces else NO_FACES,
            ends=outer,
            unseeded=unseeded,
            obstacles=obstacles,
            points=read_seeds(context, box, size),
            checkpoint=checkpoint,
        )
        initial = {"initial_ids": obstacles.ids} if obstacles is not None else {}
        context.output_store(OUTPUT).put_arrays(
            f"{box.name}.npz",
            segmentation=result.segmentation,
            start_zyx=np.array(box.start_zyx, np.int64),
            **initial,
        )
        if checkpoint is not None:
            checkpoint.remove()
        core = tuple(slice(a - o, b - o) for a, b, o in zip(*source.grid.core(box), box.start_zyx, strict=True))
        own = result.segmentation[core]
        return TaskResult(
            data={**result.counters, "segments": result.segments, "core_segmented": int((own > 0).sum())},
            voxels=own.size,
        )


def _outer_faces(box: Subvolume, grid: SubvolumeGrid) -> Faces:
    z, y, x = ((i == 0, i == n - 1) for i, n in zip(box.index_zyx, grid.shape_zyx, strict=True))
    return (z, y, x)


def _checkpoint(box: Subvolume, context: Context[SegmentParams]) -> CanvasCheckpoint | None:
    from happyneurons.ffn.checkpoint import CanvasCheckpoint

    interval_s = context.params.checkpoint_s
    if not interval_s:
        return None
    path = f"checkpoints/{box.name}.npz"
    return CanvasCheckpoint(context.output_store(OUTPUT), path, interval_s, stop=context.stopping)


class Segment(Stage[SegmentParams]):
    name, version = "segment", "2"
    summary = "Segments neurites with a flood-filling network, in overlapping subvolumes"
    Params = SegmentParams
    inputs = {
        "image": InputSpec("image_volume", "grey values, precomputed or HDF5"),
        "model": InputSpec("model", "flood-filling network: ours, or a TensorFlow checkpoint of google/ffn"),
        **INPUTS,
    }
    outputs = {OUTPUT: OutputSpec("subvolumes", "overlapping boxes with ids of their own")}

    def check(self, context: Context[SegmentParams]) -> None:
        source, architecture = _source(context), _model(context).architecture
        if context.params.depth not in (None, architecture.depth):
            raise UserError(
                f"segment: params.depth is {context.params.depth}, but the model {context.input('model').uri} has "
                f"{architecture.depth} modules; give the checkpoint that was trained with that depth"
            )
        fov = architecture.fov_zyx[::-1]
        box = np.minimum(context.params.subvolume_size_xyz, source.bounds.shape_zyx[::-1])
        if any(b < f for b, f in zip(box, fov, strict=True)):
            raise UserError(
                f"segment: subvolumes of {tuple(int(b) for b in box)} (xyz) are smaller than the network's field of "
                f"view {fov}; give larger subvolume_size_xyz or bounds_xyz"
            )
        choose(context.params.backend, architecture)
        start, stop = source.bounds.minimum_xyz[::-1], source.bounds.maximum_xyz[::-1]
        context.once("cover", lambda: check_inputs(context, _model(context), source.image, start, stop))

    def rounds(self, context: Context[SegmentParams]) -> Sequence[Round]:
        return [Subvolumes()]

    def finish(self, context: Context[SegmentParams]) -> StageResult:
        source, params = _source(context), context.params
        results = [data for _, data in context.results(OUTPUT)]

        def total(name: str) -> float:
            return float(sum(data.get(name, 0) for data in results))

        properties = {
            "size_xyz": list(params.subvolume_size_xyz),
            "overlap_xyz": list(params.overlap_xyz),
            "mip": params.mip,
            "boxes": len(source.grid),
            "failed_boxes": len(context.quarantined(OUTPUT)),
        }
        return StageResult(
            outputs={
                OUTPUT: Output(
                    "subvolumes",
                    voxel_size_nm_xyz=source.voxel_size_nm_xyz,
                    bounds=source.bounds,
                    properties=properties,
                )
            },
            metrics={
                "fov_steps": total("fov_steps"),
                "fov_skipped": total("fov_skipped"),
                "segments": total("segments"),
                "initial_segments": total("initial_segments"),
                "input_cover": context.once("cover", lambda: 1.0),
                "coverage": total("core_segmented") / float(np.prod(source.bounds.shape_zyx)),
            },
        )
