"""Skeletonize: the centre lines of all segments, as Neuroglancer reads them and as SWC."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from happyneurons.jobs.objects import Count, block_grid, bounds, input_volume
from happyneurons.jobs.stage import Context, InputSpec, Output, OutputSpec, Round, Stage, StageParams, StageResult
from happyneurons.stages.skeletonize.rounds import LAYER, SKELETONS, Merge, Tidy, Trace


class SkeletonizeParams(StageParams):
    mip: int = Field(0, ge=0, le=16, description="Level of the segmentation's pyramid that is traced; HDF5 has 0 only")
    block_size_xyz: tuple[int, int, int] = Field(
        (256, 256, 256), description="Voxels of that level that one task traces; each at least 16"
    )
    scale: float = Field(
        1.5, gt=0, le=20, description="TEASAR: a path claims all within this multiple of its distance to the surface"
    )
    const_nm: float = Field(
        300.0, ge=0, le=100_000, description="TEASAR: and within this distance (nm) more; larger gives fewer branches"
    )
    pdrf_scale: float = Field(100_000.0, gt=0, description="TEASAR: penalty of leaving an object's middle")
    pdrf_exponent: int = Field(
        4, ge=1, le=32, description="TEASAR: how steeply that penalty rises; powers of 2 are fast"
    )
    soma_detection_nm: float = Field(
        1100.0, gt=0, description="Objects thicker than this radius (nm) are examined for a cell body"
    )
    soma_acceptance_nm: float = Field(3500.0, gt=0, description="Radius (nm) from which on it is one")
    dust_threshold_voxels: int = Field(
        1000, ge=0, description="Segments with fewer voxels, of the level and in the whole volume, get no skeleton"
    )
    min_length_nm: float = Field(
        200.0, ge=0, description="Separate parts of a skeleton shorter than this (nm) are dropped"
    )
    tick_length_nm: float = Field(300.0, ge=0, description="Side branches shorter than this (nm) are dropped")
    swc: bool = Field(False, description="Also write `swc/ID.swc` (µm) for each segment")
    sharded: bool = Field(
        False, description="One file for many skeletons, with an index (for millions of objects), instead of one each"
    )
    objects_per_task: int = Field(
        500, ge=1, le=100_000, description="Skeletons that one merging task joins, and about those in a shard"
    )


class Skeletonize(Stage[SkeletonizeParams]):
    name, version = "skeletonize", "2"
    summary = "TEASAR skeletons of all segments, for Neuroglancer and as SWC"
    Params = SkeletonizeParams
    inputs = {"segmentation": InputSpec("segmentation", "the segments to skeletonize")}
    outputs = {SKELETONS: OutputSpec("skeleton_layer", "precomputed skeletons in nm, with radii")}

    def check(self, context: Context[SkeletonizeParams]) -> None:
        block_grid(context)

    def rounds(self, context: Context[SkeletonizeParams]) -> Sequence[Round]:
        return [Count(LAYER), Trace(LAYER), Merge(LAYER), Tidy(LAYER)]

    def finish(self, context: Context[SkeletonizeParams]) -> StageResult:
        merged = [data for _, data in context.results(Merge.name)]
        largest = next((list(data["largest"]) for _, data in context.results(Tidy.name)), [])
        count = sum(int(data["skeletons"]) for data in merged)
        path_um = round(sum(float(data["path_um"]) for data in merged), 3)
        output = Output(
            "skeleton_layer",
            voxel_size_nm_xyz=input_volume(context).voxel_size_nm_xyz,
            bounds=bounds(context),
            properties={
                "count": count,
                "path_um": path_um,
                "largest_segments": largest,
                "sharded": context.params.sharded,
                "mip": context.params.mip,
                "source": context.input("segmentation").uri,
            },
        )
        metrics = {
            "skeletons": count,
            "path_um": path_um,
            "branch_points": sum(int(d["branch_points"]) for d in merged),
        }
        return StageResult(outputs={SKELETONS: output}, metrics=metrics)
