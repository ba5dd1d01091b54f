"""Rendering a section block by block, so that memory does not grow with the section."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from happyneurons.imaging.warp import GridWarp
from happyneurons.stages.montage.exposure import lookup_table
from happyneurons.stages.montage.tiles import Tile, TileReader

INTERPOLATIONS = {"linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC, "lanczos": cv2.INTER_LANCZOS4}
# Inverse maps are computed every so many px; tiles bend over hundreds.
_STEP_PX = 32


@dataclass(frozen=True)
class Layer:
    """A tile ready to be drawn: warp from tile px to px of the canvas, grey = gain * raw + offset."""

    tile: Tile
    warp: GridWarp
    gain: float = 1.0
    offset: float = 0.0


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
    height, width = box.y1 - box.y0, box.x1 - box.x0
    deepest = np.full((height, width), -1.0, np.float32)
    for piece in pieces:
        np.maximum(deepest[piece.where], piece.depth, out=deepest[piece.where])
    if len(pieces) < 2:
        result = np.zeros((height, width), np.uint8)
        for piece in pieces:
            result[piece.where] = np.where(piece.depth >= 0, piece.picture, 0)
        return result
    total = np.zeros((height, width), np.float32)
    weights = np.full((height, width), 1e-6, np.float32)
    band = np.float32(max(feather_px, 1.0))
    for piece in pieces:
        # Full where this tile is the deepest by more than the band, falling to 0 where it is less deep
        # by as much. Thin overlaps are narrower than the band: no tile may end abruptly there.
        weight = np.minimum(piece.depth - deepest[piece.where] + band, piece.depth + 1)
        weight = np.where(piece.depth >= 0, np.maximum(weight, 0), 0)
        total[piece.where] += weight * piece.picture
        weights[piece.where] += weight
    blended = np.rint(total / weights)
    return np.where(deepest >= 0, blended, 0).astype(np.uint8)


@dataclass(frozen=True)
class _Piece:
    """Part of a box that a tile may cover. picture: uint8; depth: px from the tile's rim, negative outside."""

    where: tuple[slice, slice]
    picture: np.ndarray
    depth: np.ndarray


def _piece(layer: Layer, box: Box, reader: TileReader, interpolation: str) -> _Piece | None:
    """What a tile shows of the box; None if it does not reach there."""
    tile = layer.tile
    x0, y0, x1, y1 = layer.warp.bounds(tile.width, tile.height)
    left, top = max(box.x0, int(np.floor(x0)) - 1), max(box.y0, int(np.floor(y0)) - 1)
    right, bottom = min(box.x1, int(np.ceil(x1)) + 2), min(box.y1, int(np.ceil(y1)) + 2)
    if left >= right or top >= bottom:
        return None
    source_x, source_y = cv2.split(layer.warp.inverse_field(left, top, right - left, bottom - top, _STEP_PX))
    depth = np.minimum(
        np.minimum(source_x, tile.width - 1 - source_x), np.minimum(source_y, tile.height - 1 - source_y)
    )
    # Only the part of the tile that is needed: cv2.remap takes sources of at most 32767 px a side.
    low_x, high_x, *_ = cv2.minMaxLoc(source_x)
    low_y, high_y, *_ = cv2.minMaxLoc(source_y)
    a0, b0 = max(0, int(low_x) - 8), max(0, int(low_y) - 8)
    a1, b1 = min(tile.width, int(high_x) + 9), min(tile.height, int(high_y) + 9)
    if a0 >= a1 or b0 >= b1:
        return None
    picture = cv2.remap(
        reader.read(tile)[b0:b1, a0:a1], source_x - a0, source_y - b0, INTERPOLATIONS[interpolation],
        borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip
    picture = np.asarray(cv2.LUT(picture, lookup_table(layer.gain, layer.offset)))
    where = (slice(top - box.y0, bottom - box.y0), slice(left - box.x0, right - box.x0))
    return _Piece(where, picture, np.asarray(depth, dtype=np.float32))
