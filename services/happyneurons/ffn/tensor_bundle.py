"""Reading TensorFlow checkpoints without TensorFlow.

A rank that only needs the weights of a published network would else load 460 MB of libraries for them, for ten seconds.

Format: `PREFIX.index` is a table as of LevelDB (leveldb/doc/table_format.md): sorted keys, each variable's name, with
a `BundleEntryProto` as value (tensorflow/core/protobuf/tensor_bundle.proto). `PREFIX.data-00000-of-00001` … hold the
tensors' bytes. Supported is what TensorFlow's savers write by default: blocks without compression, little-endian
numbers, tensors in one piece.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import crc32c
import numpy as np

_FOOTER_BYTES, _MAGIC = 48, 0xDB4775248B80FB57
_TRAILER_BYTES = 5  # of a block: compression, checksum
_DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "|u1", 9: "<i8", 19: "<f2"}
"""Of tensorflow/core/framework/types.proto, those that weights and counters have."""


class BundleError(ValueError):
    """Not such a checkpoint, one that is damaged, or one that uses what is not supported."""


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies. dtype: TensorFlow's number; checksum: masked CRC-32C of its bytes."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    pieces: int


class TensorBundle:
    """The tensors of a checkpoint by name. Raises BundleError, or OSError where files are missing."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        entries = dict(_table(Path(f"{prefix}.index").read_bytes()))
        header = _fields(entries.pop(b"", b""))
        self._shards = int(header.get(1, [0])[0])
        if self._shards < 1 or header.get(2, [0])[0] != 0:
            raise BundleError("its index has no header of a little-endian checkpoint")
        self.entries = {name.decode(): _entry(value) for name, value in entries.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self.entries[name]
        if entry.pieces or entry.dtype not in _DTYPES:
            raise BundleError(f"{name} is in pieces or of a type (number {entry.dtype}) that is not supported")
        with open(f"{self._prefix}.data-{entry.shard:05d}-of-{self._shards:05d}", "rb") as file:
            file.seek(entry.offset)
            data = file.read(entry.size)
        dtype = np.dtype(_DTYPES[entry.dtype])
        if len(data) != entry.size or entry.size != dtype.itemsize * int(np.prod(entry.shape, dtype=np.int64)):
            raise BundleError(f"{name} has {len(data)} bytes, which does not fit its shape {list(entry.shape)}")
        if _masked(crc32c.crc32c(data)) != entry.checksum:
            raise BundleError(f"{name} is damaged: its checksum is another one")
        return np.frombuffer(data, dtype).reshape(entry.shape).astype(dtype.newbyteorder("="))


def _masked(crc: int) -> int:
    """As LevelDB stores checksums."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """All keys and values of a LevelDB table."""
    footer = data[-_FOOTER_BYTES:]
    if len(footer) < _FOOTER_BYTES or struct.unpack("<Q", footer[-8:])[0] != _MAGIC:
        raise BundleError("its index is not a table of a checkpoint")
    _, place = _handle(footer, 0)  # of the metaindex, which is not needed
    index, _ = _handle(footer, place)
    for _, handle in _block(data, *index):
        yield from _block(data, *_handle(handle, 0)[0])


def _handle(data: bytes, place: int) -> tuple[tuple[int, int], int]:
    offset, place = _varint(data, place)
    size, place = _varint(data, place)
    return (offset, size), place


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a block. A key only has what differs from the key before it."""
    block, trailer = data[offset : offset + size], data[offset + size : offset + size + _TRAILER_BYTES]
    if len(block) != size or len(trailer) != _TRAILER_BYTES or size < 4:
        raise BundleError("its index is cut off")
    if trailer[0] != 0:
        raise BundleError("its index is compressed, which is not supported")
    if _masked(crc32c.crc32c(block + trailer[:1])) != struct.unpack("<I", trailer[1:])[0]:
        raise BundleError("its index is damaged: a checksum is another one")
    end = size - 4 * (1 + int(struct.unpack("<I", block[-4:])[0]))  # restart points follow, and their number
    place, key = 0, b""
    while place < end:
        shared, place = _varint(block, place)
        more, place = _varint(block, place)
        length, place = _varint(block, place)
        key = key[:shared] + block[place : place + more]
        place += more
        yield key, block[place : place + length]
        place += length


def _entry(value: bytes) -> Entry:
    fields = _fields(value)
    dimensions = _fields(fields[2][0]).get(2, []) if 2 in fields else []

    def number(tag: int) -> int:
        return int(fields.get(tag, [0])[0])

    return Entry(
        dtype=number(1), shape=tuple(int(_fields(d).get(1, [0])[0]) for d in dimensions), shard=number(3),
        offset=number(4), size=number(5), checksum=number(6), pieces=len(fields.get(7, [])),
    )  # fmt: skip


def _fields(message: bytes) -> dict[int, list]:
    """Values of a serialized protocol message by field number: numbers, or bytes."""
    found: dict[int, list] = {}
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        value: int | bytes
        match tag & 7:
            case 0:
                value, place = _varint(message, place)
            case 2:
                length, place = _varint(message, place)
                value, place = message[place : place + length], place + length
            case 5:
                value, place = int.from_bytes(message[place : place + 4], "little"), place + 4
            case 1:
                value, place = int.from_bytes(message[place : place + 8], "little"), place + 8
            case kind:
                raise BundleError(f"its index holds a message with a field of kind {kind}")
        found.setdefault(tag >> 3, []).append(value)
    return found


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """(number, place after it), 7 bits a byte, the low ones first."""
    value = shift = 0
    while place < len(data):
        byte = data[place]
        place, value, shift = place + 1, value | (byte & 0x7F) << shift, shift + 7
        if byte < 0x80:
            return value, place
    raise BundleError("its index is cut off")
