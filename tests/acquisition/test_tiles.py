"""A tile's file is only taken if it was read to its end and found whole."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from happyneurons.acquisition.tiles import verify_tile
from happyneurons.errors import TaskError

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 48), np.uint8)


def tiff(pixels: np.ndarray = PIXELS, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, metadata=None, **options)
    return buffer.getvalue()


def picture(kind: str, pixels: np.ndarray = PIXELS) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


FILES = {
    "plain.tif": tiff(), "strips.tif": tiff(rowsperstrip=8), "deflated.tif": tiff(compression="zlib", rowsperstrip=8),
    "tiled.tif": tiff(tile=(16, 16)), "picture.png": picture("PNG"), "picture.jpg": picture("JPEG"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_whole_file_is_described(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    found = verify_tile(tmp_path / name, (48, 64), "uint8")
    assert (found.width, found.height, found.dtype) == (48, 64, "uint8")
    assert found.sha256 == hashlib.sha256(FILES[name]).hexdigest()
    assert found.size_bytes == len(FILES[name])


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.95])
@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_is_noticed(tmp_path: Path, name: str, share: float) -> None:
    data = FILES[name]
    (tmp_path / name).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(TaskError, match=name):
        verify_tile(tmp_path / name)


@pytest.mark.parametrize("name", ["deflated.tif", "picture.png"])
def test_damaged_compressed_pixels_are_noticed(tmp_path: Path, name: str) -> None:
    data = bytearray(FILES[name])
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(TaskError, match="damaged"):
        verify_tile(tmp_path / name)


def test_what_it_should_be_is_compared(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(tiff())
    with pytest.raises(TaskError, match="48 x 64 px, expected 64 x 48"):
        verify_tile(path, (64, 48))
    path.write_bytes(tiff(PIXELS.astype(np.uint16)))
    with pytest.raises(TaskError, match="uint16 pixels, expected uint8"):
        verify_tile(path, (48, 64), "uint8")
    for colours in (tiff(np.stack([PIXELS] * 3, -1), photometric="rgb"), picture("PNG", np.stack([PIXELS] * 3, -1))):
        path.write_bytes(colours)
        with pytest.raises(TaskError, match="no single grey picture"):
            verify_tile(path)
    with pytest.raises(TaskError, match="No such file"):
        verify_tile(tmp_path / "absent.tif")
