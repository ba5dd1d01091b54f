"""Damaged chunks of compressed_segmentation are told, whole ones are let through, and none ends the process."""

from __future__ import annotations

from pathlib import Path

import compressed_segmentation as cseg
import numpy as np
import pytest

from happyneurons.errors import TaskError
from happyneurons.store.compressed_segmentation import check_chunk, guard_cloudvolume
from happyneurons.store.damage import DamagedChunkError
from happyneurons.store.documents import Store
from happyneurons.store.volumes import create_volume, open_volume

BLOCK = (8, 8, 8)


def encoded(shape: tuple[int, ...], labels: int, dtype: str, seed: int = 0) -> tuple[np.ndarray, bytes]:
    values = np.random.default_rng(seed).integers(0, labels, shape).astype(dtype) * 3
    array = np.asfortranarray(values)
    return array, bytes(cseg.compress(array, block_size=BLOCK, order="F"))


@pytest.mark.parametrize("dtype", ["uint32", "uint64"])
@pytest.mark.parametrize("labels", [1, 2, 5, 17, 300, 100_000])
@pytest.mark.parametrize("shape", [(16, 16, 16), (9, 13, 7), (8, 8, 8), (12, 9, 8, 1)])
def test_whole_chunks_pass(shape: tuple[int, ...], labels: int, dtype: str) -> None:
    array, data = encoded(shape, labels, dtype)
    check_chunk(data, shape, dtype, BLOCK)
    decoded = cseg.decompress(data, shape, np.dtype(dtype), BLOCK, order="F")
    np.testing.assert_array_equal(np.asarray(decoded).reshape(shape), array)


@pytest.mark.parametrize("labels", [1, 5, 300])
def test_no_chunk_that_was_cut_short_passes(labels: int) -> None:
    shape = (16, 12, 9)
    _, data = encoded(shape, labels, "uint64")
    # The last words are those of a table, which decoding needs, so that no cut is harmless.
    for length in {*range(0, len(data), max(1, len(data) // 97)), len(data) - 1, len(data) - 4}:
        with pytest.raises(DamagedChunkError):
            check_chunk(data[:length], shape, "uint64", BLOCK)


def test_whatever_passes_can_be_decoded() -> None:
    """A word of the chunk overwritten, anywhere: told, or labels come of it; the process goes on."""
    shape, random = (16, 12, 9), np.random.default_rng(3)
    told = 0
    for labels in (1, 5, 300):
        _, data = encoded(shape, labels, "uint64")
        for _ in range(150):
            words = np.frombuffer(data, "<u4").copy()
            words[random.integers(min(len(words), 40))] = random.integers(2**32)
            try:
                check_chunk(words.tobytes(), shape, "uint64", BLOCK)
            except DamagedChunkError:
                told += 1
            else:
                cseg.decompress(words.tobytes(), shape, np.uint64, BLOCK, order="F")
    assert told > 100


def test_a_volume_says_where(tmp_path: Path) -> None:
    uri = (tmp_path / "v").as_uri()
    labels = np.random.default_rng(0).integers(0, 50, (64, 64, 128)).astype(np.uint64)
    create_volume(
        uri, start_zyx=(0, 0, 0), stop_zyx=labels.shape, voxel_size_nm_xyz=(8, 8, 8), dtype="uint64",
        layer_type="segmentation",
    ).write((0, 0, 0), labels)  # fmt: skip
    store = Store(uri)
    damaged = next(path for path in store.list("") if path.endswith("64-128_0-64_0-64"))
    store.put(damaged, store.get(damaged)[:1001])
    volume = open_volume(uri)
    np.testing.assert_array_equal(volume.read((0, 0, 0), (64, 64, 64)), labels[:, :, :64])
    with pytest.raises(TaskError, match=r"broken data in the box x 64–128, y 0–64, z 0–64: .*truncated"):
        volume.read((0, 0, 64), (64, 64, 128))


def test_cloudvolume_looks_at_them_too() -> None:
    """It reads what lies on object stores and in shards."""
    from cloudvolume import chunks

    guard_cloudvolume()
    array, data = encoded((16, 12, 9, 1), 50, "uint64")
    wanted = {"encoding": "compressed_segmentation", "shape": array.shape, "dtype": "uint64", "block_size": BLOCK}
    np.testing.assert_array_equal(chunks.decode(data, **wanted), array)
    with pytest.raises(DamagedChunkError):
        chunks.decode(data[:1001], **wanted)
