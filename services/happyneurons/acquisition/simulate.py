"""A volume becomes a microscope: tiles with overlap, stage jitter, deformation, brightness changes and noise.

Each plane z of the source is one section. The section is shifted, turned and bent (`section px →
canonical px`, canonical being the source volume's own coordinates) and photographed in tiles whose
true positions differ from the nominal ones in the metadata. Every pixel is sampled once, by Lanczos
interpolation, from the source. What was done is kept under `truth/` as GridWarps, from which the
pixels were made, so the truth of a tile is exact.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from happyneurons.acquisition import metadata
from happyneurons.acquisition.noise import SmoothNoise
from happyneurons.acquisition.truth import tile_prefix, truth_path
from happyneurons.errors import UserError
from happyneurons.imaging.warp import GridWarp
from happyneurons.store.documents import local_path, npz_bytes
from happyneurons.store.volumes import Volume, absolute_uri, open_volume

Fault = Literal[
    "missing_tile", "truncated", "blank", "duplicate", "wrong_size", "missing_section", "blank_section"
]  # fmt: skip
FAULTS: tuple[str, ...] = get_args(Fault)

NODE_SPACING_PX = 16.0  # of the truth's grids
SLAB_BYTES = 256 << 20  # source planes held at a time; chunked sources are read many planes at once
TALLEST_SLAB = 64
BAND = 256  # rows of a tile made at a time
REACH = 8  # px that Lanczos interpolation and rounding look beyond a point


@dataclass(frozen=True)
class Distortion:
    """What the simulated microscope does to the tissue. All random figures are drawn anew for each section.

    stage_jitter_px: sd of each tile's true position about its nominal one (cut at 2 sd).
    section_shift_px, section_rotation_deg: largest shift and turn of a section, uniform.
    elastic_px: rms of a smooth random bending of the section, correlated over `elastic_scale_px`.
    brightness (grey values), contrast (relative): sd per tile. noise: sd of a pixel, grey values.
    vignetting: darkening of a tile's corners, relative.
    """

    stage_jitter_px: float = 2.0
    section_shift_px: float = 6.0
    section_rotation_deg: float = 1.0
    elastic_px: float = 1.5
    elastic_scale_px: float = 150.0
    brightness: float = 5.0
    contrast: float = 0.05
    noise: float = 3.0
    vignetting: float = 0.08


@dataclass(frozen=True)
class _Plan:
    """The fixed geometry. The section frame lies `margin` inside the source plane (border = crop)."""

    start_zyx: tuple[int, int, int]
    plane_height: int
    plane_width: int
    margin: int
    cols: int
    rows: int
    tile_width: int
    tile_height: int
    overlap: int

    @property
    def width(self) -> int:
        return self.plane_width - 2 * self.margin

    @property
    def height(self) -> int:
        return self.plane_height - 2 * self.margin

    def tiles(self) -> Iterator[tuple[int, int, int, int]]:
        """(row, col, x, y): nominal position of the tile's first pixel in the section frame."""
        for row in range(self.rows):
            for col in range(self.cols):
                yield row, col, col * (self.tile_width - self.overlap), row * (self.tile_height - self.overlap)


def simulate_acquisition(
    image_uri: str,
    folder: str | Path,
    *,
    labels_uri: str | None = None,
    tiles: tuple[int, int] = (2, 1),
    overlap_px: int | None = None,
    sections: tuple[int, int] | None = None,
    border: Literal["crop", "reflect"] = "crop",
    seed: int = 0,
    pace_s: float = 0.0,
    faults: Mapping[int, str] | None = None,
    on_section: Callable[[int, Path], None] | None = None,
    wait: Callable[[float], None] = time.sleep,
    voxel_size_nm_xyz: tuple[float, float, float] | None = None,
    **distortion: float,
) -> metadata.AcquisitionDocument:
    """Photograph a uint8 volume into an acquisition folder (see `metadata`); returns its document.

    tiles: (cols, rows). overlap_px: default 12 % of a tile, at least 24 px. sections: (z0, z1) in the
    source's coordinates, default all. distortion: fields of :class:`Distortion`.

    border: the sections wander, so a picture as large as the source would show what lies beside it.
    `crop` photographs only what is always inside (tiles never show anything but tissue, and the truth
    holds everywhere); the section frame then starts `margin` px inside the source. `reflect` covers
    the whole source and mirrors it beyond its border.

    pace_s: seconds from one section's start to the next, by a monotonic clock; `wait` does the waiting.
    faults: {z: one of FAULTS}; a tile's fault befalls the section's last tile.
    on_section(z, section folder) is called after each section, also for those that were there already.

    Doing it again with the same settings keeps complete sections and makes the others; other settings
    in the same folder are refused. Memory: a slab of source planes and one tile.
    Raises UserError for impossible settings.
    """
    path = local_path(str(folder))
    if path is None:
        raise UserError(f"acquisition folder {folder}: must be a local path or file:// URI")
    try:
        how = Distortion(**distortion)
    except TypeError:
        unknown = ", ".join(sorted(set(distortion) - set(asdict(Distortion()))))
        raise UserError(f"simulate: no such setting: {unknown}; there are {', '.join(asdict(Distortion()))}") from None
    for z, name in (faults or {}).items():
        if name not in FAULTS:
            raise UserError(f"simulate: section {z}: no fault {name!r}; there are {', '.join(FAULTS)}")
    image_uri = absolute_uri(image_uri)
    labels_uri = None if labels_uri is None else absolute_uri(labels_uri)
    source = open_volume(image_uri)
    if source.dtype != np.uint8:
        raise UserError(f"{image_uri}: expected an image of uint8, found {source.dtype}")
    z0, z1 = sections or (source.start_zyx[0], source.stop_zyx[0])
    if not source.start_zyx[0] <= z0 < z1 <= source.stop_zyx[0]:
        raise UserError(f"sections {z0}:{z1} are not in {image_uri} ({source.start_zyx[0]}:{source.stop_zyx[0]})")
    plan = _make_plan(source, tiles, overlap_px, how, border)
    size = voxel_size_nm_xyz or source.voxel_size_nm_xyz
    settings = {
        "image_uri": image_uri, "seed": seed, "border": border, "margin_px": plan.margin, **asdict(how),
        "faults": {str(z): fault for z, fault in sorted((faults or {}).items())},
    }  # fmt: skip
    document = metadata.AcquisitionDocument(
        voxel_size_nm_xyz=size, cols=plan.cols, rows=plan.rows, tile_width_px=plan.tile_width,
        tile_height_px=plan.tile_height, overlap_px=plan.overlap, z_range=(z0, z1), pace_s=pace_s,
        simulation=settings,
    )  # fmt: skip
    _begin(path, document, labels_uri)
    began = time.monotonic()
    late = 0
    for z, plane in _planes(source, range(z0, z1), lambda z: _complete(path, z)):
        if plane is not None:
            if pace_s:
                wait(max(0.0, began + late * pace_s - time.monotonic()))
                late += 1
            fault = (faults or {}).get(z)
            if fault != "missing_section":
                _photograph(path, z, plane, plan, how, seed, size, fault)
        if on_section is not None and _complete(path, z):
            on_section(z, metadata.section_folder(path, z))
    return document


def _make_plan(source: Volume, tiles: tuple[int, int], overlap_px: int | None, how: Distortion, border: str) -> _Plan:
    cols, rows = tiles
    _, ny, nx = (b - a for a, b in zip(source.start_zyx, source.stop_zyx, strict=True))
    turn = np.deg2rad(how.section_rotation_deg) * np.hypot(ny, nx) / 2
    reach = how.section_shift_px + turn + 3.0 * how.elastic_px + 2.0 * how.stage_jitter_px
    margin = int(np.ceil(reach)) + 4 if border == "crop" else 0  # 4: reach of the Lanczos kernel
    width, height = nx - 2 * margin, ny - 2 * margin

    def split(length: int, count: int) -> tuple[int, int]:
        overlap = max(24, round(0.12 * length / count)) if overlap_px is None else overlap_px
        return (length + (count - 1) * overlap) // count if count > 1 else length, overlap

    (tile_width, overlap_x), (tile_height, overlap_y) = split(width, cols), split(height, rows)
    overlap = max(overlap_x if cols > 1 else 0, overlap_y if rows > 1 else 0)
    tile_width = (width + (cols - 1) * overlap) // cols
    tile_height = (height + (rows - 1) * overlap) // rows
    if min(cols, rows) < 1 or min(tile_width, tile_height) < max(32, 2 * overlap if max(cols, rows) > 1 else 0):
        raise UserError(
            f"simulate: {cols} x {rows} tiles with {overlap} px overlap do not fit into a plane of {nx} x {ny} px"
            f" with margins of {margin} px; take fewer tiles, less overlap or distortion, or border=reflect"
        )
    z, y, x = source.start_zyx
    return _Plan((z, y, x), ny, nx, margin, cols, rows, tile_width, tile_height, overlap)


def _begin(path: Path, document: metadata.AcquisitionDocument, labels_uri: str | None) -> None:
    file = path / metadata.ACQUISITION_FILE
    begun = file.exists()
    if begun:
        there = metadata.read_document(file, metadata.AcquisitionDocument)
        if there.model_copy(update={"pace_s": document.pace_s}) != document:
            raise UserError(f"{path} holds an acquisition with other settings; give another folder or remove it")
    settings = document.simulation or {}
    truth = {"image_uri": settings["image_uri"], "labels_uri": labels_uri, "seed": settings["seed"]}
    metadata.write_document(path / "truth" / "truth.json", truth)
    if not begun:
        metadata.write_document(file, document)


def _complete(path: Path, z: int) -> bool:
    return (metadata.section_folder(path, z) / metadata.SECTION_FILE).exists()


def _planes(
    source: Volume, sections: range, done: Callable[[int], bool]
) -> Iterator[tuple[int, NDArray[np.uint8] | None]]:
    """(z, plane) of each section, read in slabs of bounded size; None in place of what is done."""
    (_, y0, x0), (_, y1, x1) = source.start_zyx, source.stop_zyx
    tall = int(np.clip(SLAB_BYTES // ((y1 - y0) * (x1 - x0)), 1, TALLEST_SLAB))
    z = sections.start
    while z < sections.stop:
        # Slabs end where chunks do in most volumes, so that no chunk is read twice.
        stop = min(sections.stop, (z // tall + 1) * tall)
        todo = [i for i in range(z, stop) if not done(i)]
        slab = source.read((todo[0], y0, x0), (todo[-1] + 1, y1, x1)) if todo else None
        for i in range(z, stop):
            yield i, slab[i - todo[0]] if slab is not None and i in todo else None
        z = stop


def section_warp(plan: _Plan, how: Distortion, rng: np.random.Generator) -> GridWarp:
    """Ideal section px → canonical px: shift, turn about the middle, smooth bending."""
    shift = rng.uniform(-1, 1, 2) * how.section_shift_px / np.sqrt(2)
    angle = np.deg2rad(rng.uniform(-1, 1) * how.section_rotation_deg)
    nodes_x = int(np.ceil(plan.width / NODE_SPACING_PX)) + 3
    nodes_y = int(np.ceil(plan.height / NODE_SPACING_PX)) + 3
    # One node before the frame and one after, for the stage's jitter.
    x, y = (NODE_SPACING_PX * (np.arange(n) - 1.0) for n in (nodes_x, nodes_y))
    grid = np.stack(np.meshgrid(x, y), -1)
    middle = (np.array([plan.width, plan.height]) - 1) / 2
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corner = np.array([plan.start_zyx[2], plan.start_zyx[1]]) + plan.margin
    nodes = (grid - middle) @ turn.T + middle + corner + shift
    if how.elastic_px > 0:
        extent = (float(y[-1] - y[0]), float(x[-1] - x[0]))
        for axis in range(2):
            field = SmoothNoise(extent, how.elastic_scale_px, rng)(y - y[0], x - x[0]).astype(np.float64)
            # Cut at 2.1 sd (the two components together at 3), which the margin allows for.
            nodes[..., axis] += how.elastic_px * np.clip(field, -2.1, 2.1)
    return GridWarp((x[0], y[0]), NODE_SPACING_PX, nodes)


def _photograph(
    path: Path, z: int, plane: NDArray[np.uint8], plan: _Plan, how: Distortion, seed: int,
    size: tuple[float, float, float], fault: str | None,
) -> None:  # fmt: skip
    """Make one section: truth, tiles, and last of all its document."""
    rng = np.random.default_rng([seed, z])
    section = section_warp(plan, how, rng)
    truth = section.arrays("section")
    entries: list[metadata.TileEntry] = []
    target = metadata.section_folder(path, z)
    last = plan.cols * plan.rows - 1
    first_bytes = b""
    for number, (row, col, x, y) in enumerate(plan.tiles()):
        jitter = np.clip(rng.normal(0, how.stage_jitter_px, 2), -2 * how.stage_jitter_px, 2 * how.stage_jitter_px)
        place = GridWarp.translation(
            np.array([x, y]) + jitter, plan.tile_width, plan.tile_height, spacing_px=NODE_SPACING_PX
        )
        warp = place.then(section)
        truth |= warp.arrays(tile_prefix(row, col))
        pixels = _expose(plane, warp, plan, how, rng)
        tile_fault = fault if number == last or fault == "blank_section" else None
        if tile_fault in ("blank", "blank_section"):
            pixels = np.full_like(pixels, 128)
        elif tile_fault == "wrong_size":
            pixels = pixels[: plan.tile_height // 2]
        data = _tiff(pixels)
        if tile_fault == "duplicate" and last > 0:
            data = first_bytes
        elif tile_fault == "truncated":
            data = data[: len(data) // 2]
        first_bytes = first_bytes or data
        if tile_fault != "missing_tile":
            metadata.write_file(target / metadata.tile_file(row, col), data)
        entries.append(
            metadata.TileEntry(
                file=metadata.tile_file(row, col), row=row, col=col, stage_x_nm=x * size[0], stage_y_nm=y * size[1],
                width_px=plan.tile_width, height_px=plan.tile_height,
            )
        )  # fmt: skip
    metadata.write_file(truth_path(path, z), npz_bytes(**truth))
    document = metadata.SectionDocument(
        z=z, acquired_at=datetime.now(UTC).isoformat(timespec="seconds"), pixel_size_nm=size[0], tiles=tuple(entries)
    )
    metadata.write_document(target / metadata.SECTION_FILE, document)


def _expose(
    plane: NDArray[np.uint8], warp: GridWarp, plan: _Plan, how: Distortion, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """The picture of one tile, uint8 (height, width), made in bands of rows."""
    import cv2

    height, width = plan.tile_height, plan.tile_width
    brightness = np.float32(rng.normal(0, how.brightness))
    contrast = np.float32(1 + rng.normal(0, how.contrast))
    corner = np.array([plan.start_zyx[2], plan.start_zyx[1]])
    tile = np.empty((height, width), np.uint8)
    x = np.arange(width, dtype=np.float64)
    for top in range(0, height, BAND):
        y = np.arange(top, min(height, top + BAND), dtype=np.float64)
        points = warp.map(np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)) - corner
        # Only what the band shows of the plane: cv2.remap takes no picture of more than 32767 px.
        low = np.maximum(np.floor(points.min(0)).astype(int) - REACH, 0)
        high = np.ceil(points.max(0)).astype(int) + REACH + 1
        field = (points - low).astype(np.float32).reshape(len(y), width, 2)
        crop = np.ascontiguousarray(plane[low[1] : high[1], low[0] : high[0]])
        sampled = cv2.remap(crop, field[..., 0], field[..., 1], cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REFLECT_101)
        grey = (sampled.astype(np.float32) - 128) * contrast + (128 + brightness)
        radius2 = 2 * ((x / width - 0.5)[np.newaxis] ** 2 + (y / height - 0.5)[:, np.newaxis] ** 2)
        grey *= (1 - how.vignetting * radius2).astype(np.float32)
        grey += np.float32(how.noise) * rng.standard_normal(grey.shape, dtype=np.float32)
        tile[top : top + BAND] = np.clip(np.rint(grey), 0, 255)
    return tile


def _tiff(pixels: NDArray[np.uint8]) -> bytes:
    import tifffile

    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, compression=None, metadata=None, photometric="minisblack", software=False)
    return buffer.getvalue()


def describe_settings() -> dict[str, Any]:
    """Names and defaults of the distortion settings, for a command line or form."""
    return asdict(Distortion())
