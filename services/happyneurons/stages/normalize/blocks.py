"""Reading a section in blocks: scaled down, with the mask of what is tissue."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from happyneurons.store.volumes import PrecomputedVolume

Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Frame:
    """The output's plane: y0 <= y < y1, x0 <= x < x1, each px covering `downsample`² px of the input."""

    y0: int
    x0: int
    y1: int
    x1: int
    downsample: int

    @classmethod
    def of(cls, start_zyx: tuple[int, int, int], stop_zyx: tuple[int, int, int], downsample: int) -> Frame:
        d = downsample
        return cls(start_zyx[1] // d, start_zyx[2] // d, -(-stop_zyx[1] // d), -(-stop_zyx[2] // d), d)

    def blocks(self, size: int) -> Iterator[tuple[int, int, int, int]]:
        """(y0, x0, y1, x1) of blocks of whole chunks, which start at the frame's corner."""
        for y in range(self.y0, self.y1, size):
            for x in range(self.x0, self.x1, size):
                yield y, x, min(y + size, self.y1), min(x + size, self.x1)


@dataclass(frozen=True)
class Artifacts:
    """Grey values below `low` or above `high` are artifacts where they fill half of a window of `size_px`."""

    low: int
    high: int
    size_px: int

    @property
    def wanted(self) -> bool:
        return self.low > 0 or self.high < 255


class Section:
    """One section of a stack, read in blocks of the output's frame."""

    def __init__(
        self, image: PrecomputedVolume, mask: PrecomputedVolume | None, z: int, frame: Frame, artifacts: Artifacts
    ) -> None:
        self._image, self._mask, self._z, self._frame, self._artifacts = image, mask, z, frame, artifacts

    def read(self, y0: int, x0: int, y1: int, x1: int) -> tuple[Picture, Mask]:
        """Picture and valid pixels of a block, in px of the output."""
        f = self._frame
        halo = self._artifacts.size_px if self._artifacts.wanted else 0
        ya, xa, yb, xb = max(f.y0, y0 - halo), max(f.x0, x0 - halo), min(f.y1, y1 + halo), min(f.x1, x1 + halo)
        picture, valid = self._scaled(ya, xa, yb, xb)
        if self._artifacts.wanted:
            a = self._artifacts
            odd = ((picture < a.low) | (picture > a.high)) & valid
            window = (2 * (a.size_px // 2) + 1,) * 2
            share, tissue = (
                cv2.boxFilter(m.astype(np.float32), -1, window, normalize=False, borderType=cv2.BORDER_CONSTANT)
                for m in (odd, valid)
            )
            valid = valid & (2 * np.rint(share) < np.rint(tissue))
        inner = np.s_[y0 - ya : y1 - ya, x0 - xa : x1 - xa]
        return np.ascontiguousarray(picture[inner]), np.ascontiguousarray(valid[inner])

    def _scaled(self, y0: int, x0: int, y1: int, x1: int) -> tuple[Picture, Mask]:
        d = self._frame.downsample
        start, stop = self._image.start_zyx, self._image.stop_zyx
        low = (max(y0 * d, start[1]), max(x0 * d, start[2]))
        high = (min(y1 * d, stop[1]), min(x1 * d, stop[2]))
        box = (self._z, *low), (self._z + 1, *high)
        raw = self._image.read(*box)[0]
        seen = raw > 0
        if self._mask is not None:
            seen &= self._mask.read(*box)[0] > 0
        if d == 1:
            return raw, seen
        margin = [(a - b * d, c * d - e) for a, b, c, e in zip(low, (y0, x0), (y1, x1), high, strict=True)]
        shape = (y1 - y0, d, x1 - x0, d)
        weight = np.pad(seen, margin).reshape(shape)
        total = np.where(weight, np.pad(raw, margin).reshape(shape), 0).sum((1, 3), dtype=np.float32)
        number = weight.sum((1, 3))
        picture = np.rint(total / np.maximum(number, 1)).astype(np.uint8)
        return picture, 2 * number >= d * d
