"""One section from tiles to picture: match, place, judge, try again with other parameters, draw."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from happyneurons.errors import TaskError
from happyneurons.imaging.transforms import tile_prefix
from happyneurons.stages.montage.exposure import exposures
from happyneurons.stages.montage.lens import Lens
from happyneurons.stages.montage.match import PairMatches, featureless, match_pair
from happyneurons.stages.montage.params import MatchSet, MontageParams
from happyneurons.stages.montage.render import Box, Layer, blocks, render
from happyneurons.stages.montage.sets import Stopwatch, Try, verdicts
from happyneurons.stages.montage.shading import Shading
from happyneurons.stages.montage.solve import Placement, place
from happyneurons.stages.montage.tiles import Section, Tile, TileReader, neighbours


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a placement (empty: nothing) and the figures it was judged by."""

    reasons: tuple[str, ...]
    seam_median_px: float | None
    seam_p95_px: float | None
    groups: int
    pairs_expected: int
    pairs_joined: int
    matches: int
    confidence: float
    seams_ok: bool

    @property
    def rank(self) -> tuple[int, float]:
        """Smaller is better: fewer groups, then smaller residuals."""
        return self.groups, self.seam_p95_px if self.seam_p95_px is not None else 1e9


@dataclass(frozen=True)
class Montage:
    """A section that was placed: layers in px of the canvas, its document's figures, the sets tried on it."""

    layers: list[Layer]
    figures: dict[str, Any]
    tries: tuple[Try, ...] = ()


Found = Mapping[tuple[int, int], PairMatches]
"""Matches by the indices of the two tiles among those of a section that can be read."""


def montage_section(
    section: Section,
    params: MontageParams,
    reader: TileReader,
    origin_xy: tuple[float, float],
    lens: Lens | None = None,
    shading: Shading | None = None,
    found: Found | None = None,
) -> Montage:
    """Place the tiles of a section. origin_xy: nominal px that become (0, 0) of the canvas.

    lens, shading: what the optics do to tiles of their size (see `optics`). found: what was matched in
    this section already, by the first parameter set. Tiles that turn out damaged are left out and
    named. Raises TaskError if none is left.
    """
    tiles, damaged = readable(section, reader)
    if shading is not None and not shading.fits(tiles):
        shading = None
    tries: list[Try] = []
    placement, verdict, used = _best(tiles, params, reader, lens, found, tries)
    gains, offsets = exposures(len(tiles), placement.pairs if params.exposure else [], shading)
    shift = -np.array(origin_xy)
    layers = [
        Layer(t, placement.warps[i].translated(shift), float(gains[i]), float(offsets[i]), shading)
        for i, t in enumerate(tiles)
    ]
    return Montage(
        layers, section_figures(section, layers, damaged, placement, verdict, used.name, tries), tuple(tries)
    )


def section_figures(
    section: Section,
    layers: Sequence[Layer],
    damaged: Sequence[str],
    placement: Placement,
    verdict: Verdict,
    parameter_set: str,
    tries: Sequence[Try],
) -> dict[str, Any]:
    """A section's document. layers: in the order of the placement; damaged: what is wrong with tiles left out."""
    reasons = [*section.problems, *damaged, *verdict.reasons]
    if section.status == "flagged" and not reasons:
        reasons = ["flagged by the tile set"]
    return {
        "z": section.z,
        "status": "flagged" if reasons else "ok",
        "reason": "; ".join(reasons),
        "parameter_set": parameter_set,
        "sets_tried": verdicts(tries),
        "tiles": len(layers),
        "exposure": {layer.tile.name: [layer.gain, layer.offset] for layer in layers},
        "seam_median_px": verdict.seam_median_px,
        "seam_p95_px": verdict.seam_p95_px,
        "groups": verdict.groups,
        "pairs_expected": verdict.pairs_expected,
        "pairs_joined": verdict.pairs_joined,
        "matches": verdict.matches,
        "confidence": verdict.confidence,
        "placed": {layer.tile.name: placement.group[i] for i, layer in enumerate(layers)},
    }


def match_neighbours(tiles: Sequence[Tile], settings: MatchSet, reader: TileReader) -> Found:
    """Matches of all tiles that may overlap, by one parameter set."""
    return _match(tiles, neighbours(tiles, settings.stage_error_px), reader, settings)


def _match(
    tiles: Sequence[Tile], pairs: Iterable[tuple[int, int]], reader: TileReader, settings: MatchSet
) -> dict[tuple[int, int], PairMatches]:
    matched = ((pair, match_pair(tiles, *pair, reader, settings)) for pair in pairs)
    return {pair: matches for pair, matches in matched if matches is not None}


def readable(section: Section, reader: TileReader) -> tuple[list[Tile], list[str]]:
    """The tiles that are not damaged, and what is wrong with the others. Raises TaskError if none is left."""
    good, problems = [], []
    for tile in section.tiles:
        try:
            reader.read(tile)
        except TaskError as error:
            problems.append(str(error))
        else:
            good.append(tile)
    if not good:
        raise TaskError(f"section {section.z}: none of its tiles can be read: {'; '.join(problems)}")
    return good, problems


def _best(
    tiles: Sequence[Tile], params: MontageParams, reader: TileReader, lens: Lens | None, known: Found | None,
    tries: list[Try],
) -> tuple[Placement, Verdict, MatchSet]:  # fmt: skip
    """The first parameter set that gives an ok, or the best of all. Appends to `tries` how each one did.

    If it was only that some seams failed, the next set is tried on those alone; if residuals are
    too large, on all of them.
    """
    best: tuple[Placement, Verdict, MatchSet] | None = None
    joined: dict[tuple[int, int], PairMatches] = {}
    for settings in params.sets:
        watch = Stopwatch()
        candidates = neighbours(tiles, settings.stage_error_px)
        if known is not None and settings is params.sets[0]:
            found = dict(known)
        else:
            found = joined | _match(tiles, (p for p in candidates if p not in joined), reader, settings)
        placement = placed(tiles, found, params, lens)
        # Where a seam failed but both tiles found their place through others, that place tells where to look.
        used = {(p.a, p.b) for p in placement.pairs}
        second = {}
        for a, b in candidates:
            if (a, b) not in used and placement.group[a] == placement.group[b]:
                again = match_pair(tiles, a, b, reader, settings, predicted_shift(placement, tiles, a, b))
                if again is not None:
                    second[a, b] = again
        if second:
            placement = placed(tiles, {p: m for p, m in found.items() if p in used} | second, params, lens)
        verdict = judge(tiles, placement, candidates, params)
        tries.append(watch.tried(settings.name, "flagged" if verdict.reasons else "ok"))
        if best is None or verdict.rank < best[1].rank:
            best = placement, verdict, settings
        if not verdict.reasons:
            break
        # No parameters find anything in resin, and looking everywhere takes longest.
        if not found and all(featureless(reader.read(t)) for t in tiles):
            reasons = (*verdict.reasons, "the tiles show nothing but noise")
            best = placement, replace(verdict, reasons=reasons), settings
            break
        joined = {(p.a, p.b): p for p in placement.pairs} if verdict.seams_ok else {}
    assert best is not None
    return best


def placed(tiles: Sequence[Tile], found: Found, params: MontageParams, lens: Lens | None) -> Placement:
    """Where the tiles lie by these matches."""
    return place(
        tiles, [found[k] for k in sorted(found)], node_spacing_px=params.node_spacing_px,
        membrane=params.membrane, bending=params.bending, lens=lens,
    )  # fmt: skip


def predicted_shift(placement: Placement, tiles: Sequence[Tile], a: int, b: int) -> np.ndarray:
    """px of b - px of a in the middle of where the two should overlap."""
    first, second = placement.warps[a], placement.warps[b]
    ax0, ay0, ax1, ay1 = first.bounds(tiles[a].width, tiles[a].height)
    bx0, by0, bx1, by1 = second.bounds(tiles[b].width, tiles[b].height)
    middle = np.array([[max(ax0, bx0) + min(ax1, bx1), max(ay0, by0) + min(ay1, by1)]]) / 2
    return np.asarray((second.inverse(middle) - first.inverse(middle))[0])


def judge(
    tiles: Sequence[Tile], placement: Placement, candidates: Sequence[tuple[int, int]], params: MontageParams
) -> Verdict:
    """Confidence is the median correlation of the matches times the part of expected seams that are joined.

    Expected are the seams between neighbours in a row or column; corners are welcome but not needed.
    """
    beside = {(a, b) for a, b in candidates if abs(tiles[a].row - tiles[b].row) + abs(tiles[a].col - tiles[b].col) == 1}
    joined = len({(p.a, p.b) for p in placement.pairs} & beside)
    groups = max(placement.group) + 1
    reasons = []
    if groups > 1:
        apart = [tiles[i].name for i, g in enumerate(placement.group) if g]
        reasons.append(f"tiles {', '.join(apart)} could not be joined to the others: placed where the stage says")
    median = p95 = None
    scores = np.concatenate([p.matches.score for p in placement.pairs]) if placement.pairs else np.zeros(0)
    if len(placement.residuals_px):
        median = round(float(np.median(placement.residuals_px)), 3)
        p95 = round(float(np.percentile(placement.residuals_px, 95)), 3)
        if median > params.max_seam_median_px:
            reasons.append(f"median seam residual {median:.2f} px is above {params.max_seam_median_px:g} px")
        if p95 > params.max_seam_p95_px:
            reasons.append(f"95th percentile of seam residuals {p95:.2f} px is above {params.max_seam_p95_px:g} px")
    confidence = 1.0 if len(tiles) == 1 else 0.0
    if beside and len(scores):
        confidence = round(float(np.median(scores)) * joined / len(beside), 3)
    seams_ok = len(reasons) == (groups > 1)
    return Verdict(tuple(reasons), median, p95, groups, len(beside), joined, len(scores), confidence, seams_ok)


def cropped(montage: Montage, canvas: Box) -> Montage:
    """The montage with a remark if tiles stick out of the canvas by a pixel or more."""
    out = []
    for layer in montage.layers:
        x0, y0, x1, y1 = layer.warp.bounds(layer.tile.width, layer.tile.height)
        if x0 <= canvas.x0 - 1 or y0 <= canvas.y0 - 1 or x1 >= canvas.x1 or y1 >= canvas.y1:
            out.append(layer.tile.name)
    if not out:
        return montage
    remark = f"tiles {', '.join(out)} stick out of the canvas: raise margin_px"
    reason = "; ".join(r for r in (montage.figures["reason"], remark) if r)
    return replace(montage, figures=montage.figures | {"status": "flagged", "reason": reason})


def draw(
    montage: Montage, canvas: Box, chunk_px: int, params: MontageParams, reader: TileReader,
    write: Callable[[Box, np.ndarray], None], threads: int,
) -> None:  # fmt: skip
    """Render the section and hand over block after block; blocks without a tile are left out.

    So many blocks at a time as there are threads; `write` is called by all of them.
    """

    def one(box: Box) -> None:
        picture = render(montage.layers, box, reader, params.feather_px, params.interpolation)
        if picture.any():
            write(box, picture)

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(one, blocks(canvas, chunk_px)):
            pass


def transform_arrays(layers: Sequence[Layer]) -> dict[str, np.ndarray]:
    """What `transforms/{z:06d}.npz` holds: for each tile its warp and its (width, height)."""
    arrays: dict[str, np.ndarray] = {}
    for layer in layers:
        prefix = tile_prefix(layer.tile.row, layer.tile.col)
        arrays |= layer.warp.arrays(prefix)
        arrays[f"{prefix}_size"] = np.array([layer.tile.width, layer.tile.height], dtype=np.int64)
    return arrays
