"""What the rounds of mask-train share: annotated sections, the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from happyneurons.errors import UserError
from happyneurons.imaging.layers import UNKNOWN_SIZE
from happyneurons.jobs.stage import Context
from happyneurons.stages.mask_train.params import MaskTrainParams, section_numbers
from happyneurons.stages.mask_train.volumes import Pictures, Sections, sections_of
from happyneurons.training.blocks import Row, State, mean_and_stddev
from happyneurons.training.session import SAMPLES, Judged, TrainingSession, pairs
from happyneurons.unet.architecture import Architecture, initial_weights
from happyneurons.unet.augmentation import augment
from happyneurons.unet.training import Trainer, TrainingOptions, class_weights
from happyneurons.unet.validation import count, figures

if TYPE_CHECKING:
    from happyneurons.unet.model import Model

SURVEY_ROUND = "survey"
CELL = 64
"""Side of the squares in which labels are counted, px: patches are cut around such a square."""


class Cells(NamedTuple):
    """Squares of annotated sections. place: (n, 4) int64 (sections, z, y, x); counts: (n, 1 + classes) labelled px."""

    place: NDArray[np.int64]
    counts: NDArray[np.int64]


class Session(TrainingSession[MaskTrainParams]):
    stage, score = "mask-train", "dice"
    options: TrainingOptions

    def __init__(self, context: Context[MaskTrainParams]) -> None:
        super().__init__(context)
        self.pictures = Pictures(self.params)

    @property
    def sections(self) -> list[Sections]:
        """Raises UserError if images and labels do not belong together."""

        def make() -> list[Sections]:
            given = self.context.inputs
            named = [
                pairs(self.stage, given.get(f"{prefix}image", ()), given.get(f"{prefix}labels", ()), what)
                for prefix, what in (("", "training"), ("validation_", "validation"))
            ]
            return sections_of(self.params, *named)

        return self._once("sections", make)

    @property
    def held_out_sections(self) -> frozenset[int]:
        """z of the training volumes' sections that are kept for judging."""
        text = self.params.validation_sections
        return frozenset(section_numbers(text) if text else ())

    @property
    def voxel_size_nm_xyz(self) -> tuple[float, float, float] | None:
        """None if the volumes do not say it."""
        size = self.pictures.image(self.sections[0].image).voxel_size_nm_xyz
        return None if size == UNKNOWN_SIZE else size

    # --- what is annotated -------------------------------------------------------------------

    @property
    def surveyed(self) -> list[Mapping[str, Any]]:
        """What the round `survey` found in annotated sections, a tile each."""

        def make() -> list[Mapping[str, Any]]:
            tiles = [data for _, data in self.context.results(SURVEY_ROUND)]
            drawn = {(t["sections"], t["z"]) for t in tiles if sum(t["counts"][1:])}
            return [
                t for t in tiles
                if (t["sections"], t["z"]) in drawn or self.sections[t["sections"]].z is not None
            ]  # fmt: skip

        return self._once("surveyed", make)

    def held_out(self, *, validation: bool) -> bool:
        """Which sections serve: without validation sections the network is judged by what it is trained on."""
        return validation and any(s.validation for s in self.sections)

    def _tiles(self, *, validation: bool) -> list[Mapping[str, Any]]:
        held_out = self.held_out(validation=validation)
        return [t for t in self.surveyed if self.sections[t["sections"]].validation == held_out]

    def counts(self, *, validation: bool) -> NDArray[np.int64]:
        """Labelled px of background and each class."""
        tiles = self._tiles(validation=validation)
        return np.sum([t["counts"] for t in tiles] or [[0] * (1 + len(self.params.classes))], axis=0)

    def cells(self, *, validation: bool) -> Cells:
        def make() -> Cells:
            place, counts = [np.zeros((0, 4), np.int64)], [np.zeros((0, 1 + len(self.params.classes)), np.int64)]
            for tile in self._tiles(validation=validation):
                arrays = self.store.get_arrays(tile["cells"])
                place.append(np.insert(arrays["place_zyx"], 0, tile["sections"], axis=1))
                counts.append(arrays["counts"])
            return Cells(np.concatenate(place), np.concatenate(counts))

        return self._once(f"cells {validation}", make)

    def check_examples(self) -> None:
        for held_out in {s.validation for s in self.sections}:
            counts = self.counts(validation=held_out)
            names = ["background", *self.params.class_names]
            missing = [name for name, n in zip(names, counts, strict=True) if n == 0]
            if missing and (not held_out or len(missing) == len(names)):
                raise UserError(
                    f"mask-train: no voxel of the {'validation' if held_out else 'training'} labels is "
                    f"{' or '.join(missing)}; look at params.classes, params.background_values and params.sections"
                )

    # --- the network -------------------------------------------------------------------------

    @property
    def initial_model(self) -> Model | None:
        def make() -> Model | None:
            from happyneurons.unet.model import load_model

            artifact = self.context.optional_input("initial_model")
            return None if artifact is None else load_model(artifact.data_uri)

        return self._once("initial model", make)

    @property
    def architecture(self) -> Architecture:
        """After the round `survey`."""
        return self._once("architecture", self._architecture)

    def _architecture(self) -> Architecture:
        if self.initial_model is not None:
            return self.initial_model.architecture
        sums = np.sum([t["grey"] for t in self._tiles(validation=False)], axis=0).tolist()
        return self.params.architecture(*mean_and_stddev(*sums))

    @property
    def trainer(self) -> Trainer:
        def make() -> Trainer:
            counts, model = self.counts(validation=False), self.initial_model
            weights = (
                model.weights
                if model is not None
                else initial_weights(self.architecture, self.params.seed, (counts / counts.sum()).tolist())
            )
            balance = class_weights(counts.tolist(), self.options.class_balance)
            return Trainer(self.architecture, weights, self.options, balance)

        return self._once("trainer", make)

    # --- patches -----------------------------------------------------------------------------

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A training patch: see `unet.training.Draw`."""
        cells, options, settings = self.cells(validation=False), self.options, self.params.augmentation
        sums = self._once("sums", lambda: _Sums(cells))
        wanted = int(rng.choice(sums.present)) if rng.random() < options.object_patches else None
        number, z, y, x = cells.place[sums.pick(rng, wanted)]
        volume = self.pictures.image(self.sections[number].image)
        # A square at the far faces may reach beyond them.
        centre = np.minimum(np.array([y, x]) + rng.integers(0, CELL, 2), np.subtract(volume.stop_zyx[1:], 1))
        centre = np.maximum(centre, volume.start_zyx[1:])
        side = settings.source_px(options.patch_px)
        low = centre - side // 2
        image, target = self.pictures.read(self.sections[number], int(z), low.tolist(), (low + side).tolist())
        return augment(self.architecture.normalize(image), target, options.patch_px, settings, rng)

    def validation_places(self) -> NDArray[np.int64]:
        """(n, 4) (sections, z, y, x) of patches side by side that hold something annotated, some of all if many."""
        side = self.options.patch_px
        places = self.cells(validation=True).place.copy()
        places[:, 2:] -= places[:, 2:] % side
        places = np.unique(places, axis=0)
        wanted = min(len(places), self.options.validation_patches)
        return np.asarray(places[np.arange(wanted) * len(places) // max(1, wanted)])

    def validation_patch(self, place: NDArray[np.int64]) -> tuple[np.ndarray, np.ndarray]:
        number, z, *low = (int(v) for v in place)
        stop = [v + self.options.patch_px for v in low]
        image, target = self.pictures.read(self.sections[number], z, low, stop)
        return self.architecture.normalize(image), target

    # --- blocks ------------------------------------------------------------------------------

    def run_block(self, block: int, shard: int) -> float:
        return self.trainer.run_block(self.draw, block, shard)

    def judge(self, part: int) -> Judged:
        from happyneurons.unet.pictures import Sample, samples_png

        classes = len(self.params.classes)
        table = np.zeros((classes, 3), np.int64)
        samples: list[Sample] = []
        for place in self.validation_places()[part :: self.options.shards]:
            image, target = self.validation_patch(place)
            predicted = self.trainer.predict(image[np.newaxis])[0].argmax(axis=-1)
            table += count(predicted, target, classes)
            if len(samples) < SAMPLES:
                samples.append(Sample(image, target, predicted))
        return table.tolist(), lambda: samples_png(samples)

    def figures(self, counts: np.ndarray) -> Row:
        return figures(counts, self.params.class_names)

    def save(self, weights: State, training: dict[str, Any]) -> None:
        from happyneurons.unet.model import Model, save_model

        save_model(self.store, Model(self.architecture, weights, training))

    def facts(self) -> dict[str, Any]:
        return {"patch_px": self.options.patch_px}


class _Sums:
    """Cumulated counts of cells, to draw cells in proportion to what they hold."""

    def __init__(self, cells: Cells) -> None:
        self._of_class = np.cumsum(cells.counts, axis=0)
        self._any = np.cumsum(cells.counts.sum(axis=1))
        self.present = [n for n in range(1, cells.counts.shape[1]) if self._of_class[-1, n]]

    def pick(self, rng: np.random.Generator, wanted: int | None) -> int:
        sums = self._any if wanted is None else self._of_class[:, wanted]
        return int(np.searchsorted(sums, rng.integers(int(sums[-1])), side="right"))
