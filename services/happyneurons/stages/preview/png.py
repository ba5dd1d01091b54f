"""PNG files and sheets of them (Pillow)."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

GAP_PX = 6
LINE_PX = 16
PAPER = 24  # grey of what is no picture


def png(picture: np.ndarray) -> bytes:
    """A grey (h, w) or RGB (h, w, 3) uint8 picture as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, "PNG")
    return buffer.getvalue()


def read_png(data: bytes) -> NDArray[np.uint8]:
    """(h, w, 3) RGB."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def fit(picture: np.ndarray, max_px: int) -> NDArray[np.uint8]:
    """The picture with its longer side at most max_px, averaged."""
    from PIL import Image

    scale = max_px / max(picture.shape[:2])
    if scale >= 1:
        return picture
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.BOX))


def sheet(pictures: Sequence[np.ndarray], titles: Sequence[str], *, columns: int, cell_px: int) -> NDArray[np.uint8]:
    """Pictures in a grid, each at most cell_px wide and high, with its title below."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(12)
    cells = [fit(p, cell_px) for p in pictures]
    wide = max(max(c.shape[1] for c in cells), max(int(font.getlength(t)) for t in titles) + 1) + GAP_PX
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    high = [max(c.shape[0] for c in row) + LINE_PX + GAP_PX for row in rows]
    canvas = Image.new("RGB", (columns * wide + GAP_PX, sum(high) + GAP_PX), (PAPER,) * 3)
    draw = ImageDraw.Draw(canvas)
    for i, (cell, title) in enumerate(zip(cells, titles, strict=True)):
        x, y = GAP_PX + (i % columns) * wide, GAP_PX + sum(high[: i // columns])
        canvas.paste(Image.fromarray(np.ascontiguousarray(cell)).convert("RGB"), (x, y))
        draw.text((x, y + cell.shape[0] + 1), title, fill=(200, 200, 200), font=font)
    return np.asarray(canvas)
