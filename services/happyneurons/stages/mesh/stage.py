"""Mesh: a surface for each segment, with levels of detail, as Neuroglancer reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from happyneurons.jobs.objects import Count, block_grid, bounds, input_volume
from happyneurons.jobs.stage import Context, InputSpec, Output, OutputSpec, Round, Stage, StageParams, StageResult
from happyneurons.stages.mesh.rounds import LAYER, MESH, Forge, Merge, Tidy


class MeshParams(StageParams):
    mip: int = Field(0, ge=0, le=16, description="Level of the segmentation's pyramid that is meshed; HDF5 has 0 only")
    block_size_xyz: tuple[int, int, int] = Field(
        (256, 256, 256), description="Voxels of that level that one task meshes; each at least 16"
    )
    max_error_nm: float = Field(
        40.0, ge=0, le=10_000, description="How far simplification may move the surface (nm); 0 joins flat parts only"
    )
    reduction: int = Field(100, ge=1, le=10_000, description="Simplify to so many times fewer triangles; 1 keeps all")
    dust_threshold_voxels: int = Field(
        100, ge=0, description="Segments with fewer voxels, of the level and in the whole volume, get no mesh"
    )
    levels: int = Field(4, ge=1, le=10, description="Levels of detail of a large object at most")
    min_chunk_nm: float = Field(
        4000.0, gt=0, description="Edge of the finest chunks (nm) at least: objects below twice this have one level"
    )
    vertex_bits: Literal[10, 16] = Field(16, description="Bits of a vertex coordinate within its chunk")
    sharded: bool = Field(
        False, description="One file for many objects, with an index (for millions of objects), instead of two each"
    )
    objects_per_task: int = Field(
        500, ge=1, le=100_000, description="Objects that one merging task encodes, and about those in a shard"
    )
    backend: Literal["zmesh", "igneous"] = Field(
        "zmesh",
        description="What makes a block's surfaces: zmesh itself (any store, HDF5), or igneous' MeshTask, which "
        "calls zmesh, too (GPL; precomputed volumes only)",
    )


class Mesh(Stage[MeshParams]):
    name, version = "mesh", "3"
    summary = "Meshes of all segments with levels of detail, for Neuroglancer"
    Params = MeshParams
    inputs = {"segmentation": InputSpec("segmentation", "the segments to mesh")}
    outputs = {MESH: OutputSpec("mesh_layer", "multi-resolution Draco meshes, sharded or a file pair for each")}

    def check(self, context: Context[MeshParams]) -> None:
        block_grid(context)

    def rounds(self, context: Context[MeshParams]) -> Sequence[Round]:
        return [Count(LAYER), Forge(LAYER), Merge(LAYER), Tidy(LAYER)]

    def finish(self, context: Context[MeshParams]) -> StageResult:
        merged = [data for _, data in context.results(Merge.name)]
        largest = next((list(data["largest"]) for _, data in context.results(Tidy.name)), [])
        meshes = sum(int(data["meshes"]) for data in merged)
        triangles = sum(int(data["triangles"]) for data in merged)
        size = sum(int(data["bytes"]) for data in merged)
        output = Output(
            "mesh_layer",
            voxel_size_nm_xyz=input_volume(context).voxel_size_nm_xyz,
            bounds=bounds(context),
            properties={
                "count": meshes,
                "triangles": triangles,
                "largest_segments": largest,
                "sharded": context.params.sharded,
                "mip": context.params.mip,
                "source": context.input("segmentation").uri,
            },
        )
        return StageResult(
            outputs={MESH: output},
            metrics={"meshes": meshes, "triangles": triangles, "mesh_bytes": size},
        )
