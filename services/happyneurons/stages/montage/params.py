"""Parameters of the montage stage."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from happyneurons.jobs.stage import StageParams


class MatchSet(BaseModel):
    """One set of parameters for finding corresponding places in overlapping tiles."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="Shown in reports and metrics", pattern=r"^[a-z][a-z0-9_]{0,30}$")
    stage_error_px: float | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="How far a tile may lie from where the stage says (px); null: anywhere",
    )
    sigma_px: float = Field(
        default=1.5, ge=0.5, le=20, description="Finest detail that is compared (sigma of the filter, px)"
    )
    block_px: int = Field(
        default=48, ge=16, le=512, description="Size of the compared blocks (px); less in a narrow overlap"
    )
    step_px: int = Field(
        default=20, ge=4, le=512, description="Distance of the blocks (px); more where max_blocks is reached"
    )
    search_px: int = Field(
        default=5, ge=2, le=100, description="How far a block may deviate from the smooth map of the seam (px)"
    )
    max_blocks: int = Field(default=300, ge=16, le=20_000, description="Blocks for each pair of tiles at most")
    min_score: float = Field(default=0.25, gt=0, lt=1, description="Least correlation of two blocks")
    min_matches: int = Field(default=6, ge=3, le=1000, description="Fewest matches that join two tiles")
    min_significance: float = Field(
        default=4.5,
        ge=1,
        le=100,
        description="Least height of the correlation peak to look closer; chance gives 1",
    )


DEFAULT_SETS = (
    MatchSet(name="standard", stage_error_px=40),
    MatchSet(name="wide"),
    MatchSet(name="low_contrast", sigma_px=3, block_px=96, search_px=8, min_score=0.2),
)


class OctaveSet(BaseModel):
    """One set of parameters of TrakEM2: the sizes between which it looks for SIFT features."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_octave_size_px: int = Field(ge=16, le=100_000, description="Smallest size a tile is scaled down to (px)")
    max_octave_size_px: int = Field(ge=16, le=100_000, description="Size a tile is scaled down to first (px)")

    @property
    def name(self) -> str:
        """Shown in reports and metrics."""
        return f"octaves_{self.min_octave_size_px}_{self.max_octave_size_px}"

    @model_validator(mode="after")
    def _in_order(self) -> OctaveSet:
        if self.min_octave_size_px > self.max_octave_size_px:
            raise ValueError("min_octave_size_px must not be above max_octave_size_px")
        return self


# Table 1 of the HAPPYNeurons paper, cheapest first.
DEFAULT_OCTAVE_SETS = tuple(
    OctaveSet(min_octave_size_px=least, max_octave_size_px=most)
    for least, most in ((400, 2000), (400, 3000), (400, 3500), (1000, 3500))
)


class KnownOptics(BaseModel):
    """What the optics do to tiles of one size: `optics.json` of a stack that was montaged."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tile_width_px: int = Field(ge=1, le=1_000_000, description="Width of the tiles it is true of (px)")
    tile_height_px: int = Field(ge=1, le=1_000_000, description="Their height (px)")
    lens_radial_px: float = Field(0.0, ge=-1000, le=1000, description="Barrel or pincushion (px at half a side)")
    lens_spiral_px: float = Field(0.0, ge=-1000, le=1000, description="Spiral distortion (px at half a side)")
    shading_x: float = Field(
        0.0, ge=-3, le=3, description="Log brightness of the rims left and right less the middle's"
    )
    shading_y: float = Field(
        0.0, ge=-3, le=3, description="Log brightness of the upper and lower rim less the middle's"
    )


class MontageParams(StageParams):
    backend: Literal["native", "trakem2"] = Field(
        "native",
        description="Program that does it: our own, or TrakEM2 in the Fiji that HPN_TRAKEM2 names (GPL; tiles are "
        "moved and turned, not bent; exposure, shading, feather_px, interpolation and the elastic grid mean nothing "
        "to it)",
    )
    sets: tuple[MatchSet, ...] = Field(
        DEFAULT_SETS,
        min_length=1,
        max_length=20,
        description="Parameter sets tried in this order on a section until one gives an ok; else the best result stays",
    )
    octave_sets: tuple[OctaveSet, ...] = Field(
        DEFAULT_OCTAVE_SETS,
        min_length=1,
        max_length=20,
        description="The same for TrakEM2; it is judged by seams that the sets above find in its result",
    )
    max_size_deviation: float = Field(
        0.05,
        gt=0,
        le=1,
        description="A picture of TrakEM2 is taken if width and height are nominal up to this part of them",
    )
    trakem2_timeout_s: float = Field(
        7200.0, gt=0, le=1e6, description="TrakEM2 is ended if a section takes longer with one set (s)"
    )
    max_seam_median_px: float = Field(1.0, gt=0, le=100, description="A section is ok up to this median residual (px)")
    max_seam_p95_px: float = Field(3.0, gt=0, le=1000, description="… and this 95th percentile of residuals (px)")
    node_spacing_px: float = Field(
        180.0, ge=16, le=10_000, description="Distance of the nodes of a tile's elastic grid (px); at most 24 a side"
    )
    optics_sections: int = Field(
        16,
        ge=0,
        le=1000,
        description="So many sections, spread over the stack, tell the distortion and the shading by the optics, "
        "which all tiles share; they are used as far as the sections agree on them. 0: none",
    )
    optics: KnownOptics | None = Field(
        None,
        description="Distortion and shading where they are known (optics.json of an earlier stack of the microscope), "
        "as for batches of few sections; none are looked for then",
    )
    membrane: float = Field(0.1, gt=0, le=1e4, description="Stiffness against stretching and shearing a tile")
    bending: float = Field(1.0, gt=0, le=1e4, description="Stiffness against bending a tile")
    exposure: bool = Field(True, description="Even out brightness and contrast of the tiles of a section")
    shading: bool = Field(True, description="Even out the darkening towards the rim that all tiles share")
    feather_px: float = Field(32.0, ge=0, le=1000, description="Width of the band in which tiles are blended (px)")
    interpolation: Literal["linear", "cubic", "lanczos"] = Field("cubic", description="How pixels are resampled")
    margin_px: int = Field(32, ge=0, le=10_000, description="Empty border around the nominal tile positions (px)")
    origin: Literal["stage", "section"] = Field(
        "stage",
        description="What the canvas is fixed to: stage coordinates, or the upper left corner of each section's tiles "
        "(for sections that lie apart on the wafer)",
    )
    grey_range: tuple[float, float] | None = Field(
        None, description="Grey values that become 0 and 255; needed for tiles of more than 8 bits"
    )
    tile_cache_mb: int = Field(1024, ge=16, le=1_000_000, description="Memory for decoded tiles (MB), for each rank")

    @field_validator("sets", "octave_sets")
    @classmethod
    def _names_differ(cls, sets: tuple[MatchSet | OctaveSet, ...]) -> tuple[MatchSet | OctaveSet, ...]:
        if len({s.name for s in sets}) != len(sets):
            raise ValueError("each set needs a name of its own")
        return sets

    @property
    def set_names(self) -> tuple[str, ...]:
        """The parameter sets that the backend tries, in their order."""
        return tuple(s.name for s in (self.octave_sets if self.backend == "trakem2" else self.sets))

    @field_validator("grey_range")
    @classmethod
    def _range_rises(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not value[1] > value[0]:
            raise ValueError("the second grey value must be above the first")
        return value
