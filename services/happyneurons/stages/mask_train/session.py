"""What the rounds of a training share: annotated sections, the network, figures so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from happyneurons.errors import UserError
from happyneurons.ffn.training import average
from happyneurons.imaging.layers import UNKNOWN_SIZE
from happyneurons.jobs.stage import Context
from happyneurons.stages.mask_train.params import MaskTrainParams, section_numbers
from happyneurons.stages.mask_train.volumes import Pictures, Sections, pairs, sections_of
from happyneurons.store.documents import Store
from happyneurons.unet.architecture import Architecture, initial_weights
from happyneurons.unet.augmentation import augment
from happyneurons.unet.training import State, Trainer, class_weights
from happyneurons.unet.validation import figures

if TYPE_CHECKING:
    from happyneurons.unet.model import Model

OUTPUT = "model"
SURVEY_ROUND = "survey"
HISTORY = "history.json"
CELL = 64
"""Side of the squares in which labels are counted, px: patches are cut around such a square."""
Row = dict[str, float]
T = TypeVar("T")


class Cells(NamedTuple):
    """Squares of annotated sections. place: (n, 4) int64 (sections, z, y, x); counts: (n, 1 + classes) labelled px."""

    place: NDArray[np.int64]
    counts: NDArray[np.int64]


class Session:
    """One for each process and job; everything in it follows from the job alone."""

    def __init__(self, context: Context[MaskTrainParams]) -> None:
        self.context, self.params = context, context.params
        self.options = context.params.training_options()
        self.store: Store = context.output_store(OUTPUT)
        self.pictures = Pictures(self.params)
        self.history = History(self)

    @classmethod
    def of(cls, context: Context[MaskTrainParams]) -> Session:
        session: Session = context.once("session", lambda: cls(context))
        return session

    def _once(self, name: str, make: Callable[[], T]) -> T:
        made: T = self.context.once(f"session {name}", make)
        return made

    @property
    def sections(self) -> list[Sections]:
        """Raises UserError if images and labels do not belong together."""

        def make() -> list[Sections]:
            given = self.context.inputs
            named = [
                pairs(given.get(f"{prefix}image", ()), given.get(f"{prefix}labels", ()), what)
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

    def check_annotation(self) -> None:
        """Raise UserError if there is nothing to train on, or to judge by."""
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
        count, total, squares = np.sum([t["grey"] for t in self._tiles(validation=False)], axis=0)
        mean = total / count
        return self.params.architecture(
            round(float(mean), 1), max(1.0, round(float(max(squares / count - mean**2, 0.0) ** 0.5), 1))
        )

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

    # --- checkpoints -------------------------------------------------------------------------

    def state_after(self, blocks: int) -> State:
        """The state that the next block starts from."""
        return self.store.get_arrays(mean_path(self.options.last_step(blocks))) if blocks else self.trainer.start

    def mean_of_shards(self, blocks: int) -> State:
        step = self.options.last_step(blocks)
        return average([self.store.get_arrays(shard_path(step, shard)) for shard in range(self.options.shards)])

    def clear_checkpoints(self, before: int, keep: float) -> None:
        """Delete states of steps below `before` but the one to keep, and shards of `before`."""
        for path in list(self.store.list("checkpoints")):
            step = int(path.split("/")[-2])
            if (step < before and step != keep) or (step == before and "shard" in path):
                self.store.delete(path)


class _Sums:
    """Cumulated counts of cells, to draw cells in proportion to what they hold."""

    def __init__(self, cells: Cells) -> None:
        self._of_class = np.cumsum(cells.counts, axis=0)
        self._any = np.cumsum(cells.counts.sum(axis=1))
        self.present = [n for n in range(1, cells.counts.shape[1]) if self._of_class[-1, n]]

    def pick(self, rng: np.random.Generator, wanted: int | None) -> int:
        sums = self._any if wanted is None else self._of_class[:, wanted]
        return int(np.searchsorted(sums, rng.integers(int(sums[-1])), side="right"))


class History:
    """Figures of the blocks that are finished; rank 0 only."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._rows: list[Row] = []

    def rows(self, blocks: int) -> list[Row]:
        """Rows of the first blocks, fewer if some are not finished."""
        while len(self._rows) < blocks:
            row = self._row(len(self._rows) + 1)
            if row is None:
                break
            self._rows.append(row)
        return self._rows[:blocks]

    def _row(self, block: int) -> Row | None:
        context, options = self._session.context, self._session.options
        losses = [data["loss"] for _, data in context.results(train_round(block))]
        counts = [data["counts"] for _, data in context.results(judge_round(block))]
        if len(losses) < options.shards or len(counts) < options.shards:
            return None
        row = {"step": float(options.last_step(block)), "loss": float(np.mean(losses))}
        return {**row, **figures(np.sum(counts, axis=0), self._session.params.class_names)}

    def saturated(self, rows: list[Row]) -> bool:
        """Whether Dice has not risen by `minimum_gain` within the last `patience_blocks` rows."""
        best, since = -1.0, 0
        for row in rows:
            if row["dice"] > best + self._session.options.minimum_gain:
                best, since = row["dice"], 0
            else:
                since += 1
        return since >= self._session.options.patience_blocks

    def wants(self, block: int) -> bool:
        """Whether a block (from 1) is to be trained."""
        rows = self.rows(block - 1)
        return len(rows) == block - 1 and not self.saturated(rows)

    def last_block(self) -> int | None:
        """The last block once training is over; None if one is missing."""
        rows = self.rows(self._session.options.blocks)
        return len(rows) if len(rows) == self._session.options.blocks or self.saturated(rows) else None

    def best(self) -> Row | None:
        """The row of the highest Dice, the first of equal ones."""
        return max(self._rows, key=lambda row: (row["dice"], -row["step"])) if self._rows else None

    def report(self) -> None:
        """Write history.json and curves.png unless a longer history is there."""
        from happyneurons.ffn.pictures import curves_png

        store = self._session.store
        if self._rows and len(store.find_json(HISTORY) or []) < len(self._rows):
            colours = {
                "loss": (60, 60, 60),
                "dice": (40, 140, 40),
                "precision": (200, 120, 40),
                "recall": (40, 40, 200),
            }
            store.put("curves.png", curves_png(self._rows, colours))
            store.put_json(HISTORY, self._rows)


def train_round(block: int) -> str:
    return f"train-{block:06d}"


def judge_round(block: int) -> str:
    return f"judge-{block:06d}"


def mean_path(step: int) -> str:
    return f"checkpoints/{step:08d}/mean.npz"


def shard_path(step: int, shard: int) -> str:
    return f"checkpoints/{step:08d}/shard-{shard:04d}.npz"
