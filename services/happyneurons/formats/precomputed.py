"""Neuroglancer precomputed: the pipeline's own format, by the store's own code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from happyneurons.formats.base import Reader, ReadOptions, Writer, pick_channel, pick_level
from happyneurons.formats.damage import reading
from happyneurons.formats.location import Location
from happyneurons.store.image_shards import image_sharding, shard_xyz
from happyneurons.store.pyramid import add_levels
from happyneurons.store.triples import Triple, triple
from happyneurons.store.volumes import PrecomputedVolume, copy_chunks, create_volume


class PrecomputedReader(Reader):
    def __init__(self, location: Location, options: ReadOptions) -> None:
        self.uri = location.root
        first = PrecomputedVolume(self.uri)
        self.volume = PrecomputedVolume(self.uri, pick_level(options.mip, first.mips, self.uri))
        self._channel = pick_channel(options, self.volume.channels, self.uri)
        self.dtype = self.volume.dtype
        self.start_zyx, self.stop_zyx = self.volume.start_zyx, self.volume.stop_zyx
        self.voxel_size_nm_xyz = self.volume.voxel_size_nm_xyz
        self.labels = self.volume.layer_type == "segmentation"

    def read(self, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> np.ndarray:
        with reading(self.uri, start_zyx, stop_zyx):
            return self.volume.read(start_zyx, stop_zyx, self._channel)


def open_reader(location: Location, options: ReadOptions) -> PrecomputedReader:
    return PrecomputedReader(location, options)


class PrecomputedWriter(Writer):
    format, title = "precomputed", "precomputed"
    dtypes = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "float32")

    def occupied(self) -> bool:
        return self.location.target().exists("info")

    def prepare(self) -> None:
        info = self.levels[0]
        create_volume(
            self.location.root, start_zyx=info.start_zyx, stop_zyx=info.stop_zyx,
            voxel_size_nm_xyz=info.voxel_size_nm_xyz, dtype=info.dtype.name,
            layer_type="segmentation" if info.labels else "image", chunk_zyx=(self.options.chunk_px,) * 3,
            shard_bytes=self.options.shard_bytes,
        )  # fmt: skip
        add_levels(self.location.root, len(self.levels) - 1, self.options.shard_bytes)

    def unit_zyx(self, level: int) -> Triple:
        """A chunk, or the chunks of a shard."""
        info, chunk = self.levels[level], (self.options.chunk_px,) * 3
        if not self.options.shard_bytes:
            return triple(chunk)
        size = info.shape_zyx[::-1]
        sharding = image_sharding(size, chunk, info.dtype.name, self.options.shard_bytes)
        return triple(shard_xyz(sharding, size, chunk)[::-1])

    def write(self, level: int, start_zyx: Sequence[int], block_zyx: np.ndarray) -> None:
        self._level(level).write(start_zyx, block_zyx)

    def adopt(
        self,
        reader: Reader,
        at_source_zyx: Sequence[int],
        start_zyx: Sequence[int],
        shape: Sequence[int],
        check: Callable[[], object],
    ) -> bool:
        if not isinstance(reader, PrecomputedReader) or tuple(at_source_zyx) != tuple(start_zyx):
            return False
        check()
        return copy_chunks(reader.volume, self._level(0), start_zyx, shape)

    def read(self, level: int, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> np.ndarray:
        return self._level(level).read(start_zyx, stop_zyx)

    def _level(self, level: int) -> PrecomputedVolume:
        if level not in self._opened:
            self._opened[level] = PrecomputedVolume(self.location.root, level)
        return self._opened[level]

    @cached_property
    def _opened(self) -> dict[int, PrecomputedVolume]:
        """Levels by number, each opened once by a process."""
        return {}
