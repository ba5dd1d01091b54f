"""What the volume server can serve: folders, stores, and HDF5 datasets as if they were precomputed."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from happyneurons.errors import NotFoundError
from happyneurons.store.documents import Store, local_path
from happyneurons.store.volumes import Hdf5Volume


@dataclass(frozen=True)
class Item:
    """A file: its size in bytes as sent, its Content-Encoding, and `read(start, length)`."""

    size: int
    read: Callable[[int, int], bytes]
    encoding: str | None = None

    def decoded(self) -> Item:
        """The file without its compression: ranges count bytes of the content."""
        if self.encoding is None:
            return self
        return in_memory(gzip.decompress(self.read(0, self.size)))


class Source(Protocol):
    def find(self, path: str) -> Item | None:
        """The file at a relative path, None if there is none (or it is none of the reader's business)."""


def in_memory(data: bytes) -> Item:
    return Item(len(data), lambda start, length: data[start : start + length])


class FolderSource:
    """Files of a local folder; `X` is served from `X.gz` where only that is there."""

    def __init__(self, folder: Path) -> None:
        self._root = folder.resolve()

    def find(self, path: str) -> Item | None:
        plain = self._inside(path)
        if plain is None:
            return None
        if plain.is_file():
            return self._item(plain, None)
        packed = self._inside(path + ".gz")
        return self._item(packed, "gzip") if packed is not None and packed.is_file() else None

    def _inside(self, path: str) -> Path | None:
        """The file's real place, None if it is outside the folder (by `..` or a link)."""
        try:
            place = (self._root / path).resolve()
        except (OSError, ValueError):
            return None
        return place if place.is_relative_to(self._root) else None

    @staticmethod
    def _item(place: Path, encoding: str | None) -> Item:
        def read(start: int, length: int) -> bytes:
            with place.open("rb") as file:
                file.seek(start)
                return file.read(length)

        return Item(place.stat().st_size, read, encoding)


class StoreSource:
    """Objects of a remote store; ranges become ranged reads there."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def find(self, path: str) -> Item | None:
        if not path or ".." in path.split("/"):
            return None
        try:
            size, encoding = self._store.stat(path)
        except NotFoundError:
            return None
        return Item(size, lambda start, length: self._store.get_range(path, start, length), encoding)


class Hdf5Source:
    """An HDF5 dataset in the form of a precomputed volume, each chunk read when it is asked for."""

    CHUNK = 64
    _CHUNK_NAME = re.compile(r"^0/(\d+)-(\d+)_(\d+)-(\d+)_(\d+)-(\d+)$")

    def __init__(self, volume: Hdf5Volume, *, segmentation: bool) -> None:
        self._volume = volume
        self._dtype = np.dtype(np.uint64) if segmentation else volume.dtype
        self._segmentation = segmentation

    def find(self, path: str) -> Item | None:
        if path == "info":
            return in_memory(json.dumps(self.info()).encode())
        match = self._CHUNK_NAME.match(path)
        if match is None:
            return None
        x0, x1, y0, y1, z0, z1 = (int(v) for v in match.groups())
        start, stop = (z0, y0, x0), (z1, y1, x1)
        inside = all(0 <= a < b <= n for a, b, n in zip(start, stop, self._volume.stop_zyx, strict=True))
        if not inside or max(np.subtract(stop, start)) > self.CHUNK:
            return None
        return in_memory(self._volume.read(start, stop).astype(self._dtype).tobytes())  # x fastest, as precomputed

    def info(self) -> dict[str, object]:
        scale = {
            "key": "0",
            "size": list(self._volume.stop_zyx[::-1]),
            "voxel_offset": [0, 0, 0],
            "resolution": list(self._volume.voxel_size_nm_xyz),
            "chunk_sizes": [[self.CHUNK] * 3],
            "encoding": "raw",
        }
        return {
            "@type": "neuroglancer_multiscale_volume",
            "type": "segmentation" if self._segmentation else "image",
            "data_type": self._dtype.name,
            "num_channels": 1,
            "scales": [scale],
        }


def source_of(uri: str, *, segmentation: bool = False) -> Source:
    """What serves a URI: `h5://…`, a local folder or a store. Raises UserError, StoreError."""
    if uri.startswith("h5://"):
        return Hdf5Source(Hdf5Volume(uri), segmentation=segmentation)
    uri = uri.removeprefix("precomputed://")
    folder = local_path(uri)
    return FolderSource(folder) if folder is not None else StoreSource(Store(uri))
