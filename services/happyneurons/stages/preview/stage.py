"""Preview: downsampled pictures of any results, with an index and a notebook that shows them."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from happyneurons.errors import UserError
from happyneurons.jobs.stage import Context, InputSpec, Output, OutputSpec, Round, Stage, StageParams, StageResult
from happyneurons.stages.preview.rounds import PICTURES, Draw, Sheets
from happyneurons.store.artifacts import ArtifactKind

PICTURABLE: tuple[ArtifactKind, ...] = (
    "tile_set",
    "section_stack",
    "image_volume",
    "mask",
    "subvolumes",
    "segmentation",
    "mesh_layer",
    "skeleton_layer",
    "model",
    "table",
    "report",
)


class PreviewParams(StageParams):
    max_px: int = Field(1024, ge=64, le=8192, description="Longer side of a picture (px)")
    sections: tuple[int, ...] = Field((), description="Section numbers (z) to draw; empty: `samples` of each result")
    samples: int = Field(3, ge=1, le=100, description="Sections drawn of each result, evenly spread, if none are named")
    cuts: bool = Field(True, description="Also draw cuts along z (xz, yz), which show how well sections are aligned")
    neurons: int = Field(20, ge=1, le=50, description="Largest segments of a mesh or skeleton layer that are drawn")
    color_alpha: float = Field(0.4, ge=0, le=1, description="Share of the segments' colours over the image")


class Preview(Stage[PreviewParams]):
    name, version = "preview", "3"
    summary = "Pictures of results: tiles, sections, cuts, segments, neurons, curves, tables; with a notebook"
    Params = PreviewParams
    inputs = {
        "results": InputSpec(
            PICTURABLE,
            "what to draw; segmentations are drawn over the last image before them in the list that covers them",
            many=True,
        )
    }
    outputs = {PICTURES: OutputSpec("pictures", "PNG files, index.json and preview.ipynb")}

    def check(self, context: Context[PreviewParams]) -> None:
        if not context.inputs["results"]:
            raise UserError("preview: name at least one result to draw (input `results`)")

    def rounds(self, context: Context[PreviewParams]) -> Sequence[Round]:
        return [Draw(), Sheets()]

    def finish(self, context: Context[PreviewParams]) -> StageResult:
        drawn = sum(1 for _, data in context.results(Draw.name) if data)
        count = drawn + sum(len(data["sheets"]) for _, data in context.results(Sheets.name))
        return StageResult(
            outputs={PICTURES: Output("pictures", properties={"count": count})}, metrics={"pictures": count}
        )
