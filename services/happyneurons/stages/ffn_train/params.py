"""Parameters of ffn-train."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from happyneurons.ffn.architecture import Architecture
from happyneurons.ffn.augmentation import Augmentation
from happyneurons.ffn.training import TrainingOptions
from happyneurons.jobs.stage import StageParams


class FfnTrainParams(TrainingOptions, StageParams):
    depth: int | None = Field(
        None, ge=2, le=32, description="Modules of two 3×3×3 convolutions; default: the initial model's, or 6"
    )
    features: int | None = Field(
        None, ge=1, le=256, description="Channels between convolutions; default: the initial model's, or 16"
    )
    fov_xyz: tuple[int, int, int] | None = Field(
        None,
        description="Field of view, voxels, odd numbers; default: the initial model's (33 for TensorFlow checkpoints), "
        "or 21",
    )
    deltas_xyz: tuple[int, int, int] | None = Field(
        None,
        description="Step of the field of view, voxels, at most half of it; default: the initial model's (8 for "
        "TensorFlow checkpoints), or 6",
    )
    image_mean: float | None = Field(
        None,
        description="Grey value that becomes 0; default: the initial model's (128 for TensorFlow checkpoints), or the "
        "training images' mean",
    )
    image_stddev: float | None = Field(
        None,
        gt=0,
        description="Grey values that become 1; default: the initial model's (33 for TensorFlow checkpoints), or the "
        "training images' standard deviation",
    )
    label_gap_px: int = Field(
        1,
        ge=0,
        le=10,
        description="Objects that touch are parted by background: voxels so near to another object count as none. "
        "Labels without gaps teach a network to fill membranes, and to cross them",
    )
    mip: int = Field(0, ge=0, le=20, description="Level of the volumes' pyramids")
    validation_fraction: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="Part of each volume that is held out to judge by, a slab at the far end of validation_axis; 0 "
        "without validation volumes: judged by the training volumes themselves",
    )
    validation_axis: Literal["x", "y", "z"] = Field("z", description="Axis across which the slab is cut off")
    augmentation: Augmentation = Field(Augmentation(), description="Random changes of the training patches")

    def training_options(self) -> TrainingOptions:
        return TrainingOptions(**{name: getattr(self, name) for name in TrainingOptions.model_fields})

    def overrides(self) -> dict[str, Any]:
        """Fields of the network's architecture that are given here, in zyx order."""
        given = {
            "depth": self.depth,
            "features": self.features,
            "fov_zyx": self.fov_xyz and self.fov_xyz[::-1],
            "deltas_zyx": self.deltas_xyz and self.deltas_xyz[::-1],
            "image_mean": self.image_mean,
            "image_stddev": self.image_stddev,
        }
        return {name: value for name, value in given.items() if value is not None}

    def new_architecture(self, mean: float, stddev: float) -> Architecture:
        """What random weights are made for; the normalization unless it is given here."""
        return Architecture(**{"image_mean": mean, "image_stddev": stddev, **self.overrides()})
