"""What the rounds of a training job share: its inputs, checkpoints, and figures so far."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
from pydantic import BaseModel

from happyneurons.errors import UserError
from happyneurons.jobs.stage import Context
from happyneurons.store.artifacts import Artifact
from happyneurons.store.documents import Store
from happyneurons.training.blocks import BlockOptions, Row, State, average, best_row, saturated
from happyneurons.training.trainer import BlockTrainer

OUTPUT = "model"
HISTORY = "history.json"
MAX_BLOCKS = 5000
"""Each is two rounds."""
SAMPLES = 6
"""Patches shown after each block."""

T = TypeVar("T")
P = TypeVar("P", bound=Any)
Judged = tuple[list[Any], Callable[[], bytes]]
"""Counts, as JSON, and a picture of some patches as PNG, made when it is asked for."""


class TrainingSession(ABC, Generic[P]):
    """One for each process and job; everything in it follows from the job alone.

    Stages say what they learn from, what trains, and how it is judged.
    """

    stage: ClassVar[str]
    """Name of the stage, for errors."""
    score: ClassVar[str]
    """The figure that training is to raise."""

    def __init__(self, context: Context[P]) -> None:
        self.context, self.params = context, context.params
        self.options: BlockOptions = context.params.training_options()
        self.store: Store = context.output_store(OUTPUT)
        self.history = History(self)

    @classmethod
    def of(cls, context: Context[P]) -> Self:
        session: Self = context.once("session", lambda: cls(context))
        return session

    def _once(self, name: str, make: Callable[[], T]) -> T:
        made: T = self.context.once(f"session {name}", make)
        return made

    # --- what a stage says -------------------------------------------------------------------

    @property
    def judges_start(self) -> bool:
        """Whether the network is judged before the first step, too."""
        return False

    @property
    @abstractmethod
    def voxel_size_nm_xyz(self) -> tuple[float, float, float] | None:
        """None if the volumes do not say it."""

    @property
    @abstractmethod
    def architecture(self) -> BaseModel:
        """What weights are made for."""

    @property
    @abstractmethod
    def trainer(self) -> BlockTrainer: ...

    @abstractmethod
    def check_examples(self) -> None:
        """Raise UserError if there is nothing to train on, or to judge by."""

    @abstractmethod
    def run_block(self, block: int, shard: int) -> float:
        """Train a shard of a block (from 0) with the trainer as it is; returns the mean loss."""

    @abstractmethod
    def judge(self, part: int) -> Judged:
        """Judge the trainer as it is by one of `shards` parts of the validation patches."""

    @abstractmethod
    def figures(self, counts: np.ndarray) -> Row:
        """What follows from the counts of all parts together."""

    @abstractmethod
    def save(self, weights: State, training: dict[str, Any]) -> None:
        """Write the model."""

    def facts(self) -> dict[str, Any]:
        """What else model.json tells of the training."""
        return {}

    # --- checkpoints -------------------------------------------------------------------------

    def check_blocks(self) -> None:
        """Raises UserError if there are too many."""
        blocks, steps = self.options.blocks, self.options.block_steps
        if blocks > MAX_BLOCKS:
            raise UserError(
                f"{self.stage}: {blocks} blocks of {steps} steps; at most {MAX_BLOCKS}: give larger params.block_steps",
                [("params.block_steps", f"at least {-(-self.options.steps // MAX_BLOCKS)}")],
            )

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

    def __init__(self, session: TrainingSession[Any]) -> None:
        self._session = session
        self._rows: list[Row] = []
        self._first = 0 if session.judges_start else 1

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
        return {**row, **self._session.figures(np.sum(counts, axis=0))}

    def _saturated(self, rows: Sequence[Row]) -> bool:
        return saturated(rows, self._session.options, self._session.score)

    def wants(self, block: int) -> bool:
        """Whether a block (from 1) is to be trained."""
        rows = self.rows(block - 1)
        return self._first + len(rows) == block and not self._saturated(rows)

    def last_block(self) -> int | None:
        """The last block once training is over; None if one is missing."""
        blocks = self._session.options.blocks
        done = self._first + len(self.rows(blocks)) - 1
        return done if done == blocks or self._saturated(self._rows) else None

    def best(self) -> Row | None:
        return best_row(self._rows, self._session.score) if self._rows else None

    def report(self) -> None:
        """Write history.json and curves.png unless a longer history is there."""
        from happyneurons.training.pictures import curves_png

        store = self._session.store
        if self._rows and len(store.find_json(HISTORY) or []) < len(self._rows):
            store.put("curves.png", curves_png(self._rows, self._session.score))
            store.put_json(HISTORY, self._rows)


def pairs(stage: str, images: Sequence[Artifact], labels: Sequence[Artifact], what: str) -> list[tuple[str, str]]:
    """(image, labels) data URIs. Raises UserError unless there is one label volume for each image."""
    if len(images) != len(labels):
        raise UserError(
            f"{stage}: {len(images)} {what} images but {len(labels)} labels; give them in pairs, in the same order"
        )
    return [(image.data_uri, own.data_uri) for image, own in zip(images, labels, strict=True)]


def train_round(block: int) -> str:
    return f"train-{block:06d}"


def judge_round(block: int) -> str:
    return f"judge-{block:06d}"


def mean_path(step: int) -> str:
    return f"checkpoints/{step:08d}/mean.npz"


def shard_path(step: int, shard: int) -> str:
    return f"checkpoints/{step:08d}/shard-{shard:04d}.npz"
