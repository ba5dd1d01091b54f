"""PNG files and sheets of them (Pillow)."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

GAP_PX = 6
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
    """Pictures in a grid, each with its title below."""
    from PIL import Image, ImageDraw, ImageFont

    line = 16
    rows = -(-len(pictures) // columns)
    width = columns * (cell_px + GAP_PX) + GAP_PX
    canvas = Image.new("RGB", (width, rows * (cell_px + line + GAP_PX) + GAP_PX), (PAPER,) * 3)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for i, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        x, y = GAP_PX + (i % columns) * (cell_px + GAP_PX), GAP_PX + (i // columns) * (cell_px + line + GAP_PX)
        canvas.paste(Image.fromarray(np.ascontiguousarray(fit(picture, cell_px))).convert("RGB"), (x, y))
        draw.text((x, y + cell_px + 1), title, fill=(200, 200, 200), font=font)
    return np.asarray(canvas)
