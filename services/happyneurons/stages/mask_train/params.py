"""Parameters of mask-train."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from happyneurons.jobs.stage import StageParams
from happyneurons.unet.architecture import Architecture
from happyneurons.unet.augmentation import Augmentation
from happyneurons.unet.training import TrainingOptions

RANGES = r"^\d+(-\d+(:\d+)?)?(,\d+(-\d+(:\d+)?)?)*$"


# A single number, as command lines and YAML give it, is such a text too.
SectionList = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, int) else value)]


class MaskClass(BaseModel):
    """What is looked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,31}$", description="Its name, in the model and in masks")
    values: tuple[int, ...] = Field(
        (), description="Values of the labels that mean it; empty: every value that means nothing else"
    )


class MaskTrainParams(TrainingOptions, StageParams):
    classes: tuple[MaskClass, ...] = Field(
        (MaskClass(name="object"),),
        min_length=1,
        max_length=254,
        description="What is looked for: names, and the values of the labels that mean them",
    )
    background_values: tuple[int, ...] = Field((0,), description="Values of the labels that mean nothing of it")
    unlabelled_values: tuple[int, ...] = Field(
        (), description="Values of the labels where nobody looked; such voxels are not learnt from"
    )
    sections: SectionList | None = Field(
        None,
        pattern=RANGES,
        description="Annotated sections to train on, z at that mip, as 0-10,40,100-900:100 (ends included, :step). "
        "Default: all sections of the labels in which an object is drawn",
        json_schema_extra={"format": "name"},
    )
    validation_sections: SectionList | None = Field(
        None,
        pattern=RANGES,
        description="Annotated sections of the same volumes to judge by, which are not trained on",
        json_schema_extra={"format": "name"},
    )
    mip: int = Field(
        0,
        ge=0,
        le=20,
        description="Level of the image's pyramid that is trained on, and that masks are then made at. Large things "
        "(cell bodies, vessels) need a coarse one, where a patch holds one of them",
    )
    depth: int = Field(3, ge=1, le=6, description="How often the network halves the picture")
    features: int = Field(24, ge=1, le=256, description="Channels before the first halving; they double with each")
    stem_px: int = Field(
        2, ge=1, le=8, description="So many pixels a side make one of the network's: 2 is four times faster than 1"
    )
    image_mean: float | None = Field(
        None, description="Grey value that becomes 0; default: the mean of the sections trained on"
    )
    image_stddev: float | None = Field(
        None, gt=0, description="Grey values that become 1; default: the standard deviation of the sections trained on"
    )
    augmentation: Augmentation = Field(Augmentation(), description="Random changes of the training patches")

    def training_options(self) -> TrainingOptions:
        return TrainingOptions(**{name: getattr(self, name) for name in TrainingOptions.model_fields})

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.classes)

    def architecture(self, mean: float, stddev: float) -> Architecture:
        """What random weights are made for; the normalization unless it is given here."""
        return Architecture(
            classes=self.class_names,
            depth=self.depth,
            features=self.features,
            stem_px=self.stem_px,
            image_mean=mean if self.image_mean is None else self.image_mean,
            image_stddev=stddev if self.image_stddev is None else self.image_stddev,
        )


def section_numbers(text: str) -> list[int]:
    """Sections named by text as 0-10,40,100-900:100, sorted, each once."""
    found: set[int] = set()
    for part in text.split(","):
        ends, _, step = part.partition(":")
        first, _, last = ends.partition("-")
        found.update(range(int(first), int(last or first) + 1, max(1, int(step or 1))))
    return sorted(found)
