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
    if not pieces:
        return np.zeros((height, width), np.uint8)
    if len(pieces) == 1:
        picture, depth = pieces[0]
        return np.asarray(np.where(depth >= 0, picture, 0), dtype=np.uint8)
    deepest = pieces[0][1]
    for _, depth in pieces[1:]:
        deepest = np.maximum(deepest, depth)
    total = np.zeros((height, width), np.float32)
    weights = np.zeros((height, width), np.float32)
    for picture, depth in pieces:
        # 1 where this tile is the deepest by more than half the band, falling to 0 over the band.
        weight = np.clip(depth - deepest + max(feather_px, 1.0), 0, None)
        # Thin overlaps are narrower than the band: no tile may end abruptly there.
        weight = np.where(depth >= 0, np.minimum(weight, depth + 1), 0).astype(np.float32)
        total += weight * picture
        weights += weight
    blended = np.rint(total / np.maximum(weights, 1e-6))
    return np.where(deepest >= 0, blended, 0).astype(np.uint8)


def _piece(layer: Layer, box: Box, reader: TileReader, interpolation: str) -> tuple[np.ndarray, np.ndarray] | None:
    """(picture uint8, depth float32) of a tile in the box: px from its rim, negative outside; None if not in it."""
    tile = layer.tile
    x0, y0, x1, y1 = layer.warp.bounds(tile.width, tile.height)
    if x1 < box.x0 - 1 or y1 < box.y0 - 1 or x0 > box.x1 or y0 > box.y1:
        return None
    field = layer.warp.inverse_field(box.x0, box.y0, box.x1 - box.x0, box.y1 - box.y0, _STEP_PX)
    sx, sy = field[..., 0], field[..., 1]
    depth = np.minimum(np.minimum(sx, tile.width - 1 - sx), np.minimum(sy, tile.height - 1 - sy))
    low, high = field.min(axis=(0, 1)), field.max(axis=(0, 1))
    # Only the part of the tile that is needed: cv2.remap takes sources of at most 32767 px a side.
    a0, b0 = np.maximum(0, np.floor(low) - 8).astype(int)
    a1 = min(tile.width, int(np.ceil(high[0])) + 9)
    b1 = min(tile.height, int(np.ceil(high[1])) + 9)
    if a0 >= a1 or b0 >= b1:
        return None
    source = reader.read(tile)[b0:b1, a0:a1]
    map_x, map_y = sx - np.float32(a0), sy - np.float32(b0)
    picture = cv2.remap(source, map_x, map_y, INTERPOLATIONS[interpolation], borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(cv2.LUT(picture, lookup_table(layer.gain, layer.offset))), depth
