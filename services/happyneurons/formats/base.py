"""What readers and writers of all formats have in common.

Arrays are (z, y, x); boxes are [start, stop) in voxels of their level, in the volume's own
coordinates (which may start at an offset); voxel sizes are (x, y, z) in nm.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from happyneurons.errors import UserError
from happyneurons.formats.location import Location
from happyneurons.store.pyramid import factors_xyz
from happyneurons.store.triples import Triple
from happyneurons.store.volumes import Volume

Sizes = tuple[float, float, float]
ReadPiece = Callable[[Triple, Triple], np.ndarray]
"""(start, stop) → (z, y, x) block. Pieces of a box are read by several threads at a time."""


@dataclass(frozen=True)
class VolumeInfo:
    """What a volume is, at one level, apart from its voxels."""

    start_zyx: Triple
    stop_zyx: Triple
    voxel_size_nm_xyz: Sizes
    dtype: np.dtype[Any]
    labels: bool
    """Whether voxels are ids of segments (else grey values)."""

    @property
    def shape_zyx(self) -> Triple:
        z, y, x = (b - a for a, b in zip(self.start_zyx, self.stop_zyx, strict=True))
        return (z, y, x)

    @property
    def kind(self) -> str:
        return "segmentation" if self.labels else "image"


class Memory:
    """Room for one block, used again for the next.

    A new array of the size of a shard costs more than what is done with it: the system hands out its pages one by one.
    """

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def array(self, shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
        """An array with anything in it; those given before are overwritten through it."""
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if size > self._bytes.size:
            self._bytes = np.empty(size, np.uint8)
        return self._bytes[:size].view(dtype).reshape(shape)


class Reader(Volume, ABC):
    """A volume that is read, at one level."""

    labels: bool | None = None
    """Whether it holds ids of segments; None where the format does not tell."""
    sections: bool = False
    """Whether whole sections are quicker to read than cubes."""

    def read_to(self, memory: Memory, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> np.ndarray:
        """`read`, into that memory where the format's decoder can write to a given place."""
        return self.read(start_zyx, stop_zyx)

    def in_pieces(self, corner_zyx: Sequence[int], piece_zyx: Sequence[int]) -> bool:
        """Whether boxes of this size, on the grid from this corner, may be read by several threads, each at no cost
        but its own: nothing is decoded for two of them."""
        return False

    def check(self) -> None:  # most formats say everything when they are opened
        """Look at what can be wrong without reading voxels. Once, before any work. Raises UserError."""


@dataclass(frozen=True)
class ReadOptions:
    mip: int = 0
    """Level of the pyramid; 0 is full resolution."""
    channel: int | None = None
    """Which channel of a volume with several."""
    fill_gaps: bool = False
    """Sections missing in a stack of pictures are read as zeros."""
    threads: int = 1


@dataclass(frozen=True)
class WriteOptions:
    chunk_px: int = 64
    """Edge of chunks, voxels; formats with chunks of a fixed size ignore it."""
    shard_px: int = 256
    """Edge of what one file holds, where a file holds several chunks; a power of two."""
    compress: bool = True
    threads: int = 1
    gzip: bool = False
    """Whether chunks of HDF5 files are compressed by it."""
    shard_bytes: int = 0
    """Most bytes of voxels in a file of a precomputed volume; 0: a file a chunk."""


class Writer(ABC):
    """Writes a volume with its levels.

    `check` and `prepare` once, before the first `write`; `close` once, after the last. `write` may
    be called anywhere, in any order, more than once: the same bytes come out.
    """

    format: ClassVar[str]
    title: ClassVar[str]
    dtypes: ClassVar[tuple[str, ...] | None] = None
    """Voxel types of images; None: all numbers."""
    label_dtypes: ClassVar[tuple[str, ...] | None] = ("uint8", "uint16", "uint32", "uint64")
    pyramids: ClassVar[bool] = True
    negative: ClassVar[bool] = True
    """Whether coordinates below 0 can be written down."""
    remote: ClassVar[bool] = True
    """Whether it can lie on an object store."""

    def __init__(self, location: Location, levels: Sequence[VolumeInfo], options: WriteOptions) -> None:
        self.location, self.levels, self.options = location, tuple(levels), options

    def check(self) -> None:
        """Raise UserError if the format cannot hold the volume. Looks at no file."""
        info, where = self.levels[0], f"target {self.location}"
        allowed = self.label_dtypes if info.labels else self.dtypes
        if allowed is not None and info.dtype.name not in allowed:
            raise UserError(
                f"{where}: {self.title} cannot hold {'labels' if info.labels else 'images'} of {info.dtype.name}, only "
                f"{', '.join(allowed)}; choose a dtype that all values fit into (dtype={allowed[-1]}) or another format"
            )
        if not self.negative and min(info.start_zyx) < 0:
            raise UserError(
                f"{where}: {self.title} has no coordinates below 0, the volume starts at "
                f"{info.start_zyx[::-1]} (xyz); move it with offset_xyz"
            )
        if len(self.levels) > 1 and not self.pyramids:
            raise UserError(f"{where}: {self.title} has one level only; set num_mips to 0")
        if not self.remote and self.location.path is None:
            raise UserError(f"{where}: {self.title} can be written to a file system only")

    @abstractmethod
    def occupied(self) -> bool:
        """Whether something is there already that would be overwritten."""

    @abstractmethod
    def prepare(self) -> None:
        """Write what describes the volume, as far as it is needed to write voxels. Idempotent."""

    @abstractmethod
    def unit_zyx(self, level: int) -> Triple:
        """The grid that boxes given to `write` must fit: their faces lie on it, or on the volume's own faces."""

    def grid_zyx(self, level: int) -> Triple:
        """Where that grid begins."""
        return self.levels[level].start_zyx

    @abstractmethod
    def write(self, level: int, start_zyx: Sequence[int], block_zyx: np.ndarray) -> None: ...

    def piece_zyx(self, level: int) -> Triple | None:
        """What `write_from` asks for at once, on the grid of the units; None: for the whole box."""
        return None

    def write_from(self, level: int, start_zyx: Triple, stop_zyx: Triple, read: ReadPiece) -> None:
        """`write` of a box whose voxels `read` gives: by pieces, some threads at a time, where there are pieces."""
        self.write(level, start_zyx, read(start_zyx, stop_zyx))

    def adopt(
        self,
        reader: Reader,
        at_source_zyx: Sequence[int],
        start_zyx: Sequence[int],
        shape: Sequence[int],
        check: Callable[[], object],
    ) -> bool:
        """Take over the source's files of a box of full resolution as they are, instead of `write`.

        Done if the source is laid out and encoded as this volume is. The box begins at `at_source_zyx` in the source;
        `check` reads it from there before its files are copied: they are known to be whole. False: nothing was done.
        """
        return False

    @abstractmethod
    def read(self, level: int, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> np.ndarray:
        """What was written: levels are made of the ones below."""

    def close(self, largest: int) -> None:  # noqa: B027  # most formats have nothing to do
        """Write what could be known only now. `largest`: the greatest label, 0 for images. Idempotent."""

    def uri(self) -> str:
        """How the volume is named when it is opened again."""
        return str(self.location)


def pyramid(info: VolumeInfo, levels: int, chunk_px: int) -> list[VolumeInfo]:
    """The volume and at most `levels` smaller ones, each half the one before (see store.pyramid).

    No level is made of a volume that fits into one chunk.
    """
    found = [info]
    for _ in range(levels):
        below = found[-1]
        if max(below.shape_zyx) <= chunk_px:
            break
        factors = factors_xyz(below.voxel_size_nm_xyz)
        z, y, x = factors[::-1]
        start = (below.start_zyx[0] // z, below.start_zyx[1] // y, below.start_zyx[2] // x)
        stop = (-(-below.stop_zyx[0] // z), -(-below.stop_zyx[1] // y), -(-below.stop_zyx[2] // x))
        sx, sy, sz = (s * f for s, f in zip(below.voxel_size_nm_xyz, factors, strict=True))
        found.append(replace(below, start_zyx=start, stop_zyx=stop, voxel_size_nm_xyz=(sx, sy, sz)))
    return found


def sizes(values: Any) -> Sizes:
    a, b, c = (float(v) for v in values)
    return (a, b, c)


def pick_channel(options: ReadOptions, channels: int, where: str) -> int:
    """Which channel to read. Raises UserError if that is not clear."""
    if options.channel is None:
        if channels > 1:
            raise UserError(f"{where}: it has {channels} channels; choose one: channel=0 … {channels - 1}")
        return 0
    if options.channel >= channels:
        raise UserError(f"{where}: there is no channel {options.channel}; it has {channels}")
    return options.channel


def pick_level(mip: int, count: int, where: str) -> int:
    if mip >= count:
        raise UserError(f"{where}: there is no level {mip}; it has {count} (0 is full resolution)")
    return mip
