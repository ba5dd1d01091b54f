"""The WKW container, after its specification (github.com/scalableminds/webknossos-wrap).

A file holds a cube of blocks, in Morton order; a block's voxels lie with x fastest, channels before
x. Compressed blocks (LZ4) are found through a jump table of where each ends. Files that are not
there, and of which nobody wrote anything, are zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import cramjam
import numpy as np

from happyneurons.errors import NotFoundError, TaskError, UserError
from happyneurons.store.damage import damaged
from happyneurons.store.documents import Store
from happyneurons.store.triples import Triple, triple

MAGIC = b"WKW\x01"
HEADER_BYTES = 16
RAW, LZ4, LZ4HC = 1, 2, 3
DTYPES = ("uint8", "uint16", "uint32", "uint64", "float32", "float64", "int8", "int16", "int32", "int64")
"""By the header's voxel type, which begins at 1."""
BLOCK_PX = 32
"""Edge of a block; WEBKNOSSOS reads no other."""


@dataclass(frozen=True)
class Header:
    block_px: int
    """Edge of a block, voxels; a power of two."""
    file_blocks: int
    """Blocks along an edge of a file; a power of two."""
    block_type: int
    dtype: np.dtype[Any]
    channels: int = 1
    data_offset: int = 0

    @property
    def file_px(self) -> int:
        return self.block_px * self.file_blocks

    @property
    def block_bytes(self) -> int:
        return self.block_px**3 * self.dtype.itemsize * self.channels

    def pack(self) -> bytes:
        sizes = (self.file_blocks.bit_length() - 1) << 4 | (self.block_px.bit_length() - 1)
        voxel = DTYPES.index(self.dtype.name) + 1
        fields = bytes([sizes, self.block_type, voxel, self.dtype.itemsize * self.channels])
        return MAGIC + fields + self.data_offset.to_bytes(8, "little")

    @classmethod
    def parse(cls, data: bytes, where: str) -> Header:
        """Raises UserError if it is none."""
        if len(data) < HEADER_BYTES or data[:3] != MAGIC[:3]:
            raise UserError(f"{where}: not a WKW header")
        if data[3] != MAGIC[3]:
            raise UserError(f"{where}: WKW version {data[3]}; only version 1 can be read")
        sizes, block_type, voxel, size = data[4:8]
        if block_type not in (RAW, LZ4, LZ4HC) or not 1 <= voxel <= len(DTYPES):
            raise UserError(f"{where}: unknown block type {block_type} or voxel type {voxel}")
        dtype = np.dtype(DTYPES[voxel - 1])
        if not size or size % dtype.itemsize:
            raise UserError(f"{where}: voxels of {size} bytes are not whole numbers of {dtype}")
        offset = int.from_bytes(data[8:16], "little")
        return cls(1 << (sizes & 15), 1 << (sizes >> 4), block_type, dtype, size // dtype.itemsize, offset)


def read_header(store: Store, folder: str) -> Header:
    """Header of a magnification's folder. Raises UserError if there is none."""
    path = f"{folder}/header.wkw"
    try:
        return Header.parse(store.get(path), store.url(path))
    except NotFoundError:
        raise UserError(f"{store.url(path)}: not found; this folder holds no WKW data") from None


def file_path(folder: str, index_zyx: Sequence[int]) -> str:
    z, y, x = index_zyx
    return f"{folder}/z{z}/y{y}/x{x}.wkw"


@lru_cache(8)
def morton(blocks: int) -> np.ndarray:
    """(blocks³, 3) places (z, y, x) of a file's blocks, in the order they are stored."""
    index = np.arange(blocks**3)
    places = np.zeros((3, len(index)), np.int64)
    for bit in range(blocks.bit_length() - 1):
        for axis in range(3):  # x, y, z: x changes first
            places[2 - axis] |= ((index >> (3 * bit + axis)) & 1) << bit
    return places.T


def read_box(
    store: Store, folder: str, header: Header, start_zyx: Sequence[int], stop_zyx: Sequence[int], channel: int = 0
) -> np.ndarray:
    """(z, y, x) array of a box in absolute coordinates ≥ 0. Raises TaskError if a file is damaged."""
    result = np.zeros([b - a for a, b in zip(start_zyx, stop_zyx, strict=True)], header.dtype)
    first = [a // header.file_px for a in start_zyx]
    last = [-(-b // header.file_px) for b in stop_zyx]
    for index in np.ndindex(*(b - a for a, b in zip(first, last, strict=True))):
        at = triple(np.add(first, index))
        corner = np.multiply(at, header.file_px)
        low = np.maximum(start_zyx, corner) - corner
        high = np.minimum(stop_zyx, corner + header.file_px) - corner
        target = result[tuple(slice(*p) for p in zip(corner + low - start_zyx, corner + high - start_zyx, strict=True))]
        _read_file(store, file_path(folder, at), header, triple(low), triple(high), channel, target)
    return result


def _read_file(
    store: Store, path: str, header: Header, low: Triple, high: Triple, channel: int, target: np.ndarray
) -> None:
    """Fill `target` with a box of one file (voxels of the file); a file that is not there is zeros."""
    where = store.url(path)
    try:
        head = store.get_range(path, 0, HEADER_BYTES)
    except NotFoundError:
        return
    found = Header.parse(head, where)
    if replace(found, data_offset=0) != replace(header, data_offset=0):
        raise TaskError(
            f"{where}: its header (blocks of {found.block_px}³ voxels, files of {found.file_px}³, {found.channels} × "
            f"{found.dtype}, block type {found.block_type}) disagrees with the layer's header.wkw (blocks of "
            f"{header.block_px}³, files of {header.file_px}³, {header.channels} × {header.dtype}, block type "
            f"{header.block_type}); the file was written for another layer: replace it, or make the layer anew"
        )
    edge, shape = header.block_px, (header.block_px,) * 3 + (header.channels,)
    places = morton(header.file_blocks)
    inside = np.all((places * edge < high) & ((places + 1) * edge > low), axis=1)
    try:
        for number, data in _blocks(store, path, found, np.flatnonzero(inside)):
            corner = places[number] * edge
            block = np.frombuffer(data, header.dtype.newbyteorder("<")).reshape(shape)[..., channel]
            a, b = np.maximum(low, corner), np.minimum(high, corner + edge)
            target[tuple(slice(*p) for p in zip(a - low, b - low, strict=True))] = block[
                tuple(slice(*p) for p in zip(a - corner, b - corner, strict=True))
            ]
    except (ValueError, cramjam.DecompressionError) as error:
        raise TaskError(damaged(where, low, high, error)) from error


def _blocks(store: Store, path: str, header: Header, wanted: np.ndarray) -> Iterator[tuple[int, bytes]]:
    """(number, raw bytes) of blocks, ascending; neighbours in the file are fetched at once."""
    count = header.file_blocks**3
    if header.block_type == RAW:
        ends = header.data_offset + header.block_bytes * np.arange(1, count + 1, dtype=np.int64)
    else:
        ends = np.frombuffer(store.get_range(path, HEADER_BYTES, 8 * count), "<u8").astype(np.int64)
        if len(ends) != count:
            raise ValueError("the jump table is cut off")
    begins = np.concatenate([[header.data_offset], ends[:-1]])
    if (ends < begins).any() or begins[0] < HEADER_BYTES:
        raise ValueError("the jump table does not ascend")
    runs = np.split(wanted, np.flatnonzero(np.diff(wanted) > 1) + 1)
    for run in runs:
        if not len(run):
            continue
        base, end = int(begins[run[0]]), int(ends[run[-1]])
        data = store.get_range(path, base, end - base)
        if len(data) != end - base:
            raise ValueError(f"the file ends {end - base - len(data)} bytes early")
        for number in run:
            piece = data[int(begins[number]) - base : int(ends[number]) - base]
            if header.block_type != RAW:
                piece = bytes(cramjam.lz4.decompress_block(piece, output_len=header.block_bytes))
            if len(piece) != header.block_bytes:
                raise ValueError(f"block {number} has {len(piece)} bytes instead of {header.block_bytes}")
            yield int(number), piece


def encode_file(cube_zyx: np.ndarray, header: Header) -> bytes:
    """The bytes of a file of one channel from its whole cube."""
    edge, count = header.block_px, header.file_blocks**3
    pieces = []
    for z, y, x in morton(header.file_blocks) * edge:
        block = np.ascontiguousarray(cube_zyx[z : z + edge, y : y + edge, x : x + edge])
        raw = block.astype(header.dtype.newbyteorder("<"), copy=False).tobytes()
        pieces.append(raw if header.block_type == RAW else bytes(cramjam.lz4.compress_block(raw, store_size=False)))
    if header.block_type == RAW:
        return b"".join([replace(header, data_offset=HEADER_BYTES).pack(), *pieces])
    begin = HEADER_BYTES + 8 * count
    ends = begin + np.cumsum([len(p) for p in pieces], dtype=np.int64)
    return b"".join([replace(header, data_offset=begin).pack(), ends.astype("<u8").tobytes(), *pieces])
