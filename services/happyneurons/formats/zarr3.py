"""Sharded Zarr 3 arrays: how they are laid out and written."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from happyneurons.formats.base import Writer
from happyneurons.formats.tensor import open_array

LEVEL_ZSTD = {"image": 1, "segmentation": 3}
"""By kind: higher ones make files of grey values no smaller, lower ones double those of 64-bit labels (FIB-25)."""
LAYOUT = ("shape", "data_type", "chunk_grid", "chunk_key_encoding", "fill_value", "codecs")
"""Parts of an array's metadata that say how its shards' files are made."""


def metadata(
    shape: Sequence[int],
    shard: Sequence[int],
    chunk: Sequence[int],
    dtype: np.dtype[Any],
    names: Sequence[str],
    *,
    level: int | None,
    fortran: bool = False,
) -> dict[str, Any]:
    """The array's zarr.json: one shard a file, with an index of its chunks.

    level: zstd's; None: not compressed.
    fortran: chunks are stored with the first axis fastest, as WEBKNOSSOS wants them.
    """
    codecs: list[dict[str, Any]] = [{"name": "bytes", "configuration": {"endian": "little"}}]
    if fortran:
        codecs.insert(0, {"name": "transpose", "configuration": {"order": list(range(len(shape)))[::-1]}})
    if level is not None:
        codecs.append({"name": "zstd", "configuration": {"level": level, "checksum": True}})
    sharding = {
        "chunk_shape": list(chunk),
        "codecs": codecs,
        "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [int(n) for n in shape],
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [int(n) for n in shard]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "dimension_names": list(names),
        "attributes": {},
    }


def make_array(uri: str, document: dict[str, Any], threads: int) -> Any:
    """Make the array, or open the one that is there. Raises UserError, StoreError."""
    return open_array(uri, "zarr3", threads, document)


def zstd_level(writer: Writer, level: int) -> int | None:
    """Of a level of a writer's volume; None: it is not compressed."""
    return LEVEL_ZSTD[writer.levels[level].kind] if writer.options.compress else None


def same_layout(source: Any, target: Any) -> bool:
    """Whether files of the one array could be the other's."""
    ours, theirs = (array.spec().to_json() for array in (target, source))
    return theirs["driver"] == "zarr3" and all(ours["metadata"].get(k) == theirs["metadata"].get(k) for k in LAYOUT)


def copy_shards(source: Any, target: Any, start: Sequence[int], stop: Sequence[int]) -> None:
    """Copy the files of whole shards between two arrays of the same layout.

    start, stop: a box of both, whose faces lie on shards' or on the array's own. What is not there is zeros.
    """
    shard = target.chunk_layout.write_chunk.shape
    first, last = (
        (a // n for a, n in zip(start, shard, strict=True)),
        (-(-b // n) for b, n in zip(stop, shard, strict=True)),
    )
    for index in product(*(range(a, b) for a, b in zip(first, last, strict=True))):
        key = "/".join(["c", *(str(i) for i in index)])
        found = source.kvstore.read(key).result()
        if found.state == "value":
            target.kvstore.write(key, found.value).result()
