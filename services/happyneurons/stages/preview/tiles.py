"""Raw tiles of a section side by side, as the microscope made them: not overlapped, not aligned."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from happyneurons.errors import HappyError
from happyneurons.stages.preview.planes import as_grey
from happyneurons.stages.preview.png import GAP_PX, PAPER, fit
from happyneurons.store.documents import Store


def tile_grid(document: Mapping[str, Any], max_px: int) -> NDArray[np.uint8]:
    """(h, w) picture of a section's tiles in their rows and columns; unreadable ones stay empty with a cross.

    document: a section of a tile_set.
    """
    tiles: dict[tuple[int, int], Mapping[str, Any]] = {}
    for tile in document.get("tiles", []):
        tiles.setdefault((int(tile["row"]), int(tile["col"])), tile)
    if not tiles:
        return np.full((max_px // 2, max_px), PAPER, dtype=np.uint8)
    rows, columns = (max(k[i] for k in tiles) + 1 for i in (0, 1))
    width, height = (max(max(int(t[n]) for t in tiles.values()), 1) for n in ("width", "height"))
    scale = min(
        1.0, (max_px - GAP_PX * (columns - 1)) / (columns * width), (max_px - GAP_PX * (rows - 1)) / (rows * height)
    )
    w, h = max(1, int(width * scale)), max(1, int(height * scale))
    canvas = np.full((rows * (h + GAP_PX) - GAP_PX, columns * (w + GAP_PX) - GAP_PX), PAPER, dtype=np.uint8)
    for (row, column), tile in sorted(tiles.items()):
        y, x = row * (h + GAP_PX), column * (w + GAP_PX)
        small = _small_tile(tile, max(w, h))
        if small is None:
            canvas[y : y + h, x : x + w] = _cross(h, w)
        else:
            small = small[:h, :w]
            canvas[y : y + small.shape[0], x : x + small.shape[1]] = small
    return canvas


def _small_tile(tile: Mapping[str, Any], max_px: int) -> NDArray[np.uint8] | None:
    from PIL import Image

    folder, _, name = str(tile.get("uri", "")).rpartition("/")
    if not folder:
        return None
    try:
        picture = np.asarray(Image.open(io.BytesIO(Store(folder).get(name))))
    except (HappyError, OSError, ValueError, SyntaxError):
        return None  # a picture of what there is; ingest has already said what is wrong with the tile
    return fit(as_grey(picture if picture.ndim == 2 else picture[..., 0]), max_px)


def _cross(height: int, width: int) -> NDArray[np.uint8]:
    box = np.full((height, width), PAPER, dtype=np.uint8)
    steps = np.arange(4 * max(height, width)) / (4 * max(height, width))
    for y in (steps, 1 - steps):
        box[np.minimum((y * height).astype(int), height - 1), (steps * width).astype(int)] = 160
    return box
