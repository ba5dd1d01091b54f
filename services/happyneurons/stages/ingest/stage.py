"""ingest: tiles as a microscope left them → a checked tile_set."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from happyneurons.errors import UserError
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
from happyneurons.store.documents import canonical_json, local_path

if TYPE_CHECKING:
    from happyneurons.stages.ingest.check import TileFacts
    from happyneurons.stages.ingest.layouts import Listing, TilePlan

# What a tile's picture cannot be used for anything with; blank tiles and duplicates occur in good data.
UNUSABLE = ("missing", "truncated", "wrong_size", "wrong_type")


class IngestParams(StageParams):
    source: str = Field(
        description="Folder of tiles (path or file:// URI), a TrakEM2 import list, or the URI of a batch document",
        json_schema_extra={"format": "uri-reference"},
    )
    layout: Literal["auto", "happyneurons", "pattern", "trakem2", "batch"] = Field(
        "auto",
        description="happyneurons: acquisition.json and sections/; pattern: by file names; trakem2: a text file of"
        " path, x, y, z separated by tabs, x and y in px; batch: sections of an open run, ${batch} in its pipeline",
    )
    pattern: str | None = Field(
        None,
        description="Names of the tiles below the folder: a format such as '{z}_{row}_{col}.png', or a regular"
        " expression with groups z, row, col; those left out are 0",
        json_schema_extra={"format": "regex"},
    )
    pixel_size_nm: float | None = Field(None, gt=0, le=1e6, description="Default: what the metadata say")
    section_thickness_nm: float | None = Field(None, gt=0, le=1e6, description="Default: what the metadata say")
    tile_overlap_fraction: float = Field(
        0.1, ge=0, lt=1, description="Overlap of neighbouring tiles by their size, where the layout has no positions"
    )
    z_range: tuple[int, int] | None = Field(None, description="First section and one past the last; default: all")
    missing: Literal["fail", "mark"] = Field(
        "fail", description="What a missing or damaged tile does: fail the job, or mark its section and go on"
    )
    copy_tiles: bool = Field(False, description="Copy the tiles into the store; else they stay where they are")
    blank_std: float = Field(2.0, ge=0, le=255, description="Grey value sd below which a tile is blank")

    @field_validator("z_range")
    @classmethod
    def _ordered(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and not value[0] < value[1]:
            raise ValueError("must be two numbers, the first below the second")
        return value


def source_path(params: IngestParams) -> Path:
    path = local_path(params.source)
    if path is None:
        raise UserError(f"source {params.source}: tiles are read from folders; mount or copy it, and give its path")
    if not path.exists():
        raise UserError(f"source {params.source}: there is no {path}")
    return path


def load_listing(context: Context[IngestParams]) -> Listing:
    """The source's listing; once per process."""
    from happyneurons.stages.ingest.batch import is_batch, list_batch
    from happyneurons.stages.ingest.layouts import list_source

    p = context.params

    def find() -> Listing:
        if is_batch(p.source, p.layout):
            return list_batch(p.source, p.z_range)
        return list_source(source_path(p), p.layout, p.pattern, p.z_range)

    listing: Listing = context.once("listing", find)
    return listing


def tile_form(context: Context[IngestParams]) -> tuple[int, int, str]:
    """(width, height, dtype) that tiles have, by the headers of the first section that has any."""
    from happyneurons.stages.ingest.check import usual_form

    def find() -> tuple[int, int, str]:
        listing = load_listing(context)
        for z in sorted(listing.sections):
            form = usual_form(t.place for t in listing.sections[z] if t.place is not None and t.exists)
            if form is not None:
                return form
        raise UserError(f"source {context.params.source}: none of its tiles is a readable picture (TIFF, PNG, JPEG)")

    form: tuple[int, int, str] = context.once("tile form", find)
    return form


def voxel_size(context: Context[IngestParams]) -> tuple[float, float, float]:
    p, listing = context.params, load_listing(context)
    pixel = p.pixel_size_nm or listing.pixel_size_nm
    thickness = p.section_thickness_nm or listing.section_thickness_nm
    absent = [n for n, v in (("pixel_size_nm", pixel), ("section_thickness_nm", thickness)) if v is None]
    if pixel is None or thickness is None:
        raise UserError(
            f"source {p.source} does not say its voxel size: set {' and '.join(absent)}",
            [(f"params.{name}", "needed for this layout") for name in absent],
        )
    return (pixel, pixel, thickness)


class CheckSections(Round):
    """One task a section: every tile is read whole."""

    name = "sections"

    def plan(self, context: Context[IngestParams]) -> Iterable[Task]:
        listing = load_listing(context)
        for z in listing.numbers:
            tiles = len(listing.sections.get(z, ()))
            yield Task(key=f"{z:06d}", payload={"z": z}, cost=max(1.0, float(tiles)))

    def run(self, task: Task, context: Context[IngestParams]) -> TaskResult:
        from happyneurons.stages.ingest.check import check_tile, mark_duplicates

        z, params = int(task.payload["z"]), context.params
        listing = load_listing(context)
        plans = listing.sections.get(z)
        if plans is None:
            document: dict[str, Any] = {"z": z, "status": "missing", "problem": listing.missing.get(z, ""), "tiles": []}
            context.output_store("tiles").put_json(f"sections/{z:06d}.json", document)
            return TaskResult(data={"status": "missing", "counts": {}})
        width, height, dtype = tile_form(context)
        facts = mark_duplicates([
            (t.name, check_tile(
                t.place, t.size or (width, height), dtype, params.blank_std, params.copy_tiles, t.sha256
            ))
            for t in plans
        ])  # fmt: skip
        for plan, fact in zip(plans, facts, strict=True):
            if params.missing == "fail" and fact.status in UNUSABLE:
                raise UserError(_complaint(z, plan, fact))
        tiles = [self._entry(z, t, f, context) for t, f in zip(plans, facts, strict=True)]
        status = section_status([f.status for f in facts])
        document = {"z": z, "status": status, "tiles": tiles}
        written = canonical_json(document)
        context.output_store("tiles").put(f"sections/{z:06d}.json", written)
        counts: dict[str, int] = {}
        for fact in facts:
            counts[fact.status] = counts.get(fact.status, 0) + 1
        return TaskResult(
            data={"status": status, "counts": counts, "sha256": hashlib.sha256(written).hexdigest()},
            voxels=sum(f.width * f.height for f in facts),
            bytes=sum(f.size_bytes for f in facts),
        )

    def _entry(self, z: int, plan: TilePlan, facts: TileFacts, context: Context[IngestParams]) -> dict[str, Any]:
        form = tile_form(context)
        width, height = plan.size or form[:2]
        step = 1 - context.params.tile_overlap_fraction
        uri = plan.path.as_uri() if plan.path is not None else plan.uri
        if facts.data and plan.place is not None:
            name = f"tiles/{z:06d}/r{plan.row}_c{plan.col}{Path(plan.place).suffix.lower()}"
            context.output_store("tiles").put(name, facts.data)
            uri = context.output_store("tiles").url(name)
        return {
            "uri": uri, "row": plan.row, "col": plan.col,
            "x_px": plan.col * width * step if plan.x_px is None else plan.x_px,
            "y_px": plan.row * height * step if plan.y_px is None else plan.y_px,
            "width": facts.width or width, "height": facts.height or height,
            "sha256": facts.sha256, "status": facts.status, "problem": facts.problem,
        }  # fmt: skip


def _complaint(z: int, plan: TilePlan, facts: TileFacts) -> str:
    file = plan.place or plan.name
    what = f"is missing ({file})" if facts.status == "missing" else f"cannot be used: {facts.problem}"
    return f"section {z}: tile row {plan.row}, column {plan.col} {what}; acquire it again, or set missing=mark"


def section_status(tiles: Sequence[str]) -> str:
    """ok | flagged (some tiles have a problem) | failed (none can be used) | blank (nothing on any)."""
    if all(status == "ok" for status in tiles):
        return "ok"
    if any(status == "ok" for status in tiles):
        return "flagged"
    return "blank" if all(status == "blank" for status in tiles) else "failed"


class Ingest(Stage[IngestParams]):
    """Finds tiles, reads each one, and records where it is and whether it can be used.

    Output `tiles`: a section's status is ok, flagged, failed, missing or blank; a tile's is ok, missing,
    truncated, wrong_size, wrong_type, duplicate or blank, and `problem` says what is wrong with it.
    """

    name, version, summary = "ingest", "1", "Checks tiles and records their positions"
    Params = IngestParams
    inputs: ClassVar[Mapping[str, InputSpec]] = {}
    outputs = {"tiles": OutputSpec("tile_set", "checked tiles with their nominal positions")}

    def fingerprint(self, params: IngestParams) -> str | None:
        from happyneurons.stages.ingest.batch import batch_fingerprint, is_batch
        from happyneurons.stages.ingest.layouts import listing_files

        if is_batch(params.source, params.layout):
            return batch_fingerprint(params.source)
        digest = hashlib.sha256()
        for name, size, modified in listing_files(source_path(params)):
            section = re.match(r"sections/(\d+)/", name)
            if section and params.z_range and not params.z_range[0] <= int(section[1]) < params.z_range[1]:
                continue  # so that a growing acquisition can be worked on in ranges, each done once
            digest.update(canonical_json([name, size, modified]))
        return digest.hexdigest()

    def check(self, context: Context[IngestParams]) -> None:
        listing = load_listing(context)
        voxel_size(context)
        tile_form(context)
        if context.params.missing == "fail":
            for z in listing.numbers:
                if z in listing.missing:
                    raise UserError(f"section {z} is missing: {listing.missing[z]}; acquire it, or set missing=mark")
                for plan in listing.sections[z]:
                    if not plan.exists:
                        from happyneurons.stages.ingest.check import TileFacts

                        raise UserError(_complaint(z, plan, TileFacts("missing")))

    def rounds(self, context: Context[IngestParams]) -> Sequence[Round]:
        return [CheckSections()]

    def finish(self, context: Context[IngestParams]) -> StageResult:
        listing = load_listing(context)
        width, height, dtype = tile_form(context)
        sections: dict[str, int] = {}
        tiles: dict[str, int] = {}
        for _, data in context.results("sections"):
            sections[data["status"]] = sections.get(data["status"], 0) + 1
            for status, number in data["counts"].items():
                tiles[status] = tiles.get(status, 0) + number
        size, (first, last), (cols, rows) = voxel_size(context), listing.z_range, listing.grid
        right, bottom = _extent(listing, width, height, 1 - context.params.tile_overlap_fraction)
        output = Output(
            "tile_set", size, Bounds(minimum_xyz=(0, 0, first), maximum_xyz=(right, bottom, last)),
            {
                "z_range": [first, last], "tile_width": width, "tile_height": height, "dtype": dtype,
                "pixel_size_nm": size[0], "grid": [cols, rows],
                **({"sections": listing.numbers} if listing.sparse else {}),
            },
        )  # fmt: skip
        metrics = {"sections": float(sum(sections.values())), "tiles": float(sum(tiles.values()))}
        metrics |= {f"sections_{status}": float(n) for status, n in sorted(sections.items())}
        metrics |= {f"tiles_{status}": float(n) for status, n in sorted(tiles.items())}
        return StageResult({"tiles": output}, metrics)


def _extent(listing: Listing, width: int, height: int, step: float) -> tuple[int, int]:
    """Right and lower end of the nominal canvas, px."""
    right = max((t.col * width * step if t.x_px is None else t.x_px) + width for t in listing.tiles())
    bottom = max((t.row * height * step if t.y_px is None else t.y_px) + height for t in listing.tiles())
    return round(right), round(bottom)
