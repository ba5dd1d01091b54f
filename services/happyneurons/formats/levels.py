"""A level of a writer's pyramid from the level below."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from happyneurons.formats.base import Writer
from happyneurons.formats.blocks import parts
from happyneurons.store.pyramid import factors_xyz, halve

PART_PX = 128
"""Levels are made in cubes of this edge, so that a task's memory is its block and little more."""


def level_block(writer: Writer, level: int, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> np.ndarray:
    """(z, y, x) box of a level: means of grey values, the most frequent of labels. Level `level - 1` is written."""
    below, own = writer.levels[level - 1], writer.levels[level]
    factors = factors_xyz(below.voxel_size_nm_xyz)[::-1]
    block = np.zeros([b - a for a, b in zip(start_zyx, stop_zyx, strict=True)], own.dtype)
    for box in parts(start_zyx, stop_zyx, PART_PX):
        inner = tuple(slice(a - o, b - o) for a, b, o in zip(*box, start_zyx, strict=True))
        block[inner] = halve(
            lambda low, high: writer.read(level - 1, low, high), below.start_zyx, below.stop_zyx, factors, box,
            "mode" if own.labels else "mean",
        )  # fmt: skip
    return block
