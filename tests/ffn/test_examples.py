"""What networks are trained on: balanced coordinates, patches, augmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from happyneurons.errors import UserError
from happyneurons.ffn.architecture import Architecture
from happyneurons.ffn.augmentation import Augmentation, augment
from happyneurons.ffn.examples import PatchSource, judged_box
from happyneurons.ffn.sampling import (
    BACKGROUND,
    COUNT,
    PARTITIONS,
    SAMPLE,
    BalancedSampler,
    BlockCoordinates,
    open_gaps,
    partition_map,
)
from happyneurons.stages.ffn_train.volumes import CELL, Cells
from happyneurons.store.documents import Store
from happyneurons.store.volumes import create_volume

FOV = (5, 9, 7)


def sheets() -> np.ndarray:
    labels = np.zeros((24, 64, 64), np.uint64)
    labels[:, 10:50, 10:50] = 2**40  # fills the field of view
    labels[:, 57, 20:40] = 7  # a sheet of one voxel
    return labels


def brute_force(labels: np.ndarray, inner: tuple[slice, ...]) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(labels, FOV)
    centre = labels[inner]
    fractions = (windows == centre[..., None, None, None]).mean(axis=(3, 4, 5))
    return np.where(centre == 0, 0, np.digitize(fractions, PARTITIONS) + 1)


def test_partitions_are_those_of_counting_every_window() -> None:
    rng = np.random.default_rng(3)
    labels = np.kron(rng.integers(0, 4, (4, 6, 6)), np.ones((5, 4, 4), int)).astype(np.uint64)
    labels[labels == 2] = 2**50
    inner = tuple(slice(f // 2, n - f // 2) for f, n in zip(FOV, labels.shape, strict=True))
    np.testing.assert_array_equal(partition_map(labels, FOV, inner), brute_force(labels, inner))


def test_blocks_give_the_partitions_of_the_whole() -> None:
    labels = sheets()
    inner = tuple(slice(f // 2, n - f // 2) for f, n in zip(FOV, labels.shape, strict=True))
    whole = partition_map(labels, FOV, inner)
    part = labels[:, :40]
    first = partition_map(part, FOV, (inner[0], slice(4, 36), inner[2]))
    np.testing.assert_array_equal(first, whole[:, :32])


def test_drawing_is_balanced_between_thin_and_thick_and_over_blocks() -> None:
    labels = sheets()
    inner = tuple(slice(f // 2, n - f // 2) for f, n in zip(FOV, labels.shape, strict=True))
    start = [f // 2 for f in FOV]
    partitions = partition_map(labels, FOV, inner)
    rng = np.random.default_rng(0)
    # Two blocks: one has a quarter of the tissue, and so it must be drawn as often as it has voxels.
    cut = partitions.shape[1] // 4
    blocks = [
        BlockCoordinates.of(partitions[:, :cut], start, rng),
        BlockCoordinates.of(partitions[:, cut:], [start[0], start[1] + cut, start[2]], rng),
    ]
    counts = np.array([b.counts for b in blocks])
    assert counts.sum() == partitions.size
    assert all(len(k) <= SAMPLE for b in blocks for k in b.kept)
    kept = [BlockCoordinates.split(b.arrays()) for b in blocks]
    sampler = BalancedSampler(counts, lambda block: kept[block])
    drawn = [sampler.draw(rng) for _ in range(3000)]
    places = np.array([place for _, place in drawn])
    values = partitions[tuple((places - start).T)]
    assert BACKGROUND not in values
    shares = np.bincount(values, minlength=COUNT)[sampler.partitions] / len(drawn)
    np.testing.assert_allclose(shares, 1 / len(sampler.partitions), atol=0.03)
    full = values == COUNT - 1
    share = counts[0, -1] / counts[:, -1].sum()
    assert np.mean([block == 0 for (block, _), f in zip(drawn, full, strict=True) if f]) == pytest.approx(
        share, abs=0.06
    )
    with_background = BalancedSampler(counts, lambda block: kept[block], background=True)
    assert len(with_background.partitions) == len(sampler.partitions) + 1
    with pytest.raises(UserError, match="no object"):
        BalancedSampler(np.eye(1, COUNT, BACKGROUND, dtype=np.int64), lambda block: kept[block])


def test_patches_start_from_an_empty_mask_with_a_seed_on_their_object() -> None:
    labels = sheets()
    architecture = Architecture(depth=2, features=2, fov_zyx=(5, 9, 9), deltas_zyx=(0, 3, 3))
    background = False

    def cut(rng: np.random.Generator, half: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
        centre = (12, 30, 57) if background else (12, 30, 30)
        box = tuple(slice(c - h, c + h + 1) for c, h in zip(centre, half, strict=True))
        at = np.pad(labels, 40)[tuple(slice(b.start + 40, b.stop + 40) for b in box)]
        return at.astype(np.float32), at

    source = PatchSource(cut, architecture, fov_moves=1, augmentation=Augmentation())
    for seed in range(10):
        patch = source.draw(np.random.default_rng(seed))
        # One move more than is judged, as in google/ffn.
        assert patch.image.shape == patch.wanted.shape == (5, 21, 21)
        assert patch.wanted[judged_box(architecture)].shape == (5, 15, 15)
        assert patch.wanted[patch.centre]
        assert (patch.seed > 0).sum() == 1
        assert patch.seed[patch.centre] > 2.9
    background = True
    assert not source.draw(np.random.default_rng(0)).wanted.any()


OFF = {
    "noise": 0, "blur_px": 0, "missing": 0, "contrast": 0, "brightness": 0, "section_contrast": 0,
    "section_brightness": 0, "jitter_px": 0,
}  # fmt: skip


def block_patch(margin: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.zeros((21, 30 + 2 * margin, 30 + 2 * margin), bool)
    labels[:, margin + 6 : margin + 21, margin + 7 : margin + 22] = True
    return np.where(labels, np.float32(1), np.float32(-1)), labels


@pytest.mark.parametrize(
    ("change", "outline"),
    [
        ({"jitter_px": 2}, 0.06),
        ({"misalignment_px": 6, "misalignment": 1}, 0.001),
        ({"elastic_px": 3, "elastic_grid_px": 10}, 0.06),
        ({"permute_axes": "xyz"}, 0.0),
    ],
)
def test_labels_move_with_the_picture(change: dict[str, object], outline: float) -> None:
    """Sections move by fractions of a pixel, labels by whole ones: only the outline may differ."""
    settings = Augmentation.model_validate({**OFF, **change})
    moved = 0
    for seed in range(12):
        image, labels = block_patch(settings.margin_px)
        out, wanted = augment(image, labels, settings, np.random.default_rng(seed))
        assert out.shape == wanted.shape == (21, 30, 30)
        assert ((out > 0) != wanted).mean() <= outline
        assert wanted[10, 15, 15]
        moved += len({section.tobytes() for section in wanted}) > 1
    assert bool(moved) == ("permute_axes" not in change)


def test_axes_are_turned_only_as_allowed() -> None:
    image = np.arange(5 * 5 * 5, dtype=np.float32).reshape(5, 5, 5)
    labels = image > 60

    def orders(**settings: object) -> set[tuple[int, ...]]:
        found = set()
        for seed in range(400):
            given = Augmentation.model_validate({**OFF, **settings})
            out, _ = augment(image, labels, given, np.random.default_rng(seed))
            steps = [out[1, 0, 0] - out[0, 0, 0], out[0, 1, 0] - out[0, 0, 0], out[0, 0, 1] - out[0, 0, 0]]
            found.add(tuple(int(s) for s in steps))
        return found

    assert orders(permute_axes="none", reflect_axes=["x"]) == {(25, 5, 1), (25, 5, -1)}
    assert orders(permute_axes="xy", reflect_axes=[]) == {(25, 5, 1), (25, 1, 5)}
    assert len(orders(permute_axes="xyz")) == 48, "all symmetries of a cube"


def test_missing_and_unsharp_sections_keep_their_labels() -> None:
    rng = np.random.default_rng(5)
    image, labels = block_patch(0)
    image += rng.normal(0, 0.1, image.shape).astype(np.float32)

    def changed(**settings: object) -> np.ndarray:
        """Share of changed voxels by section."""
        given = Augmentation.model_validate({**OFF, "permute_axes": "none", "reflect_axes": [], **settings})
        out, wanted = augment(image, labels, given, np.random.default_rng(1))
        np.testing.assert_array_equal(wanted, labels)
        return np.asarray((out != image).mean(axis=(1, 2)))

    blank = changed(missing=0.5)
    assert set(blank) == {0.0, 1.0}
    part = changed(missing_part=0.5)
    assert ((part > 0) & (part < 1)).any()
    assert (part == 0).any()
    unsharp = changed(defocus=0.3)
    assert (unsharp == 0).any()
    assert (unsharp > 0.9).any()


def test_cells_read_what_the_volume_holds_and_stay_within_their_limit(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 255, (70, 100, 140)).astype(np.uint8)
    uri = Store(str(tmp_path)).url("image")
    low = (10, -30, 5)
    volume = create_volume(
        uri,
        start_zyx=low,
        stop_zyx=np.add(low, array.shape).tolist(),
        voxel_size_nm_xyz=(8, 8, 8),
        dtype="uint8",
        layer_type="image",
    )
    volume.write(low, array)
    cells = Cells(0, 0, limit_bytes=3 * CELL**3)
    rng = np.random.default_rng(1)
    for _ in range(12):
        a = rng.integers(0, np.array(array.shape) - 40)
        b = a + rng.integers(1, 40, 3)
        box = tuple(slice(i, j) for i, j in zip(a, b, strict=True))
        np.testing.assert_array_equal(cells.read(uri, (a + low).tolist(), (b + low).tolist()), array[box])
        assert cells._bytes == sum(block.nbytes for block in cells._kept.values()) <= 3 * CELL**3


def test_objects_that_touch_are_parted_and_their_other_borders_stay() -> None:
    labels = np.zeros((3, 9, 12), np.uint64)
    labels[:, 2:7, 1:6], labels[:, 2:7, 6:11] = 2**40, 7
    one, two = open_gaps(labels, 1)[1], open_gaps(labels, 2)[1]
    assert one[4].tolist() == [0, *[2**40] * 4, 0, 0, *[7] * 4, 0]
    assert two[4].tolist() == [0, *[2**40] * 3, 0, 0, 0, 0, *[7] * 3, 0]
    np.testing.assert_array_equal((one != 0)[:, 1:5], (labels != 0)[1, :, 1:5])
    np.testing.assert_array_equal(open_gaps(labels, 0), labels)


@pytest.mark.parametrize("gap", [1, 2])
def test_gaps_are_the_same_whatever_box_is_read(tmp_path: Path, gap: int) -> None:
    labels = np.random.default_rng(2).integers(0, 3, (12, 20, 20)).repeat(4, 0).repeat(4, 1).repeat(4, 2)
    uri = Store(str(tmp_path)).url("labels")
    volume = create_volume(
        uri, start_zyx=(0, 0, 0), stop_zyx=labels.shape, voxel_size_nm_xyz=(8, 8, 8), dtype="uint64",
        layer_type="segmentation",
    )  # fmt: skip
    volume.write((0, 0, 0), labels.astype(np.uint64))
    whole, cells = open_gaps(labels, gap), Cells(0, gap)
    for low, high in (((0, 0, 0), (48, 80, 80)), ((3, 5, 7), (20, 61, 33)), ((40, 64, 0), (48, 80, 9))):
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        np.testing.assert_array_equal(cells.labels(uri, low, high), whole[box])
