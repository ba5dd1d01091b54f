"""Montage: overlapping tiles → one picture for each section."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from happyneurons.errors import NotFoundError, TaskError, UserError
from happyneurons.jobs.stage import (
    Context,
    InputSpec,
    Output,
    OutputSpec,
    Round,
    Stage,
    StageResult,
    Task,
    TaskResult,
)
from happyneurons.stages.montage.params import MontageParams
from happyneurons.stages.montage.sets import Stopwatch, put_tables, put_times, read_times, set_table, with_times
from happyneurons.stages.montage.sets import metrics as set_metrics
from happyneurons.store.artifacts import Bounds

if TYPE_CHECKING:
    import numpy as np

    from happyneurons.stages.montage.optics import Optics
    from happyneurons.stages.montage.section import Found
    from happyneurons.stages.montage.tiles import Section
    from happyneurons.store.documents import Store
    from happyneurons.store.volumes import PrecomputedVolume

CHUNK_PX = 1024
# A canvas this many times larger than a section means that sections lie apart on the wafer.
_SCATTERED = 16
# Sections of these kinds are passed on without a picture.
_NO_PICTURE = ("failed", "missing", "blank")


@dataclass(frozen=True)
class Canvas:
    """What all sections are drawn on: x from 0 to width, y from 0 to height, z_start <= z < z_stop.

    origin_px: nominal px of its corner, None where each section has its own.
    """

    width: int
    height: int
    z_start: int
    z_stop: int
    origin_px: tuple[int, int] | None


def section_numbers(context: Context[Any]) -> Sequence[int]:
    """The sections to join, ascending: those that the tile set names, or all of its range."""
    properties = context.input("tiles").properties
    return [int(z) for z in properties.get("sections") or range(*properties["z_range"])]


def plan_canvas(context: Context[MontageParams]) -> Canvas:
    """The canvas from the documents of all sections. Raises UserError if there is no tile at all."""

    def make() -> Canvas:
        tiles = context.input("tiles")
        bounds = tiles.properties.get("z_range")
        if not bounds or bounds[1] <= bounds[0]:
            raise UserError(f"input tiles: {tiles.uri} holds no sections (z_range {bounds})")
        start, stop = int(bounds[0]), int(bounds[1])
        with ThreadPoolExecutor(8) as pool:
            documents = list(pool.map(lambda z: section_document(context, z), section_numbers(context)))
        boxes = [box for box in (_nominal_box(d) for d in documents) if box]
        if not boxes:
            raise UserError(f"input tiles: none of the {len(documents)} sections of {tiles.uri} has a tile")
        margin = context.params.margin_px
        width = max(b[2] - b[0] for b in boxes)
        height = max(b[3] - b[1] for b in boxes)
        origin = None
        if context.params.origin == "stage":
            x0, y0 = math.floor(min(b[0] for b in boxes)), math.floor(min(b[1] for b in boxes))
            full_width, full_height = max(b[2] for b in boxes) - x0, max(b[3] for b in boxes) - y0
            if full_width * full_height > _SCATTERED * width * height:
                raise UserError(
                    f"the sections of {tiles.uri} are spread over {full_width:.0f} x {full_height:.0f} px of stage "
                    f"coordinates, a section has {width:.0f} x {height:.0f} px: set origin to 'section'"
                )
            width, height, origin = full_width, full_height, (x0 - margin, y0 - margin)
        return Canvas(math.ceil(width) + 2 * margin, math.ceil(height) + 2 * margin, start, stop, origin)

    canvas: Canvas = context.once("canvas", make)
    return canvas


def section_document(context: Context[MontageParams], z: int) -> Mapping[str, Any]:
    """A section's document of the tile set; one that is not there counts as missing."""
    from happyneurons.stages.montage.tiles import section_path

    store = context.once("tiles", context.input("tiles").store)
    try:
        document: Mapping[str, Any] = store.get_json(section_path(z))
    except NotFoundError:
        return {"z": z, "status": "missing", "tiles": []}
    return document


def _nominal_box(document: Mapping[str, Any]) -> tuple[float, float, float, float] | None:
    """(x0, y0, x1, y1) of a section's tiles, those without a picture included: they keep the frame in place."""
    tiles = [t for t in document.get("tiles", []) if t.get("width") and t.get("x_px") is not None]
    if not tiles:
        return None
    return (
        min(t["x_px"] for t in tiles), min(t["y_px"] for t in tiles),
        max(t["x_px"] + t["width"] for t in tiles), max(t["y_px"] + t["height"] for t in tiles),
    )  # fmt: skip


def _matches_path(z: int) -> str:
    return f"optics/{z:06d}.npz"


class SeeOptics(Round):
    """Some sections, spread over the stack, are matched first: together they tell the optics (see `optics`)."""

    name = "optics"

    def plan(self, context: Context[Any]) -> Iterator[Task]:
        numbers, most = section_numbers(context), context.params.optics_sections
        count = min(len(numbers), most)
        # One section cannot agree with others: its tiles need not be read twice.
        for i in range(count if count > 1 else 0):
            z = numbers[i * len(numbers) // count]
            yield Task(key=f"{z:06d}", payload={"z": z})

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        import cv2

        from happyneurons.stages.montage.match import matches_to_arrays
        from happyneurons.stages.montage.optics import see_optics
        from happyneurons.stages.montage.tiles import TileReader, parse_section

        cv2.setNumThreads(context.threads)
        z: int = task.payload["z"]
        params: MontageParams = context.params
        section = parse_section(section_document(context, z))
        if section.status in _NO_PICTURE or len(section.tiles) < 2:
            return TaskResult(data={})
        reader = TileReader(params.grey_range, params.tile_cache_mb * 1_000_000)
        watch = Stopwatch()
        seen, found = see_optics(section, params, reader)
        if found is not None:
            # The section is drawn in another round, maybe by another rank, which need not match it again.
            context.output_store("stack").put_arrays(_matches_path(z), **matches_to_arrays(found))
            put_times(context, z, [watch.tried(params.sets[0].name, "")], "-optics")
        return TaskResult(data=seen)


def found_optics(context: Context[Any]) -> Optics:
    """After the round `optics`."""

    def solve() -> Optics:
        from happyneurons.stages.montage.optics import solve_optics

        known = context.params.optics is not None
        seen = () if known else (data for _, data in context.results(SeeOptics.name))
        return solve_optics(seen, context.params)

    optics: Optics = context.once("optics", solve)
    return optics


def _seen_matches(output: Store, z: int) -> Found | None:
    """What the round `optics` matched in a section; None if it did not look at it."""
    from happyneurons.stages.montage.match import matches_from_arrays

    try:
        return matches_from_arrays(output.get_arrays(_matches_path(z)))
    except NotFoundError:
        return None


class MontageSections(Round):
    name = "sections"

    def prepare(self, context: Context[Any]) -> None:
        from happyneurons.store.volumes import create_volume

        canvas = plan_canvas(context)
        create_volume(
            f"{context.output_uri('stack')}/image",
            start_zyx=(canvas.z_start, 0, 0),
            stop_zyx=(canvas.z_stop, canvas.height, canvas.width),
            voxel_size_nm_xyz=voxel_size_nm_xyz(context),
            dtype="uint8",
            layer_type="image",
            chunk_zyx=(1, CHUNK_PX, CHUNK_PX),
        )

    def plan(self, context: Context[Any]) -> Iterator[Task]:
        canvas = plan_canvas(context)
        geometry = {"canvas": [canvas.width, canvas.height], "origin": canvas.origin_px}
        for z in section_numbers(context):
            yield Task(key=f"{z:06d}", payload={"z": z, **geometry})

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        import cv2

        from happyneurons.imaging.transforms import transforms_path
        from happyneurons.stages.montage import section as work
        from happyneurons.stages.montage.render import Box
        from happyneurons.stages.montage.tiles import TileReader, parse_section

        cv2.setNumThreads(context.threads)
        z: int = task.payload["z"]
        width, height = task.payload["canvas"]
        params: MontageParams = context.params
        output = context.output_store("stack")
        document = section_document(context, z)
        section = parse_section(document)
        if section.status in _NO_PICTURE or not section.tiles:
            status = section.status if section.status in _NO_PICTURE else "missing"
            reason = "; ".join(section.problems) or f"the tile set says {status}"
            return self._done(context, {"z": z, "status": status, "reason": reason, "tiles": 0}, 0)
        volume: PrecomputedVolume = context.once("image", lambda: _open_image(context))
        canvas = Box(0, 0, width, height)
        reader = TileReader(params.grey_range, params.tile_cache_mb * 1_000_000)
        origin = self._origin(task, document, section, params)

        def write(box: Box, picture: np.ndarray) -> None:
            volume.write((z, box.y0, box.x0), picture[None])

        try:
            if params.backend == "trakem2":
                from happyneurons.stages.montage import trakem2

                montage = trakem2.montage_section(section, context, reader, origin, canvas, CHUNK_PX, write)
            else:
                optics = found_optics(context)
                montage = work.montage_section(
                    section, params, reader, origin, optics.lens, optics.shading, _seen_matches(output, z)
                )
        except TaskError as error:
            return self._done(context, {"z": z, "status": "failed", "reason": str(error), "tiles": 0}, 0)
        put_times(context, z, montage.tries)
        if montage.figures["status"] == "failed":
            return self._done(context, montage.figures, 0)
        if params.backend == "native":
            montage = work.cropped(montage, canvas)
            work.draw(montage, canvas, CHUNK_PX, params, reader, write, context.threads)
        output.put_arrays(transforms_path(z), **work.transform_arrays(montage.layers))
        return self._done(context, montage.figures, width * height)

    @staticmethod
    def _origin(
        task: Task, document: Mapping[str, Any], section: Section, params: MontageParams
    ) -> tuple[float, float]:
        """Nominal px that become (0, 0) of the canvas: whole px, so that nothing is resampled for it."""
        if task.payload["origin"] is not None:
            x, y = task.payload["origin"]
            return float(x), float(y)
        box = _nominal_box(document) or (*section.origin_px, 0.0, 0.0)
        return float(math.floor(box[0]) - params.margin_px), float(math.floor(box[1]) - params.margin_px)

    @staticmethod
    def _done(context: Context[Any], figures: dict[str, Any], voxels: int) -> TaskResult:
        from happyneurons.stages.montage.tiles import section_path

        context.output_store("stack").put_json(section_path(figures["z"]), figures)
        if figures["status"] not in ("ok", "blank"):
            context.log.warning("section %d is %s: %s", figures["z"], figures["status"], figures["reason"])
        kept = ("z", "status", "parameter_set", "sets_tried", "seam_median_px", "seam_p95_px", "matches", "confidence")
        return TaskResult(data={k: figures[k] for k in kept if k in figures}, voxels=voxels, bytes=voxels)


class Montage(Stage[MontageParams]):
    name, version = "montage", "4"
    summary = "Joins the tiles of each section to one picture: elastic, evened out, with seam residuals and a verdict"
    Params = MontageParams
    inputs = {"tiles": InputSpec("tile_set", "tiles with their nominal stage positions")}
    outputs = {"stack": OutputSpec("section_stack", "one picture for each section, not yet aligned to each other")}

    def check(self, context: Context[MontageParams]) -> None:
        plan_canvas(context)
        if context.params.backend == "trakem2":
            from happyneurons.stages.montage.trakem2 import executable

            executable()

    def rounds(self, context: Context[MontageParams]) -> Sequence[Round]:
        # TrakEM2 moves and turns tiles only, and draws them itself: it has no use for the optics.
        if context.params.backend == "trakem2" or context.params.optics is not None:
            return [MontageSections()]
        return [SeeOptics(), MontageSections()]

    def finish(self, context: Context[MontageParams]) -> StageResult:
        import numpy as np

        canvas = plan_canvas(context)
        sections = [data for _, data in context.results(MontageSections.name)]
        metrics: dict[str, float] = {
            f"sections_{status}": sum(s["status"] == status for s in sections)
            for status in ("ok", "flagged", "failed", "missing", "blank")
        }
        metrics["sections_failed"] += len(context.quarantined(MontageSections.name))
        for name in context.params.set_names:
            metrics[f"sections_by_set_{name}"] = sum(s.get("parameter_set") == name for s in sections)
        metrics |= _report_sets(context, sections)
        for name in ("seam_median_px", "seam_p95_px", "confidence"):
            values = [s[name] for s in sections if s.get(name) is not None]
            if values:
                metrics[name] = round(float(np.median(values)), 3)
        p95 = [s["seam_p95_px"] for s in sections if s.get("seam_p95_px") is not None]
        if p95:
            metrics["seam_p95_worst_px"] = max(p95)
        if context.params.backend == "native":
            optics, store = found_optics(context), context.output_store("stack")
            metrics |= optics.figures()
            if (document := optics.document()) is not None:
                store.put_json("optics.json", document)
            for path in list(store.list("optics")):
                store.delete(path)
        output = Output(
            "section_stack",
            voxel_size_nm_xyz=voxel_size_nm_xyz(context),
            bounds=Bounds(minimum_xyz=(0, 0, canvas.z_start), maximum_xyz=(canvas.width, canvas.height, canvas.z_stop)),
            properties={
                "source": context.input("tiles").uri,
                "origin_px": canvas.origin_px,
                "z_range": [canvas.z_start, canvas.z_stop],
            },
        )
        return StageResult(outputs={"stack": output}, metrics=metrics)


def _report_sets(context: Context[MontageParams], sections: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Write the table of parameter sets; returns the metrics from it. sections: results of the tasks."""
    rows = set_table(context.params.set_names, [s.get("sets_tried", {}) for s in sections])
    rows = with_times(rows, read_times(context, [int(s["z"]) for s in sections]))
    put_tables(context, "stack", rows)
    return set_metrics(rows)


def voxel_size_nm_xyz(context: Context[Any]) -> tuple[float, float, float]:
    tiles = context.input("tiles")
    if tiles.voxel_size_nm_xyz is not None:
        return tiles.voxel_size_nm_xyz
    pixel = float(tiles.properties.get("pixel_size_nm", 1.0))
    return (pixel, pixel, float(tiles.properties.get("section_thickness_nm", pixel)))


def _open_image(context: Context[Any]) -> PrecomputedVolume:
    from happyneurons.store.volumes import open_volume

    volume = open_volume(f"{context.output_uri('stack')}/image")
    return volume  # type: ignore[return-value]
