"""TrakEM2 as the montage's backend: runs it in Fiji, checks what it left, judges it as our own placements are.

TrakEM2 (GPL) is only ever called as a process. What it is told to do is trakem2_montage.bsh beside this file,
which also says what it leaves. The picture of a section is TrakEM2's own export, moved to its place on the
canvas by whole px; where its tiles lie are the affine maps that the macro writes. Seams are measured by our own
matcher.

TrakEM2's coordinates belong to corners of px, ours to their centres: for a tile that is turned by an angle the
two differ by half a px times the angle, which is nothing.
"""

from __future__ import annotations

import csv
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from happyneurons.errors import TaskError, UserError
from happyneurons.imaging.warp import GridWarp
from happyneurons.jobs.programs import last_words, run_program
from happyneurons.jobs.stage import Context
from happyneurons.stages.montage.match import PairMatches, match_pair
from happyneurons.stages.montage.params import MontageParams, OctaveSet
from happyneurons.stages.montage.render import Box, Layer, blocks
from happyneurons.stages.montage.section import (
    Montage,
    Verdict,
    cropped,
    judge,
    predicted_shift,
    readable,
    section_figures,
)
from happyneurons.stages.montage.sets import Stopwatch, Try, verdicts
from happyneurons.stages.montage.solve import Placement, joined_groups
from happyneurons.stages.montage.tiles import Section, Tile, TileReader, neighbours

Floats = NDArray[np.float64]

EXECUTABLE_VARIABLE = "HPN_TRAKEM2"
MACRO = Path(__file__).with_name("trakem2_montage.bsh")
# A picture is one Java array.
_MAX_PIXELS = 2**31 - 1
# Tiles of one microscope have one scale: an affine map that changes areas more than this is nonsense.
_AREA_RANGE = (0.8, 1.25)
# Tiles may stick out of TrakEM2's picture by rounding only.
_ROUNDING_PX = 2.0


@dataclass(frozen=True)
class Export:
    """What TrakEM2 left of a section. warps: tile px → px of the picture, in the order of the tiles."""

    picture: Path
    width: int
    height: int
    warps: list[GridWarp]


@dataclass(frozen=True)
class _Candidate:
    settings: OctaveSet
    export: Export
    placement: Placement
    verdict: Verdict


def executable() -> Path:
    """Fiji's launcher, from HPN_TRAKEM2. Raises UserError that says what to install and set."""
    value = os.environ.get(EXECUTABLE_VARIABLE, "")
    advice = (
        "install Fiji (https://fiji.sc, TrakEM2 comes with it) on all nodes and set "
        f"{EXECUTABLE_VARIABLE} to its launcher, …/Fiji.app/ImageJ-linux64"
    )
    if not value:
        raise UserError(f"montage with backend trakem2: {EXECUTABLE_VARIABLE} is not set: {advice}")
    found = shutil.which(value)
    if found is None:
        raise UserError(
            f"montage with backend trakem2: {EXECUTABLE_VARIABLE} is {value}, no program that can be run: {advice}"
        )
    return Path(found).absolute()


def log_path(job_key: str, z: int, settings: OctaveSet) -> str:
    """Path in the store of what TrakEM2 said of a section.

    It tells times, and the bytes of a stack depend on nothing but its job: so it lies beside the manifest.
    """
    return f"jobs/{job_key}/trakem2/{z:06d}_{settings.name}.log"


def montage_section(
    section: Section, context: Context[MontageParams], reader: TileReader, origin_xy: tuple[float, float],
    canvas: Box, chunk_px: int, write: Callable[[Box, np.ndarray], None],
) -> Montage:  # fmt: skip
    """Have TrakEM2 place a section's tiles, with one set after the other until one gives an ok; else the best stays.

    origin_xy: nominal px that become (0, 0) of the canvas. The picture goes to `write`, block after
    block, uint8 (y, x). If every set failed, the status is failed and there are no layers.

    Raises TaskError (no tile can be read), UserError (no TrakEM2, section too large), DrainedError.
    """
    params = context.params
    program = executable()
    tiles, damaged = readable(section, reader)
    nominal = np.array([[t.x_px, t.y_px] for t in tiles]) - origin_xy
    size = _nominal_size(tiles)
    if size[0] * size[1] > _MAX_PIXELS:
        raise UserError(
            f"section {section.z} has {size[0]:.0f} x {size[1]:.0f} px: TrakEM2 can export {_MAX_PIXELS} px at most; "
            "use the native backend"
        )
    best: _Candidate | None = None
    tries: list[Try] = []
    failures = []
    # A folder of this rank and section: TrakEM2 projects must not share one.
    with tempfile.TemporaryDirectory(prefix=f"trakem2-{section.z:06d}-", dir=context.scratch) as name:
        folder = Path(name)
        listing = _write_tiles(folder, section.z, tiles, nominal, reader)
        for settings in params.octave_sets:
            watch = Stopwatch()
            project, log = folder / settings.name, folder / f"{settings.name}.log"
            project.mkdir()
            try:
                run_trakem2(
                    [str(program), *_arguments(listing, project, settings)], log, timeout_s=params.trakem2_timeout_s,
                    threads=context.threads, stopping=context.stopping,
                )  # fmt: skip
                export = read_export(project, section.z, tiles, size, params.max_size_deviation)
                candidate = _Candidate(settings, export, *measure(tiles, export.warps, params, reader))
            except TaskError as error:
                tries.append(watch.tried(settings.name, "failed"))
                failures.append(f"{settings.name}: {error}")
            else:
                tries.append(watch.tried(settings.name, "flagged" if candidate.verdict.reasons else "ok"))
                if best is None or candidate.verdict.rank < best.verdict.rank:
                    if best is not None:
                        shutil.rmtree(folder / best.settings.name, ignore_errors=True)
                    best = candidate
            context.store.put_file(log_path(context.job_key, section.z, settings), log)
            if best is None or best.settings != settings:
                shutil.rmtree(project, ignore_errors=True)
            if tries[-1].verdict == "ok":
                break
        if best is None:
            reason = "; ".join([*section.problems, *damaged, *failures])
            failed = {"z": section.z, "status": "failed", "reason": reason, "tiles": 0, "sets_tried": verdicts(tries)}
            return Montage([], failed, tuple(tries))
        shift = _place_on_canvas(tiles, nominal, best.placement)
        layers = [Layer(t, w.translated(shift)) for t, w in zip(tiles, best.export.warps, strict=True)]
        figures = section_figures(
            section, layers, damaged, best.placement, best.verdict, best.settings.name, tries
        )  # fmt: skip
        montage = cropped(Montage(layers, figures, tuple(tries)), canvas)
        _draw(best.export, layers, shift, canvas, chunk_px, write)
        return montage


# --- running it ------------------------------------------------------------------------------


def run_trakem2(
    command: Sequence[str], log: Path, *, timeout_s: float, threads: int, stopping: Callable[[], bool]
) -> None:
    """Run TrakEM2 to its end; what it says goes to `log`.

    Raises TaskError if it fails or takes too long, UserError if it cannot be started, DrainedError
    if `stopping` says so. When this returns or raises, no process of it is left.
    """
    try:
        code = run_program(
            command, log, folder=log.parent, environment=_environment(threads), limit_s=timeout_s, stopping=stopping
        )
    except TimeoutError:
        raise TaskError(f"TrakEM2 was ended after {timeout_s:g} s (trakem2_timeout_s)") from None
    except OSError as error:
        raise UserError(f"{EXECUTABLE_VARIABLE}: {command[0]} cannot be started: {error}") from error
    if code != 0:
        # A Java stack trace names its cause first, then the places.
        raise TaskError(f"TrakEM2 ended with {code}: {last_words(log, 'at ')}")


def _arguments(listing: Path, project: Path, settings: OctaveSet) -> list[str]:
    return [
        "--headless",
        f"-Dinput={listing}",
        f"-Doutput={project}",
        f"-Dmin={settings.min_octave_size_px}",
        f"-Dmax={settings.max_octave_size_px}",
        "--",
        "--no-splash",
        str(MACRO),
    ]


def _environment(threads: int) -> dict[str, str]:
    """TrakEM2 takes all processors that Java tells of: they are to be those of this rank."""
    options = ["-XX:+IgnoreUnrecognizedVMOptions", f"-XX:ActiveProcessorCount={threads}"]  # older Javas lack it
    own = os.environ.get("JAVA_TOOL_OPTIONS")
    return {**os.environ, "JAVA_TOOL_OPTIONS": " ".join([*options, *([own] if own else [])])}


def _write_tiles(folder: Path, z: int, tiles: Sequence[Tile], xy: Floats, reader: TileReader) -> Path:
    """Tiles as 8-bit TIFFs and the listing for the macro; xy: (n, 2), where they should lie.

    Always copies: tiles may lie in a cloud store or have 16 bits, and TrakEM2 takes neither a '#' nor
    a tab in a path.
    """
    import tifffile

    (folder / "tiles").mkdir()
    lines = []
    for tile, (x, y) in zip(tiles, xy.tolist(), strict=True):
        path = folder / "tiles" / f"{tile.name}.tif"
        tifffile.imwrite(path, reader.read(tile), photometric="minisblack", metadata=None)
        # Grey values 0 to 255 and type 0 (8 bits): with them TrakEM2 need not open the files to find out.
        lines.append("\t".join(str(v) for v in (path, x, y, z, tile.width, tile.height, 0, 255, 0)))
    listing = folder / "tiles.txt"
    listing.write_text("\n".join(lines) + "\n")
    return listing


# --- checking what it left -------------------------------------------------------------------


def read_export(
    project: Path, z: int, tiles: Sequence[Tile], nominal_size: tuple[float, float], max_deviation: float
) -> Export:
    """What TrakEM2 left in its project's folder. Raises TaskError if something is missing or cannot be right."""
    import tifffile

    picture = project / "output" / f"S_{z:04d}.tif"
    if not picture.is_file():
        raise TaskError(f"TrakEM2 wrote no {picture.name}")
    try:
        with tifffile.TiffFile(picture) as file:
            shape, dtype, pages = file.pages.first.shape, file.pages.first.dtype, len(file.pages)
    except Exception as error:  # decoders raise whatever they like on damaged bytes
        raise TaskError(f"{picture.name} is damaged: {error}") from error
    if len(shape) != 2 or dtype != np.uint8 or pages != 1:
        raise TaskError(f"{picture.name} is no single 8-bit grey picture ({pages} of {shape}, {dtype})")
    height, width = (int(n) for n in shape)
    for got, expected in zip((width, height), nominal_size, strict=True):
        if abs(got - expected) > max_deviation * expected:
            raise TaskError(
                f"its picture has {width} x {height} px, nominal are {nominal_size[0]:.0f} x {nominal_size[1]:.0f}: "
                f"more than {max_deviation:g} of it off (max_size_deviation)"
            )
    warps = []
    for tile, matrix in zip(tiles, _read_transforms(project / "transforms.tsv", tiles), strict=True):
        warp = GridWarp.affine(matrix, tile.width, tile.height, max(tile.width, tile.height))
        x0, y0, x1, y1 = warp.bounds(tile.width, tile.height)
        out = max(-x0, -y0, x1 - (width - 1), y1 - (height - 1))
        area = abs(float(np.linalg.det(matrix[:, :2])))
        if not (_AREA_RANGE[0] <= area <= _AREA_RANGE[1] and out <= _ROUNDING_PX):
            raise TaskError(f"its transform of tile {tile.name} cannot be right: {matrix.round(3).tolist()}")
        warps.append(warp)
    return Export(picture, width, height, warps)


def _read_transforms(path: Path, tiles: Sequence[Tile]) -> list[Floats]:
    """(2, 3) matrices tile px → px of the picture, in the order of the tiles. Raises TaskError."""
    try:
        with path.open(newline="") as file:
            rows = list(csv.reader(file, delimiter="\t"))
        found = {Path(row[0]).stem: np.array([float(v) for v in row[2:8]]).reshape(2, 3) for row in rows}
    except FileNotFoundError:
        raise TaskError(f"TrakEM2 wrote no {path.name}") from None
    except (ValueError, IndexError) as error:
        raise TaskError(f"{path.name} cannot be read: {error}") from error
    if len(rows) != len(tiles) or set(found) != {t.name for t in tiles}:
        raise TaskError(f"{path.name} names tiles {', '.join(sorted(found)) or 'none'}, not the {len(tiles)} there are")
    return [found[t.name] for t in tiles]


def _nominal_size(tiles: Sequence[Tile]) -> tuple[float, float]:
    """Width and height of what the tiles cover where the stage says they lie (px)."""
    return (
        max(t.x_px + t.width for t in tiles) - min(t.x_px for t in tiles),
        max(t.y_px + t.height for t in tiles) - min(t.y_px for t in tiles),
    )


def measure(
    tiles: Sequence[Tile], warps: Sequence[GridWarp], params: MontageParams, reader: TileReader
) -> tuple[Placement, Verdict]:
    """The placement that warps make, with seams measured by our own matcher, and the verdict on it.

    A tile that is far from its place has seams with large residuals, or none.
    """
    placement = Placement(list(warps), [0] * len(tiles), [], np.zeros(0))
    candidates = neighbours(tiles, None)
    found = (_seam(tiles, a, b, placement, params, reader) for a, b in candidates)
    pairs = [pair for pair in found if pair is not None]
    residuals = [np.linalg.norm(warps[p.a].map(p.matches.xy_a) - warps[p.b].map(p.matches.xy_b), axis=1) for p in pairs]
    placement = Placement(
        list(warps), joined_groups(len(tiles), pairs), pairs, np.concatenate(residuals) if residuals else np.zeros(0)
    )
    verdict = judge(tiles, placement, candidates, params)
    if verdict.groups > 1:  # the judge tells what our own solver does with such tiles
        apart = ", ".join(t.name for t, g in zip(tiles, placement.group, strict=True) if g)
        reason = f"tiles {apart} do not fit to the others where TrakEM2 put them"
        verdict = replace(verdict, reasons=(reason, *verdict.reasons[1:]))
    return placement, verdict


def _seam(
    tiles: Sequence[Tile], a: int, b: int, placement: Placement, params: MontageParams, reader: TileReader
) -> PairMatches | None:
    """What two tiles have in common: where the placement says, or where our own search finds it, whichever is more.

    Looked for at a wrong place only, some blocks are alike by chance, and would make a seam of it.
    """
    found: list[PairMatches] = []
    for settings in params.sets:
        there = match_pair(tiles, a, b, reader, settings, predicted_shift(placement, tiles, a, b))
        searched = match_pair(tiles, a, b, reader, settings)
        found += [pair for pair in (there, searched) if pair is not None]
        if searched is not None:
            break
    return max(found, key=lambda pair: float(pair.matches.score.sum()), default=None)


# --- its picture on our canvas ---------------------------------------------------------------


def _place_on_canvas(tiles: Sequence[Tile], nominal: Floats, placement: Placement) -> tuple[int, int]:
    """Whole px from TrakEM2's picture to the canvas: the largest group keeps its mean nominal position.

    nominal: (n, 2), where the tiles' upper left px should lie on the canvas.
    """
    off = []
    for i, (tile, warp) in enumerate(zip(tiles, placement.warps, strict=True)):
        if placement.group[i] == 0:
            middle = np.array([(tile.width - 1) / 2, (tile.height - 1) / 2])
            off.append(nominal[i] + middle - warp.map(middle[None])[0])
    x, y = np.mean(off, axis=0).tolist()
    return math.floor(x + 0.5), math.floor(y + 0.5)


def _draw(
    export: Export, layers: Sequence[Layer], shift: tuple[int, int], canvas: Box, chunk_px: int,
    write: Callable[[Box, np.ndarray], None],
) -> None:  # fmt: skip
    """Hand over the picture block after block: 0 where no tile is, 1..255 elsewhere; empty blocks are left out."""
    import tifffile

    try:
        picture: np.ndarray = tifffile.memmap(export.picture, mode="r")  # not all of it in memory
    except ValueError:  # compressed
        picture = tifffile.imread(export.picture)
    for box in blocks(canvas, chunk_px):
        x0, y0 = max(box.x0, shift[0]), max(box.y0, shift[1])
        x1, y1 = min(box.x1, shift[0] + export.width), min(box.y1, shift[1] + export.height)
        if x0 >= x1 or y0 >= y1:
            continue
        part = picture[y0 - shift[1] : y1 - shift[1], x0 - shift[0] : x1 - shift[0]]
        block = np.zeros((box.y1 - box.y0, box.x1 - box.x0), np.uint8)
        block[y0 - box.y0 : y1 - box.y0, x0 - box.x0 : x1 - box.x0] = np.maximum(part, 1)
        block[~_covered(layers, box)] = 0
        if block.any():
            write(box, block)


def _covered(layers: Sequence[Layer], box: Box) -> NDArray[np.bool_]:
    """Where a box shows a tile, (y, x)."""
    covered = np.zeros((box.y1 - box.y0, box.x1 - box.x0), bool)
    for layer in layers:
        x0, y0, x1, y1 = layer.warp.bounds(layer.tile.width, layer.tile.height)
        left, right = max(box.x0, math.floor(x0)), min(box.x1, math.ceil(x1) + 1)
        top, bottom = max(box.y0, math.floor(y0)), min(box.y1, math.ceil(y1) + 1)
        if left >= right or top >= bottom:
            continue
        source = layer.warp.inverse_field(left, top, right - left, bottom - top, 64)
        last = np.array([layer.tile.width - 1, layer.tile.height - 1], np.float32)
        inside = ((source > -0.01) & (source < last + 0.01)).all(axis=2)  # 0.01: rounding of float32
        covered[top - box.y0 : bottom - box.y0, left - box.x0 : right - box.x0] |= inside
    return covered
