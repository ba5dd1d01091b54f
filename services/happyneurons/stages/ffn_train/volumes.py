"""Reading training volumes: pairs of an image and its labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from happyneurons.errors import UserError
from happyneurons.ffn.architecture import Architecture
from happyneurons.ffn.sampling import TrainingVolume
from happyneurons.store.artifacts import Artifact
from happyneurons.store.volumes import Volume, open_volume

MAX_VOXELS = 2**29
"""Of one training volume: it is held in memory (image as float32 and labels)."""


def check_pairs(images: Sequence[Artifact], labels: Sequence[Artifact], what: str) -> None:
    """Raise UserError unless there is one label volume for each image."""
    if len(images) != len(labels):
        raise UserError(
            f"ffn-train: {len(images)} {what} images but {len(labels)} labels; give them in pairs, in the same order"
        )


def common_box(image: Volume, labels: Volume) -> tuple[np.ndarray, np.ndarray]:
    """(start_zyx, stop_zyx) of the voxels that both have. Raises UserError if they do not fit together."""
    if not np.allclose(image.voxel_size_nm_xyz, labels.voxel_size_nm_xyz, rtol=1e-3):
        raise UserError(
            f"ffn-train: image and labels differ in voxel size, {image.voxel_size_nm_xyz} and "
            f"{labels.voxel_size_nm_xyz} nm: {image.uri}, {labels.uri}"
        )
    start, stop = np.maximum(image.start_zyx, labels.start_zyx), np.minimum(image.stop_zyx, labels.stop_zyx)
    if (stop <= start).any():
        raise UserError(f"ffn-train: image and labels have no voxels in common: {image.uri}, {labels.uri}")
    if np.prod((stop - start).astype(np.float64)) > MAX_VOXELS:
        raise UserError(
            f"ffn-train: a training volume of {tuple(int(v) for v in stop - start)} (zyx) voxels is too large "
            f"for memory; give label volumes of at most {MAX_VOXELS // 10**6} million voxels each"
        )
    return start, stop


def read_pairs(images: Sequence[Artifact], labels: Sequence[Artifact], mip: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(grey values, labels) of each pair, both (z, y, x), where they have voxels in common."""
    pairs = []
    for a, b in zip(images, labels, strict=True):
        image, truth = open_volume(a.data_uri, mip), open_volume(b.data_uri, mip)
        start, stop = common_box(image, truth)
        ids = truth.read(start.tolist(), stop.tolist())
        # Small consecutive numbers instead of 64-bit ids: a quarter of the memory.
        _, numbers = np.unique(ids, return_inverse=True)
        small = numbers.reshape(ids.shape).astype(np.int32) + 1
        small[ids == 0] = 0
        pairs.append((image.read(start.tolist(), stop.tolist()), small))
    return pairs


def normalized(pairs: Sequence[tuple[np.ndarray, np.ndarray]], architecture: Architecture) -> list[TrainingVolume]:
    return [TrainingVolume(architecture.normalize(image), labels) for image, labels in pairs]


def mean_and_stddev(images: Sequence[np.ndarray]) -> tuple[float, float]:
    """Over all voxels of all images, rounded to a tenth so that it reads well in model.json."""
    count = sum(i.size for i in images)
    mean = sum(float(i.sum(dtype=np.float64)) for i in images) / count
    variance = (
        sum(float(((i.astype(np.float32) - np.float32(mean)) ** 2).sum(dtype=np.float64)) for i in images) / count
    )
    return round(mean, 1), max(round(variance**0.5, 1), 1.0)
