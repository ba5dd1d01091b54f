"""Statistics: how large each segment is and where, and on how much surface any two of them touch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from happyneurons.errors import UserError
from happyneurons.jobs.stage import Context, InputSpec, Output, OutputSpec, Round, Stage, StageParams, StageResult

TABLE = "table"


class StatisticsParams(StageParams):
    mip: int = Field(
        0, ge=0, le=16, description="Level of the segmentation's pyramid that is measured; HDF5 has 0 only"
    )
    bounds_xyz: tuple[tuple[int, int, int], tuple[int, int, int]] | None = Field(
        None,
        description="Part to measure: minimum and maximum (exclusive), voxels of that level; default: all of it. What "
        "lies outside is not looked at: faces on the box's sides are no contacts",
    )
    contacts: bool = Field(True, description="Also the table of contacts, a row for each pair of segments that touch")
    min_voxels: int = Field(
        1, ge=1, description="Segments with fewer voxels in the measured part are left out, of both tables"
    )
    block_size_xyz: tuple[int, int, int] = Field(
        (256, 256, 256),
        description="Voxels of that level that one task reads; each at least 16, best a multiple of the chunks' edges",
    )
    rows_per_part: int = Field(
        1_000_000,
        ge=1000,
        le=20_000_000,
        description="Rows in a file of a table, about: a task holds so many (less than 1 GB for a million)",
    )


class Statistics(Stage[StatisticsParams]):
    name, version = "statistics", "1"
    summary = "Table of segments: volume, bounds, surface, and the areas on which they touch"
    Params = StatisticsParams
    inputs = {"segmentation": InputSpec("segmentation", "the segments to measure")}
    outputs = {
        TABLE: OutputSpec(
            "table",
            "segments/*.csv, contacts/*.csv: the tables; table.json: the largest segments; summary.json: totals; "
            "segment_properties: Neuroglancer's list",
        )
    }

    def check(self, context: Context[StatisticsParams]) -> None:
        from happyneurons.stages.statistics.subject import Subject

        Subject.of(context)

    def rounds(self, context: Context[StatisticsParams]) -> Sequence[Round]:
        from happyneurons.stages.statistics.rounds import Blocks, Contacts, Gather, Segments, Summary, Tidy

        return [Blocks(), Gather(), Segments(), Contacts(), Summary(), Tidy()]

    def finish(self, context: Context[StatisticsParams]) -> StageResult:
        from happyneurons.stages.statistics.rounds import Blocks, Contacts, Gather, Parts, Segments, Summary
        from happyneurons.stages.statistics.subject import Subject

        for round_ in (Gather, Segments, Contacts, Summary):
            if context.quarantined(round_.name):
                raise UserError(f"statistics: tasks of {round_.name} were given up, so the tables would be incomplete")
        subject, parts = Subject.of(context), Parts.of(context)
        segments = [data for _, data in parts.results(context, Segments.name)]
        metrics: dict[str, float] = {
            "segments": sum(int(data["rows"]) for data in segments),
            "voxels": sum(int(data["voxels"]) for data in segments),
            "dropped_segments": sum(int(data["dropped"]) for data in segments),
            "missing_blocks": len(context.quarantined(Blocks.name)),
        }
        if context.params.contacts:
            metrics["contacts"] = sum(int(data["rows"]) for _, data in parts.results(context, Contacts.name))
        properties: dict[str, Any] = {
            **metrics,
            "mip": context.params.mip,
            "source": context.input("segmentation").uri,
            "segment_properties": "segment_properties",
        }
        output = Output(
            "table",
            voxel_size_nm_xyz=subject.volume.voxel_size_nm_xyz,
            bounds=subject.bounds,
            properties=properties,
        )
        return StageResult(outputs={TABLE: output}, metrics=metrics)
