"""Agglomerate: segments of one neurite are joined where the network, asked again, says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from pydantic import Field, model_validator

from happyneurons.errors import UserError
from happyneurons.ffn.backends import choose
from happyneurons.ffn.params import NetworkParams
from happyneurons.jobs.stage import Context, InputSpec, Output, OutputSpec, Round, Stage, StageParams, StageResult
from happyneurons.stages.agglomerate.judging import Rules
from happyneurons.stages.agglomerate.rounds import (
    DECISIONS,
    SEGMENTATION,
    Candidates,
    Contacts,
    Decide,
    Level,
    Remap,
    Resegment,
)
from happyneurons.store.artifacts import Bounds


class AgglomerateParams(NetworkParams, StageParams):
    """The options of inference are those of `segment`; what they say of seeds and sizes has no effect here."""

    mip: int | None = Field(
        None, ge=0, le=20, description="Level of the image; default: the one with the segmentation's voxel size"
    )
    max_gap_px: int = Field(
        4, ge=0, le=32, description="Unsegmented voxels (of the shortest edge) between two segments that still touch"
    )
    min_contact_faces: int = Field(
        20, ge=1, description="Faces of voxels on which two segments must touch to be asked about"
    )
    max_partners: int = Field(
        1, ge=1, description="Pairs asked about for each segment: its largest contacts to segments larger than itself"
    )
    min_segment_voxels: int = Field(100, ge=1, description="Smaller segments are left as they are")
    radius_xyz: tuple[int, int, int] | None = Field(
        None,
        description="Half the edges of the box that is flooded around a decision point, voxels; default: half the "
        "field of view and one delta",
    )
    attempts: int = Field(
        2, ge=1, le=16, description="Seeds tried in a segment until a flood recovers at least half of it"
    )
    skip_below: float = Field(
        0.2,
        ge=0,
        le=1,
        description="If the first flood recovers less than this of the other segment, the second one is not run",
    )
    min_recovered: float = Field(
        0.6, ge=0, le=1, description="Share of the other segment that both floods must recover; higher joins less"
    )
    min_iou: float = Field(
        0.6, ge=0, le=1, description="Voxels that both floods found, of those that either found, must reach this share"
    )
    max_deleted: float = Field(
        0.02, ge=0, description="Voxels that the network took back while flooding, of those of the object, at the most"
    )
    small_voxels: int = Field(
        10000, ge=0, description="Segments with fewer voxels are judged by the flood from the larger segment alone"
    )
    small_min_recovered: float = Field(
        0.5, gt=0, le=1, description="Share of a small segment which that flood must recover"
    )
    min_piece_voxels: int = Field(
        100,
        ge=1,
        description="A segment of fewer voxels in the middle of the box (in one piece) is a sliver, which decides "
        "nothing",
    )
    large_voxels: int = Field(
        1_000_000, ge=1, description="Two objects of at least so many voxels are joined by a high score only"
    )
    large_min_score: float = Field(0.8, ge=0, le=1, description="The score that this takes")
    reviewed: str | None = Field(
        None,
        description="Path or URI of a table (CSV or JSON) with columns segment_a, segment_b and review: accept or "
        "reject, which override the scores",
        json_schema_extra={"format": "uri-reference"},
    )
    skip_explored_fraction: float = Field(
        0.05,
        ge=0,
        le=1,
        description="As in `segment`, with a lower default: boxes are small, and the thresholds here were set with it",
    )
    num_mips: int = Field(
        3, ge=0, le=10, description="Levels of the pyramid, a factor of 2 each; fewer once all fits into a chunk"
    )

    @model_validator(mode="after")
    def _skips_only_what_cannot_be_joined(self) -> Self:
        if self.skip_below > self.min_recovered:
            raise ValueError("skip_below must not be above min_recovered, or pairs that could be joined are left out")
        return self

    def rules(self) -> Rules:
        return Rules(
            self.min_recovered,
            self.min_iou,
            self.max_deleted,
            self.small_voxels,
            self.small_min_recovered,
            self.min_piece_voxels,
        )

    def scoring(self) -> dict[str, Any]:
        """The parameters that scores depend on; the others only decide what is made of them, or are another way to the
        same scores."""
        return self.model_dump(mode="json", exclude=_DECIDING)


_DECIDING = {
    "min_recovered", "min_iou", "max_deleted", "small_min_recovered", "min_piece_voxels", "large_voxels",
    "large_min_score", "reviewed", "num_mips", "backend",
}  # fmt: skip


class Agglomerate(Stage[AgglomerateParams]):
    name, version = "agglomerate", "2"
    summary = "Joins segments of one neurite where the network, asked again, recovers both; with a table to review"
    Params = AgglomerateParams
    inputs = {
        "image": InputSpec("image_volume", "grey values that were segmented, precomputed or HDF5"),
        "segmentation": InputSpec("segmentation", "ids to agglomerate, from reconcile or elsewhere"),
        "model": InputSpec("model", "flood-filling network: ours, or a TensorFlow checkpoint of google/ffn"),
        "mask": InputSpec("mask", "voxels other than 0 are not segmented; any resolution", optional=True),
        "scored": InputSpec(
            "table",
            "decisions of an earlier job on the same inputs: its scores are used again, the network is not run",
            optional=True,
        ),
    }
    outputs = {
        SEGMENTATION: OutputSpec("segmentation", "an object keeps the id of its largest segment; 0 is background"),
        DECISIONS: OutputSpec("table", "every pair with its scores, the decision and the reason; also decisions.csv"),
    }

    def fingerprint(self, params: AgglomerateParams) -> str | None:
        from happyneurons.stages.agglomerate.reviews import digest

        return digest(params.reviewed) if params.reviewed else None

    def check(self, context: Context[AgglomerateParams]) -> None:
        from happyneurons.stages.agglomerate.boxes import Sources, model_of, radius_zyx
        from happyneurons.stages.agglomerate.deciding import check_scored
        from happyneurons.stages.agglomerate.reviews import read_reviews

        Sources.of(context)
        check_scored(context)
        choose(context.params.backend, model_of(context).architecture)
        radius_zyx(context, model_of(context).architecture)
        if context.params.reviewed:
            read_reviews(context.params.reviewed)

    def rounds(self, context: Context[AgglomerateParams]) -> Sequence[Round]:
        scoring: list[Round] = []
        if context.optional_input("scored") is None:
            scoring = [Contacts(), Candidates(), Resegment()]
        levels = (Level(level) for level in range(1, context.params.num_mips + 1))
        return [*scoring, Decide(), Remap(), *levels]

    def finish(self, context: Context[AgglomerateParams]) -> StageResult:
        from happyneurons.stages.agglomerate.boxes import Sources

        figures = next((dict(data) for _, data in context.results(Decide.name)), None)
        if figures is None:
            raise UserError("agglomerate: the pairs could not be decided; see the job's quarantined tasks")
        volume = Sources.of(context).segmentation
        low, high = volume.start_zyx, volume.stop_zyx
        bounds = Bounds(minimum_xyz=low[::-1], maximum_xyz=high[::-1])
        z, y, x = bounds.shape_zyx
        labelled = sum(data["labelled"] for _, data in context.results(Remap.name))
        return StageResult(
            outputs={
                SEGMENTATION: Output(
                    "segmentation",
                    voxel_size_nm_xyz=volume.voxel_size_nm_xyz,
                    bounds=bounds,
                    properties={"segments": figures["segments"]},
                ),
                DECISIONS: Output("table"),
            },
            metrics={**figures, "coverage": labelled / (z * y * x)},
        )
