"""Shards of objects: the same objects give the same bytes whenever they are written, and CloudVolume reads them."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from cloudvolume.datasource.precomputed.sharding import ShardingSpecification, ShardReader

from happyneurons.store.documents import Store
from happyneurons.store.shards import shard_file, shard_numbers, sharding_of, write_shard

OBJECTS = {3: (b"three " * 50, b""), 4: (b"four", b""), 2**40: (b"far", b"")}


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
def test_written_at_another_time_they_are_the_same_bytes(
    tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sharding = sharding_of(np.array(sorted(OBJECTS), np.uint64), per_shard=2, data_encoding=encoding)
    numbers, contents = shard_numbers(np.array(list(OBJECTS), np.uint64), sharding), []
    for moment in (0.0, 86_400.0):
        now = time.time
        monkeypatch.setattr(time, "time", lambda now=now, moment=moment: now() + moment)
        store = Store((tmp_path / str(moment)).as_uri())
        for number in {int(n) for n in numbers}:
            write_shard(store, sharding, {v: OBJECTS[v] for v, n in zip(OBJECTS, numbers, strict=True) if n == number})
        monkeypatch.undo()
        contents.append({name: store.get(name) for name in store.list("")})
    assert contents[0] == contents[1]
    spec = ShardingSpecification.from_dict(dict(sharding))
    files = [ShardReader(None, None, spec).disassemble_shard(data) for data in contents[0].values()]
    assert {label: data for file in files for label, data in file.items()} == {k: v for k, (v, _) in OBJECTS.items()}


@pytest.mark.parametrize("per_shard", [1, 7, 300])
def test_files_are_as_cloudvolume_writes_them(tmp_path: Path, per_shard: int) -> None:
    random = np.random.default_rng(per_shard)
    labels = np.unique(np.concatenate([random.integers(1, 5000, 200), random.integers(1, 2**63, 20)]).astype(np.uint64))
    sharding = sharding_of(labels, per_shard)
    objects = {
        int(v): (random.bytes(int(random.integers(1, 40))), random.bytes(int(random.integers(1, 90)))) for v in labels
    }
    spec = ShardingSpecification.from_dict(dict(sharding))
    theirs = spec.synthesize_shards(
        {v: data + entry for v, (entry, data) in objects.items()},
        data_offset={v: len(e) for v, (e, _) in objects.items()},
    )
    store, numbers = Store(tmp_path.as_uri()), shard_numbers(labels, sharding)
    for number in np.unique(numbers):
        write_shard(store, sharding, {int(v): objects[int(v)] for v in labels[numbers == number]})
    assert set(store.list("")) == set(theirs)
    for name, content in theirs.items():
        ours, data = store.get(name), bytes(content)
        assert len(ours) == len(data)
        reader = ShardReader(None, None, spec)
        assert reader.disassemble_shard(ours) == reader.disassemble_shard(data)


def test_objects_of_two_shards_are_not_mixed(tmp_path: Path) -> None:
    sharding = sharding_of(np.arange(1, 1000, dtype=np.uint64), 10)
    with pytest.raises(ValueError, match="size 1"):
        write_shard(Store(tmp_path.as_uri()), sharding, {1: (b"a", b""), 999: (b"b", b"")})
    assert shard_file(sharding, {1: (b"a", b"")})
