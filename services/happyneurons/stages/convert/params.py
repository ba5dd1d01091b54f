"""Parameters of the stage convert."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from happyneurons.errors import UserError
from happyneurons.formats.location import absolute
from happyneurons.jobs.stage import StageParams

Point = tuple[int, int, int]
SourceFormat = Literal[
    "auto", "precomputed", "hdf5", "tiff", "ome-zarr", "webknossos-wkw", "webknossos-zarr3", "knossos", "n5"
]
TargetFormat = Literal["precomputed", "hdf5", "tiff", "ome-zarr", "webknossos-wkw", "webknossos-zarr3", "knossos"]
Dtype = Literal[
    "keep", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float32", "float64"
]  # fmt: skip


class ConvertParams(StageParams):
    """Parameters of the convert stage."""

    source: str | None = Field(
        None,
        description="The volume: FOLDER, FILE or URI, and ?NAME for what is inside; default: the input `volume`",
        json_schema_extra={"format": "uri-reference"},
    )
    source_format: SourceFormat = Field("auto", description="Format of the source; auto: found by its files")
    target: str | None = Field(
        None,
        description="Where to write it, as FOLDER, FILE or URI[?NAME]; default: the job's own folder in the store",
        json_schema_extra={"format": "uri-reference", "written": True},
    )
    format: TargetFormat = Field("precomputed", description="Format to write")
    kind: Literal["auto", "image", "segmentation"] = Field(
        "auto", description="auto: as the source says, else integers of 32 bits and more are a segmentation"
    )
    mip: int = Field(0, ge=0, le=30, description="Level of the source to read; 0 is full resolution")
    channel: int | None = Field(None, ge=0, description="Channel of a source with several")
    bounds_xyz: tuple[Point, Point] | None = Field(
        None, description="Part of the source: minimum and maximum (exclusive), voxels of the level; default: all of it"
    )
    offset_xyz: Point | None = Field(
        None,
        description="New coordinates of the source's first voxel (of the whole, not of the part); default: its own",
    )
    voxel_size_nm_xyz: tuple[float, float, float] | None = Field(
        None, description="Voxel size, nm, of the level that is read; default: what the source says"
    )
    dtype: Dtype = Field("keep", description="Type of the voxels; a value that does not fit ends the job")
    num_mips: int = Field(0, ge=0, le=16, description="Levels of the pyramid to make above full resolution")
    chunk_px: int = Field(64, ge=16, le=1024, description="Edge of chunks, voxels (precomputed, OME-Zarr, HDF5)")
    shard_px: int = Field(
        256, ge=32, le=4096, description="Edge of what one file holds, voxels (WKW, Zarr 3); a power of two"
    )
    sharded: bool = Field(
        False,
        description="Precomputed: many chunks in a file (neuroglancer_uint64_sharded_v1), as many as fit into task_mb",
    )
    compress: bool = Field(
        True, description="Compress without loss where the format can (not precomputed images; HDF5: hdf5_compression)"
    )
    hdf5_compression: Literal["none", "gzip"] = Field(
        "none",
        description="HDF5: none: ranks write into the file; gzip: chunks are compressed (shuffle, gzip 4), gathered in "
        "FILE.chunks and put together at the end, which takes the disk space twice",
    )
    fill_gaps: bool = Field(False, description="Sections missing in a stack of pictures are zeros, not an error")
    task_mb: int = Field(64, ge=1, le=65536, description="MB of voxels that a task holds; at least a file or chunk")
    verify: bool = Field(False, description="Read everything that was written once more, and compare")

    @field_validator("source", "target")
    @classmethod
    def _absolute(cls, uri: str | None) -> str | None:
        try:
            return None if uri is None else absolute(uri)
        except UserError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _fits(self) -> ConvertParams:
        if self.shard_px & (self.shard_px - 1):
            raise ValueError("shard_px: a power of two")
        if self.sharded and self.format != "precomputed":
            raise ValueError(f"sharded: for the format precomputed only, not {self.format}; see shard_px")
        if self.hdf5_compression != "none" and self.format != "hdf5":
            raise ValueError(f"hdf5_compression: for the format hdf5 only, not {self.format}; see compress")
        if self.voxel_size_nm_xyz is not None and min(self.voxel_size_nm_xyz) <= 0:
            raise ValueError("voxel_size_nm_xyz: each above 0")
        return self
