"""Parameters of the align stage, and the lengths that follow from them for a given stack."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, field_validator, model_validator

from happyneurons.jobs.stage import StageParams

# Sizes that fit neuropil, from FIB-SEM of the Drosophila medulla at 10 nm.
_WINDOW_NM = 170.0
_DETAIL_NM = 10.0
_DRIFT_RANGE_NM = 325.0
_PERSISTENCE_NM = 43.0
_NOISE = 0.15
# Px of a working picture in the thickness of a section, and their least size: half of the finest detail compared.
_PX_PER_THICKNESS = 4.0
_LEAST_WORKING_PX_NM = 5.0
# Smaller pictures than this are not averaged for that, larger ones than these are in any case (AlignTK is slower).
_LEAST_WORKING_SIZE_PX = 512
_WORKING_SIZE_PX = {"native": 4096, "aligntk": 1280}
# Cells of the grid: a section has so many along a side, or cells of this size, but no more than so many.
_CELLS, _CELL_NM, _MOST_CELLS = 20, 260.0, 80
# Sections of a window, and how many nodes they have together at the most: 3 GB.
_WINDOW_SECTIONS, _LEAST_WINDOW_SECTIONS, _WINDOW_NODES = 256, 48, 250_000


class AlignTKParams(StageParams):
    """What AlignTK's programs are given beyond what the stage's other parameters say; defaults: its authors'."""

    level: int | None = Field(
        None, ge=2, le=10, description="Nodes of the maps lie 2^level working px apart; null: 6, less in small sections"
    )
    distortion: float = Field(
        6.0, ge=0, le=1000, description="register: weight of the distortion against the correlation"
    )
    quality: float = Field(0.5, gt=0, le=100, description="register: trials per node; more is slower")
    schedule: tuple[tuple[int, float, float], ...] = Field(
        ((4, 1, 0.1), (3, 1, 0.1), (2, 1, 0.3), (1, 1, 1), (1, 1, 2), (1, 1, 5), (0, 1, 5)),
        min_length=1,
        description="align: its steps, each (levels above `level`, stiffness of a section, pull between sections)",
    )
    min_score: float = Field(
        0.36, gt=0, le=1, description="A pair counts if register's score reaches this; unrelated tissue has 0.2 to 0.33"
    )
    time_limit_min: float = Field(
        120.0, gt=0, le=10_000, description="A program that runs longer is ended, and its task has failed (minutes)"
    )

    @field_validator("schedule")
    @classmethod
    def _descends(cls, steps: tuple[tuple[int, float, float], ...]) -> tuple[tuple[int, float, float], ...]:
        levels = [level for level, _, _ in steps]
        if levels != sorted(levels, reverse=True) or levels[-1] != 0 or levels[0] > 10:
            raise ValueError("levels may not rise, start at 10 at most and end with 0")
        return steps


class AlignParams(StageParams):
    backend: Literal["native", "aligntk"] = Field(
        "native", description="Program that does it; aligntk: AlignTK's, installed apart (docs/align.md)"
    )
    # Left out of the job's key where it is not given: results of before it was there stay valid.
    aligntk: AlignTKParams | None = Field(
        None, description="Settings of the aligntk backend; null: defaults", exclude_if=lambda value: value is None
    )
    neighbours: int = Field(
        1, ge=1, le=5, description="Each section is matched with so many good ones above it; more costs more"
    )
    bridge_sections: int = Field(
        3,
        ge=1,
        le=10,
        description="Where two neighbours do not match, sections on both sides of them are matched that are at most so "
        "far apart (counted in good sections)",
    )
    working_size_px: int | None = Field(
        None,
        ge=128,
        le=16384,
        description="Sections are averaged down for matching if they are larger than this (px), or if their px are "
        "finer than a quarter of their thickness: such detail is not found again in the next section; null: 4096, with "
        "aligntk 1280",
    )
    max_shift_px: float | None = Field(
        None, gt=0, le=100_000, description="Largest shift between neighbours (px); null: a tenth of the section"
    )
    max_rotation_deg: float = Field(5.0, ge=0, le=45, description="Largest rotation between neighbours (degrees)")
    window_nm: float | None = Field(
        None, gt=0, le=1e6, description="Size of the compared surroundings of a place (sd, nm); null: 170 if sensible"
    )
    match_spacing_px: float | None = Field(
        None, ge=4, le=10_000, description="Distance of matched places (px); null: half of a cell, at least 16"
    )
    min_correlation: float = Field(
        0.2, gt=0, le=1, description="A pair counts if it correlates so well as a whole; unrelated tissue reaches 0.16"
    )
    min_found: float = Field(0.1, gt=0, le=1, description="... and if this part of its places was found")
    grid_spacing_px: float | None = Field(
        None,
        ge=8,
        le=10_000,
        description="Distance of the nodes of a section's warp (px); null: 260 nm, but a 20th of small sections, a "
        "80th of large ones, and at least 24",
    )
    cut_folds: bool = Field(
        True,
        description="Sections are cut along dark or bright bands across which tissue jumps: what they hide stays "
        "blank. Without, warps are continuous and bands are drawn like tissue",
    )
    distortion_px: float | None = Field(
        None, gt=0, le=10_000, description="Typical elastic distortion of a section (rms, px); null: estimated"
    )
    distortion_range: float = Field(
        0.6, gt=0.01, le=10, description="Distance over which distortion changes, as part of the section's size"
    )
    drift_slope: float = Field(
        0.25,
        gt=0,
        le=10,
        description="How obliquely tissue runs: its typical sideways movement per distance in z. Such movement is "
        "kept as it is; near 0 all neighbours are set on top of each other, which straightens neurites",
    )
    drift_persistence_nm: float = Field(
        _PERSISTENCE_NM, gt=0, le=1e6, description="Distance in z over which tissue keeps its direction (nm)"
    )
    window_sections: int | None = Field(
        None,
        ge=8,
        le=100_000,
        description="Longer stacks are solved in windows of about so many sections each, after their affine maps; "
        "null: 256, but fewer, down to 48, if sections have many nodes",
    )
    window_overlap: int = Field(
        24, ge=2, le=10_000, description="Sections that neighbouring windows share; at most half of a window"
    )
    anchor: int | None = Field(
        None,
        ge=0,
        description="Section that keeps its place and orientation; null: the sections' mean place is kept",
    )
    least_contrast: float = Field(
        3.0, ge=0, le=128, description="Sections whose blurred grey values vary less (sd) are blank"
    )
    interpolation: Literal["linear", "cubic", "lanczos"] = Field("cubic", description="How pixels are resampled")
    margin_px: int = Field(0, ge=0, le=100_000, description="Border added around the input's bounds (px)")

    @model_validator(mode="after")
    def _windows_differ(self) -> AlignParams:
        most = self.window_sections or _LEAST_WINDOW_SECTIONS
        if 2 * self.window_overlap > most:
            raise ValueError(f"window_overlap: at most half of window_sections, which may be {most}")
        return self


@dataclass(frozen=True)
class Lengths:
    """What the parameters mean for sections of a given size; px of the section unless it says otherwise."""

    factor: int
    """Section px per px of the working picture."""
    window_px: float
    """Working px, as the next three."""
    detail_px: float
    spacing_px: int
    max_shift_px: float
    node_spacing_px: float
    distortion_range_px: float
    drift_px: float
    drift_range_px: float
    drift_persistence: float
    noise_px: float
    window_sections: int

    @classmethod
    def of(cls, params: AlignParams, width: int, height: int, voxel_size_nm_xyz: tuple[float, float, float]) -> Lengths:
        small, large = min(width, height), max(width, height)
        pixel_nm, thickness_nm = voxel_size_nm_xyz[0], voxel_size_nm_xyz[2]
        finest_nm = max(thickness_nm / _PX_PER_THICKNESS, _LEAST_WORKING_PX_NM)
        fine = min(int(finest_nm / pixel_nm), small // _LEAST_WORKING_SIZE_PX)
        size = params.working_size_px or _WORKING_SIZE_PX[params.backend]
        factor = max(1, fine, math.ceil(large / size))
        working_nm = pixel_nm * factor
        # Voxel sizes may be made up: limits in px keep the result usable.
        window = params.window_nm / working_nm if params.window_nm else _between(_WINDOW_NM / working_nm, 12, 28)
        thickness_px = thickness_nm / pixel_nm
        cell = min(small / _CELLS, max(_CELL_NM / pixel_nm, large / _MOST_CELLS))
        nodes = params.grid_spacing_px or max(24.0, cell)
        spacing = params.match_spacing_px or max(16.0, nodes / 2)
        nodes_of_section = math.ceil(width / nodes + 1) * math.ceil(height / nodes + 1)
        window_sections = _WINDOW_NODES // nodes_of_section
        return cls(
            factor=factor,
            window_px=window,
            detail_px=_between(_DETAIL_NM / working_nm, 1.5, 2.5),
            spacing_px=max(4, round(spacing / factor)),
            max_shift_px=(params.max_shift_px or max(16.0, small / 10)) / factor,
            node_spacing_px=nodes,
            distortion_range_px=params.distortion_range * small,
            drift_px=params.drift_slope * thickness_px,
            drift_range_px=_between(_DRIFT_RANGE_NM / pixel_nm, nodes, small / 3),
            drift_persistence=math.exp(-thickness_nm / params.drift_persistence_nm),
            noise_px=_between(_NOISE * thickness_px, 0.1, 3.0),
            window_sections=params.window_sections
            or max(_LEAST_WINDOW_SECTIONS, min(window_sections, _WINDOW_SECTIONS)),
        )


def _between(value: float, low: float, high: float) -> float:
    return max(low, min(value, high))
