"""What the rounds of a training share: regions, coordinates, the network, figures so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from happyneurons.errors import UserError
from happyneurons.ffn.architecture import Architecture, initial_weights
from happyneurons.ffn.examples import PatchSource, patch_half_zyx
from happyneurons.ffn.sampling import BACKGROUND, BalancedSampler, BlockCoordinates
from happyneurons.ffn.training import Row, State, Trainer, average, best_row, saturated
from happyneurons.ffn.validation import figures
from happyneurons.jobs.stage import Context
from happyneurons.stages.ffn_train.params import FfnTrainParams
from happyneurons.stages.ffn_train.volumes import (
    Cells,
    Region,
    check_pairs,
    common_box,
    known_voxel_size,
    mean_and_stddev,
    split,
)
from happyneurons.store.documents import Store

if TYPE_CHECKING:
    from happyneurons.ffn.model import Model

OUTPUT = "model"
PARTITIONS_ROUND = "partitions"
HISTORY = "history.json"
T = TypeVar("T")


class Session:
    """One for each process and job; everything in it follows from the job alone."""

    def __init__(self, context: Context[FfnTrainParams]) -> None:
        self.context, self.params = context, context.params
        self.options = context.params.training_options()
        self.store: Store = context.output_store(OUTPUT)
        self.cells = Cells(self.params.mip, self.params.label_gap_px)
        self.history = History(self)

    @classmethod
    def of(cls, context: Context[FfnTrainParams]) -> Session:
        session: Session = context.once("session", lambda: cls(context))
        return session

    def _once(self, name: str, make: Callable[[], T]) -> T:
        made: T = self.context.once(f"session {name}", make)
        return made

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
            check_pairs(images, labels, "validation" if validation else "training")
            for image, truth in zip(images, labels, strict=True):
                uris = image.data_uri, truth.data_uri
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

    def check_coordinates(self) -> None:
        """Raise UserError if there is nothing to train on, or to judge by."""
        for held_out in {r.validation for r in self.regions}:
            counts = [b["partitions"] for b in self.blocks if self.regions[b["region"]].validation == held_out]
            if not np.array(counts)[:, BACKGROUND + 1 :].any():
                raise UserError(
                    f"ffn-train: the {'validation' if held_out else 'training'} labels hold no object further from "
                    "the volume's faces than half a training patch; give larger volumes or a smaller field of view"
                )

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


class History:
    """Figures of the blocks that are finished; rank 0 only."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._rows: list[Row] = []
        self._first = 0 if session.context.inputs.get("initial_model") else 1
        """An initial model is judged before the first step: training must not make it worse."""

    def rows(self, blocks: int) -> list[Row]:
        """Rows of the first blocks, fewer if some are not finished."""
        while self._first + len(self._rows) <= blocks:
            row = self._row(self._first + len(self._rows))
            if row is None:
                break
            self._rows.append(row)
        return self._rows[: max(0, blocks + 1 - self._first)]

    def _row(self, block: int) -> Row | None:
        context, options = self._session.context, self._session.options
        row = {"step": float(options.last_step(block))}
        if block:
            losses = [data["loss"] for _, data in context.results(train_round(block))]
            if len(losses) < options.shards:
                return None
            row["loss"] = float(np.mean(losses))
        counts = [data["counts"] for _, data in context.results(judge_round(block))]
        if len(counts) < options.shards:
            return None
        return {**row, **figures(np.sum(counts, axis=0).tolist())}

    def wants(self, block: int) -> bool:
        """Whether a block (from 1) is to be trained."""
        rows = self.rows(block - 1)
        return self._first + len(rows) == block and not saturated(rows, self._session.options)

    def last_block(self) -> int | None:
        """The last block once training is over; None if one is missing."""
        blocks = self._session.options.blocks
        done = self._first + len(self.rows(blocks)) - 1
        return done if done == blocks or saturated(self._rows, self._session.options) else None

    def report(self) -> None:
        """Write history.json and curves.png unless a longer history is there."""
        from happyneurons.ffn.pictures import curves_png

        store = self._session.store
        if self._rows and len(store.find_json(HISTORY) or []) < len(self._rows):
            store.put("curves.png", curves_png(self._rows))
            store.put_json(HISTORY, self._rows)

    def best(self) -> Row | None:
        return best_row(self._rows) if self._rows else None


def train_round(block: int) -> str:
    return f"train-{block:06d}"


def judge_round(block: int) -> str:
    return f"judge-{block:06d}"


def mean_path(step: int) -> str:
    return f"checkpoints/{step:08d}/mean.npz"


def shard_path(step: int, shard: int) -> str:
    return f"checkpoints/{step:08d}/shard-{shard:04d}.npz"
