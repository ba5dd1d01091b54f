"""HDF5: a (z, y, x) dataset of a file.

Read by the store's own code. Uncompressed, written without HDF5's library once the file is laid out:
all chunks are allocated at the start, and each begins on a page of its own (4 kB). So processes can
write chunks of one file side by side without a parallel HDF5, and a process that dies leaves nothing
half-linked behind. Compressed: see hdf5_gzip.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from happyneurons.errors import UserError
from happyneurons.formats.base import Reader, ReadOptions, ReadPiece, Writer, pick_level
from happyneurons.formats.blocks import padded
from happyneurons.formats.damage import reading, writing
from happyneurons.formats.hdf5_gzip import GatheredChunks, add_filters
from happyneurons.formats.location import Location
from happyneurons.formats.pieces import write_block
from happyneurons.store.triples import Triple, triple
from happyneurons.store.volumes import Hdf5Volume

if TYPE_CHECKING:
    import h5py

DATASET = "volume"
PAGE = 4096


class Hdf5Reader(Reader):
    def __init__(self, location: Location, options: ReadOptions) -> None:
        path = location.path
        if path is None:
            raise UserError(f"{location}: HDF5 files are read from a file system only; copy it to one")
        pick_level(options.mip, 1, str(location))
        self.uri = f"h5://{path}?{location.inner or _only_dataset(path)}"
        self._volume = Hdf5Volume(self.uri)
        found = self._volume.dtype
        if found.kind not in "uifb":
            raise UserError(f"{self.uri}: voxels of type {found} are neither grey values nor labels")
        self.dtype = np.dtype(np.uint8) if found.kind == "b" else found.newbyteorder("=")
        self.start_zyx, self.stop_zyx = self._volume.start_zyx, self._volume.stop_zyx
        self.voxel_size_nm_xyz = self._volume.voxel_size_nm_xyz
        kind, chunked = _about(path, self.uri.partition("?")[2])
        self.labels, self.sections = {"segmentation": True, "image": False}.get(kind), not chunked

    def read(self, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> np.ndarray:
        with reading(self.uri, start_zyx, stop_zyx):
            return self._volume.read(start_zyx, stop_zyx).astype(self.dtype, copy=False)


def open_reader(location: Location, options: ReadOptions) -> Hdf5Reader:
    return Hdf5Reader(location, options)


def _only_dataset(path: Path) -> str:
    """The one three-dimensional dataset of a file. Raises UserError if there is not exactly one."""
    import h5py

    found: list[str] = []
    try:
        with h5py.File(path, "r") as file:
            file.visititems(
                lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) and item.ndim == 3 else None
            )
    except OSError as error:
        raise UserError(f"{path}: not a readable HDF5 file ({error})") from None
    if len(found) != 1:
        raise UserError(
            f"{path}: it has {len(found) or 'no'} three-dimensional datasets; name one: {path}?DATASET"
            + (f" ({', '.join(found[:20])})" if found else "")
        )
    return found[0]


def _about(path: Path, dataset: str) -> tuple[str, bool]:
    """(what our writer called it, whether it is stored in chunks)."""
    import h5py

    with h5py.File(path, "r") as file:
        return str(file[dataset].attrs.get("kind", "")), file[dataset].chunks is not None


class Hdf5Writer(Writer):
    format, title = "hdf5", "HDF5"
    label_dtypes = None
    pyramids, remote = False, False

    @property
    def _file(self) -> Path:
        path = self.location.path
        assert path is not None
        return path

    @property
    def _dataset(self) -> str:
        return self.location.inner or DATASET

    @property
    def _chunk(self) -> Triple:
        return triple(np.minimum(self.options.chunk_px, self.levels[0].shape_zyx))

    def occupied(self) -> bool:
        return self._file.exists() or (self.options.gzip and self._gathered.folder.exists())

    @cached_property
    def _gathered(self) -> GatheredChunks:
        info = self.levels[0]
        return GatheredChunks(self._file, info.shape_zyx, self._chunk, info.dtype, self.options.threads)

    def prepare(self) -> None:
        import h5py

        if self._file.exists():
            return  # an earlier attempt's; the journal knows which of its chunks are written
        with writing(str(self.location)):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            if self.options.gzip:
                self._gathered.folder.mkdir(exist_ok=True)
                return
            new = self._file.with_name(self._file.name + ".new")
            access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
            access.set_alignment(PAGE, PAGE)
            access.set_libver_bounds(h5py.h5f.LIBVER_EARLIEST, h5py.h5f.LIBVER_V110)
            file = h5py.h5f.create(os.fsencode(new), h5py.h5f.ACC_TRUNC, fapl=access)
            try:
                self._make(file)
            finally:
                file.close()
            new.replace(self._file)

    def _make(self, file: h5py.h5f.FileID) -> h5py.h5d.DatasetID:
        """The dataset in a new file: all chunks allocated, or none of them if they are to be compressed."""
        import h5py

        info = self.levels[0]
        create = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        create.set_chunk(self._chunk)
        create.set_obj_track_times(False)  # the same bytes at any time
        if self.options.gzip:
            add_filters(create, info.dtype)
        else:
            create.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            create.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
        links.set_create_intermediate_group(True)
        data = h5py.h5d.create(
            file, self._dataset.encode(), h5py.h5t.py_create(info.dtype, logical=True),
            h5py.h5s.create_simple(info.shape_zyx), dcpl=create, lcpl=links,
        )  # fmt: skip
        attributes = h5py.Dataset(data).attrs
        attributes["voxel_size_nm_xyz"] = np.asarray(info.voxel_size_nm_xyz, np.float64)
        attributes["voxel_offset_xyz"] = np.asarray(info.start_zyx[::-1], np.int64)
        attributes["kind"] = info.kind
        # What CREMI, funlib and others read: nm, in the array's axis order.
        attributes["resolution"] = np.asarray(info.voxel_size_nm_xyz[::-1], np.float64)
        attributes["offset"] = np.multiply(info.voxel_size_nm_xyz, info.start_zyx[::-1])[::-1]
        return data

    @cached_property
    def _chunks(self) -> dict[Triple, int]:
        """Where in the file each chunk begins, by the voxel of the dataset that it begins with."""
        import h5py

        with h5py.File(self._file, "r") as file:
            data = file[self._dataset].id
            found = (data.get_chunk_info(i) for i in range(data.get_num_chunks()))
            return {triple(c.chunk_offset): int(c.byte_offset) for c in found}

    def unit_zyx(self, level: int) -> Triple:
        return self._chunk

    def piece_zyx(self, level: int) -> Triple | None:
        return self._chunk if self.options.gzip else None

    def write_from(self, level: int, start_zyx: Triple, stop_zyx: Triple, read: ReadPiece) -> None:
        if not self.options.gzip:
            super().write_from(level, start_zyx, stop_zyx, read)
            return
        first = self.levels[0].start_zyx

        def read_chunk(low: Triple, high: Triple) -> np.ndarray:
            return read(triple(np.add(low, first)), triple(np.add(high, first)))

        self._gathered.write(triple(np.subtract(start_zyx, first)), triple(np.subtract(stop_zyx, first)), read_chunk)

    def close(self, largest: int) -> None:
        if self.options.gzip:
            with writing(str(self.location)):
                self._gathered.put_together(self._make)

    def write(self, level: int, start_zyx: Sequence[int], block_zyx: np.ndarray) -> None:
        if self.options.gzip:
            write_block(self, level, start_zyx, block_zyx)
            return
        low = np.subtract(start_zyx, self.levels[0].start_zyx)
        with writing(str(self.location)), self._file.open("r+b", buffering=0) as file:
            for corner in np.ndindex(*(-(-n // c) for n, c in zip(block_zyx.shape, self._chunk, strict=True))):
                at = np.multiply(corner, self._chunk)
                part = block_zyx[tuple(slice(a, a + c) for a, c in zip(at, self._chunk, strict=True))]
                # Chunks at the faces are stored whole, too.
                whole = padded(part, self._chunk, self.levels[0].dtype)
                _write_all(file.fileno(), whole.tobytes(), self._chunks[triple(low + at)])

    def read(self, level: int, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> np.ndarray:
        if self.options.gzip and not self._file.exists():
            first = self.levels[0].start_zyx
            return self._gathered.read(triple(np.subtract(start_zyx, first)), triple(np.subtract(stop_zyx, first)))
        return Hdf5Volume(self.uri()).read(start_zyx, stop_zyx)

    def uri(self) -> str:
        return f"h5://{self._file}?{self._dataset}"


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
