"""Shards of Zarr 3 arrays, encoded chunk by chunk.

As tensorstore would encode them, after the specification (https://zarr-specs.readthedocs.io, sharding codec 1.0), but
a piece is read, encoded and forgotten by one thread while others do the next: a shard of 256³ labels of 64 bits would
be 134 MB, going to memory and back a few times. A shard is written whole, and once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import crc32c
import numpy as np
import zstandard

from happyneurons.formats.base import ReadPiece
from happyneurons.formats.blocks import boxes, padded
from happyneurons.formats.pieces import in_threads
from happyneurons.store.documents import Store
from happyneurons.store.triples import Triple, triple

PIECE_BYTES = 2 << 20
"""Most bytes of voxels in a piece that is more than one chunk: they stay in a core's cache, and calls cost little."""
NOTHING = np.iinfo(np.uint64).max
"""Offset and length of a chunk that is not there: zeros."""


@dataclass(frozen=True)
class Shards:
    """Writes the shards of an array as `zarr3.metadata` describes it, z, y and x in either order, channel before x."""

    store: Store
    folder: str
    shard_px: int
    chunk_px: int
    dtype: np.dtype[Any]
    level: int | None
    """zstd's; None: not compressed."""
    first_zyx: Triple
    """Coordinates of the array's first voxel."""
    cxyz: bool = False
    """Whether the axes are c, x, y, z, and chunks are stored with the first axis fastest; else z, y, x."""
    threads: int = 1

    @property
    def piece_px(self) -> int:
        edge = self.chunk_px
        while 2 * edge <= self.shard_px and (2 * edge) ** 3 * self.dtype.itemsize <= PIECE_BYTES:
            edge *= 2
        return edge

    def write(self, start_zyx: Triple, stop_zyx: Triple, read: ReadPiece) -> None:
        """Write the shards of a box; what of them lies outside of it becomes zeros. Raises StoreError."""
        for low, high in boxes(start_zyx, stop_zyx, self.first_zyx, (self.shard_px,) * 3):
            index = np.subtract(low, self.first_zyx) // self.shard_px
            corner = triple(index * self.shard_px + self.first_zyx)
            pieces = boxes(low, high, corner, (self.piece_px,) * 3)
            found: dict[int, bytes] = {}
            for chunks in in_threads(partial(self._encode_piece, corner, read), pieces, max(2, self.threads)):
                found.update(chunks)
            if found:
                order = ["c", *(["0", *map(str, index[::-1])] if self.cxyz else map(str, index))]
                self.store.put("/".join([self.folder, *order]), self._join(found))

    def _encode_piece(self, corner: Triple, read: ReadPiece, low: Triple, high: Triple) -> dict[int, bytes]:
        """Encoded chunks of a piece by their number in the shard; those of zeros are left out."""
        block, found = read(low, high), {}
        # One a piece: its tables are dear to make, and threads cannot share it.
        compress = (
            None if self.level is None else zstandard.ZstdCompressor(level=self.level, write_checksum=True).compress
        )
        places = (self.shard_px // self.chunk_px,) * 3
        for a, b in boxes(low, high, corner, (self.chunk_px,) * 3):
            at = np.subtract(a, corner) // self.chunk_px
            part = block[tuple(slice(p - o, q - o) for p, q, o in zip(a, b, low, strict=True))]
            # Stored zyx with x fastest in both orders of the axes (cxyz: that is what its transposition means).
            place = (np.subtract(a, corner) - at * self.chunk_px).tolist()
            chunk = padded(part, (self.chunk_px,) * 3, self.dtype.newbyteorder("<"), place)
            if chunk.flat[0] or chunk.view(np.uint8).any():  # by bytes: -0.0 is not 0
                number = int(np.ravel_multi_index(tuple(at[::-1] if self.cxyz else at), places))
                found[number] = compress(chunk.data) if compress else chunk.tobytes()
        return found

    def _join(self, chunks: dict[int, bytes]) -> bytes:
        """The file: chunks in the order of their numbers, the index of all, its checksum."""
        index = np.full(((self.shard_px // self.chunk_px) ** 3, 2), NOTHING, "<u8")
        numbers, offset = sorted(chunks), 0
        for number in numbers:
            index[number] = offset, len(chunks[number])
            offset += len(chunks[number])
        table = index.tobytes()
        return b"".join([*(chunks[n] for n in numbers), table, crc32c.crc32c(table).to_bytes(4, "little")])
