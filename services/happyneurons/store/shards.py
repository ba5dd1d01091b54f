"""Many objects in one file: shards of neighbouring labels (neuroglancer_uint64_sharded_v1)."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from typing import Any

import numpy as np

from happyneurons.store.documents import Store

MAX_MINISHARD_BITS = 12  # a shard's index is 16 · 2^bits bytes


def sharding_of(labels: np.ndarray, per_shard: int, data_encoding: str = "raw") -> dict[str, Any]:
    """Specification with about `per_shard` of the labels in a shard. data_encoding: `raw` or `gzip`.

    The identity hash keeps neighbouring labels together, so that a task reads and writes runs.
    """
    minishard_bits = min((per_shard - 1).bit_length(), MAX_MINISHARD_BITS)
    span = int(labels.max()).bit_length() if len(labels) else 0
    wanted = int(np.ceil(max(len(labels), 1) / per_shard)) - 1
    shard_bits = max(min(span - minishard_bits, wanted.bit_length() + 2), 0)
    return {
        "@type": "neuroglancer_uint64_sharded_v1",
        "hash": "identity",
        "preshift_bits": 0,
        "minishard_bits": minishard_bits,
        "shard_bits": shard_bits,
        "minishard_index_encoding": "raw",  # CloudVolume's gzip writes down the time
        "data_encoding": data_encoding,
    }


def shard_numbers(labels: np.ndarray, sharding: Mapping[str, Any]) -> np.ndarray:
    mask = np.uint64((1 << sharding["shard_bits"]) - 1)
    return np.asarray((labels >> np.uint64(sharding["minishard_bits"])) & mask)


def write_shard(store: Store, sharding: Mapping[str, Any], encoded: Mapping[int, tuple[bytes, bytes]]) -> int:
    """Write objects (index entry, data before it) of one shard; returns bytes.

    The index points to the entry: a mesh's manifest, which its fragments precede, or a skeleton with
    nothing before it; with data before it, shards hold their objects as they are (`raw`).
    """
    from cloudvolume.datasource.precomputed.sharding import ShardingSpecification

    if not encoded:
        return 0
    spec = ShardingSpecification.from_dict(dict(sharding))
    objects = {label: data + entry for label, (entry, data) in encoded.items()}
    if spec.data_encoding == "gzip":
        # Here, and not by CloudVolume, for the same reason: the same objects give the same bytes.
        objects = {label: gzip.compress(data, mtime=0) for label, data in objects.items()}
        spec.data_encoding = "raw"
    offsets = {label: len(entry) for label, (entry, _) in encoded.items()}
    before = any(data for _, data in encoded.values())
    files = spec.synthesize_shards(objects, data_offset=offsets if before else None)
    for name, content in files.items():
        store.put(name, bytes(content))
    return sum(len(content) for content in files.values())
