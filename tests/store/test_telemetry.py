"""Calls of stores are counted, by operation and by what became of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from happyneurons.errors import NotFoundError, StoreError
from happyneurons.store.documents import Store
from happyneurons.store.telemetry import (
    BOUNDS_S,
    FAILURES,
    OPERATIONS,
    TELEMETRY,
    WIDTH,
    Counts,
    StoreTelemetry,
    add,
    changes,
)
from happyneurons.store.volumes import create_volume, open_volume


def calls(counts: Counts, operation: str) -> int:
    return int(sum(counts.get(operation, [0] * WIDTH)[1 + len(FAILURES) :]))


def failures(counts: Counts) -> dict[str, int]:
    return {kind: int(sum(row[1 + i] for row in counts.values())) for i, kind in enumerate(FAILURES)}


def test_answers_are_no_failures(store: Store) -> None:
    before = TELEMETRY.snapshot()
    store.put("a", b"1")
    store.get("a")
    with pytest.raises(NotFoundError):
        store.get("nothing")
    assert not store.exists("nothing")
    assert store.create("b", b"1")
    assert not store.create("b", b"2")
    assert list(store.list("")) == ["a", "b"] or set(store.list("")) == {"a", "b"}
    found = changes(before, TELEMETRY.snapshot())
    assert calls(found, "put") == 1
    assert calls(found, "get") == 3, "the create that lost looks what is there"
    assert calls(found, "create") == 2
    assert failures(found) == {"unavailable": 0, "denied": 0}
    assert found.keys() <= set(OPERATIONS)
    assert all(row[0] > 0 for row in found.values())


def test_a_store_that_is_gone_is_a_failure(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    store.put("a/b", b"1")
    (tmp_path / "store").rename(tmp_path / "away")
    (tmp_path / "store").write_text("no folder")
    before = TELEMETRY.snapshot()
    with pytest.raises(StoreError):
        store.get("a/b")
    with pytest.raises(StoreError):
        store.put("a/c", b"1")
    assert failures(changes(before, TELEMETRY.snapshot())) == {"unavailable": 2, "denied": 0}


def test_volumes_count_as_boxes(store: Store) -> None:
    volume = create_volume(
        store.url("v"), start_zyx=(0, 0, 0), stop_zyx=(64, 64, 64), voxel_size_nm_xyz=(8, 8, 8), dtype="uint8",
        layer_type="image",
    )  # fmt: skip
    before = TELEMETRY.snapshot()
    volume.write((0, 0, 0), open_volume(store.url("v")).read((0, 0, 0), (64, 64, 64)))
    found = changes(before, TELEMETRY.snapshot())
    assert (calls(found, "volume_read"), calls(found, "volume_write"), calls(found, "volume_open")) == (1, 1, 1)


def test_counts_of_ranks_add_up_and_others_versions_are_left_out() -> None:
    one = StoreTelemetry()
    one.observe("get", 0.001)
    one.observe("get", BOUNDS_S[-1] + 1, "denied")
    total: Counts = {}
    add(total, one.snapshot())
    add(total, one.snapshot())
    add(total, {"put": [1.0, 2.0]})
    assert set(total) == {"get"}
    assert calls(total, "get") == 4
    assert failures(total) == {"unavailable": 0, "denied": 2}
    assert total["get"][-1] == 2, "what took longer than the last bound"
