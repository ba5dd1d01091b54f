"""Parameters of the stage annotate-pull."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from happyneurons.jobs.stage import StageParams
from happyneurons.store.documents import normalize_uri

Point = tuple[int, int, int]


class AnnotatePullParams(StageParams):
    source: str = Field(
        description="The annotation as WEBKNOSSOS gives it: a zip, or an NML",
        json_schema_extra={"format": "uri-reference"},
    )
    take: tuple[Literal["labels", "points", "skeletons"], ...] = Field(
        (), description="What the annotation must give; empty: what is in it"
    )
    layer: str | None = Field(
        None,
        description="Name of the volume layer, if there are several with data",
        json_schema_extra={"format": "name"},
    )
    mip: int = Field(0, ge=0, le=20, description="Which of the layer's magnifications; 0 is the finest")
    bounds_xyz: tuple[Point, Point] | None = Field(
        None,
        description="Extent of the labels: minimum and maximum (exclusive), voxels at full resolution; default: that "
        "of the input dataset, or fallback, or of the blocks that were changed",
    )
    bounding_box: str | None = Field(
        None,
        description="Instead: name of a bounding box drawn in the annotation, e.g. around what is labelled wholly",
        json_schema_extra={"format": "name"},
    )
    changes_only: bool = Field(
        False, description="Of a layer that corrects another: only the blocks that were changed, 0 elsewhere"
    )
    trees: str = Field(
        "",
        description="Points and skeletons: of trees with such names only",
        json_schema_extra={"format": "regex"},
    )
    dataset_name: str | None = Field(
        None,
        description="The dataset that must have been annotated; default: that of the input dataset",
        json_schema_extra={"format": "name"},
    )
    voxel_size_nm_xyz: tuple[float, float, float] | None = Field(
        None, description="Voxel size at full resolution, nm, where the annotation's is wrong"
    )
    shift_xyz: Point = Field(
        (0, 0, 0), description="Voxels that annotate-push added, where the input dataset is not given"
    )
    max_unpacked_gb: float = Field(32, gt=0, le=10_000, description="Zips that would unpack to more are refused")
    chunk_px: int = Field(64, ge=16, le=1024, description="Edge of the labels' chunks, voxels")
    task_mb: int = Field(64, ge=1, le=65536, description="MB of voxels that a task holds")

    @field_validator("source")
    @classmethod
    def _absolute(cls, uri: str) -> str:
        return normalize_uri(uri)

    @field_validator("trees")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern
