"""Sharded Zarr 3 arrays: how they are laid out and written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from happyneurons.formats.tensor import open_array

LEVEL_ZSTD = 3


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
