"""Training coordinates, balanced by how much of the field of view their object fills.

Method: compute_partitions and build_coordinates of google/ffn: thin processes and large bodies are
seen equally often. Fractions are counted at randomly drawn coordinates instead of everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from happyneurons.errors import UserError

Triple = tuple[int, int, int]

PARTITIONS = (0.025, 0.05, 0.075, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
"""Upper bounds of the fraction of the field of view that the centre's object fills."""


@dataclass(frozen=True)
class TrainingVolume:
    """Normalized float32 image and labels (0 is background), both (z, y, x), of one shape."""

    image: NDArray[np.float32]
    labels: np.ndarray


def active_fractions(labels: np.ndarray, coordinates: NDArray[np.int64], fov_zyx: Triple) -> NDArray[np.float32]:
    """Fraction of the field of view around each coordinate (n, 3) that has the centre's label."""
    windows = np.lib.stride_tricks.sliding_window_view(labels, fov_zyx)
    half = np.array(fov_zyx) // 2
    fractions = np.empty(len(coordinates), np.float32)
    for first in range(0, len(coordinates), 512):
        part = coordinates[first : first + 512]
        found = windows[tuple((part - half).T)]
        fractions[first : first + 512] = (found == labels[tuple(part.T)][:, None, None, None]).mean(axis=(1, 2, 3))
    return fractions


class BalancedSampler:
    """Coordinates of labelled voxels: first a partition, then a coordinate of it, each drawn evenly.

    margin_zyx: voxels that every coordinate keeps from the volumes' faces.
    candidates: coordinates drawn from each volume to choose from.
    Raises UserError if a volume is too small or has no labels away from its faces.
    """

    def __init__(
        self,
        volumes: Sequence[TrainingVolume],
        fov_zyx: Triple,
        margin_zyx: Triple,
        *,
        seed: int,
        candidates: int = 20_000,
    ) -> None:
        parts: list[list[NDArray[np.int64]]] = [[] for _ in range(len(PARTITIONS) + 1)]
        margin = np.maximum(margin_zyx, np.array(fov_zyx) // 2)
        for index, volume in enumerate(volumes):
            rng = np.random.default_rng([seed, index])
            shape = np.array(volume.labels.shape)
            if (shape <= 2 * margin).any():
                raise UserError(
                    f"training volume {index} of shape {tuple(shape)} (zyx) is too small: "
                    f"with this field of view and fov_moves it takes more than {tuple(2 * margin)}"
                )
            drawn = rng.integers(margin, shape - margin, (3 * candidates, 3))
            drawn = drawn[volume.labels[tuple(drawn.T)] != 0][:candidates]
            bins = np.digitize(active_fractions(volume.labels, drawn, fov_zyx), PARTITIONS)
            for part in range(len(parts)):
                chosen = drawn[bins == part]
                parts[part].append(np.column_stack([np.full(len(chosen), index), chosen]))
        merged = [np.concatenate(p) for p in parts]
        self._parts = [p for p in merged if len(p)]
        if not self._parts:
            raise UserError("the training labels hold no object away from the volume's faces")

    def draw(self, rng: np.random.Generator) -> tuple[int, Triple]:
        """(volume index, coordinate zyx)."""
        part = self._parts[int(rng.integers(len(self._parts)))]
        volume, z, y, x = (int(v) for v in part[int(rng.integers(len(part)))])
        return volume, (z, y, x)
