"""Consensus: several segmentations of one volume become one in which only what all agree on is joined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from happyneurons.errors import UserError
from happyneurons.jobs.stage import Context, InputSpec, Output, OutputSpec, Round, Stage, StageParams, StageResult
from happyneurons.stages.consensus.rounds import (
    FRAGMENTS,
    SEGMENTATION,
    Contacts,
    Remap,
    Surfaces,
    Table,
    grid_of,
    unions_of,
)
from happyneurons.store.artifacts import Bounds
from happyneurons.unions.output import Level


class ConsensusParams(StageParams):
    labelled_in: Literal["first", "all"] = Field(
        "first",
        description="first: what the first segmentation labels is divided further by the others, where they have "
        "nothing too (as google/ffn does it); all: voxels that one of them left unlabelled become background",
    )
    connectivity: Literal[6, 26] = Field(
        6, description="Voxels of a fragment touch by faces (6, as google/ffn has it) or also by edges and corners (26)"
    )
    min_size_voxels: int = Field(
        0, ge=0, description="Fragments with fewer voxels in the whole volume become background"
    )
    block_px: int = Field(
        256,
        ge=64,
        le=1024,
        multiple_of=64,
        description="Edge of the blocks that are worked on one at a time, voxels; a task needs about 60 bytes for each",
    )
    num_mips: int = Field(
        3, ge=0, le=10, description="Levels of the pyramid, a factor of 2 each; fewer once all fits into a chunk"
    )


class Consensus(Stage[ConsensusParams]):
    name, version = "consensus", "1"
    summary = "Keeps voxels together only where all segmentations of a volume do"
    Params = ConsensusParams
    inputs = {
        "segmentations": InputSpec(
            "segmentation", "two or more of the same volume; the first may count for more", many=True
        )
    }
    outputs = {
        SEGMENTATION: OutputSpec("segmentation", "the whole volume, ids 1, 2, …; 0 is background"),
        FRAGMENTS: OutputSpec("table", "figures by block; what each block's fragments were and became; sizes"),
    }

    def check(self, context: Context[ConsensusParams]) -> None:
        given = context.inputs["segmentations"]
        if len(given) < 2:
            raise UserError("consensus: give two or more segmentations; there is only one")
        first = given[0]
        for other in given:
            if other.bounds is None or first.bounds is None:
                raise UserError(f"consensus: {other.uri if first.bounds else first.uri} does not say its bounds")
            if other.bounds != first.bounds:
                raise UserError(
                    f"consensus: the segmentations must cover the same volume; {other.uri} has {_box(other.bounds)}, "
                    f"{first.uri} has {_box(first.bounds)} (xyz)"
                )
            if other.voxel_size_nm_xyz != first.voxel_size_nm_xyz:
                raise UserError(
                    f"consensus: the segmentations must have the same voxels; {other.uri} has "
                    f"{other.voxel_size_nm_xyz} nm, {first.uri} has {first.voxel_size_nm_xyz} nm (xyz)"
                )

    def rounds(self, context: Context[ConsensusParams]) -> Sequence[Round]:
        levels = (Level(SEGMENTATION, level) for level in range(1, context.params.num_mips + 1))
        return [Surfaces(), Contacts(), Table(), *unions_of(context).rounds(), Remap(), *levels]

    def finish(self, context: Context[ConsensusParams]) -> StageResult:
        first, grid = context.inputs["segmentations"][0], grid_of(context)
        joined = unions_of(context).figures(context)
        z, y, x = grid.bounds.shape_zyx
        labelled = sum(data["labelled"] for _, data in context.results(Remap.name))
        return StageResult(
            outputs={
                SEGMENTATION: Output(
                    "segmentation",
                    voxel_size_nm_xyz=first.voxel_size_nm_xyz,
                    bounds=grid.bounds,
                    properties={"segments": joined["kept"]},
                ),
                FRAGMENTS: Output("table"),
            },
            metrics={
                "segments": joined["kept"],
                "dropped_segments": joined["dropped"],
                "block_fragments": joined["segments"],
                "merges": joined["merges"],
                "coverage": labelled / (z * y * x),
            },
        )


def _box(bounds: Bounds) -> str:
    return f"{bounds.minimum_xyz} to {bounds.maximum_xyz}"
