"""Augmentation of 2D training patches: turned, scaled, bent; other contrast, noise and focus."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field


class Augmentation(BaseModel):
    """How strong each change is; 0 or false leaves it out."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    flip: bool = Field(True, description="Mirror patches, each axis with probability 1/2")
    rotate: bool = Field(True, description="Turn patches by any angle; else by nothing")
    scale: float = Field(0.2, ge=0, le=0.5, description="Patches are enlarged or shrunk by up to 1 ± this")
    elastic_px: float = Field(
        4.0, ge=0, le=32, description="Stddev of a smooth deformation, px of the level trained on, up to this"
    )
    elastic_grid_px: int = Field(48, ge=8, le=512, description="Distance over which the deformation varies")
    contrast: float = Field(0.25, ge=0, le=0.9, description="Contrast is multiplied by up to 1 ± this")
    brightness: float = Field(0.25, ge=0, le=3, description="Brightness changes by up to ± this (stddevs)")
    noise: float = Field(0.2, ge=0, le=3, description="Largest stddev of added white noise (stddevs)")
    blur_px: float = Field(1.0, ge=0, le=5, description="Largest sigma of a Gaussian blur (px)")

    def source_px(self, patch_px: int) -> int:
        """Side of the square that a patch is cut from."""
        bend = 3 * self.elastic_px if self.elastic_px else 0
        return int(np.ceil(patch_px * (1 + self.scale) * (np.sqrt(2) if self.rotate else 1) + 2 * bend))


def augment(
    image: NDArray[np.float32], target: NDArray[np.int8], patch_px: int, settings: Augmentation,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.int8]]:  # fmt: skip
    """A patch of (patch_px, patch_px) from the middle of a square of `source_px`: image linear, target nearest."""
    import cv2

    half = (len(image) - 1) / 2
    angle = rng.uniform(0, 2 * np.pi) if settings.rotate else 0.0
    scale = 1 + rng.uniform(-settings.scale, settings.scale)
    signs = rng.choice([-1.0, 1.0], 2) if settings.flip else np.ones(2)
    offset = (np.arange(patch_px) - (patch_px - 1) / 2) * scale
    y, x = offset[:, np.newaxis] * signs[0], offset[np.newaxis, :] * signs[1]
    at_y = half + y * np.cos(angle) - x * np.sin(angle)
    at_x = half + y * np.sin(angle) + x * np.cos(angle)
    if settings.elastic_px:
        nodes = max(3, round(patch_px / settings.elastic_grid_px) + 2)
        bend = rng.normal(0, rng.uniform(0, settings.elastic_px), (2, nodes, nodes)).astype(np.float32)
        at_y, at_x = (
            a + cv2.resize(b, (patch_px, patch_px), interpolation=cv2.INTER_CUBIC)
            for a, b in zip((at_y, at_x), bend, strict=True)
        )
    at = at_x.astype(np.float32), at_y.astype(np.float32)
    image = cv2.remap(image, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    target = cv2.remap(target.view(np.uint8), *at, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT_101).view(np.int8)
    if settings.blur_px:
        sigma = rng.uniform(0, settings.blur_px)
        if sigma > 0.3:
            image = cv2.GaussianBlur(image, (0, 0), sigma)
    image = image * np.float32(1 + rng.uniform(-settings.contrast, settings.contrast))
    image += np.float32(rng.uniform(-settings.brightness, settings.brightness))
    if settings.noise:
        strength = np.float32(rng.uniform(0, settings.noise))
        image += strength * rng.standard_normal(image.shape, dtype=np.float32)
    return image, target
