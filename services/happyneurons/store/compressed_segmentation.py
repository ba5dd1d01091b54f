"""Chunks of compressed_segmentation are looked at before they are decoded.

The decoder that CloudVolume calls (package compressed-segmentation) follows the offsets in a chunk wherever they lead:
a truncated or overwritten file ends the whole process, or gives labels that never were. Format: google/neuroglancer,
src/sliceview/compressed_segmentation/README.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from happyneurons.store.damage import DamagedChunkError

BITS = (0, 1, 2, 4, 8, 16, 32)
TABLE_BITS = 24


def check_chunk(data: bytes, shape: Sequence[int], dtype: Any, block_xyz: Sequence[int]) -> None:
    """Raises DamagedChunkError unless all that a chunk refers to lies inside of it.

    shape: (x, y, z) or (x, y, z, channel) of the chunk; dtype: uint32 or uint64; block_xyz: its blocks of voxels.
    """
    if len(data) % 4:
        raise DamagedChunkError(f"{len(data)} bytes are no whole number of words: it is truncated")
    words = np.frombuffer(data, "<u4")
    channels = int(shape[3]) if len(shape) > 3 else 1
    blocks = int(np.prod([-(-int(n) // int(b)) for n, b in zip(shape, block_xyz, strict=False)]))
    if len(words) < channels:
        raise DamagedChunkError(f"{len(data)} bytes hold no header: it is truncated")
    for offset in words[:channels].tolist():
        _check_channel(words[offset:], blocks, int(np.prod(block_xyz)), np.dtype(dtype).itemsize // 4)


def _check_channel(words: NDArray[np.uint32], blocks: int, voxels: int, label_words: int) -> None:
    if len(words) < 2 * blocks:
        raise DamagedChunkError(f"its header of {blocks} blocks goes beyond its end: it is truncated or overwritten")
    headers = words[: 2 * blocks].reshape(-1, 2).astype(np.int64)
    tables, bits, values = headers[:, 0] & ((1 << TABLE_BITS) - 1), headers[:, 0] >> TABLE_BITS, headers[:, 1]
    if not np.isin(bits, BITS).all():
        raise DamagedChunkError("a block has a number of bits that there is not: it is overwritten")
    lengths = -(-voxels * bits // 32)
    # A block of one label has no values.
    if ((values + lengths > len(words)) & (bits > 0)).any() or (tables + label_words > len(words)).any():
        raise DamagedChunkError("a block's values or labels lie beyond its end: it is truncated or overwritten")
    # Places in a table are at most 2^bits; where that many would not fit, those that occur have to.
    for i in np.flatnonzero(tables + (label_words << bits) > len(words)):
        found = words[values[i] : values[i] + lengths[i]].astype(np.int64) if bits[i] else np.zeros(1, np.int64)
        largest = max(int(((found >> shift) & ((1 << bits[i]) - 1)).max()) for shift in range(0, 32, max(bits[i], 1)))
        if tables[i] + label_words * (largest + 1) > len(words):
            raise DamagedChunkError("a block names labels beyond its end: it is truncated or overwritten")


def guard_cloudvolume() -> None:
    """From now on CloudVolume looks at such chunks first, in this process."""
    from cloudvolume import chunks

    decode = chunks.decode_compressed_segmentation
    if getattr(decode, "checks", False):
        return

    def checked(bytestring: bytes, shape: Sequence[int], dtype: Any, block_size: Sequence[int]) -> Any:
        if block_size is not None:
            check_chunk(bytes(bytestring), shape, dtype, block_size)
        return decode(bytestring, shape, dtype, block_size)

    checked.checks = True  # type: ignore[attr-defined]
    chunks.decode_compressed_segmentation = checked
