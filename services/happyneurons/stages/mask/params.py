"""Parameters of the stage mask."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from happyneurons.jobs.stage import StageParams

Method = Literal["network", "tissue", "dark", "bright"]
LEVELS = {"tissue": 8.0, "dark": 60.0, "bright": 220.0}
NAMES = {"tissue": "tissue", "dark": "fold", "bright": "charging"}


class ClassRule(BaseModel):
    """What becomes of the probabilities of a class."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    threshold: float = Field(0.5, gt=0, lt=1, description="Least probability of what belongs to it")
    smooth_nm: float = Field(0.0, ge=0, description="Sigma of a Gaussian filter of the probabilities before that, nm")
    fill_holes_voxels: int = Field(
        0,
        ge=0,
        description="Enclosed holes up to this size are filled, voxels, if along no axis they are longer than twice "
        "the side of a cube of that size",
    )
    grow_nm: float = Field(
        0.0,
        ge=0,
        description="What is over the threshold grows by so much in every direction, nm, into what is of no class; "
        "after that holes are filled and objects told apart. For masks to segment around, which should leave no rim",
    )
    instances: Literal["none", "components", "watershed"] = Field(
        "none",
        description="Objects of it: none; connected parts (vessels: of any length); or grown from seeds, so that "
        "bodies that touch are told apart (cell bodies: up to max_diameter_nm)",
    )
    min_radius_nm: float = Field(
        0.0, ge=0, description="watershed, seeds found by distance: least radius of an object at its thickest, nm"
    )
    seed_distance_nm: float = Field(
        1000.0,
        gt=0,
        description="watershed, seeds found by distance: least distance of two of them along an axis, nm; about "
        "the radius of an object. Smaller splits more",
    )
    max_diameter_nm: float = Field(
        10_000.0,
        gt=0,
        description="watershed: no object is longer, nm. So far beyond its block a task looks, which is what memory "
        "and time go into",
    )


class MaskParams(StageParams):
    method: Method = Field(
        "network",
        description="network: the input model. Without training, in every section by itself: tissue, where grey values "
        "vary; dark (folds), bright (charging), where they are low or high on average. See level, window_nm",
    )
    level: float | None = Field(
        None,
        gt=0,
        description="tissue: least standard deviation of grey values in the window (default 8); dark: highest mean "
        "(60); bright: least mean (220)",
    )
    window_nm: float = Field(200.0, gt=0, description="Without network: side of the window, nm; at least 3 px")
    classes: dict[str, ClassRule] = Field(
        {},
        description="Rules by name of class; others have the default rules. Without network the class is called "
        "tissue, fold (dark) or charging (bright)",
    )
    mip: int | None = Field(
        None, ge=0, le=20, description="Level of the image's pyramid; default: the one of the model's voxel size"
    )
    any_voxel_size: bool = Field(False, description="Apply the model although it is for other voxels: it is meant")
    bounds_xyz: tuple[tuple[int, int, int], tuple[int, int, int]] | None = Field(
        None, description="Part of the volume: minimum and maximum (exclusive), voxels of that mip"
    )
    patch_px: int = Field(1024, ge=16, le=8192, description="Largest side of what the network is given at once, px")
    context_px: int = Field(
        64,
        ge=0,
        le=1024,
        description="What the network sees around each task's block, px; half of what patches overlap by",
    )
    flips: bool = Field(False, description="Mean of the predictions for four mirror images: better, four times slower")
    block_size_xyz: tuple[int, int, int] = Field(
        (1024, 1024, 64), description="Voxels that a task of the network computes; multiples of 64"
    )
    object_block_size_xyz: tuple[int, int, int] = Field(
        (256, 256, 256), description="Voxels that a task of masks and objects computes; multiples of 64"
    )
    seeds: str | None = Field(
        None,
        description="File of points to grow objects from, instead of seeds found by distance: CSV (x, y, z in voxels "
        "of that mip, or x_nm, y_nm, z_nm; optional id: points of one object), a Neuroglancer state, or NML",
        json_schema_extra={"format": "uri-reference"},
    )
    min_size_voxels: int = Field(0, ge=0, description="Objects with fewer voxels in the whole volume are dropped")
    num_mips: int = Field(
        3, ge=0, le=10, description="Levels of the results' pyramids, a factor of 2 each; fewer once all fits a chunk"
    )

    def rule(self, name: str) -> ClassRule:
        return self.classes.get(name, ClassRule())
