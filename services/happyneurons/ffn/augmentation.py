"""Augmentation of training patches: what microscopes and alignment do to otherwise equal tissue.

Images are normalized float32 (about mean 0, variance 1), all arrays (z, y, x), z the section.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

FloatArray = NDArray[np.float32]


class Augmentation(BaseModel):
    """How strong each change is; 0 leaves it out."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    flips: bool = Field(
        default=True, description="Mirror along each axis and exchange x and y, each with probability 1/2"
    )
    contrast: float = Field(
        default=0.3, ge=0, le=0.9, description="Contrast of a patch is multiplied by up to 1 ± this"
    )
    brightness: float = Field(
        default=0.4, ge=0, le=3, description="Brightness of a patch changes by up to ± this (stddevs)"
    )
    section_contrast: float = Field(default=0.1, ge=0, le=0.9, description="The same, for every section on its own")
    section_brightness: float = Field(
        default=0.15, ge=0, le=3, description="The same, for every section on its own (stddevs)"
    )
    noise: float = Field(default=0.3, ge=0, le=3, description="Largest stddev of added white noise (stddevs)")
    blur_px: float = Field(default=0.8, ge=0, le=5, description="Largest sigma of a Gaussian blur in the section (px)")
    jitter_px: float = Field(
        default=1.0, ge=0, le=8, description="Stddev of the shift of each section (px), in both directions"
    )
    missing: float = Field(default=0.005, ge=0, le=0.5, description="Probability that a section is blank")

    @property
    def margin_px(self) -> int:
        """Voxels in y and x by which patches are cut larger, so that shifts have something to shift in."""
        return int(np.ceil(2.5 * self.jitter_px))


def augment(
    image: FloatArray, labels: np.ndarray, settings: Augmentation, rng: np.random.Generator
) -> tuple[FloatArray, np.ndarray]:
    """A changed copy of a patch, without the margin in y and x that it came with.

    Labels move with the sections, so they stay true to the picture.
    """
    from scipy import ndimage

    image, labels = _shift_sections(image, labels, settings, rng)
    if settings.blur_px:
        sigma = rng.uniform(0, settings.blur_px)
        if sigma > 0.25:
            image = ndimage.gaussian_filter(image, (0, sigma, sigma), output=np.float32, truncate=3.0)
    sections = (len(image), 1, 1)
    gain = 1 + rng.uniform(-settings.contrast, settings.contrast)
    gains = gain * (1 + rng.uniform(-settings.section_contrast, settings.section_contrast, sections))
    offset = rng.uniform(-settings.brightness, settings.brightness)
    offsets = offset + rng.uniform(-settings.section_brightness, settings.section_brightness, sections)
    image = image * gains.astype(np.float32) + offsets.astype(np.float32)
    if settings.noise:
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        image += np.float32(rng.uniform(0, settings.noise)) * noise
    if settings.missing:
        blank = rng.random(len(image)) < settings.missing
        image[blank] = np.float32(rng.uniform(-3.5, 0))
    if settings.flips:
        image, labels = _flip(image, labels, rng)
    return np.ascontiguousarray(image), np.ascontiguousarray(labels)


def _shift_sections(
    image: FloatArray, labels: np.ndarray, settings: Augmentation, rng: np.random.Generator
) -> tuple[FloatArray, np.ndarray]:
    """Cut the margin off, at another place in every section (bilinear in the image, nearest in labels)."""
    margin = settings.margin_px
    if not margin:
        return image.copy(), labels
    nz, ny, nx = image.shape[0], image.shape[1] - 2 * margin, image.shape[2] - 2 * margin
    # Half of all patches are left aligned, else the network never sees tissue as good as it can be.
    strength = settings.jitter_px * rng.uniform(0, 1) * float(rng.random() < 0.5)
    shifts = np.clip(rng.normal(0, 1, (nz, 2)) * strength, 0.001 - margin, margin - 1.001)
    shifts[nz // 2] = 0  # the section that holds the centre stays: the centre keeps its object
    out = np.empty((nz, ny, nx), np.float32)
    moved = np.empty((nz, ny, nx), labels.dtype)
    for z, (dy, dx) in enumerate(shifts):
        y0, x0 = int(np.floor(dy)), int(np.floor(dx))
        fy, fx = np.float32(dy - y0), np.float32(dx - x0)
        a = image[z, margin + y0 : margin + y0 + ny + 1, margin + x0 : margin + x0 + nx + 1]
        rows = a[:-1] * (1 - fy) + a[1:] * fy
        out[z] = rows[:, :-1] * (1 - fx) + rows[:, 1:] * fx
        y0, x0 = margin + round(dy), margin + round(dx)
        moved[z] = labels[z, y0 : y0 + ny, x0 : x0 + nx]
    return out, moved


def _flip(image: FloatArray, labels: np.ndarray, rng: np.random.Generator) -> tuple[FloatArray, np.ndarray]:
    flipped = tuple(axis for axis in range(3) if rng.random() < 0.5)
    image, labels = np.flip(image, flipped), np.flip(labels, flipped)
    if rng.random() < 0.5 and image.shape[1] == image.shape[2]:
        image, labels = image.swapaxes(1, 2), labels.swapaxes(1, 2)
    return image, labels
