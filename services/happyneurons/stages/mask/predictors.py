"""What makes probabilities: the network, or grey values alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from happyneurons.stages.mask.params import MaskParams
from happyneurons.store.volumes import Volume

if TYPE_CHECKING:
    from happyneurons.unet.model import Model


class Predictor(Protocol):
    def __call__(self, image: Volume, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> NDArray[np.uint8]:
        """(classes, z, y, x) probabilities of a box, 255 is sure."""


def read_around(image: Volume, start_zyx: Sequence[int], stop_zyx: Sequence[int], margin_px: int) -> np.ndarray:
    """(z, y, x) voxels of a box and `margin_px` around it in y and x; beyond the volume's faces its mirror image."""
    low = [start_zyx[0], *(max(a - margin_px, f) for a, f in zip(start_zyx[1:], image.start_zyx[1:], strict=True))]
    high = [stop_zyx[0], *(min(b + margin_px, f) for b, f in zip(stop_zyx[1:], image.stop_zyx[1:], strict=True))]
    block = image.read(low, high)
    pad = [(0, 0)] + [
        (o - (a - margin_px), (b + margin_px) - p)
        for a, b, o, p in zip(start_zyx[1:], stop_zyx[1:], low[1:], high[1:], strict=True)
    ]
    return np.pad(block, pad, mode="symmetric")


class Network:
    """A U-Net, section by section."""

    def __init__(self, model: Model, params: MaskParams, block_yx: tuple[int, int], threads: int) -> None:
        """block_yx: the largest box that is asked for; all patches have the size that follows from it."""
        from happyneurons.unet.inference import patch_size
        from happyneurons.unet.network import Predictor as Patch

        self._architecture, self._params = model.architecture, params
        around = max(block_yx) + 2 * params.context_px
        self._size = patch_size(around, params.patch_px, model.architecture.multiple_px)
        self._patch = Patch(model.architecture, model.weights, self._size, threads)

    def __call__(self, image: Volume, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> NDArray[np.uint8]:
        from happyneurons.unet.inference import predict_section

        margin = self._params.context_px
        around = read_around(image, start_zyx, stop_zyx, margin)
        classes = len(self._architecture.classes)
        shape = [b - a for a, b in zip(start_zyx, stop_zyx, strict=True)]
        out = np.empty((classes, *shape), np.uint8)
        inner = (slice(1, None), slice(margin, margin + shape[1]), slice(margin, margin + shape[2]))
        for z, section in enumerate(around):
            found = predict_section(
                self._architecture.normalize(section), self._patch, 1 + classes, size_px=self._size,
                overlap_px=min(2 * margin, self._size // 2), flips=self._params.flips,
            )  # fmt: skip
            out[:, z] = np.rint(255 * np.clip(found[inner], 0, 1))
        return out


class GreyValues:
    """Masks by grey values in a window: one half where the figure is at its level."""

    def __init__(self, method: str, level: float, window_px: tuple[int, int]) -> None:
        self._method, self._level = method, level
        self._window = [2 * (max(3, n) // 2) + 1 for n in window_px]

    def __call__(self, image: Volume, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> NDArray[np.uint8]:
        margin = max(self._window)
        around = read_around(image, start_zyx, stop_zyx, margin)
        out = np.empty((1, *(b - a for a, b in zip(start_zyx, stop_zyx, strict=True))), np.uint8)
        for z, section in enumerate(around):
            out[0, z] = self._section(section)[margin:-margin, margin:-margin]
        return out

    def _section(self, section: np.ndarray) -> np.ndarray:
        from scipy.ndimage import uniform_filter

        grey = section.astype(np.float64)
        mean = uniform_filter(grey, self._window)
        if self._method == "dark":
            share = self._level / np.maximum(mean + self._level, 1e-6)
        elif self._method == "bright":
            share = mean / (mean + self._level)
        else:
            deviation = np.sqrt(np.maximum(uniform_filter(grey * grey, self._window) - mean * mean, 0))
            share = deviation / (deviation + self._level)
        return np.floor(255 * share + 0.5)
