"""Arrays that tensorstore reads and writes: Zarr 2 and 3, N5, on the same roots as everything else."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorstore as ts

from happyneurons.errors import HappyError, StoreAccessError, StoreError, TaskError, UserError
from happyneurons.formats.damage import system_error
from happyneurons.store.damage import damaged
from happyneurons.store.documents import local_path


def kvstore(uri: str) -> dict[str, Any]:
    """tensorstore's description of a folder: file:// and s3:// (any server: AWS_ENDPOINT_URL)."""
    path = local_path(uri)
    if path is not None:
        return {"driver": "file", "path": f"{path}/"}
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme == "gs":
        return {"driver": "gcs", "bucket": bucket, "path": f"{key}/"}
    if scheme != "s3":
        raise UserError(f"{uri}: Zarr and N5 are read and written on file://, s3:// and gs:// only")
    spec: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": f"{key}/"}
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        spec["endpoint"] = endpoint.rstrip("/")
        spec["aws_region"] = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    return spec


def open_array(uri: str, driver: str, threads: int, metadata: dict[str, Any] | None = None) -> Any:
    """A tensorstore of an array's folder. With metadata (zarr3) it is made, or opened if it is there already.

    Raises UserError if there is none or its metadata is not understood, StoreError, StoreAccessError.
    """
    spec: dict[str, Any] = {"driver": driver, "kvstore": kvstore(uri)}
    if metadata is not None:
        spec["metadata"] = metadata
    try:
        make = metadata is not None
        opened = ts.open(spec, context=_context(threads), open=True, create=make, read=True, write=make)
        return opened.result()
    except Exception as error:
        found = _known(uri, error)
        if isinstance(found, (StoreError, StoreAccessError)):
            raise found from error
        raise UserError(f"{uri}: not an array that can be read as {driver}: {_text(error)}") from None


@functools.cache
def _context(threads: int) -> ts.Context:
    # No fsync for each chunk: the other formats do not have it either. No cache: each box is read once.
    return ts.Context(
        {
            "cache_pool": {"total_bytes_limit": 0},
            # Two as with other formats, where a second thread reads ahead: a task may be one shard, and then cannot.
            "data_copy_concurrency": {"limit": max(2, threads)},
            "file_io_concurrency": {"limit": max(4, threads)},
            "file_io_sync": False,
        }
    )


@contextlib.contextmanager
def array_errors(where: str, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> Iterator[None]:
    """What tensorstore raises while voxels are read or written, as errors of ours."""
    try:
        yield
    except (HappyError, MemoryError):
        raise
    except Exception as error:
        known = _known(where, error)
        raise (known or TaskError(damaged(where, start_zyx, stop_zyx, error))) from error


def _known(where: str, error: Exception) -> HappyError | None:
    """The store's troubles; None if it is about what is stored."""
    if isinstance(error, OSError):
        return system_error(where, error)
    text = str(error)
    if "No space left" in text or "RESOURCE_EXHAUSTED" in text or "quota exceeded" in text:
        return StoreError(f"{where}: no space left; make room, then start again: it goes on")
    if "PERMISSION_DENIED" in text or "Permission denied" in text or "403" in text:
        return StoreAccessError(f"{where}: access denied; check credentials and permissions")
    if "UNAVAILABLE" in text or "DEADLINE_EXCEEDED" in text:
        return StoreError(f"{where}: {_text(error)}")
    return None


def _text(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def fill(block: np.ndarray, array: Any, start: Sequence[int]) -> None:
    """Read a box of the block's shape from `start` on; zeros where it reaches beyond the array (a bounding box may)."""
    box = tuple(
        slice(int(a), min(int(a) + n, size)) for a, n, size in zip(start, block.shape, array.shape, strict=True)
    )
    inside = all(s.start < s.stop for s in box)
    found = tuple(slice(0, s.stop - s.start if inside else 0) for s in box)
    if block[found].shape != block.shape:
        block[...] = 0
    if inside:
        place = ts.array(block[found], copy=False, write=True)
        place.write(array[box].translate_to[(0,) * array.rank]).result()
