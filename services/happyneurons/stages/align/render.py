"""Drawing a section through its warp, block by block, so that memory does not grow with the section."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from happyneurons.imaging.cut_warp import CutWarp
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
    source: Volume, mask: Volume | None, z: int, warp: GridWarp | CutWarp, box: tuple[int, int, int, int],
    interpolation: str,
) -> tuple[np.ndarray, np.ndarray | None]:  # fmt: skip
    """Block (y0, x0, y1, x1) of the aligned section z: picture (y, x) uint8, and mask if there is one.

    Grey 0 stays "no picture": it appears where the section does not reach, where a fold is cut, and nowhere else.
    """
    if isinstance(warp, CutWarp):
        return _draw_sheets(source, mask, z, warp, box, interpolation)
    return _draw(source, mask, z, _sources(warp, box), interpolation)


Sources = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Of a block's pixels, as `GridWarp.relative_inverse_field` has them."""


def _sources(warp: GridWarp, box: tuple[int, int, int, int]) -> Sources:
    y0, x0, y1, x1 = box
    # Rows of equal brightness show kinks that lie far from the grid's own: a cell has four samples a side.
    step = int(min(16, max(8, warp.spacing_px // 4)))
    return warp.relative_inverse_field(x0, y0, x1 - x0, y1 - y0, step, _RIM_PX)


def _draw(
    source: Volume, mask: Volume | None, z: int, sources: Sources, interpolation: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """`draw_block`, from where its pixels' sources are."""
    field, start, stop = sources
    _, top, left = source.start_zyx
    _, bottom, right = source.stop_zyx
    picture = np.zeros(field.shape[:2], np.uint8)
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


def _draw_sheets(
    source: Volume, mask: Volume | None, z: int, warp: CutWarp, box: tuple[int, int, int, int], interpolation: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """`draw_block`, each sheet where it holds."""
    y0, x0, y1, x1 = box
    picture = np.zeros((y1 - y0, x1 - x0), np.uint8)
    valid = None if mask is None else picture.copy()
    for number, sheet in enumerate(warp.sheets):
        part = _reached(warp, number, box)
        if part is None:
            continue
        sources = _sources(sheet, part)
        here = _shown(warp, number, sources)
        inside = np.s_[part[0] - y0 : part[2] - y0, part[1] - x0 : part[3] - x0]
        drawn, drawn_valid = _draw(source, mask, z, sources, interpolation)
        picture[inside][here] = drawn[here]
        if valid is not None and drawn_valid is not None:
            valid[inside][here] = drawn_valid[here]
    return picture, valid


def _reached(warp: CutWarp, number: int, box: tuple[int, int, int, int]) -> tuple[int, int, int, int] | None:
    """The part of a block (y0, x0, y1, x1) that may show a sheet, None if nothing does."""
    nodes = warp.sheets[number].nodes
    j, i = np.nonzero(warp.cells[number])
    if not len(j):
        return None
    places = np.concatenate([nodes[j + dj, i + di] for dj in (0, 1) for di in (0, 1)])
    # What lies beyond a cell's nodes is a px of `sheet_of` that reaches over its border.
    x0, y0 = np.maximum(np.floor(places.min(axis=0) - 2 * warp.px).astype(int), [box[1], box[0]]).tolist()
    x1, y1 = np.minimum(np.ceil(places.max(axis=0) + 2 * warp.px).astype(int) + 1, [box[3], box[2]]).tolist()
    return (y0, x0, y1, x1) if x0 < x1 and y0 < y1 else None


def _shown(warp: CutWarp, number: int, sources: Sources) -> np.ndarray:
    """(y, x) bool: the px of a block that a sheet shows."""
    reach, (field, start, _) = warp.reach(number), sources
    # In px of `sheet_of`, whose centres lie where those of a picture averaged down do.
    place = (field + (start - warp.origin_xy + 0.5).astype(np.float32)) / np.float32(warp.px) - np.float32(0.5)
    # The field is clipped: a section's border is the border of its last px in `sheet_of`, too.
    height, width = reach.shape
    x, y = np.clip(place[..., 0], 0, width - 1), np.clip(place[..., 1], 0, height - 1)
    return np.asarray(cv2.remap(reach, x, y, cv2.INTER_NEAREST) > 0)


def least_stretch(warp: GridWarp | CutWarp) -> float:
    """The smallest area factor of the warp's cells: near 0 or below, it folds. Cuts shrink nothing."""
    if isinstance(warp, CutWarp):
        return float(np.stack([_stretches(sheet) for sheet in warp.sheets])[warp.cells].min())
    return float(_stretches(warp).min())


def _stretches(warp: GridWarp) -> np.ndarray:
    """(ny − 1, nx − 1) area factors of the cells."""
    nodes = warp.nodes
    right, down = nodes[:-1, 1:] - nodes[:-1, :-1], nodes[1:, :-1] - nodes[:-1, :-1]
    return np.asarray((right[..., 0] * down[..., 1] - right[..., 1] * down[..., 0]) / warp.spacing_px**2)
