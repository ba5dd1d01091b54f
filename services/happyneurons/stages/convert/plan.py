"""What is read and what it becomes: the levels of the target, and where they lie in the source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from happyneurons.errors import UserError
from happyneurons.formats.base import Reader, ReadOptions, VolumeInfo, pyramid
from happyneurons.formats.registry import open_reader
from happyneurons.jobs.stage import Context
from happyneurons.stages.convert.params import ConvertParams
from happyneurons.store.triples import Triple, triple


@dataclass(frozen=True)
class Plan:
    levels: list[VolumeInfo]
    """The target, full resolution first."""
    shift_zyx: Triple
    """Coordinates of the target minus those of the source."""

    def at_source(self, point_zyx: Sequence[int]) -> list[int]:
        return [int(a) - s for a, s in zip(point_zyx, self.shift_zyx, strict=True)]


def open_source(context: Context[ConvertParams]) -> Reader:
    params = context.params
    options = ReadOptions(params.mip, params.channel, params.fill_gaps, context.threads)
    if params.source is not None:
        return open_reader(params.source, options, params.source_format)
    artifact = context.input("volume")
    uri = f"{artifact.data_uri}/image" if artifact.kind == "section_stack" else artifact.data_uri
    return open_reader(uri, options)


def make_plan(context: Context[ConvertParams], reader: Reader) -> Plan:
    """Raises UserError if the parameters do not fit the source."""
    params = context.params
    start, stop = reader.start_zyx, reader.stop_zyx
    if params.bounds_xyz is not None:
        low, high = (triple(p[::-1]) for p in params.bounds_xyz)
        start, stop = triple(np.maximum(start, low)), triple(np.minimum(stop, high))
        if any(a >= b for a, b in zip(start, stop, strict=True)):
            raise UserError(
                f"params.bounds_xyz: lies outside of the source, {reader.start_zyx[::-1]} to {reader.stop_zyx[::-1]}"
            )
    offset = reader.start_zyx if params.offset_xyz is None else params.offset_xyz[::-1]
    shift = triple(np.subtract(offset, reader.start_zyx))
    dtype = reader.dtype if params.dtype == "keep" else np.dtype(params.dtype)
    labels = {"image": False, "segmentation": True}.get(params.kind, reader.labels)
    if labels is None:
        labels = dtype.kind in "ui" and dtype.itemsize >= 4
    if labels and dtype.kind not in "ui":
        raise UserError(f"source {reader.uri}: voxels of {dtype} cannot be labels; set kind to image, or another dtype")
    info = VolumeInfo(
        triple(np.add(start, shift)), triple(np.add(stop, shift)),
        params.voxel_size_nm_xyz or reader.voxel_size_nm_xyz, dtype, labels,
    )  # fmt: skip
    return Plan(pyramid(info, params.num_mips, params.chunk_px), shift)


def cast(block: np.ndarray, dtype: np.dtype[Any], where: str, start_zyx: Sequence[int]) -> np.ndarray:
    """The block as another type, each value unchanged. Raises UserError if one does not fit."""
    if block.dtype == dtype or not block.size:
        return block
    result = block.astype(dtype)
    if np.can_cast(block.dtype, dtype):
        return result
    if dtype.kind in "ui":
        limits = np.iinfo(dtype)
        wrong = (block < limits.min) | (block > limits.max) | (result != block)
    else:  # floats that hold it roughly only
        wrong = result.astype(block.dtype) != block
    if wrong.any():
        z, y, x = (int(v) for v in np.argwhere(wrong)[0])
        raise UserError(
            f"{where}: the value {block[z, y, x]} at x {start_zyx[2] + x}, y {start_zyx[1] + y}, z {start_zyx[0] + z} "
            f"does not fit into {dtype}; choose another dtype"
        )
    return result
