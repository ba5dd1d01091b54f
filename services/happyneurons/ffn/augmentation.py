"""Augmentation of training patches: what microscopes and alignment do to otherwise equal tissue.

Images are normalized float32 (about mean 0, variance 1), all arrays (z, y, x), z the section. What
is done to sections follows Lee et al., "Superhuman accuracy on the SNEMI3D connectomics challenge"
(arXiv 1706.00120). Where tissue moves, labels move with it, so they stay true to the picture.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]


class Augmentation(BaseModel):
    """How strong each change is; 0 leaves it out."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    reflect_axes: tuple[Literal["x", "y", "z"], ...] = Field(
        ("x", "y", "z"), description="Axes along which patches are mirrored, each with probability 1/2"
    )
    permute_axes: Literal["none", "xy", "xyz"] = Field(
        "xy", description="Axes that are exchanged at random; xyz for isotropic voxels only"
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
    misalignment_px: int = Field(
        default=0,
        ge=0,
        le=64,
        description="Largest jump of misaligned sections (px): of one section, or of all from one on; for serial "
        "sections",
    )
    misalignment: float = Field(default=0.3, ge=0, le=1, description="Probability of such a jump in a patch")
    elastic_px: float = Field(
        default=0.0, ge=0, le=16, description="Stddev of a smooth deformation within sections (px), up to this"
    )
    elastic_grid_px: int = Field(default=24, ge=4, le=512, description="Distance over which the deformation varies")
    missing: float = Field(default=0.005, ge=0, le=0.5, description="Probability that a section is blank")
    missing_part: float = Field(
        default=0.0, ge=0, le=0.5, description="Probability that a section is blank on one side of a straight line"
    )
    defocus: float = Field(default=0.0, ge=0, le=0.5, description="Probability that a section is out of focus")
    defocus_px: float = Field(default=3.0, gt=0, le=20, description="Largest sigma of the blur of such a section (px)")

    @property
    def margin_px(self) -> int:
        """Voxels in y and x by which patches are cut larger, so that shifts have something to shift in."""
        jump = self.misalignment_px if self.misalignment else 0
        return int(np.ceil(2.5 * self.jitter_px)) + jump


def augment(
    image: FloatArray, labels: BoolArray, settings: Augmentation, rng: np.random.Generator
) -> tuple[FloatArray, BoolArray]:
    """A changed copy of a patch, without the margin in y and x that it came with.

    The centre keeps its place and its label.
    """
    image, labels = _shift_sections(image, labels, settings, rng)
    if settings.elastic_px:
        image, labels = _deform(image, labels, settings, rng)
    image = _blur(image, settings, rng)
    sections = (len(image), 1, 1)
    gain = 1 + rng.uniform(-settings.contrast, settings.contrast)
    gains = gain * (1 + rng.uniform(-settings.section_contrast, settings.section_contrast, sections))
    offset = rng.uniform(-settings.brightness, settings.brightness)
    offsets = offset + rng.uniform(-settings.section_brightness, settings.section_brightness, sections)
    image = image * gains.astype(np.float32) + offsets.astype(np.float32)
    if settings.noise:
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        image += np.float32(rng.uniform(0, settings.noise)) * noise
    _blank(image, settings, rng)
    image, labels = _turn(image, labels, settings, rng)
    return np.ascontiguousarray(image), np.ascontiguousarray(labels)


def _shift_sections(
    image: FloatArray, labels: BoolArray, settings: Augmentation, rng: np.random.Generator
) -> tuple[FloatArray, BoolArray]:
    """Cut the margin off, at another place in every section (bilinear in the image, nearest in labels)."""
    margin = settings.margin_px
    if not margin:
        return image.copy(), labels
    nz, ny, nx = image.shape[0], image.shape[1] - 2 * margin, image.shape[2] - 2 * margin
    # Half of all patches are left aligned, else the network never sees tissue as good as it can be.
    strength = settings.jitter_px * rng.uniform(0, 1) * float(rng.random() < 0.5)
    shifts = rng.normal(0, 1, (nz, 2)) * strength
    _misalign(shifts, settings, rng)
    shifts = np.clip(shifts, 0.001 - margin, margin - 1.001)
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


def _misalign(shifts: NDArray[np.float64], settings: Augmentation, rng: np.random.Generator) -> None:
    """Add a jump to one section, or to all beyond one, seen from the centre."""
    limit, middle = settings.misalignment_px, len(shifts) // 2
    if not limit or rng.random() >= settings.misalignment:
        return
    jump = rng.integers(-limit, limit + 1, 2)
    z = int(rng.integers(len(shifts)))
    if rng.random() < 0.5:
        shifts[z] += jump
    elif z > middle:
        shifts[z:] += jump
    else:
        shifts[:z] += jump


def _deform(
    image: FloatArray, labels: BoolArray, settings: Augmentation, rng: np.random.Generator
) -> tuple[FloatArray, BoolArray]:
    """A smooth random deformation in y and x (linear in the image, nearest in labels)."""
    from scipy import ndimage

    shape = image.shape
    nodes = [max(2, round(n / settings.elastic_grid_px) + 1) for n in shape]
    strength = rng.uniform(0, settings.elastic_px)
    at = list(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij"))
    middle = tuple(n // 2 for n in shape)
    for axis in (1, 2):
        coarse = rng.normal(0, strength, nodes)
        grid = [np.linspace(0, k - 1, n) for k, n in zip(nodes, shape, strict=True)]
        field = ndimage.map_coordinates(coarse, np.meshgrid(*grid, indexing="ij"), order=1, output=np.float32)
        at[axis] = at[axis] + (field - field[middle])  # the centre stays where it is
    deformed = ndimage.map_coordinates(image, at, order=1, mode="nearest", output=np.float32)
    return deformed, ndimage.map_coordinates(labels.astype(np.uint8), at, order=0, mode="nearest").astype(bool)


def _blur(image: FloatArray, settings: Augmentation, rng: np.random.Generator) -> FloatArray:
    """Blur within sections: a little everywhere, and much in those that are out of focus."""
    from scipy import ndimage

    if settings.blur_px:
        sigma = rng.uniform(0, settings.blur_px)
        if sigma > 0.25:
            image = ndimage.gaussian_filter(image, (0, sigma, sigma), output=np.float32, truncate=3.0)
    if settings.defocus:
        for z in np.flatnonzero(rng.random(len(image)) < settings.defocus):
            image[z] = ndimage.gaussian_filter(image[z], rng.uniform(0.5, 1) * settings.defocus_px, output=np.float32)
    return image


def _blank(image: FloatArray, settings: Augmentation, rng: np.random.Generator) -> None:
    """Blank sections and parts of sections, in place."""
    if settings.missing:
        blank = rng.random(len(image)) < settings.missing
        image[blank] = np.float32(rng.uniform(-3.5, 0))
    if settings.missing_part:
        ny, nx = image.shape[1:]
        y, x = np.mgrid[:ny, :nx]
        for z in np.flatnonzero(rng.random(len(image)) < settings.missing_part):
            angle, py, px = rng.uniform(0, 2 * np.pi), rng.uniform(0, ny), rng.uniform(0, nx)
            side = (y - py) * np.sin(angle) + (x - px) * np.cos(angle) > 0
            image[z][side] = np.float32(rng.uniform(-3.5, 0))


def _turn(
    image: FloatArray, labels: BoolArray, settings: Augmentation, rng: np.random.Generator
) -> tuple[FloatArray, BoolArray]:
    """Mirror axes and exchange those that are of one length."""
    flipped = tuple(axis for axis, name in enumerate("zyx") if name in settings.reflect_axes and rng.random() < 0.5)
    image, labels = np.flip(image, flipped), np.flip(labels, flipped)
    if settings.permute_axes == "none":
        return image, labels
    order = [0, *(1 + rng.permutation(2))] if settings.permute_axes == "xy" else list(rng.permutation(3))
    axes = [int(a) for a in order]
    if tuple(image.shape[a] for a in axes) == image.shape:
        image, labels = image.transpose(axes), labels.transpose(axes)
    return image, labels
