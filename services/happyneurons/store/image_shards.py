"""Many chunks of a volume in one file (neuroglancer_uint64_sharded_v1): which, and how such a file is made.

A shard holds a box of chunks, neighbours in Morton order. Files are put together here from what
CloudVolume encodes, with no time of day in them: the same voxels give the same bytes.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from typing import Any

import numpy as np

GZIP_LEVEL = 3


def image_sharding(size_xyz: Sequence[int], chunk_xyz: Sequence[int], dtype: str, shard_bytes: int) -> dict[str, Any]:
    """Specification for one level of a volume, as igneous chooses it (CloudVolume's own rules).

    shard_bytes: most bytes of voxels in a shard, at least one chunk; a power of two of chunks is taken.
    """
    from cloudvolume.datasource.precomputed.sharding import compute_shard_params_for_image

    chunk_bytes = int(np.prod(chunk_xyz, dtype=np.int64)) * np.dtype(dtype).itemsize
    # Below the next power of two, whatever is rounded on the way.
    wanted = chunk_bytes << max(0, (shard_bytes // chunk_bytes).bit_length() - 1)
    spec = compute_shard_params_for_image(
        [int(n) for n in size_xyz], [int(n) for n in chunk_xyz], "raw", dtype, uncompressed_shard_bytesize=wanted,
        minishard_index_encoding="raw", data_encoding="gzip",
    )  # fmt: skip
    return {name: int(v) if isinstance(v, np.integer) else v for name, v in spec.to_dict().items()}


def shard_xyz(sharding: dict[str, Any], size_xyz: Sequence[int], chunk_xyz: Sequence[int]) -> tuple[int, int, int]:
    """Voxels along the edges of a shard's box; the grid of shards begins where the volume does."""
    from cloudvolume.datasource.precomputed.sharding import image_shard_shape_from_spec

    x, y, z = (int(n) for n in image_shard_shape_from_spec(sharding, list(size_xyz), list(chunk_xyz)))
    return (x, y, z)


def encode_shard(volume: Any, start_xyz: Sequence[int], block_xyzc: np.ndarray) -> tuple[str, bytes]:
    """(path below the volume, content) of one whole shard of a CloudVolume at its level."""
    from cloudvolume.datasource.precomputed.sharding import ShardingSpecification
    from cloudvolume.lib import Bbox

    box = Bbox([int(n) for n in start_xyz], [int(n) + m for n, m in zip(start_xyz, block_xyzc.shape[:3], strict=True)])
    spec = ShardingSpecification.from_dict(dict(volume.scale["sharding"]))
    chunks: dict[int, bytes] = volume.image.make_shard_chunks(block_xyzc, box, volume.mip)
    if spec.data_encoding == "gzip":
        # Here, because CloudVolume's own gzip writes down the time.
        chunks = {code: gzip.compress(data, GZIP_LEVEL, mtime=0) for code, data in chunks.items()}
        spec.data_encoding = "raw"
    name = volume.image.shard_filename(box, volume.mip)
    return f"{volume.scale['key']}/{name}", bytes(spec.synthesize_shard(chunks))
