"""Picture files of tiles: what they say of themselves, and whether they are whole."""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from happyneurons.errors import TaskError

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PIECE_BYTES = 4 << 20  # of a file held at a time
_UNCOMPRESSED = 1

# Pillow's modes of one grey channel.
_GREY = {"1": "uint8", "L": "uint8", "I;16": "uint16", "I;16B": "uint16", "I": "int32", "F": "float32"}


@dataclass(frozen=True)
class TileFile:
    """A tile's file that was read to its end and found whole."""

    width: int
    height: int
    dtype: str
    sha256: str
    size_bytes: int


def decode(data: bytes) -> np.ndarray:
    """The picture in a TIFF, PNG or JPEG, decoded to its last pixel. Raises ValueError if damaged."""
    if not data:
        raise ValueError("the file is empty")
    try:
        if data[:4] in TIFF:
            import tifffile

            with tifffile.TiffFile(io.BytesIO(data)) as file:
                page = file.pages[0]
                # An uncompressed TIFF cut short would else be read as far as it goes.
                ends = [o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
                if not ends or max(ends) > len(data):
                    raise ValueError(f"it ends after {len(data)} of {max(ends, default=0)} bytes")
                return np.asarray(page.asarray())
        # Pillow refuses pictures that are cut short; OpenCV returns what there is of them.
        from PIL import Image

        with Image.open(io.BytesIO(data)) as picture:
            return np.asarray(picture)
    except Exception as error:
        text = str(error).strip().splitlines()
        raise ValueError(text[0] if text else type(error).__name__) from error


def read_header(path: Path) -> tuple[int, int, str] | None:
    """(width, height, dtype) without decoding; None if the file cannot tell."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        if magic in TIFF:
            import tifffile

            with tifffile.TiffFile(path) as tiff:
                page = tiff.pages[0]
                return int(page.shape[1]), int(page.shape[0]), str(np.dtype(page.dtype))
        from PIL import Image

        with Image.open(path) as picture:
            # Only the mode's type: one row is decoded lazily by Pillow's own table.
            return picture.width, picture.height, _GREY.get(picture.mode, "uint8")
    except Exception:  # noqa: BLE001 - decoders raise whatever they like on damaged bytes
        return None


def verify_tile(path: Path, size: tuple[int, int] | None = None, dtype: str | None = None) -> TileFile:
    """Read a tile to its end, piece by piece, and make sure that it is a whole grey picture.

    size: (width, height), dtype: what it must have, where that is known. Memory: a few MiB for TIFF
    (one strip where they are compressed), one picture for PNG and JPEG. Raises TaskError.
    """
    try:
        with path.open("rb") as file:
            width, height, found = _read_whole(path, file)
            if size is not None and (width, height) != size:
                raise TaskError(f"{path} has {width} x {height} px, expected {size[0]} x {size[1]}")
            if dtype is not None and found != dtype:
                raise TaskError(f"{path} has {found} pixels, expected {dtype}")
            file.seek(0)
            digest, length = hashlib.sha256(), 0
            while piece := file.read(PIECE_BYTES):
                digest.update(piece)
                length += len(piece)
    except OSError as error:
        raise TaskError(f"{path}: {error.strerror or error}") from error
    return TileFile(width, height, found, digest.hexdigest(), length)


def _read_whole(path: Path, file: IO[bytes]) -> tuple[int, int, str]:
    """(width, height, dtype) of a picture that is complete. Raises TaskError, OSError."""
    magic = file.read(4)
    if not magic:
        raise TaskError(f"{path} is empty")
    file.seek(0)
    try:
        shape, dtype = _read_tiff(file) if magic in TIFF else _read_other(file)
    except (OSError, TaskError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the file system's error, not Pillow's, which are OSErrors without a number
        raise TaskError(f"{path} is truncated or damaged: {_line(error)}") from error
    except Exception as error:
        raise TaskError(f"{path} is truncated or damaged: {_line(error)}") from error
    if len(shape) != 2:
        raise TaskError(f"{path} is no single grey picture (shape {shape})")
    return shape[1], shape[0], dtype


def _read_tiff(file: IO[bytes]) -> tuple[tuple[int, ...], str]:
    import tifffile

    length = os.fstat(file.fileno()).st_size
    with tifffile.TiffFile(file) as tiff:
        page = tiff.pages[0]
        ends = [o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if not ends or max(ends) > length:
            raise TaskError(f"it ends after {length} of {max(ends, default=0)} bytes")
        if page.compression == _UNCOMPRESSED:
            # Its bytes are its pixels: the count says it all, nothing needs decoding.
            if sum(page.databytecounts) < page.nbytes:
                raise TaskError(f"it holds {sum(page.databytecounts)} of {page.nbytes} bytes of pixels")
        else:
            for pixels, _, _ in page.segments(maxworkers=1, buffersize=PIECE_BYTES):
                if pixels is None:
                    raise TaskError("a part of the picture is missing")
        return tuple(int(n) for n in page.shape), str(np.dtype(page.dtype))


def _read_other(file: IO[bytes]) -> tuple[tuple[int, ...], str]:
    from PIL import Image

    with Image.open(file) as picture:
        dtype, shape = _GREY.get(picture.mode), (picture.height, picture.width)
        picture.load()
        return (shape if dtype else (*shape, len(picture.getbands()))), dtype or "uint8"


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
