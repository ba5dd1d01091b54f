"""Small volumes with odd sizes and offsets, written and read whole, without the job runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from happyneurons.formats.base import Reader, ReadOptions, VolumeInfo, WriteOptions, Writer
from happyneurons.formats.blocks import boxes
from happyneurons.formats.registry import make_writer, open_reader
from happyneurons.store.triples import triple

START_ZYX = (3, 7, 5)
SHAPE_ZYX = (21, 37, 50)
SIZE_NM_XYZ = (4.6, 4.6, 45.0)
OPTIONS = WriteOptions(chunk_px=16, shard_px=32)


def voxels(dtype: str) -> np.ndarray:
    """(z, y, x) grey values, or labels in lumps with background; labels use all bits of their type."""
    rng = np.random.default_rng(7)
    if dtype == "uint8":
        return rng.integers(0, 256, SHAPE_ZYX, np.uint8)
    ids = rng.integers(0, np.iinfo(dtype).max, 40, dtype, endpoint=True)
    ids[0], ids[1] = 0, np.iinfo(dtype).max
    coarse = rng.integers(0, 40, [-(-n // 4) for n in SHAPE_ZYX])
    picked = ids[coarse.repeat(4, 0).repeat(4, 1).repeat(4, 2)]
    return np.ascontiguousarray(picked[: SHAPE_ZYX[0], : SHAPE_ZYX[1], : SHAPE_ZYX[2]])


def info_of(array: np.ndarray, labels: bool | None = None, **changes: Any) -> VolumeInfo:
    start = changes.pop("start_zyx", START_ZYX)
    return VolumeInfo(
        start, triple(np.add(start, array.shape)), changes.pop("size", SIZE_NM_XYZ), array.dtype,
        array.dtype.itemsize >= 4 if labels is None else labels,
    )  # fmt: skip


def write_levels(writer: Writer, array: np.ndarray) -> str:
    """Write full resolution as tasks would, block by block; returns the URI to open it by."""
    writer.prepare()
    info = writer.levels[0]
    for start, stop in boxes(info.start_zyx, info.stop_zyx, writer.grid_zyx(0), writer.unit_zyx(0)):
        at = tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, info.start_zyx, strict=True))
        writer.write(0, start, np.ascontiguousarray(array[at]))
    writer.close(int(array.max()))
    return writer.uri()


def write(path: Path, name: str, array: np.ndarray, options: WriteOptions = OPTIONS, **changes: Any) -> str:
    """Write a volume in a format; returns the URI to open it by."""
    target = path / ("volume.h5" if name == "hdf5" else "volume")
    return write_levels(make_writer(str(target), name, [info_of(array, **changes)], options), array)


def write_n5(path: Path, array: np.ndarray) -> str:
    """An N5 array as n5-viewer and Paintera expect it, by tensorstore."""
    target = path / "volume.n5"
    spec = {
        "driver": "n5",
        "kvstore": {"driver": "file", "path": f"{target}/"},
        "metadata": {
            "dimensions": list(array.shape[::-1]), "blockSize": [16, 16, 16], "dataType": array.dtype.name,
            "compression": {"type": "gzip"}, "axes": ["x", "y", "z"], "units": ["nm", "nm", "nm"],
            "resolution": list(SIZE_NM_XYZ),
            "offset": [n * s for n, s in zip(START_ZYX[::-1], SIZE_NM_XYZ, strict=True)],
        },
    }  # fmt: skip
    ts.open(spec, create=True).result().write(array.T).result()
    return str(target)


def whole(reader: Reader) -> np.ndarray:
    return reader.read(reader.start_zyx, reader.stop_zyx)


def opened(uri: str, **options: Any) -> Reader:
    return open_reader(uri, ReadOptions(**options))
