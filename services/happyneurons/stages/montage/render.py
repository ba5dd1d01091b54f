"""Rendering a section block by block, so that memory does not grow with the section."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from happyneurons.imaging.warp import GridWarp
from happyneurons.stages.montage.exposure import lookup_table
from happyneurons.stages.montage.shading import Shading
from happyneurons.stages.montage.tiles import Tile, TileReader

INTERPOLATIONS = {"linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC, "lanczos": cv2.INTER_LANCZOS4}
# Inverse maps are computed every so many px; tiles bend over hundreds.
_STEP_PX = 32
# Pixels around the needed part of a tile that interpolation may touch.
_RIM_PX = 5


@dataclass(frozen=True)
class Layer:
    """A tile ready to be drawn: warp from tile px to px of the canvas, grey = gain * raw + offset.

    raw: without the shading, where there is one.
    """

    tile: Tile
    warp: GridWarp
    gain: float = 1.0
    offset: float = 0.0
    shading: Shading | None = None


@dataclass(frozen=True)
class Box:
    """Part of the canvas: x0 <= x < x1, y0 <= y < y1, px."""

    x0: int
    y0: int
    x1: int
    y1: int


def blocks(canvas: Box, chunk_px: int) -> Iterator[Box]:
    """The canvas in blocks of whole chunks, row by row; chunks start at the canvas' corner."""
    for y in range(canvas.y0, canvas.y1, chunk_px):
        for x in range(canvas.x0, canvas.x1, chunk_px):
            yield Box(x, y, min(x + chunk_px, canvas.x1), min(y + chunk_px, canvas.y1))


def render(layers: Sequence[Layer], box: Box, reader: TileReader, feather_px: float, interpolation: str) -> np.ndarray:
    """The picture of a box, uint8 (y, x); 0 where no tile is, 1..255 elsewhere.

    A pixel that several tiles show comes from the one in which it lies deepest (farthest from the
    rim); around the line where two are equally deep they are blended over a band of feather_px.
    """
    pieces = [p for p in (_piece(layer, box, reader, interpolation) for layer in layers) if p is not None]
    result = np.zeros((box.y1 - box.y0, box.x1 - box.x0), np.uint8)
    # Most of a section is shown by one tile: only where rims or several tiles are, depths are needed.
    for cell in _cells(pieces, result.shape):
        there = [p for p in pieces if _touches(p.outer, cell)]
        where = np.s_[cell.y0 : cell.y1, cell.x0 : cell.x1]
        if len(there) == 1 and _holds(there[0].inner, cell):
            result[where] = there[0].picture[there[0].part(cell)]
        elif there:
            result[where] = _blend(there, cell, feather_px)
    return result


@dataclass(frozen=True)
class _Piece:
    """Part of a box that a tile may cover; boxes are in px of the box that is drawn.

    outer: what `picture` (uint8) and `source` (tile px less start, float32) hold; inner: what the tile
    covers for sure.
    """

    outer: Box
    inner: Box
    picture: np.ndarray
    source: np.ndarray
    start: np.ndarray
    size: tuple[int, int]

    def part(self, cell: Box) -> tuple[slice, slice]:
        """Where a cell inside of `outer` lies in the arrays."""
        x, y = self.outer.x0, self.outer.y0
        return slice(cell.y0 - y, cell.y1 - y), slice(cell.x0 - x, cell.x1 - x)

    def depth(self, cell: Box) -> np.ndarray:
        """px from the tile's rim, negative outside, float32."""
        x, y = cv2.split(self.source[self.part(cell)])
        (x0, y0), (width, height) = self.start.astype(np.float32), self.size
        depth = np.minimum(np.minimum(x + x0, width - 1 - x0 - x), np.minimum(y + y0, height - 1 - y0 - y))
        return np.asarray(depth, dtype=np.float32)


def _blend(pieces: Sequence[_Piece], cell: Box, feather_px: float) -> np.ndarray:
    shape = (cell.y1 - cell.y0, cell.x1 - cell.x0)
    depths = [p.depth(cell) for p in pieces]
    deepest = np.maximum.reduce(depths)
    total, weights = np.zeros(shape, np.float32), np.full(shape, 1e-6, np.float32)
    band = np.float32(max(feather_px, 1.0))
    for piece, depth in zip(pieces, depths, strict=True):
        # Full where this tile is the deepest by more than the band, falling to 0 where it is less deep
        # by as much. Thin overlaps are narrower than the band: no tile may end abruptly there.
        weight = np.minimum(depth - deepest + band, depth + 1)
        weight = np.where(depth >= 0, np.maximum(weight, 0), 0)
        total += weight * piece.picture[piece.part(cell)]
        weights += weight
    return np.where(deepest >= 0, np.rint(total / weights), 0).astype(np.uint8)


def _cells(pieces: Sequence[_Piece], shape: tuple[int, ...]) -> Iterator[Box]:
    """The box cut along all edges of its pieces: within a cell the same pieces are there."""
    xs, ys = {0, shape[1]}, {0, shape[0]}
    for piece in pieces:
        for b in (piece.outer, piece.inner):
            xs |= {x for x in (b.x0, b.x1) if 0 < x < shape[1]}
            ys |= {y for y in (b.y0, b.y1) if 0 < y < shape[0]}
    for y0, y1 in pairwise(sorted(ys)):
        for x0, x1 in pairwise(sorted(xs)):
            yield Box(x0, y0, x1, y1)


def _touches(box: Box, cell: Box) -> bool:
    return box.x0 < cell.x1 and cell.x0 < box.x1 and box.y0 < cell.y1 and cell.y0 < box.y1


def _holds(box: Box, cell: Box) -> bool:
    return box.x0 <= cell.x0 and cell.x1 <= box.x1 and box.y0 <= cell.y0 and cell.y1 <= box.y1


def _piece(layer: Layer, box: Box, reader: TileReader, interpolation: str) -> _Piece | None:
    """What a tile shows of the box; None if it does not reach there."""
    tile = layer.tile
    x0, y0, x1, y1 = layer.warp.bounds(tile.width, tile.height)
    left, top = max(box.x0, int(np.floor(x0)) - 1), max(box.y0, int(np.floor(y0)) - 1)
    right, bottom = min(box.x1, int(np.ceil(x1)) + 2), min(box.y1, int(np.ceil(y1)) + 2)
    if left >= right or top >= bottom:
        return None
    source, start, stop = layer.warp.relative_inverse_field(
        left, top, right - left, bottom - top, _STEP_PX, _RIM_PX
    )  # fmt: skip
    # Only the part of the tile that is needed: cv2.remap takes sources of at most 32767 px a side.
    low, high = np.maximum(start, 0), np.minimum(stop, (tile.width, tile.height))
    if (low >= high).any():
        return None
    pixels = reader.read(tile)[low[1] : high[1], low[0] : high[0]]
    if layer.shading is not None:
        pixels = layer.shading.corrected(pixels, *low.tolist())
    if (low > start).any():
        # Cheaper than another pass over the map.
        x, y = (low - start).tolist()
        pixels = cv2.copyMakeBorder(pixels, y, 0, x, 0, cv2.BORDER_REPLICATE)
    picture = cv2.remap(pixels, source, None, INTERPOLATIONS[interpolation], borderMode=cv2.BORDER_REPLICATE)
    picture = np.asarray(cv2.LUT(picture, lookup_table(layer.gain, layer.offset)))
    a0, b0, a1, b1 = layer.warp.inner_bounds(tile.width, tile.height)
    outer = Box(left - box.x0, top - box.y0, right - box.x0, bottom - box.y0)
    inner = Box(int(np.ceil(a0)) - box.x0, int(np.ceil(b0)) - box.y0, int(a1) - box.x0, int(b1) - box.y0)
    return _Piece(outer, inner, picture, source, start, (tile.width, tile.height))
