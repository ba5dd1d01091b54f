"""Annotated sections: images and their labels, read in pieces where they are."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from happyneurons.errors import UserError
from happyneurons.imaging.layers import UNKNOWN_SIZE, Layer, Size
from happyneurons.stages.mask_train.params import MaskTrainParams, section_numbers
from happyneurons.store.volumes import Volume, open_volume
from happyneurons.unet.training import UNLABELLED

PIECE = 256
"""Side of the pieces of sections that are read and kept, px."""
CACHE_BYTES = 2**29
"""Of pieces that a process keeps."""


@dataclass(frozen=True)
class Sections:
    """Sections of a pair of image and labels. z: those that were named; None: all that both have."""

    number: int
    image: str
    labels: str
    validation: bool
    z: tuple[int, ...] | None


def sections_of(
    params: MaskTrainParams, training: Sequence[tuple[str, str]], validation: Sequence[tuple[str, str]]
) -> list[Sections]:
    """All sections that are trained on or judged by. Raises UserError if a section is named for both."""
    named = None if params.sections is None else tuple(section_numbers(params.sections))
    held_out = tuple(section_numbers(params.validation_sections)) if params.validation_sections else ()
    both = sorted(set(named or ()) & set(held_out))
    if both:
        raise UserError(
            f"mask-train: section {both[0]} is in params.sections and in params.validation_sections; a network that "
            "is judged by what it was trained on looks better than it is",
            [("params.validation_sections", "none of params.sections")],
        )
    found: list[Sections] = []
    for image, labels in training:
        found.append(Sections(len(found), image, labels, False, named))
        if held_out:
            found.append(Sections(len(found), image, labels, True, held_out))
    for image, labels in validation:
        found.append(Sections(len(found), image, labels, True, None))
    return found


class Pictures:
    """Reads parts of sections, piece by piece, and keeps the pieces used last."""

    def __init__(self, params: MaskTrainParams, limit_bytes: int = CACHE_BYTES) -> None:
        self._params, self._limit, self._bytes = params, limit_bytes, 0
        self._images: dict[str, Volume] = {}
        self._layers: dict[tuple[str, str], Layer] = {}
        self._kept: OrderedDict[tuple[str, str, int, int, int], np.ndarray] = OrderedDict()

    def image(self, uri: str) -> Volume:
        if uri not in self._images:
            self._images[uri] = open_volume(uri, self._params.mip)
        return self._images[uri]

    def labels(self, sections: Sections) -> Layer:
        """The labels as seen at the image's voxels."""
        key = sections.image, sections.labels
        if key not in self._layers:
            size: Size = self.image(sections.image).voxel_size_nm_xyz
            own = None
            if size == UNKNOWN_SIZE and self._params.mip == 0:
                own = UNKNOWN_SIZE  # neither file tells: voxel by voxel
            self._layers[key] = Layer.open(sections.labels, size, own)
        return self._layers[key]

    def z_range(self, sections: Sections) -> range:
        """Sections that the image and the labels have."""
        image, layer = self.image(sections.image), self.labels(sections)
        ratio = layer.voxel_size_nm_xyz[2] / layer.image_size_nm_xyz[2]
        low, high = (int(np.floor(z * ratio)) for z in (layer.volume.start_zyx[0], layer.volume.stop_zyx[0]))
        return range(max(image.start_zyx[0], low), min(image.stop_zyx[0], high))

    def targets(self, labels: np.ndarray) -> NDArray[np.int8]:
        """Class numbers of labels: 0 background, 1 the first class, UNLABELLED."""
        params = self._params
        values, inverse = np.unique(labels, return_inverse=True)
        known = {int(v): number for number, c in enumerate(params.classes, 1) for v in c.values}
        known |= {int(v): 0 for v in params.background_values} | {int(v): UNLABELLED for v in params.unlabelled_values}
        rest = next((number for number, c in enumerate(params.classes, 1) if not c.values), UNLABELLED)
        numbers = np.array([known.get(int(v), rest) for v in values], np.int16)
        return numbers[inverse].reshape(labels.shape).astype(np.int8)

    def read(
        self, sections: Sections, z: int, start_yx: Sequence[int], stop_yx: Sequence[int]
    ) -> tuple[np.ndarray, NDArray[np.int8]]:
        """(image, targets), both (y, x), of a box of a section; beyond the image's faces its mirror image.

        The box must hold a pixel of the image.
        """
        volume = self.image(sections.image)
        low, high = volume.start_zyx[1:], volume.stop_zyx[1:]
        start = [max(a, p) for a, p in zip(start_yx, low, strict=True)]
        stop = [min(b, q) for b, q in zip(stop_yx, high, strict=True)]
        image = np.empty([b - a for a, b in zip(start, stop, strict=True)], volume.dtype)
        targets = np.empty(image.shape, np.int8)
        for y in range(start[0] // PIECE, (stop[0] - 1) // PIECE + 1):
            for x in range(start[1] // PIECE, (stop[1] - 1) // PIECE + 1):
                corner, (own_image, own_targets) = self._piece(sections, z, y, x)
                a = np.maximum(corner, start)
                b = np.minimum(np.add(corner, own_image.shape), stop)
                into = tuple(slice(p - o, q - o) for p, q, o in zip(a, b, start, strict=True))
                part = tuple(slice(p - o, q - o) for p, q, o in zip(a, b, corner, strict=True))
                image[into], targets[into] = own_image[part], own_targets[part]
        beyond = [(a - p, q - b) for a, b, p, q in zip(start, stop, start_yx, stop_yx, strict=True)]
        if any(n for pair in beyond for n in pair):
            image, targets = (np.pad(array, beyond, mode="symmetric") for array in (image, targets))
        return image, targets

    def _piece(self, sections: Sections, z: int, y: int, x: int) -> tuple[tuple[int, int], np.ndarray]:
        volume = self.image(sections.image)
        low = [max(i * PIECE, a) for i, a in zip((y, x), volume.start_zyx[1:], strict=True)]
        key = (sections.image, sections.labels, z, y, x)
        if key not in self._kept:
            high = [min((i + 1) * PIECE, b) for i, b in zip((y, x), volume.stop_zyx[1:], strict=True)]
            start, stop = [z, *low], [z + 1, *high]
            layer = self.labels(sections)
            nowhere = layer.cover(start, stop) == 0
            image = volume.read(start, stop)[0].astype(np.float32)
            targets = self.targets(layer.read(start, stop, lambda values: values)[0])
            if nowhere:
                targets[:] = UNLABELLED
            self._kept[key] = np.stack([image, targets.astype(np.float32)])
            self._bytes += self._kept[key].nbytes
            while self._bytes > self._limit and len(self._kept) > 1:
                _, dropped = self._kept.popitem(last=False)
                self._bytes -= dropped.nbytes
        self._kept.move_to_end(key)
        return (low[0], low[1]), self._kept[key]
