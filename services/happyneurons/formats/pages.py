"""Pages of TIFF files and single pictures, read by the rectangle."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from happyneurons.errors import UserError


class Page(Protocol):
    shape_yx: tuple[int, int]
    dtype: np.dtype[Any]
    channels: int
    tiff: Any
    """tifffile's page; None for other pictures."""

    def read(self, rows: slice, columns: slice, channel: int) -> np.ndarray:
        """(y, x) array of a rectangle."""


class _Picture:
    """A picture that is decoded as a whole."""

    tiff = None

    def __init__(self, pixels: np.ndarray) -> None:
        self._pixels = pixels if pixels.ndim == 3 else pixels[..., np.newaxis]
        self.shape_yx = (int(pixels.shape[0]), int(pixels.shape[1]))
        self.dtype, self.channels = pixels.dtype, int(self._pixels.shape[2])

    def read(self, rows: slice, columns: slice, channel: int) -> np.ndarray:
        return self._pixels[rows, columns, channel]


class _TiffPage:
    """A page of a TIFF file: only the strips or tiles of a rectangle are read and decoded."""

    def __init__(self, page: Any, where: str) -> None:
        self.tiff, self._where = page, where
        if page.imagedepth > 1 or page.ndim not in (2, 3) or not page.dtype:
            raise UserError(f"{where}: a page of shape {page.shape} is not a picture that can be a section")
        self.shape_yx = (int(page.imagelength), int(page.imagewidth))
        self.dtype, self.channels = np.dtype(page.dtype), int(page.samplesperpixel)
        if self.dtype.kind not in "uif":
            raise UserError(f"{where}: pixels of type {self.dtype} are neither grey values nor labels")

    def read(self, rows: slice, columns: slice, channel: int) -> np.ndarray:
        page = self.tiff
        if self.channels > 1:  # rare: not worth more
            pixels = page.asarray()
            pixels = pixels if pixels.shape[-1] == self.channels else np.moveaxis(pixels, 0, -1)
            return pixels[rows, columns, channel]
        result = np.zeros((rows.stop - rows.start, columns.stop - columns.start), self.dtype)
        high, wide = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        high = min(high, page.imagelength) if not page.is_tiled else high
        across = -(-page.imagewidth // wide)
        handle = page.parent.filehandle
        for row in range(rows.start // high, -(-rows.stop // high)):
            for column in range(columns.start // wide, -(-columns.stop // wide)):
                index = row * across + column
                data = _segment(handle, page.dataoffsets[index], page.databytecounts[index], self._where)
                decoded, _, shape = page.decode(data, index, jpegtables=page.jpegtables)
                if decoded is None:
                    continue  # left out by the writer: zeros
                part = decoded.reshape(decoded.shape[-3:-1])[: shape[1], : shape[2]]
                top, left = row * high, column * wide
                ys = slice(max(rows.start, top), min(rows.stop, top + part.shape[0]))
                xs = slice(max(columns.start, left), min(columns.stop, left + part.shape[1]))
                result[
                    ys.start - rows.start : ys.stop - rows.start, xs.start - columns.start : xs.stop - columns.start
                ] = part[ys.start - top : ys.stop - top, xs.start - left : xs.stop - left]
        return result


def _segment(handle: Any, offset: int, length: int, where: str) -> bytes | None:
    if not length:
        return None
    handle.seek(offset)
    data = bytes(handle.read(length))
    if len(data) != length:
        raise ValueError(f"{where} ends {length - len(data)} bytes early")
    return data


class _Pages(Sequence[Page]):
    def __init__(self, pages: Any, where: str) -> None:
        self._pages, self._where = pages, where

    def __len__(self) -> int:
        return len(self._pages)

    def __getitem__(self, index: Any) -> Any:
        # `aspage`: a page of a series may be kept as a mere frame.
        return _TiffPage(self._pages[index].aspage(), self._where)


@contextmanager
def pages_of(file: Path | io.BytesIO, where: str) -> Iterator[Sequence[Page]]:
    """The pages of a TIFF file. Raises UserError if it is none."""
    import tifffile

    try:
        opened = tifffile.TiffFile(file)
    except FileNotFoundError:
        raise UserError(f"{where}: there is no such file") from None
    except (tifffile.TiffFileError, ValueError, LookupError) as error:
        raise UserError(f"{where}: not a readable TIFF file ({error})") from None
    with opened:
        # ImageJ writes stacks above 4 GB as one page and raw data after it.
        if opened.is_imagej and len(opened.pages) == 1 and (opened.imagej_metadata or {}).get("images", 1) > 1:
            raise UserError(f"{where}: a stack of ImageJ's above 4 GB; save it from Fiji as single files or BigTIFF")
        yield _Pages(opened.pages, where)


def page_of_picture(data: bytes, where: str) -> Page:
    """A PNG file as a page. Raises UserError."""
    from PIL import Image, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = None  # sections are large
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.mode in ("1", "P", "LA"):
                picture = picture.convert("L")  # type: ignore[assignment]
            return _Picture(np.asarray(picture))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise UserError(f"{where}: not a readable picture ({error})") from None
