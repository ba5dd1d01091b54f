"""Segmenting a whole subvolume with a flood-filling network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from happyneurons.ffn.canvas import ALL_FACES, NO_FACES, Canvas, Faces, Step
from happyneurons.ffn.checkpoint import CanvasCheckpoint, WatchedStep
from happyneurons.ffn.obstacles import Obstacles
from happyneurons.ffn.options import InferenceOptions
from happyneurons.ffn.seeds import peak_seeds


@dataclass(frozen=True)
class SubvolumeSegmentation:
    """segmentation: uint32 (z, y, x), ids 1…n without gaps: those of obstacles, then in the order they
    were found; 0 is free.

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
    mirrored: Faces = NO_FACES,
    ends: Faces = ALL_FACES,
    unseeded: NDArray[np.bool_] | None = None,
    obstacles: Obstacles | None = None,
    points: NDArray[np.int64] | None = None,
    checkpoint: CanvasCheckpoint | None = None,
) -> SubvolumeSegmentation:
    """Segment grey values (z, y, x); an image smaller than the field of view has no segments.

    excluded: True where nothing is to be segmented, same shape.
    voxel_size_zyx: for the seeds' distances from edges, which are in voxels of the shortest edge.
    mirrored: faces beyond which the image is continued by its mirror image, so that the field of
    view can be centred up to there; without that, half a field of view along a face is seen only
    from the inside, and objects that lie wholly within it are missed.
    ends: faces beyond which no other subvolume looks (see Canvas).
    unseeded: True where no object may start, same shape; obstacles: objects that are there already.
    points: (n, 3) zyx seeds instead of the image's peaks.
    checkpoint: where the state is kept meanwhile, and taken up from; it changes nothing of the result.
    Raises DrainedError if the checkpoint says to stop.
    """
    if any(n < f for n, f in zip(image.shape, step.architecture.fov_zyx, strict=True)):
        if obstacles is None:
            return SubvolumeSegmentation(np.zeros(image.shape, np.uint32), {})
        there = len(obstacles.ids)
        return SubvolumeSegmentation(obstacles.labels.astype(np.uint32), {"segments": there, "initial_segments": there})
    normalized = step.architecture.normalize(image)
    if excluded is not None and not excluded.any():
        excluded = None
    seeds = points if points is not None else _peaks(normalized, excluded, options, voxel_size_zyx)
    if unseeded is not None:
        seeds = seeds[~unseeded[tuple(seeds.T)]]
    margins = [
        (f // 2 if first else 0, f // 2 if last else 0)
        for f, (first, last) in zip(step.architecture.fov_zyx, mirrored, strict=True)
    ]
    inner = tuple(slice(a, a + n) for (a, _), n in zip(margins, image.shape, strict=True))
    beyond = np.pad(np.zeros(image.shape, bool) if excluded is None else excluded, margins, constant_values=True)
    watched = WatchedStep(step) if checkpoint is not None else step
    canvas = Canvas(
        np.pad(normalized, margins, mode="reflect") if any(map(any, mirrored)) else normalized,
        watched,
        options,
        beyond if excluded is not None or any(map(any, mirrored)) else None,
        ends=_without(ends, mirrored),
    )
    if obstacles is not None:
        obstacles.place(canvas, inner)
    offset = [a for a, _ in margins]
    _flood_all(canvas, (seeds + offset).tolist(), watched, checkpoint)
    segmentation = np.maximum(canvas.segmentation[inner], 0).astype(np.uint32)
    return SubvolumeSegmentation(segmentation, dict(canvas.counters))


def _without(faces: Faces, others: Faces) -> Faces:
    z, y, x = ((a and not c, b and not d) for (a, b), (c, d) in zip(faces, others, strict=True))
    return (z, y, x)


def _flood_all(canvas: Canvas, seeds: list[list[int]], step: Step, checkpoint: CanvasCheckpoint | None) -> None:
    """An object from each seed, in their order, from where the checkpoint is on."""
    done = 0
    if checkpoint is not None:
        done = checkpoint.restore(canvas, len(seeds))
        if isinstance(step, WatchedStep):
            step.before = lambda: checkpoint.before_step(canvas, len(seeds))
    for i, (z, y, x) in enumerate(seeds[done:], done + 1):
        canvas.segment((z, y, x))
        if checkpoint is not None:
            checkpoint.passed(i)


def _peaks(
    image: NDArray[np.float32],
    excluded: NDArray[np.bool_] | None,
    options: InferenceOptions,
    voxel_size_zyx: tuple[float, float, float],
) -> NDArray[np.int64]:
    smallest = min(voxel_size_zyx)
    return peak_seeds(
        image,
        excluded,
        voxel_size_zyx=(voxel_size_zyx[0] / smallest, voxel_size_zyx[1] / smallest, voxel_size_zyx[2] / smallest),
        min_edge_distance=options.seed_min_edge_distance,
        order=options.seed_order,
    )
