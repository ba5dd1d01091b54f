"""normalize: evens out the contrast of sections and marks what is not tissue."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from happyneurons.errors import NotFoundError, UserError
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
from happyneurons.store.artifacts import Bounds

if TYPE_CHECKING:
    from happyneurons.stages.normalize.blocks import Frame
    from happyneurons.store.volumes import PrecomputedVolume

CHUNK_PX = 1024
NO_PICTURE = ("failed", "missing", "blank")


class NormalizeParams(StageParams):
    clip_limit: float = Field(2.0, ge=0, le=64, description="Largest gain of local contrast (CLAHE); 0: none")
    tile_px: int = Field(256, ge=16, le=8192, description="Size of the areas whose contrast is evened out, output px")
    target_mean: float | None = Field(
        None, ge=1, le=255, description="Mean grey value given to each section, after CLAHE"
    )
    target_std: float | None = Field(None, gt=0, le=127, description="Grey value sd given to each section, after CLAHE")
    artifact_below: int = Field(0, ge=0, le=255, description="Areas darker than this are artifacts; 0: none")
    artifact_above: int = Field(255, ge=0, le=255, description="Areas brighter than this are artifacts; 255: none")
    artifact_size_px: int = Field(15, ge=1, le=1024, description="Size from which such areas count, output px")
    downsample: int = Field(1, ge=1, le=64, description="Input px per output px, in x and y")

    @model_validator(mode="after")
    def _ordered(self) -> NormalizeParams:
        if self.artifact_below >= self.artifact_above:
            raise ValueError("artifact_below must be less than artifact_above")
        return self


def _frame(context: Context[Any]) -> Frame:
    from happyneurons.stages.normalize.blocks import Frame

    image = _input(context, "image")
    return Frame.of(image.start_zyx, image.stop_zyx, context.params.downsample)


def _input(context: Context[Any], name: str) -> PrecomputedVolume:
    return _volume(context, f"{context.input('stack').data_uri}/{name}")


def _output(context: Context[Any], name: str) -> PrecomputedVolume:
    return _volume(context, f"{context.output_uri('stack')}/{name}")


def _volume(context: Context[Any], uri: str) -> PrecomputedVolume:
    from happyneurons.store.volumes import PrecomputedVolume

    volume: PrecomputedVolume = context.once(uri, lambda: PrecomputedVolume(uri))
    return volume


def _voxel_size(context: Context[Any]) -> tuple[float, float, float]:
    x, y, z = _input(context, "image").voxel_size_nm_xyz
    d = context.params.downsample
    return (x * d, y * d, z)


class NormalizeSections(Round):
    """One task a section, worked on in blocks of a chunk: two passes, histograms and mapping."""

    name = "sections"

    def prepare(self, context: Context[Any]) -> None:
        from happyneurons.store.volumes import create_volume

        image, frame = _input(context, "image"), _frame(context)
        for name in ("image", "mask"):
            create_volume(
                f"{context.output_uri('stack')}/{name}",
                start_zyx=(image.start_zyx[0], frame.y0, frame.x0), stop_zyx=(image.stop_zyx[0], frame.y1, frame.x1),
                voxel_size_nm_xyz=_voxel_size(context), dtype="uint8", layer_type="image",
                chunk_zyx=(1, CHUNK_PX, CHUNK_PX),
            )  # fmt: skip

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        image = _input(context, "image")
        for z in range(image.start_zyx[0], image.stop_zyx[0]):
            yield Task(key=f"{z:06d}", payload={"z": z})

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        import cv2
        import numpy as np

        from happyneurons.imaging.transforms import transforms_path
        from happyneurons.imaging.warp import GridWarp
        from happyneurons.stages.normalize.blocks import Artifacts, Section
        from happyneurons.stages.normalize.contrast import Histograms, moments

        cv2.setNumThreads(context.threads)
        p: NormalizeParams = context.params
        z = int(task.payload["z"])
        document = self._document(context, z)
        store = context.output_store("stack")
        frame = _frame(context)
        d = p.downsample
        # Pixel centres: input x → (x + 1/2) / d - 1/2.
        scale = GridWarp.affine(
            [[1 / d, 0, 0.5 / d - 0.5], [0, 1 / d, 0.5 / d - 0.5]],
            (frame.x1 - frame.x0) * d, (frame.y1 - frame.y0) * d, spacing_px=float(max(frame.x1, frame.y1) * d),
        )  # fmt: skip
        if document["status"] in NO_PICTURE:
            store.put_json(f"sections/{z:06d}.json", document)
            return TaskResult(data={"status": document["status"]})
        has_mask = bool(context.input("stack").properties.get("mask"))
        artifacts = Artifacts(p.artifact_below, p.artifact_above, p.artifact_size_px)
        section = Section(
            _input(context, "image"), _input(context, "mask") if has_mask else None, z, frame, artifacts
        )  # fmt: skip
        histograms = Histograms(frame.y1 - frame.y0, frame.x1 - frame.x0, p.tile_px)
        for y0, x0, y1, x1 in frame.blocks(CHUNK_PX):
            histograms.add(*section.read(y0, x0, y1, x1), y0 - frame.y0, x0 - frame.x0)
        valid_px = int(histograms.section.sum())
        pixels = (frame.y1 - frame.y0) * (frame.x1 - frame.x0)
        tables = histograms.tables(p.clip_limit, p.target_mean, p.target_std)
        after = np.zeros(256, np.int64)
        for y0, x0, y1, x1 in frame.blocks(CHUNK_PX):
            picture, valid = section.read(y0, x0, y1, x1)
            mapped = np.where(picture > 0, tables.apply(picture, y0 - frame.y0, x0 - frame.x0), 0).astype(np.uint8)
            after += np.bincount(mapped[valid], minlength=256)
            _output(context, "image").write((z, y0, x0), mapped[np.newaxis])
            _output(context, "mask").write((z, y0, x0), valid[np.newaxis].astype(np.uint8))
        store.put_arrays(transforms_path(z), **scale.arrays("section"))
        (mean, std), (new_mean, new_std) = moments(histograms.section), moments(after)
        figures = {
            "mean": round(mean, 3), "std": round(std, 3), "normalized_mean": round(new_mean, 3),
            "normalized_std": round(new_std, 3), "valid_fraction": round(valid_px / pixels, 6),
        }  # fmt: skip
        document = document | figures
        if valid_px == 0:
            document |= {"status": "blank", "reason": "nothing but artifacts or background"}
        store.put_json(f"sections/{z:06d}.json", document)
        return TaskResult(data={"status": document["status"], **figures}, voxels=pixels, bytes=2 * pixels)

    @staticmethod
    def _document(context: Context[Any], z: int) -> dict[str, Any]:
        """What the input says of the section: status and reason."""
        store = context.once("input documents", context.input("stack").store)
        try:
            document = store.get_json(f"sections/{z:06d}.json")
        except NotFoundError:
            return {"z": z, "status": "missing", "reason": "the input has no such section"}
        return {k: document[k] for k in ("z", "status", "reason") if k in document}


class Normalize(Stage[NormalizeParams]):
    """Sections of even contrast; 0 stays where the input has no picture, everything else is 1…255.

    The output has a mask (1 = tissue) and `transforms/`: input px → output px of each section, as
    align writes them, so that results can be traced back through it.
    """

    name, version = "normalize", "1"
    summary = "Evens out contrast (CLAHE, mean and sd), scales down, masks artifacts"
    Params = NormalizeParams
    inputs = {"stack": InputSpec("section_stack", "sections to normalize")}
    outputs = {"stack": OutputSpec("section_stack", "normalized sections with their masks")}

    def check(self, context: Context[NormalizeParams]) -> None:
        image = _input(context, "image")
        if image.dtype.name != "uint8":
            raise UserError(f"input stack: {context.input('stack').uri} has {image.dtype} pixels, expected uint8")

    def rounds(self, context: Context[NormalizeParams]) -> Sequence[Round]:
        return [NormalizeSections()]

    def finish(self, context: Context[NormalizeParams]) -> StageResult:
        image, frame, source = _input(context, "image"), _frame(context), context.input("stack")
        sections = [data for _, data in context.results(NormalizeSections.name)]
        metrics = {"sections": float(len(sections))}
        for status in ("ok", "flagged", *NO_PICTURE):
            metrics[f"sections_{status}"] = float(sum(s["status"] == status for s in sections))
        for name in ("normalized_mean", "normalized_std", "valid_fraction"):
            values = [s[name] for s in sections if name in s]
            if values:
                metrics[name] = round(sum(values) / len(values), 3)
        z0, z1 = image.start_zyx[0], image.stop_zyx[0]
        origin = source.properties.get("origin_px")
        output = Output(
            "section_stack", _voxel_size(context),
            Bounds(minimum_xyz=(frame.x0, frame.y0, z0), maximum_xyz=(frame.x1, frame.y1, z1)),
            {
                "source": source.uri, "scale": 1 / context.params.downsample, "z_range": [z0, z1], "mask": True,
                **({"origin_px": [round(px / context.params.downsample) for px in origin]} if origin else {}),
            },
        )  # fmt: skip
        return StageResult({"stack": output}, metrics)
