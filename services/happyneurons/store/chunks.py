"""Chunks of precomputed volumes on file systems, read without CloudVolume.

Importing CloudVolume takes seconds of CPU in every rank, and most volumes that a stage reads are the pipeline's own:
unsharded chunks, raw or compressed_segmentation, perhaps gzipped by another program. All else is CloudVolume's.
Format: google/neuroglancer, src/datasource/precomputed/volume.md.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from happyneurons.store.compressed_segmentation import check_chunk
from happyneurons.store.damage import DamagedChunkError

ENCODINGS = (".gz", ".br", ".zstd", ".xz", ".bz2")
"""Ends of the names of files that CloudVolume has compressed on a file system."""


def chunks_in(
    scale: Mapping[str, Any], start_zyx: Sequence[int] | np.ndarray, stop_zyx: Sequence[int] | np.ndarray
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name, begin, end) of the chunks that a box of one level meets, begin and end in voxels, (z, y, x)."""
    first = np.array(scale.get("voxel_offset", (0, 0, 0))[::-1], np.int64)
    end, size = first + scale["size"][::-1], np.array(scale["chunk_sizes"][0][::-1], np.int64)
    begins = first + (np.asarray(start_zyx) - first) // size * size
    for corner in product(*(range(int(a), int(b), int(s)) for a, b, s in zip(begins, stop_zyx, size, strict=True))):
        begin = np.array(corner, np.int64)
        stop = np.minimum(begin + size, end)
        yield "_".join(f"{a}-{b}" for a, b in zip(begin[::-1], stop[::-1], strict=True)), begin, stop


def read_box(
    folder: Path,
    scale: Mapping[str, Any],
    dtype: np.dtype[Any],
    channels: int,
    start_zyx: Sequence[int],
    stop_zyx: Sequence[int],
) -> np.ndarray | None:
    """(channel, z, y, x) array of a box of one level; chunks that are not there are zeros.

    folder: the volume's. scale: the level's entry in its `info`. None: CloudVolume has to read it, or to say what is
    wrong with the box. Raises DamagedChunkError, OSError.
    """
    low, high = np.array(start_zyx, np.int64), np.array(stop_zyx, np.int64)
    first = np.array(scale.get("voxel_offset", (0, 0, 0))[::-1], np.int64)
    end = first + scale["size"][::-1]
    if scale.get("sharding") or scale["encoding"] not in ("raw", "compressed_segmentation"):
        return None
    if (low < first).any() or (high > end).any() or (low >= high).any():
        return None
    box = np.zeros((channels, *(high - low).tolist()), dtype)
    for name, begin, stop in chunks_in(scale, low, high):
        try:
            data = _content(folder / scale["key"] / name)
        except _OtherEncodingError:
            return None
        if data is not None:
            chunk = _decoded(data, scale, dtype, (channels, *(stop - begin).tolist()), name)
            a, b = np.maximum(begin, low), np.minimum(stop, high)
            box[_slices(a - low, b - low)] = chunk[_slices(a - begin, b - begin)]
    return box


class _OtherEncodingError(Exception):
    """A file is compressed as only CloudVolume reads it."""


def _content(path: Path) -> bytes | None:
    packed = path.with_name(f"{path.name}.gz")
    with suppress(FileNotFoundError):
        return path.read_bytes()
    with suppress(FileNotFoundError):
        try:
            return gzip.decompress(packed.read_bytes())
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DamagedChunkError(f"{packed.name}: {error}") from None
    if any(path.with_name(path.name + end).exists() for end in ENCODINGS):
        raise _OtherEncodingError
    return None


def _decoded(
    data: bytes, scale: Mapping[str, Any], dtype: np.dtype[Any], shape_czyx: tuple[int, ...], name: str
) -> np.ndarray:
    if scale["encoding"] == "raw":
        wanted = int(np.prod(shape_czyx)) * dtype.itemsize
        if len(data) != wanted:
            raise DamagedChunkError(f"{name}: {len(data)} bytes, {wanted} were expected")
        return np.frombuffer(data, dtype.newbyteorder("<")).reshape(shape_czyx)
    import compressed_segmentation

    shape, block = shape_czyx[::-1], scale["compressed_segmentation_block_size"]
    check_chunk(data, shape, dtype, block)
    found = compressed_segmentation.decompress(data, shape, dtype, tuple(block), order="F")
    return np.asarray(found).reshape(shape, order="F").T


def _slices(start: np.ndarray, stop: np.ndarray) -> tuple[slice, ...]:
    return (slice(None), *(slice(a, b) for a, b in zip(start.tolist(), stop.tolist(), strict=True)))
