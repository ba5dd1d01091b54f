"""Reconcile: overlapping subvolumes, each with ids of its own, become one segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from happyneurons.errors import UserError
from happyneurons.jobs.stage import Context, InputSpec, Output, OutputSpec, Round, Stage, StageParams, StageResult
from happyneurons.stages.reconcile.blocks import grid_of
from happyneurons.stages.reconcile.rounds import MERGES, SEGMENTATION, Overlaps, Remap, Table, unions_of
from happyneurons.unions.output import Level


class ReconcileParams(StageParams):
    min_overlap_voxels: int = Field(
        64, ge=1, description="Voxels two pieces must share before they can be joined; fewer are a sliver"
    )
    min_agreement: float = Field(
        0.7,
        gt=0.0,
        le=1.0,
        description="Share of a piece's voxels, of those the other subvolume labelled at all, that must lie in the "
        "other piece; asked of both. Higher joins less: more splits, fewer mergers",
    )
    min_coverage: float = Field(
        0.2,
        ge=0.0,
        le=1.0,
        description="Share of all voxels of a piece that must lie in the other piece; asked of both",
    )
    min_coverage_of_one: float = Field(
        0.5,
        ge=0.0,
        le=1.0,
        description="Two that agree on all that both subvolumes labelled are still not joined if less than this share "
        "of either lies in the other, the rest being where the other subvolume has nothing: two objects that meet",
    )
    min_contained_voxels: int = Field(
        2000,
        ge=0,
        description="Segments that share so many voxels are also joined if only one of the two lies in the other, by "
        "min_agreement and min_coverage; 0: never. Repairs what one of two subvolumes split, spreads what one of them "
        "merged: higher, or 0, where mergers are common",
    )
    neighbours: Literal["faces", "all"] = Field(
        "faces",
        description="Which overlaps give evidence: those of subvolumes beside one another, or also those that share "
        "only an edge or a corner (small overlaps: weaker evidence, of use where subvolumes are missing)",
    )
    fill: bool = Field(
        True, description="Voxels that their own subvolume left unsegmented take the segment of an overlapping one"
    )
    min_size_voxels: int = Field(0, ge=0, description="Segments with fewer voxels in the whole volume are dropped")
    num_mips: int = Field(
        3, ge=0, le=10, description="Levels of the pyramid, a factor of 2 each; fewer once all fits into a chunk"
    )


class Reconcile(Stage[ReconcileParams]):
    name, version = "reconcile", "4"
    summary = "Joins overlapping subvolumes into one segmentation, the same in any order of tasks"
    Params = ReconcileParams
    inputs = {"subvolumes": InputSpec("subvolumes", "overlapping boxes with ids of their own, from segment")}
    outputs = {
        SEGMENTATION: OutputSpec("segmentation", "the whole volume, ids 1, 2, …; 0 is background"),
        MERGES: OutputSpec(
            "table", "figures by subvolume, each subvolume's map from local to global ids, sizes of segments"
        ),
    }

    def check(self, context: Context[ReconcileParams]) -> None:
        grid = grid_of(context.input("subvolumes"))
        for axis, boxes, overlap in zip("zyx", grid.shape_zyx, grid.overlap_xyz[::-1], strict=True):
            if boxes > 1 and overlap == 0:
                raise UserError(
                    f"reconcile: the subvolumes do not overlap along {axis}, so nothing tells which segments belong "
                    "together; segment again with an overlap (half a field of view or more)"
                )

    def rounds(self, context: Context[ReconcileParams]) -> Sequence[Round]:
        levels = (Level(SEGMENTATION, level) for level in range(1, context.params.num_mips + 1))
        return [Overlaps(), Table(), *unions_of(context).rounds(), Remap(), *levels]

    def finish(self, context: Context[ReconcileParams]) -> StageResult:
        source = context.input("subvolumes")
        grid = grid_of(source)
        boxes = dict(context.results(Overlaps.name))
        joined = unions_of(context).figures(context)
        missing = len(grid) - sum(not data["missing"] for data in boxes.values())
        if missing == len(grid):
            raise UserError(f"reconcile: none of the {len(grid)} subvolumes of {source.uri} could be read")
        z, y, x = grid.bounds.shape_zyx
        return StageResult(
            outputs={
                SEGMENTATION: Output(
                    "segmentation",
                    voxel_size_nm_xyz=source.voxel_size_nm_xyz,
                    bounds=grid.bounds,
                    properties={"segments": joined["kept"]},
                ),
                MERGES: Output("table"),
            },
            metrics={
                "segments": joined["kept"],
                "dropped_segments": joined["dropped"],
                "subvolume_segments": joined["segments"],
                "merges": joined["merges"],
                "rejected_pairs": sum(data["rejected"] for data in boxes.values()) + joined["doubtful_pairs"],
                "doubted_segments": joined["doubted"],
                "missing_subvolumes": missing,
                "coverage": sum(data["labelled"] for _, data in context.results(Remap.name)) / (z * y * x),
            },
        )
