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
        "minishard_index_encoding": "raw",
        "data_encoding": data_encoding,
    }


def shard_numbers(labels: np.ndarray, sharding: Mapping[str, Any]) -> np.ndarray:
    mask = np.uint64((1 << sharding["shard_bits"]) - 1)
    return np.asarray((labels >> np.uint64(sharding["minishard_bits"])) & mask)


def write_shard(store: Store, sharding: Mapping[str, Any], encoded: Mapping[int, tuple[bytes, bytes]]) -> int:
    """Write objects (index entry, data before it), all of one shard of a `sharding_of`; returns bytes.

    The index points to the entry: a mesh's manifest, which its fragments precede, or a skeleton with
    nothing before it; with data before it, shards hold their objects as they are (`raw`).
    """
    if not encoded:
        return 0
    labels = np.array(sorted(encoded), np.uint64)
    number = int(np.unique(shard_numbers(labels, sharding)).item())
    content = shard_file(sharding, encoded)
    store.put(f"{number:0{-(-sharding['shard_bits'] // 4)}x}.shard", content)
    return len(content)


def shard_file(sharding: Mapping[str, Any], encoded: Mapping[int, tuple[bytes, bytes]]) -> bytes:
    """A shard: where each minishard's index is, the objects, the indices of the minishards.

    Not by CloudVolume: its import takes seconds, and its gzip writes down the time. Format: google/neuroglancer,
    src/datasource/precomputed/sharded.md.
    """
    count = 1 << sharding["minishard_bits"]
    minishards: dict[int, list[int]] = {}
    for label in sorted(encoded):
        minishards.setdefault(label & (count - 1), []).append(label)
    where = np.zeros((count, 2), "<u8")
    objects, indices, end = [], [], 0
    for minishard, labels in minishards.items():
        rows = np.zeros((3, len(labels)), "<u8")  # label, gap to the one before, bytes; labels as differences
        rows[0] = np.diff(np.array([0, *labels], np.uint64))
        for i, label in enumerate(labels):
            entry, before = encoded[label]
            if sharding["data_encoding"] == "gzip":
                entry = gzip.compress(before + entry, mtime=0)
                before = b""
            objects.append(before + entry)
            rows[1, i], rows[2, i] = len(before) + (end if i == 0 else 0), len(entry)
        end += sum(map(len, objects[len(objects) - len(labels) :]))
        indices.append((minishard, rows.tobytes()))
    place = end
    for minishard, index in indices:
        where[minishard] = place, place + len(index)
        place += len(index)
    return b"".join([where.tobytes(), *objects, *(index for _, index in indices)])
