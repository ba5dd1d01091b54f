"""What the stage reads: the volumes, and the box around a decision point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from happyneurons.errors import UserError
from happyneurons.imaging.layers import Layer
from happyneurons.jobs.stage import Context
from happyneurons.store.artifacts import Artifact
from happyneurons.store.triples import Triple
from happyneurons.store.volumes import PrecomputedVolume, Volume, open_volume

if TYPE_CHECKING:
    from happyneurons.ffn.architecture import Architecture
    from happyneurons.ffn.canvas import Step
    from happyneurons.ffn.model import Model


@dataclass(frozen=True)
class Sources:
    """The opened volumes. image and segmentation have the same voxels; the mask's may be others."""

    image: Volume
    segmentation: Volume
    mask: Layer | None

    @classmethod
    def of(cls, context: Context[Any]) -> Sources:
        """Opened once a process. Raises UserError if the volumes do not fit one another."""

        def make() -> Sources:
            segmentation = open_volume(context.input("segmentation").data_uri)
            image = _image_level(context.input("image"), segmentation, context.params.mip)
            mask = context.optional_input("mask")
            layer = None if mask is None else Layer.open(mask.data_uri, segmentation.voxel_size_nm_xyz)
            sources = cls(image, segmentation, layer)
            sources._check(context)
            return sources

        found: Sources = context.once("sources", make)
        return found

    def _check(self, context: Context[Any]) -> None:
        segmentation, image = self.segmentation, self.image
        if segmentation.dtype.kind not in "ui":
            raise UserError(f"agglomerate: input segmentation has type {segmentation.dtype}, ids were expected")
        low, high = (
            zip(segmentation.start_zyx, image.start_zyx, strict=True),
            zip(segmentation.stop_zyx, image.stop_zyx, strict=True),
        )
        if any(s < i for s, i in low) or any(s > i for s, i in high):
            raise UserError(
                f"agglomerate: the segmentation, voxels {segmentation.start_zyx}..{segmentation.stop_zyx} (zyx), "
                f"reaches beyond the image, {image.start_zyx}..{image.stop_zyx}; give the image that was segmented"
            )

    @property
    def voxel_size_zyx(self) -> tuple[float, float, float]:
        x, y, z = self.segmentation.voxel_size_nm_xyz
        return (z, y, x)

    def read(self, point_zyx: Sequence[int], radius_zyx: Sequence[int], architecture: Architecture) -> Box:
        """The box of 2 radius + 1 voxels around a point, however near to the volume's faces.

        The image goes on beyond the segmentation if there is one, else as its mirror image, so that
        the field of view can be centred up to the faces.
        """
        start = [p - r for p, r in zip(point_zyx, radius_zyx, strict=True)]
        stop = [p + r + 1 for p, r in zip(point_zyx, radius_zyx, strict=True)]
        grey, margins = _inside(self.image, start, stop)
        image = np.pad(architecture.normalize(grey), margins, mode="reflect")
        ids, margins = _inside(self.segmentation, start, stop)
        excluded = np.zeros(ids.shape, bool)
        if self.mask is not None:
            low = [a + m for a, (m, _) in zip(start, margins, strict=True)]
            high = [a + n for a, n in zip(low, ids.shape, strict=True)]
            excluded |= self.mask.read(low, high, lambda values: values != 0)
        excluded = np.pad(excluded, margins, constant_values=True)
        return Box(image, np.pad(ids, margins), excluded if excluded.any() else None)


@dataclass(frozen=True)
class Box:
    """Arrays (z, y, x) of one shape: normalized image, ids, and where nothing is to be segmented."""

    image: np.ndarray
    labels: np.ndarray
    excluded: np.ndarray | None


def _image_level(artifact: Artifact, segmentation: Volume, mip: int | None) -> Volume:
    """The image's level that was segmented: the given one, or the one with the segmentation's voxels."""
    image = open_volume(artifact.data_uri, mip or 0)
    levels: list[Volume] = [image]
    if mip is None and isinstance(image, PrecomputedVolume):
        levels += [open_volume(artifact.data_uri, level) for level in range(1, image.mips)]
    for level in levels:
        if np.allclose(level.voxel_size_nm_xyz, segmentation.voxel_size_nm_xyz, rtol=1e-3):
            return level
    if mip is not None:
        return image
    raise UserError(
        f"agglomerate: the image has no level of the segmentation's voxel size, {segmentation.voxel_size_nm_xyz} nm "
        f"(xyz), only {', '.join(str(v.voxel_size_nm_xyz) for v in levels)}; if one of them was segmented "
        "nevertheless, give it as params.mip"
    )


def _inside(volume: Volume, start: Sequence[int], stop: Sequence[int]) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """The part of a box that lies in the volume, and how many voxels are missing at its faces."""
    low, high = np.maximum(start, volume.start_zyx), np.minimum(stop, volume.stop_zyx)
    margins = [(int(a), int(b)) for a, b in zip(low - start, stop - high, strict=True)]
    return volume.read(low.tolist(), high.tolist()), margins


def model_of(context: Context[Any]) -> Model:
    from happyneurons.ffn.model import load_model

    model: Model = context.once(
        "model", lambda: load_model(context.input("model").data_uri, **context.params.overrides())
    )
    return model


def step_of(context: Context[Any]) -> Step:
    """The network's step function, made once a process."""

    def make() -> Step:
        from happyneurons.ffn.backends import make_step

        return make_step(context.params.backend, model_of(context), context.threads)

    step: Step = context.once("step", make)
    return step


def radius_zyx(context: Context[Any], architecture: Architecture) -> Triple:
    """Half the box's edges. Raises UserError if the field of view has no room in it."""
    fov, deltas, given = architecture.fov_zyx, architecture.deltas_zyx, context.params.radius_xyz
    if given is None:
        z, y, x = (f // 2 + d for f, d in zip(fov, deltas, strict=True))
    else:
        x, y, z = given
    if any(r < f // 2 for r, f in zip((z, y, x), fov, strict=True)):
        least = tuple(f // 2 for f in fov[::-1])
        raise UserError(
            f"agglomerate: params.radius_xyz {(x, y, z)} leaves no room for the field of view; {least} is the least"
        )
    return (z, y, x)
