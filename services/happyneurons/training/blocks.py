"""Training in blocks of steps that depend on nothing but their start.

A block starts from a state (variables and optimizer), draws its random numbers from (seed, block,
shard) and starts with new patches: computed again, it ends with the same bytes (same kind of
processor, same number of threads of a step). Shards of a block start from the same state and
see different patches; their mean is the next block's state. Method: local SGD (Stich, "Local SGD
converges fast and communicates little", ICLR 2019), with the moments of Adam averaged as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

State = dict[str, np.ndarray]
"""Everything a checkpoint needs: a network's variables by name, then `optimizer/…`."""
Row = dict[str, float]
"""Figures after a block: `step`, `loss`, and those of its judgement."""

Steps = Annotated[int, Field(ge=1, description="Optimizer steps of each shard, at most")]
WarmupSteps = Annotated[int, Field(ge=0, description="Steps over which the learning rate rises from 0")]
BlockSteps = Annotated[
    int,
    Field(ge=1, description="Steps between checkpoints, at which shards are averaged and the network is judged"),
]
MinimumGain = Annotated[float, Field(ge=0, le=1, description="What counts as better")]


class BlockOptions(BaseModel):
    """Options of every such training; a network's own ones add to them and set the defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    steps: Steps
    warmup_steps: WarmupSteps
    block_steps: BlockSteps
    patience_blocks: int
    minimum_gain: MinimumGain
    shards: int = Field(
        1,
        ge=1,
        le=4096,
        description="Workers that train side by side; after each block the mean of their networks goes on. Give as "
        "many ranks; fewer only take longer",
    )
    step_threads: int = Field(
        1,
        ge=1,
        le=256,
        description="Threads that compute a step. Another number rounds differently, so it is part of the job's key; "
        "shards use cores better",
    )
    gradient_clip: float = Field(1.0, gt=0, description="Largest norm of the gradient of all variables together")
    seed: int = Field(1, ge=0, description="Of all random numbers")

    @property
    def blocks(self) -> int:
        return -(-self.steps // self.block_steps)

    def last_step(self, blocks: int) -> int:
        """Steps done after so many blocks."""
        return min(blocks * self.block_steps, self.steps)

    def rate(self, step: int, highest: float) -> float:
        """Learning rate: a linear rise, then half a cosine down to 2 % at the last step."""
        rise = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        fall = 0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * min(1.0, step / self.steps)))
        return float(highest * rise * fall)


def weights_of(state: State) -> State:
    """The network's variables of a state."""
    return {name: array for name, array in state.items() if not name.startswith("optimizer/")}


def average(states: Sequence[State]) -> State:
    """Mean of states, variable by variable; whole numbers (the optimizer's step) are those of the first."""
    if len(states) == 1:
        return states[0]
    mean: State = {}
    for name, first in states[0].items():
        if first.dtype.kind != "f":
            mean[name] = first
            continue
        total = np.zeros(first.shape, np.float64)
        for state in states:
            total += state[name]
        mean[name] = (total / len(states)).astype(first.dtype)
    return mean


def saturated(history: Sequence[Row], options: BlockOptions, score: str) -> bool:
    """Whether a score has not risen by `minimum_gain` within the last `patience_blocks` rows."""
    best, since = -1.0, 0
    for row in history:
        if row[score] > best + options.minimum_gain:
            best, since = row[score], 0
        else:
            since += 1
    return since >= options.patience_blocks


def best_row(history: Sequence[Row], score: str) -> Row:
    """The row of the highest score, the first of equal ones."""
    return max(history, key=lambda row: (row[score], -row["step"]))


def mean_and_stddev(count: float, total: float, squares: float) -> tuple[float, float]:
    """From sums over voxels, rounded to a tenth so that it reads well in model.json."""
    mean = total / count
    return round(mean, 1), max(round(max(squares / count - mean**2, 0.0) ** 0.5, 1), 1.0)
