"""Compressed chunks of an HDF5 file: gathered in a folder beside it by many processes, put into it by one.

Where a compressed chunk lies is known only once those before it are, and HDF5's own library lets one process write to
a file. So each block that is written becomes a file of its own in the folder `FILE.chunks`, replaced as a whole; at
the end one process copies chunk after chunk, compressed as they are, into a new HDF5 file, in the order of the blocks,
and gives it its name. Whatever dies, nothing that is half written is read.
"""

from __future__ import annotations

import io
import shutil
import struct
import uuid
import zlib
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from happyneurons.errors import StoreError
from happyneurons.formats.base import ReadPiece
from happyneurons.formats.blocks import boxes, padded
from happyneurons.formats.pieces import in_threads
from happyneurons.store.documents import Store
from happyneurons.store.triples import Triple, triple

if TYPE_CHECKING:
    import h5py

LEVEL = 4
"""zlib's; h5py's default for compression="gzip"."""
HEADER = struct.Struct("<4Q")
"""Before each chunk of a block's file: its corner (z, y, x, voxels of the dataset), and its length in bytes."""
SUFFIX = ".block"


def add_filters(create: h5py.h5p.PropDCID, dtype: np.dtype[Any]) -> None:
    """What `encode` does, as the dataset's filters; HDF5's library has both built in."""
    if dtype.itemsize > 1:
        create.set_shuffle()
    create.set_deflate(LEVEL)


def encode(chunk: np.ndarray) -> bytes:
    """A whole chunk, filtered: bytes of equal significance side by side (shuffle), then zlib's format (deflate)."""
    planes = np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).reshape(-1, chunk.itemsize)
    return zlib.compress(np.ascontiguousarray(planes.T).data, LEVEL)


def decode(data: bytes, shape: Triple, dtype: np.dtype[Any]) -> np.ndarray:
    planes = np.frombuffer(zlib.decompress(data), np.uint8).reshape(dtype.itemsize, -1)
    return np.ascontiguousarray(planes.T).reshape(-1).view(dtype).reshape(shape)


class _Disk(io.FileIO):
    """A file that HDF5's library writes to without ever failing: errors are kept for whoever asks.

    When the disk is full the library cannot close its file, and has crashed the process at a later one.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        size = len(view)
        try:
            while self.error is None and len(view):
                view = view[super().write(view) :]
        except OSError as error:
            self.error = error
        return size

    def truncate(self, size: int | None = None) -> int:
        return self.tell() if self.error else super().truncate(size)

    def check(self) -> None:
        """Raise what was kept."""
        if self.error is not None:
            raise self.error


class GatheredChunks:
    """The folder beside a file. Boxes are in voxels of the dataset, their faces on chunks' or on the dataset's own."""

    def __init__(self, file: Path, shape_zyx: Triple, chunk_zyx: Triple, dtype: np.dtype[Any], threads: int) -> None:
        self.file, self.folder = file, file.with_name(f"{file.name}.chunks")
        self._shape, self._chunk, self._dtype, self._threads = shape_zyx, chunk_zyx, dtype, max(2, threads)

    @cached_property
    def _store(self) -> Store:
        return Store(self.folder.as_uri())

    def write(self, start: Triple, stop: Triple, read: ReadPiece) -> None:
        """Write a block, chunk by chunk; chunks of zeros are left out, and zeros to whoever reads the file."""
        chunks = boxes(start, stop, (0, 0, 0), self._chunk)
        found = in_threads(partial(self._encode, read), chunks, self._threads)
        self._store.put(self._name(start), b"".join(found))

    def read(self, start: Triple, stop: Triple) -> np.ndarray:
        """A block as it was written, before the file is made."""
        block = np.zeros([b - a for a, b in zip(start, stop, strict=True)], self._dtype)
        for corner, data in self._chunks(self.folder / self._name(start)):
            at = tuple(slice(a - o, a - o + n) for a, o, n in zip(corner, start, self._chunk, strict=True))
            place = block[at]
            place[...] = decode(data, self._chunk, self._dtype)[tuple(slice(0, n) for n in place.shape)]
        return block

    def put_together(self, make: Callable[[h5py.h5f.FileID], h5py.h5d.DatasetID]) -> None:
        """Make the file, unless it is there, and remove the folder. One chunk is in memory at a time. Idempotent.

        make: makes the dataset, with no chunk in it, in a file.
        """
        import h5py

        if not self.file.exists():
            if not self.folder.is_dir():
                raise StoreError(
                    f"{self.file}: the chunks that were written to {self.folder} are not there any more; remove the "
                    "job's journal (TARGET.hpn), then start again"
                )
            for left in self.folder.glob("*.new"):  # by one that died here
                left.unlink()
            new = self.folder / f"{uuid.uuid4().hex}.new"
            with _Disk(new, "w+") as disk:
                with h5py.File(disk, "w", libver=("earliest", "v110")) as file:
                    data = make(file.id)
                    for path in sorted(self.folder.glob(f"*{SUFFIX}")):
                        for corner, chunk in self._chunks(path):
                            data.write_direct_chunk(corner, chunk)
                            disk.check()
                disk.check()
            new.replace(self.file)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _encode(self, read: ReadPiece, start: Triple, stop: Triple) -> bytes:
        chunk = padded(read(start, stop), self._chunk, self._dtype)  # those at the faces are stored whole, too
        if not chunk.view(np.uint8).any():
            return b""
        data = encode(chunk)
        return HEADER.pack(*start, len(data)) + data

    def _chunks(self, path: Path) -> Iterator[tuple[Triple, bytes]]:
        """(corner, filtered bytes) of each chunk of a block. Raises StoreError if the file is cut off."""
        with path.open("rb") as file:
            while head := file.read(HEADER.size):
                *corner, size = HEADER.unpack(head) if len(head) == HEADER.size else (0, 0, 0, 1)
                data = file.read(size)
                if len(data) != size:
                    raise StoreError(
                        f"{path}: it is cut off, the disk may have lost it; remove {self.folder} and the job's journal "
                        "(TARGET.hpn), then start again"
                    )
                yield triple(corner), data

    @staticmethod
    def _name(start: Triple) -> str:
        """Names in the order of the blocks' corners: the file's bytes are the same, whoever wrote them when."""
        return "-".join(f"{n:012d}" for n in start) + SUFFIX
