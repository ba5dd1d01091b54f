"""stack: stacks of some sections each → one stack of all of them, such as the batches of an open run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

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
from happyneurons.store.artifacts import Artifact
from happyneurons.store.documents import Store

if TYPE_CHECKING:
    import numpy as np

    from happyneurons.stages.stack.canvas import Canvas
    from happyneurons.store.volumes import PrecomputedVolume

CHUNK_PX = 1024
NO_PICTURE = ("failed", "missing", "blank")
READERS = 16


class StackParams(StageParams):
    """There is nothing to choose."""


def stacks(context: Context[Any]) -> Sequence[Artifact]:
    return context.inputs["stacks"]


def canvas_of(context: Context[Any]) -> Canvas:
    """The common canvas. Raises UserError if the stacks do not fit together."""
    from happyneurons.stages.stack.canvas import Canvas

    canvas: Canvas = context.once("canvas", lambda: Canvas.around(stacks(context)))
    return canvas


def chosen_sections(context: Context[Any]) -> Mapping[int, int]:
    """z → number of the stack that its section is taken from.

    One with a picture counts more than one without, one that was tried more than one that is missing;
    of equals the later stack wins.
    """

    def look(number: int, store: Store, path: str) -> tuple[int, int, int]:
        document = store.get_json(path)
        status = document["status"]
        rank = 2 if status not in NO_PICTURE else int(status != "missing")
        return int(document["z"]), rank, number

    def find() -> dict[int, int]:
        stores = [artifact.store() for artifact in stacks(context)]
        paths = [(n, store, path) for n, store in enumerate(stores) for path in store.list("sections")]
        best: dict[int, tuple[int, int]] = {}
        with ThreadPoolExecutor(READERS) as pool:
            for z, rank, number in pool.map(lambda item: look(*item), paths):
                best[z] = max(best.get(z, (-1, -1)), (rank, number))
        return {z: number for z, (_, number) in sorted(best.items())}

    chosen: Mapping[int, int] = context.once("chosen", find)
    return chosen


class CopySections(Round):
    """One task a section: its picture, mask, document and transforms, moved to their place on the canvas."""

    name = "sections"

    def prepare(self, context: Context[Any]) -> None:
        from happyneurons.store.volumes import create_volume

        canvas = canvas_of(context)
        (x0, y0, z0), (x1, y1, z1) = canvas.bounds.minimum_xyz, canvas.bounds.maximum_xyz
        for name in ("image", "mask") if canvas.mask else ("image",):
            create_volume(
                f"{context.output_uri('stack')}/{name}",
                start_zyx=(z0, y0, x0), stop_zyx=(z1, y1, x1), voxel_size_nm_xyz=canvas.voxel_size_nm_xyz,
                dtype="uint8", layer_type="image", chunk_zyx=(1, CHUNK_PX, CHUNK_PX),
            )  # fmt: skip

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        bounds, chosen = canvas_of(context).bounds, chosen_sections(context)
        for z in range(bounds.minimum_xyz[2], bounds.maximum_xyz[2]):
            yield Task(key=f"{z:06d}", payload={"z": z, "stack": chosen.get(z)})

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        z, number = int(task.payload["z"]), task.payload["stack"]
        output = context.output_store("stack")
        if number is None:
            document: dict[str, Any] = {"z": z, "status": "missing", "reason": "no stack has it"}
            output.put_json(f"sections/{z:06d}.json", document)
            return TaskResult(data={"status": "missing"})
        source: Store = context.once(f"documents {number}", stacks(context)[number].store)
        document = source.get_json(f"sections/{z:06d}.json")
        pixels = 0
        if document["status"] not in NO_PICTURE:
            pixels = self._copy_picture(context, z, number)
            self._copy_transforms(source, output, z, canvas_of(context).shifts_xy[number])
        output.put_json(f"sections/{z:06d}.json", document)
        return TaskResult(data={"status": document["status"], "stack": number}, voxels=pixels, bytes=pixels)

    @staticmethod
    def _copy_picture(context: Context[Any], z: int, number: int) -> int:
        """Copy a section block by block; blocks without a picture are left out."""
        import numpy as np

        from happyneurons.stages.stack.canvas import blocks

        canvas = canvas_of(context)
        base = stacks(context)[number].data_uri
        image = _volume(context, f"{base}/image")
        masked = bool(stacks(context)[number].properties.get("mask"))
        pixels = 0
        for box in blocks(canvas.bounds, CHUNK_PX):
            y0, x0, _, _ = box
            picture = _moved(image, z, box, canvas.shifts_xy[number])
            pixels += picture.size
            if not picture.any():
                continue
            _volume(context, f"{context.output_uri('stack')}/image").write((z, y0, x0), picture[np.newaxis])
            if canvas.mask:
                mask = _volume(context, f"{base}/mask") if masked else None
                # A stack that says nothing of tissue: everything it shows may be tissue.
                valid = (picture > 0) if mask is None else _moved(mask, z, box, canvas.shifts_xy[number])
                target = _volume(context, f"{context.output_uri('stack')}/mask")
                target.write((z, y0, x0), valid.astype(np.uint8)[np.newaxis])
        return pixels

    @staticmethod
    def _copy_transforms(source: Store, output: Store, z: int, shift_xy: tuple[int, int]) -> None:
        from happyneurons.imaging.transforms import transforms_path

        try:
            arrays = source.get_arrays(transforms_path(z))
        except NotFoundError:
            return
        moved = {k: v + shift_xy if k.endswith("_nodes") else v for k, v in arrays.items()}
        output.put_arrays(transforms_path(z), **moved)


class Stack(Stage[StackParams]):
    """Pictures are moved by whole pixels to where their stacks' `origin_px` says, never resampled.

    Where several stacks have the same section, the later one wins, and one with a picture over one
    without. Sections between the first and the last that no stack has are missing.
    """

    name, version, summary = "stack", "1", "Joins stacks of sections to one, such as the batches of an open run"
    Params = StackParams
    inputs = {"stacks": InputSpec("section_stack", "stacks of some sections each, the later ones win", many=True)}
    outputs = {"stack": OutputSpec("section_stack", "all their sections on one canvas")}

    def check(self, context: Context[StackParams]) -> None:
        canvas_of(context)
        for artifact in stacks(context):
            dtype = _volume(context, f"{artifact.data_uri}/image").dtype
            if dtype.name != "uint8":
                raise UserError(f"input stacks: {artifact.uri} has {dtype} pixels, expected uint8")

    def rounds(self, context: Context[StackParams]) -> Sequence[Round]:
        return [CopySections()]

    def finish(self, context: Context[StackParams]) -> StageResult:
        canvas = canvas_of(context)
        found = [data for _, data in context.results(CopySections.name)]
        metrics = {"sections": float(len(found)), "stacks": float(len(stacks(context)))}
        for status in ("ok", "flagged", *NO_PICTURE):
            metrics[f"sections_{status}"] = float(sum(data["status"] == status for data in found))
        metrics["sections_failed"] += len(context.quarantined(CopySections.name))
        z0, z1 = canvas.bounds.minimum_xyz[2], canvas.bounds.maximum_xyz[2]
        properties = {
            "sources": [artifact.uri for artifact in stacks(context)],
            "origin_px": canvas.origin_px, "z_range": [z0, z1], "mask": canvas.mask,
        }  # fmt: skip
        output = Output("section_stack", canvas.voxel_size_nm_xyz, canvas.bounds, properties)
        return StageResult({"stack": output}, metrics)


def _volume(context: Context[Any], uri: str) -> PrecomputedVolume:
    from happyneurons.store.volumes import PrecomputedVolume

    volume: PrecomputedVolume = context.once(uri, lambda: PrecomputedVolume(uri))
    return volume


def _moved(
    volume: PrecomputedVolume, z: int, box: tuple[int, int, int, int], shift_xy: tuple[int, int]
) -> np.ndarray:  # fmt: skip
    """Block (y0, x0, y1, x1) of the canvas as a volume shows it that lies shift_xy px from there; 0 outside of it."""
    import numpy as np

    y0, x0, y1, x1 = box
    dx, dy = shift_xy
    _, top, left = volume.start_zyx
    _, bottom, right = volume.stop_zyx
    a, b = (max(y0 - dy, top), max(x0 - dx, left)), (min(y1 - dy, bottom), min(x1 - dx, right))
    block = np.zeros((y1 - y0, x1 - x0), np.uint8)
    if a[0] < b[0] and a[1] < b[1]:
        pixels = volume.read((z, *a), (z + 1, *b))[0]
        block[a[0] + dy - y0 : b[0] + dy - y0, a[1] + dx - x0 : b[1] + dx - x0] = pixels
    return block
