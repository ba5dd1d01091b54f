"""Oversegmentation consensus: together only what every segmentation has together."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from happyneurons.errors import UserError
from happyneurons.jobs.journal import Entry, JournalWriter
from happyneurons.jobs.spec import make_spec, save_spec
from happyneurons.stages import load_stage
from happyneurons.stages.consensus.fragments import Surface, contacts, directions, fragments
from happyneurons.store.artifacts import Manifest
from happyneurons.store.documents import Store
from happyneurons.store.volumes import create_volume, open_volume
from happyneurons.unions.joining import components
from happyneurons.worker.context import JobContext
from happyneurons.worker.local import run_stage

from .attempts import files, run_and_die, run_with_ranks

SHAPE = (20, 70, 140)
"""1 x 2 x 3 blocks of 64; blocks that meet along all axes: `test_eight_blocks_give_what_one_gives`."""


def cells(shape: tuple[int, int, int], number: int, seed: int, *, empty: float = 0.1) -> np.ndarray:
    """(z, y, x) uint64 labels: blocks of a warped lattice with scattered ids, some of them background."""
    rng = np.random.default_rng(seed)
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    edge = 200 // number
    i = (z + 3 * np.sin(y / 9)).astype(int) // edge, (y + 3 * np.sin(x / 7)).astype(int) // edge, (x + z // 5) // edge
    place = (i[0] + 1) * 10_000 + (i[1] + 1) * 100 + i[2] + 1
    values, inverse = np.unique(place, return_inverse=True)
    names = rng.integers(1, max(2, len(values) // 2), len(values)).astype(np.uint64) * np.uint64(2**33 + 1)
    names[rng.random(len(values)) < empty] = 0
    return names[inverse.reshape(shape)]


def publish(folder: Path, labels: np.ndarray, *, start_zyx: Any = (0, 0, 0), voxel_nm: float = 10.0) -> str:
    stop = np.add(start_zyx, labels.shape)
    uri = folder.as_uri()
    volume = create_volume(
        uri, start_zyx=start_zyx, stop_zyx=stop, voxel_size_nm_xyz=(voxel_nm,) * 3, dtype="uint64",
        layer_type="segmentation",
    )  # fmt: skip
    volume.write(start_zyx, labels)
    return f"precomputed://{uri}"


def expected(labels: list[np.ndarray], labelled_in: str, connectivity: int) -> np.ndarray:
    """The definition, on the whole volume at once."""
    combination = np.zeros(labels[0].shape, np.int64)
    for array in labels:
        values, inverse = np.unique(array, return_inverse=True)
        combination = combination * len(values) + inverse.reshape(array.shape) + 1
    keep = labels[0] > 0 if labelled_in == "first" else np.logical_and.reduce([a > 0 for a in labels])
    combination[~keep] = 0
    return cc3d.connected_components(combination.astype(np.uint64), connectivity=connectivity)


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]).astype(np.uint64), axis=1)
    return len(np.unique(pairs[0])) == pairs.shape[1] == len(np.unique(pairs[1]))


def read(manifest: Manifest) -> np.ndarray:
    volume = open_volume(manifest.outputs["segmentation"].data_uri)
    return volume.read(volume.start_zyx, volume.stop_zyx)


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[list[str], list[np.ndarray]]:
    labels = [cells(SHAPE, 10, 1), cells(SHAPE, 14, 2), cells(SHAPE, 8, 3)]
    return [publish(tmp_path / str(i), a, start_zyx=(-3, 10, 7)) for i, a in enumerate(labels)], labels


@pytest.mark.parametrize(("labelled_in", "connectivity"), [("first", 26), ("all", 6)])
def test_it_is_the_definition_applied_to_the_whole_volume(
    store: Store, inputs: Any, labelled_in: str, connectivity: int
) -> None:
    uris, labels = inputs
    params = {"labelled_in": labelled_in, "connectivity": connectivity, "block_px": 64, "num_mips": 0}
    manifest = run_stage(store, "consensus", inputs={"segmentations": uris}, params=params)
    truth = expected(labels, labelled_in, connectivity)
    assert same_partition(read(manifest), truth)
    assert manifest.metrics["segments"] == truth.max()
    assert manifest.metrics["merges"] == manifest.metrics["block_fragments"] - truth.max() > 20
    assert manifest.metrics["coverage"] == pytest.approx((truth > 0).mean())


def test_small_fragments_are_dropped_by_their_size_in_the_whole_volume(store: Store, inputs: Any) -> None:
    uris, labels = inputs
    params = {"block_px": 64, "num_mips": 1, "min_size_voxels": 200}
    manifest = run_stage(store, "consensus", inputs={"segmentations": uris[:2]}, params=params)
    truth = expected(labels[:2], "first", 6)  # the defaults
    sizes = np.bincount(truth.ravel())
    large = sizes >= 200
    large[0] = False
    found = read(manifest)
    assert same_partition(found, np.where(large[truth], truth, 0))
    assert set(np.unique(found)) == set(range(int(large.sum()) + 1))
    assert manifest.metrics["dropped_segments"] == len(sizes) - 1 - large.sum() > 0


def test_the_order_of_tasks_and_doing_them_twice_change_nothing(store: Store, inputs: Any) -> None:
    uris, _ = inputs
    params = {"block_px": 64, "min_size_voxels": 30, "num_mips": 1}
    manifest = run_stage(store, "consensus", inputs={"segmentations": uris[:2]}, params=params)
    stage = load_stage("consensus")
    spec = make_spec(stage, inputs={"segmentations": uris[:2]}, params=params)
    other = Store(store.url("other"))
    context = JobContext(other, spec, stage, threads=1)
    journal = JournalWriter(other, spec.key, 1)
    rng = np.random.default_rng(0)
    for round_ in stage().rounds(context):
        round_.prepare(context)
        tasks = list(round_.plan(context))
        for i in rng.permutation(np.concatenate([np.arange(len(tasks)), np.arange(0, len(tasks), 2)])):
            journal.add(round_.name, Entry(tasks[i].key, round_.run(tasks[i], context).data))
        journal.flush()
    context.close()
    assert manifest.job_key == spec.key
    assert files(other, spec.key) == files(store, spec.key)


@pytest.mark.slow
def test_ranks_and_kills_change_nothing(store: Store, inputs: Any, tmp_path: Path) -> None:
    uris, _ = inputs
    spec = make_spec(load_stage("consensus"), inputs={"segmentations": uris[:2]}, params={"block_px": 64})
    stores = {"ranks": Store(str(tmp_path / "ranks")), "killed": Store(str(tmp_path / "killed")), "plain": store}
    for one in stores.values():
        save_spec(one, spec)
    run_with_ranks(stores["ranks"], spec, 3)
    assert run_and_die(stores["killed"], spec, "contacts", 4) == -signal.SIGKILL
    run_stage(store, "consensus", inputs={"segmentations": uris[:2]}, params={"block_px": 64})
    run_with_ranks(stores["killed"], spec, 1)
    assert files(stores["ranks"], spec.key) == files(store, spec.key) == files(stores["killed"], spec.key)


@given(
    labels=arrays(np.uint64, (2, 6, 7, 8), elements=st.integers(0, 2)),
    cut=st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 7)),
    connectivity=st.sampled_from([6, 26]),
    labelled_in=st.sampled_from(["first", "all"]),
)
@settings(max_examples=40)
def test_eight_blocks_give_what_one_gives(labels: Any, cut: Any, connectivity: Any, labelled_in: Any) -> None:
    """Blocks down to one voxel thick, noise for labels: every way in which voxels can touch occurs."""
    ranges = [((0, c), (c, n)) for c, n in zip(cut, labels.shape[1:], strict=True)]
    parts, firsts, total = {}, {}, 0
    for index in np.ndindex(2, 2, 2):
        inside = tuple(slice(*r[i]) for r, i in zip(ranges, index, strict=True))
        ids = [np.ascontiguousarray(a[inside]) for a in labels]
        parts[index], firsts[index] = (inside, fragments(ids, labelled_in, connectivity)), total
        total += len(parts[index][1].voxels)
    edges = []
    for index, (_, part) in parts.items():
        for direction in directions(connectivity):
            other = tuple(int(v) for v in np.add(index, direction))
            if other in parts:
                theirs = parts[other][1]
                own, its = Surface(part.faces(), part.origin), Surface(theirs.faces(), theirs.origin)
                pairs = contacts(own, its, direction, connectivity)
                edges.append(pairs.astype(int) + [firsts[index], firsts[other]])
    label_of = components(total, np.concatenate(edges)) + 1
    joined = np.zeros(labels.shape[1:], np.int64)
    for index, (inside, part) in parts.items():
        joined[inside] = np.where(part.labels > 0, label_of[firsts[index] + part.labels.astype(int)], 0)
    assert same_partition(joined, expected(list(labels), labelled_in, connectivity))


def test_what_does_not_fit_is_refused_with_the_reason(store: Store, tmp_path: Path) -> None:
    labels = cells((20, 30, 40), 5, 1)
    a = publish(tmp_path / "a", labels)
    for uris, message in (
        ([a], "there is only one"),
        ([a, publish(tmp_path / "b", labels, start_zyx=(0, 0, 1))], r"same volume; .*b has \(1, 0, 0\) to \(41, 30"),
        ([a, publish(tmp_path / "c", labels, voxel_nm=8.0)], r"same voxels; .*c has \(8.0, 8.0, 8.0\) nm"),
    ):
        with pytest.raises(UserError, match=message):
            run_stage(store, "consensus", inputs={"segmentations": uris})
