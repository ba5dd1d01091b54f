"""Shards of objects: the same objects give the same bytes whenever they are written, and CloudVolume reads them."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from cloudvolume.datasource.precomputed.sharding import ShardingSpecification, ShardReader

from happyneurons.store.documents import Store
from happyneurons.store.shards import sharding_of, write_shard

OBJECTS = {3: (b"three " * 50, b""), 4: (b"four", b""), 2**40: (b"far", b"")}


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
def test_written_at_another_time_they_are_the_same_bytes(
    tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sharding = sharding_of(np.array(sorted(OBJECTS), np.uint64), per_shard=2, data_encoding=encoding)
    contents = []
    for moment in (0.0, 86_400.0):
        now = time.time
        monkeypatch.setattr(time, "time", lambda now=now, moment=moment: now() + moment)
        store = Store((tmp_path / str(moment)).as_uri())
        write_shard(store, sharding, OBJECTS)
        monkeypatch.undo()
        contents.append({name: store.get(name) for name in store.list("")})
    assert contents[0] == contents[1]
    spec = ShardingSpecification.from_dict(dict(sharding))
    files = [ShardReader(None, None, spec).disassemble_shard(data) for data in contents[0].values()]
    assert {label: data for file in files for label, data in file.items()} == {k: v for k, (v, _) in OBJECTS.items()}
