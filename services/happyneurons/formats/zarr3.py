"""Sharded Zarr 3 arrays: how they are laid out and written."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from happyneurons.formats.tensor import open_array

LEVEL_ZSTD = 3
LAYOUT = ("shape", "data_type", "chunk_grid", "chunk_key_encoding", "fill_value", "codecs")
"""Parts of an array's metadata that say how its shards' files are made."""


def metadata(
    shape: Sequence[int],
    shard: Sequence[int],
    chunk: Sequence[int],
    dtype: np.dtype[Any],
    names: Sequence[str],
    *,
    compress: bool,
    fortran: bool = False,
) -> dict[str, Any]:
    """The array's zarr.json: one shard a file, with an index of its chunks.

    fortran: chunks are stored with the first axis fastest, as WEBKNOSSOS wants them.
    """
    codecs: list[dict[str, Any]] = [{"name": "bytes", "configuration": {"endian": "little"}}]
    if fortran:
        codecs.insert(0, {"name": "transpose", "configuration": {"order": list(range(len(shape)))[::-1]}})
    if compress:
        codecs.append({"name": "zstd", "configuration": {"level": LEVEL_ZSTD, "checksum": True}})
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


def copy_shards(source: Any, target: Any, start: Sequence[int], stop: Sequence[int]) -> bool:
    """Copy the files of whole shards between two arrays of the same layout; False if theirs differ.

    start, stop: a box of both, whose faces lie on shards' or on the array's own. What is not there is zeros.
    """
    ours, theirs = (array.spec().to_json() for array in (target, source))
    if theirs["driver"] != "zarr3" or any(ours["metadata"].get(k) != theirs["metadata"].get(k) for k in LAYOUT):
        return False
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
    return True
