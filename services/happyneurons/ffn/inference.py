"""Segmenting a whole subvolume with a flood-filling network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from happyneurons.ffn.canvas import Canvas, Step
from happyneurons.ffn.options import InferenceOptions
from happyneurons.ffn.seeds import peak_seeds


@dataclass(frozen=True)
class SubvolumeSegmentation:
    """segmentation: uint32 (z, y, x), ids 1…n without gaps in the order they were found, 0 is free.

    counters: see Canvas; the work and how seeds ended.
    """

    segmentation: NDArray[np.uint32]
    counters: dict[str, int]

    @property
    def segments(self) -> int:
        return self.counters.get("segments", 0)


def segment_subvolume(
    image: np.ndarray,
    step: Step,
    options: InferenceOptions,
    *,
    excluded: NDArray[np.bool_] | None = None,
    voxel_size_zyx: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> SubvolumeSegmentation:
    """Segment grey values (z, y, x); an image smaller than the field of view has no segments.

    excluded: True where nothing is to be segmented, same shape.
    voxel_size_zyx: for the seeds' distances from edges; only the ratio matters, but for
    `seed_min_edge_distance`, which is in the smallest edge's voxels.
    """
    normalized = step.architecture.normalize(image)
    if excluded is not None and not excluded.any():
        excluded = None
    canvas = Canvas(normalized, step, options, excluded)
    if all(n >= f for n, f in zip(image.shape, step.architecture.fov_zyx, strict=True)):
        smallest = min(voxel_size_zyx)
        seeds = peak_seeds(
            normalized,
            excluded,
            voxel_size_zyx=(voxel_size_zyx[0] / smallest, voxel_size_zyx[1] / smallest, voxel_size_zyx[2] / smallest),
            min_edge_distance=options.seed_min_edge_distance,
            order=options.seed_order,
        )
        for z, y, x in seeds.tolist():
            canvas.segment((z, y, x))
    segmentation = np.maximum(canvas.segmentation, 0).astype(np.uint32)
    return SubvolumeSegmentation(segmentation, dict(canvas.counters))
