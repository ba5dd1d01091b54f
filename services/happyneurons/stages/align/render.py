"""Drawing a section through its warp, block by block, so that memory does not grow with the section."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from happyneurons.imaging.warp import GridWarp
from happyneurons.store.volumes import Volume

INTERPOLATIONS = {"linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC, "lanczos": cv2.INTER_LANCZOS4}
# Pixels around the needed part of the source that interpolation may touch.
_RIM_PX = 5


def blocks(start_zyx: tuple[int, ...], stop_zyx: tuple[int, ...], chunk_px: int) -> Iterator[tuple[int, int, int, int]]:
    """(y0, x0, y1, x1) of a section's blocks of one chunk each, row by row."""
    for y in range(start_zyx[1], stop_zyx[1], chunk_px):
        for x in range(start_zyx[2], stop_zyx[2], chunk_px):
            yield y, x, min(y + chunk_px, stop_zyx[1]), min(x + chunk_px, stop_zyx[2])


def draw_block(
    source: Volume, mask: Volume | None, z: int, warp: GridWarp, box: tuple[int, int, int, int], interpolation: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """Block (y0, x0, y1, x1) of the aligned section z: picture (y, x) uint8, and mask if there is one.

    Grey 0 stays "no picture": it appears where the section does not reach, and nowhere else.
    """
    y0, x0, y1, x1 = box
    # Rows of equal brightness show kinks that lie far from the grid's own: a cell has four samples a side.
    step = int(min(16, max(8, warp.spacing_px // 4)))
    field, start, stop = warp.relative_inverse_field(x0, y0, x1 - x0, y1 - y0, step, _RIM_PX)
    _, top, left = source.start_zyx
    _, bottom, right = source.stop_zyx
    picture = np.zeros((y1 - y0, x1 - x0), np.uint8)
    valid = None if mask is None else picture.copy()
    a0, a1 = np.maximum(start, [left, top]), np.minimum(stop, [right, bottom])
    if (a0 >= a1).any():
        return picture, valid
    low, high = (z, int(a0[1]), int(a0[0])), (z + 1, int(a1[1]), int(a1[0]))
    pixels = source.read(low, high)[0]
    if (a0 != start).any():
        # NumPy would take ten times as long for two components a pixel.
        field = cv2.add(field, (*(start - a0).tolist(), 0, 0))
    drawn = cv2.remap(pixels, field, None, INTERPOLATIONS[interpolation], borderMode=cv2.BORDER_REPLICATE)
    picture = np.maximum(drawn, 1)
    if (a0 != start).any() or (a1 != stop).any() or cv2.countNonZero(pixels) < pixels.size:
        there = cv2.remap(
            (pixels > 0).astype(np.uint8), field, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT
        )  # fmt: skip
        picture[there == 0] = 0
    if mask is not None:
        valid = cv2.remap(mask.read(low, high)[0], field, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT)
    return picture, valid


def least_stretch(warp: GridWarp) -> float:
    """The smallest area factor of the warp's cells: near 0 or below, it folds."""
    nodes = warp.nodes
    right, down = nodes[:-1, 1:] - nodes[:-1, :-1], nodes[1:, :-1] - nodes[:-1, :-1]
    area = right[..., 0] * down[..., 1] - right[..., 1] * down[..., 0]
    return float(area.min()) / warp.spacing_px**2
