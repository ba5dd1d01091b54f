"""What the rounds of ffn-train share: regions, coordinates, the network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from happyneurons.errors import UserError
from happyneurons.ffn.architecture import Architecture, initial_weights
from happyneurons.ffn.examples import Patch, PatchSource, patch_half_zyx
from happyneurons.ffn.sampling import BACKGROUND, BalancedSampler, BlockCoordinates
from happyneurons.ffn.training import Trainer, TrainingOptions
from happyneurons.ffn.validation import figures
from happyneurons.jobs.stage import Context
from happyneurons.stages.ffn_train.params import FfnTrainParams
from happyneurons.stages.ffn_train.volumes import (
    Cells,
    Region,
    common_box,
    known_voxel_size,
    split,
)
from happyneurons.training.blocks import Row, State, mean_and_stddev
from happyneurons.training.session import SAMPLES, Judged, TrainingSession, pairs

if TYPE_CHECKING:
    from happyneurons.ffn.model import Model

PARTITIONS_ROUND = "partitions"


class Session(TrainingSession[FfnTrainParams]):
    stage, score = "ffn-train", "f1"
    options: TrainingOptions

    def __init__(self, context: Context[FfnTrainParams]) -> None:
        super().__init__(context)
        self.cells = Cells(self.params.mip, self.params.label_gap_px)

    @property
    def judges_start(self) -> bool:
        """An initial model is judged before the first step: training must not make it worse."""
        return bool(self.context.inputs.get("initial_model"))

    # --- volumes -----------------------------------------------------------------------------

    @property
    def regions(self) -> list[Region]:
        """Raises UserError if images and labels do not belong together."""
        return self._once("regions", lambda: list(self._regions()))

    def _regions(self) -> Iterator[Region]:
        inputs, fraction = self.context.inputs, self.params.validation_fraction
        axis = "zyx".index(self.params.validation_axis)
        number = 0
        for validation, names in (
            (False, ("image", "labels")),
            (True, ("validation_image", "validation_labels")),
        ):
            images, labels = (inputs.get(name, ()) for name in names)
            for uris in pairs(self.stage, images, labels, "validation" if validation else "training"):
                start, stop = common_box(self.cells.volume(uris[0]), self.cells.volume(uris[1]))
                if fraction and not validation:
                    end, begin = split(start, stop, fraction, axis)
                    parts = [(start, end, False), (begin, stop, True)]
                else:
                    parts = [(start, stop, validation)]
                for low, high, held_out in parts:
                    yield Region(number, *uris, low, high, held_out)
                    number += 1

    @property
    def voxel_size_nm_xyz(self) -> tuple[float, float, float] | None:
        """None if the volumes do not say it."""
        return known_voxel_size(self.cells.volume(self.regions[0].image))

    def margin_zyx(self, region: Region, architecture: Architecture) -> tuple[int, int, int]:
        """Voxels that patches' centres keep from a region's faces."""
        augmentation = None if region.validation else self.params.augmentation
        return patch_half_zyx(architecture, self.options.fov_moves, augmentation)

    def inner_box(self, region: Region, architecture: Architecture) -> tuple[np.ndarray, np.ndarray]:
        """(start, stop), zyx, of the centres of a region's patches; empty if it is too small for one."""
        margin = self.margin_zyx(region, architecture)
        return np.add(region.start_zyx, margin), np.subtract(region.stop_zyx, margin)

    # --- the network -------------------------------------------------------------------------

    @property
    def initial_model(self) -> Model | None:
        return self._once("initial model", self._load_initial)

    def _load_initial(self) -> Model | None:
        from happyneurons.ffn.model import load_model

        artifact = self.context.optional_input("initial_model")
        if artifact is None:
            return None
        overrides = self.params.overrides()
        asked = {name: overrides.pop(name) for name in ("depth", "features") if name in overrides}
        model = load_model(artifact.data_uri, **overrides)
        for name, value in asked.items():
            found = getattr(model.architecture, name)
            if found != value:
                raise UserError(
                    f"ffn-train: the initial model has {name} {found}, params.{name} asks for {value}; leave it out",
                    [(f"params.{name}", f"{found} or left out")],
                )
        return model

    @property
    def needs_grey_values(self) -> bool:
        """Whether the normalization comes from the training images."""
        given = self.params.image_mean is not None and self.params.image_stddev is not None
        return not given and self.initial_model is None

    @property
    def geometry(self) -> Architecture:
        """The architecture before the training images' grey values are known."""
        if self.initial_model is not None:
            return self.initial_model.architecture
        return self.params.new_architecture(0.0, 1.0)

    @property
    def architecture(self) -> Architecture:
        """After the round `partitions`."""
        return self._once("architecture", self._architecture)

    def _architecture(self) -> Architecture:
        if self.initial_model is not None:
            return self.initial_model.architecture
        count = total = squares = 0.0
        if not self.needs_grey_values:
            return self.geometry
        for data in self.blocks:
            if "count" in data:
                count, total, squares = count + data["count"], total + data["total"], squares + data["squares"]
        return self.params.new_architecture(*mean_and_stddev(count, total, squares))

    @property
    def trainer(self) -> Trainer:
        def make() -> Trainer:
            model = self.initial_model
            weights = model.weights if model else initial_weights(self.architecture, self.params.seed)
            return Trainer(self.architecture, weights, self.options)

        return self._once("trainer", make)

    # --- coordinates -------------------------------------------------------------------------

    @property
    def blocks(self) -> list[Mapping[str, Any]]:
        """What the round `partitions` found, a block each."""
        return self._once("blocks", lambda: [data for _, data in self.context.results(PARTITIONS_ROUND)])

    def source(self, *, validation: bool) -> PatchSource:
        """Patches to train on, or to judge by."""
        return self._once(f"source {validation}", lambda: self._source(validation=validation))

    def _source(self, *, validation: bool) -> PatchSource:
        regions = self.regions
        held_out = validation and any(r.validation for r in regions)
        blocks = [b for b in self.blocks if regions[b["region"]].validation == held_out]

        def load(block: int) -> list[np.ndarray]:
            return BlockCoordinates.split(self.store.get_arrays(blocks[block]["coordinates"]))

        counts = np.array([b["partitions"] for b in blocks], np.int64)
        sampler = BalancedSampler(counts, load, background=self.options.background and not validation)
        architecture = self.architecture

        def cut(rng: np.random.Generator, half: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
            block, centre = sampler.draw(rng)
            return self.cells.patch(regions[blocks[block]["region"]], centre, half, architecture)

        augmentation = None if validation else self.params.augmentation
        return PatchSource(cut, architecture, fov_moves=self.options.fov_moves, augmentation=augmentation)

    def check_examples(self) -> None:
        for held_out in {r.validation for r in self.regions}:
            counts = [b["partitions"] for b in self.blocks if self.regions[b["region"]].validation == held_out]
            if not np.array(counts)[:, BACKGROUND + 1 :].any():
                raise UserError(
                    f"ffn-train: the {'validation' if held_out else 'training'} labels hold no object further from "
                    "the volume's faces than half a training patch; give larger volumes or a smaller field of view"
                )

    # --- blocks ------------------------------------------------------------------------------

    def run_block(self, block: int, shard: int) -> float:
        source = self.source(validation=False)
        return self.trainer.run_block(source, block, shard, fine_tuning=self.initial_model is not None)

    def judge(self, part: int) -> Judged:
        from happyneurons.ffn.pictures import samples_png
        from happyneurons.ffn.validation import judge

        options = self.options
        shown: dict[int, Patch] = {}
        counts = judge(
            self.trainer.predict,
            self.architecture,
            self.source(validation=True),
            range(part, options.validation_patches, options.shards),
            seed=options.seed,
            batch_size=options.batch_size,
            seen=lambda number, patch: shown.update({number: patch}) if len(shown) < SAMPLES else None,
        )
        return counts, lambda: samples_png([patch for _, patch in sorted(shown.items())])

    def figures(self, counts: np.ndarray) -> Row:
        return figures(counts.tolist())

    def save(self, weights: State, training: dict[str, Any]) -> None:
        from happyneurons.ffn.model import Model, save_model

        save_model(self.store, Model(self.architecture, weights, training))
