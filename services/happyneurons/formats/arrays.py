"""One level of an N-dimensional array whose axes have names, as a volume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from happyneurons.errors import UserError
from happyneurons.formats.base import Memory, Reader, ReadOptions, Sizes, pick_channel
from happyneurons.formats.tensor import array_errors, fill
from happyneurons.store.triples import Triple, triple


class ArrayReader(Reader):
    """axes: the name of each axis of the array, in its order; z, y and x become (z, y, x).

    A further axis must be `c` (see ReadOptions.channel) or of length 1.
    start_zyx, stop_zyx: the volume's box. first_zyx: coordinates of the array's first voxel.
    """

    def __init__(
        self,
        uri: str,
        array: Any,
        axes: Sequence[str],
        options: ReadOptions,
        *,
        first_zyx: Triple,
        voxel_size_nm_xyz: Sizes,
        labels: bool | None = None,
        box: tuple[Triple, Triple] | None = None,
    ) -> None:
        self.uri, self.array, self.labels = uri, array, labels
        missing = [name for name in "zyx" if axes.count(name) != 1]
        if missing or len(axes) != len(array.shape):
            raise UserError(f"{uri}: expected axes z, y and x, found {list(axes)} for the shape {list(array.shape)}")
        self._order = [axes.index(name) for name in "zyx"]
        self._fixed: dict[int, int] = {}
        for i, name in enumerate(axes):
            if name in "zyx":
                continue
            length = int(array.shape[i])
            if name != "c" and length > 1:
                raise UserError(f"{uri}: its axis {name!r} has {length} places; only volumes of one can be read")
            self._fixed[i] = pick_channel(options, length, uri) if name == "c" else 0
        if options.channel is not None and "c" not in axes:
            pick_channel(options, 1, uri)
        self.dtype = np.dtype(array.dtype.numpy_dtype)
        if self.dtype.kind not in "uif":
            raise UserError(f"{uri}: voxels of type {array.dtype.name} are neither grey values nor labels")
        self.first_zyx = first_zyx
        shape = [int(array.shape[i]) for i in self._order]
        self.start_zyx, self.stop_zyx = box or (first_zyx, triple(np.add(first_zyx, shape)))
        self.voxel_size_nm_xyz = voxel_size_nm_xyz

    @property
    def plain(self) -> bool:
        """Whether the array has the axes z, y, x in this order and no other."""
        return self._order == [0, 1, 2] and not self._fixed

    def in_pieces(self, corner_zyx: Sequence[int], piece_zyx: Sequence[int]) -> bool:
        chunk = [self.array.chunk_layout.read_chunk.shape[axis] for axis in self._order]
        low = np.subtract(corner_zyx, self.first_zyx)
        return not (low % chunk).any() and not np.mod(piece_zyx, chunk).any()

    def read(self, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> np.ndarray:
        return self.read_to(Memory(), start_zyx, stop_zyx)

    def read_to(self, memory: Memory, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> np.ndarray:
        volume = self.array[tuple(self._fixed.get(axis, slice(None)) for axis in range(self.array.rank))]
        left = sorted(self._order)
        volume = volume.transpose([left.index(axis) for axis in self._order])
        block = memory.array(np.subtract(stop_zyx, start_zyx).tolist(), self.dtype)
        with array_errors(self.uri, start_zyx, stop_zyx):
            fill(block, volume, np.subtract(start_zyx, self.first_zyx).tolist())
        return block
