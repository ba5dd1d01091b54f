"""Training a flood-filling network in blocks of steps that depend on nothing but their start.

A block starts from a state (variables and optimizer), draws its random numbers from (seed, block,
shard) and starts with new patches: computed again, it ends with the same bytes (same kind of
processor, same number of threads of a step). Shards of a block start from the same state and
see different patches; their mean is the next block's state. Method: local SGD (Stich, "Local SGD
converges fast and communicates little", ICLR 2019), with the moments of Adam averaged as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from happyneurons.errors import UserError
from happyneurons.ffn.architecture import Architecture
from happyneurons.ffn.examples import PatchSource, Walker

State = dict[str, np.ndarray]
Row = dict[str, float]


class TrainingOptions(BaseModel):
    """How a network is trained; parameters of the stage ffn-train."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    steps: int = Field(5000, ge=1, description="Optimizer steps of each shard, at most")
    batch_size: int = Field(8, ge=1, le=1024, description="Fields of view in a step of a shard")
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
    learning_rate: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Adam's, at its highest; it falls along a cosine to 2 %. Default: 1e-3 from random weights, 5e-5 "
        "from an initial model",
    )
    warmup_steps: int = Field(100, ge=0, description="Steps over which the learning rate rises from 0")
    trained_modules: int | None = Field(
        None,
        ge=0,
        description="Train only so many of the last modules and the convolution to the mask; those before keep the "
        "initial model's weights. Default: all. A step of fewer modules costs less, and fewer patches suffice",
    )
    gradient_clip: float = Field(1.0, gt=0, description="Largest norm of the gradient of all variables together")
    fov_moves: int = Field(
        1,
        ge=0,
        le=4,
        description="Moves of the field of view in each direction that a training patch is judged over; it may move "
        "once more (as in google/ffn with max_pred_moves)",
    )
    background: bool = Field(
        default=False,
        description="Train on fields of view centred on background as well, as a partition of its own (as google/ffn)",
    )
    seed: int = Field(1, ge=0, description="Of all random numbers")
    block_steps: int = Field(
        200, ge=1, description="Steps between checkpoints, at which shards are averaged and the network is judged"
    )
    validation_patches: int = Field(
        48, ge=1, le=10_000, description="Patches that the network is judged by after each block"
    )
    patience_blocks: int = Field(10, ge=1, description="Stop after so many blocks without a better F1")
    minimum_gain: float = Field(0.0005, ge=0, le=1, description="What counts as better")

    @property
    def blocks(self) -> int:
        return -(-self.steps // self.block_steps)

    def last_step(self, blocks: int) -> int:
        """Steps done after so many blocks."""
        return min(blocks * self.block_steps, self.steps)


FROM_SCRATCH, FINE_TUNING = 1e-3, 5e-5


def learning_rate(options: TrainingOptions, step: int, *, fine_tuning: bool = False) -> float:
    """Linear rise, then half a cosine down to 2 % at the last step."""
    highest = options.learning_rate or (FINE_TUNING if fine_tuning else FROM_SCRATCH)
    rise = min(1.0, (step + 1) / options.warmup_steps) if options.warmup_steps else 1.0
    fall = 0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * min(1.0, step / options.steps)))
    return float(highest * rise * fall)


class Trainer:
    """A network, its optimizer and one traced training step."""

    def __init__(self, architecture: Architecture, weights: State, options: TrainingOptions) -> None:
        from happyneurons.ffn import network as net

        net.use_threads(options.step_threads)
        self.architecture, self.options = architecture, options
        self._net = net
        self.network = net.build_network(architecture, weights)
        if options.trained_modules is not None:
            net.freeze_modules(self.network, max(0, architecture.depth - options.trained_modules))
        self._optimizer = net.keras.optimizers.Adam(FROM_SCRATCH, global_clipnorm=options.gradient_clip)
        self._optimizer.build(self.network.trainable_variables)
        tf = net.tf

        def step(inputs: Any, target: Any) -> Any:
            variables = self.network.trainable_variables
            with tf.GradientTape() as tape:
                logits = self.network(inputs)
                loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=target, logits=logits))
            self._optimizer.apply(tape.gradient(loss, variables), variables)
            return loss, logits

        patch = (None, *architecture.fov_zyx)
        inputs, target = tf.TensorSpec((*patch, 2), tf.float32), tf.TensorSpec((*patch, 1), tf.float32)
        self._step = tf.function(step, input_signature=[inputs, target])
        self._forward = tf.function(self.network, input_signature=[inputs])
        self.start = self.state()
        """The state before the first step."""

    def step(self, image: np.ndarray, seed: np.ndarray, target: np.ndarray, rate: float) -> tuple[float, np.ndarray]:
        """One optimizer step over arrays (batch, z, y, x). Returns the loss and the logits before it."""
        self._optimizer.learning_rate.assign(rate)
        loss, logits = self._step(np.stack([image, seed], axis=-1), target[..., np.newaxis])
        return float(loss), logits.numpy()[..., 0]

    def predict(self, image: np.ndarray, seed: np.ndarray) -> np.ndarray:
        """Logits of arrays (batch, z, y, x)."""
        return np.asarray(self._forward(np.stack([image, seed], axis=-1)).numpy()[..., 0])

    def state(self) -> State:
        """Everything a checkpoint needs, as arrays: the network's variables by name, then `optimizer/…`."""
        optimizer = {f"optimizer/{i:03d}": np.asarray(v.numpy()) for i, v in enumerate(self._optimizer.variables)}
        return {**self._net.get_weights(self.network, self.architecture), **optimizer}

    def restore(self, state: State) -> None:
        self._net.set_weights(self.network, self.architecture, state)
        for i, variable in enumerate(self._optimizer.variables):
            variable.assign(state[f"optimizer/{i:03d}"])

    def run_block(self, source: PatchSource, block: int, shard: int, *, fine_tuning: bool) -> float:
        """Train the steps of a block from the state that was restored; returns the mean loss.

        Raises UserError if the loss is not finite any more.
        """
        options = self.options
        rngs = [np.random.default_rng([options.seed, block, shard, slot]) for slot in range(options.batch_size)]
        walkers = [Walker(self.architecture, lambda rng=rng: source.draw(rng)) for rng in rngs]  # type: ignore[misc]
        losses = []
        for step in range(options.last_step(block), options.last_step(block + 1)):
            examples = [walker.next() for walker in walkers]
            image, seed, target = (np.stack(arrays) for arrays in zip(*[e for e in examples if e], strict=True))
            loss, logits = self.step(image, seed, target, learning_rate(options, step, fine_tuning=fine_tuning))
            if not np.isfinite(loss):
                raise UserError(f"ffn-train: the loss is {loss} at step {step}; give a smaller params.learning_rate")
            for walker, predicted in zip(walkers, logits, strict=True):
                walker.update(predicted)
            losses.append(loss)
        return float(np.mean(losses))


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


def saturated(history: Sequence[Row], options: TrainingOptions) -> bool:
    """Whether F1 has not risen by `minimum_gain` within the last `patience_blocks` rows."""
    best, since = -1.0, 0
    for row in history:
        if row["f1"] > best + options.minimum_gain:
            best, since = row["f1"], 0
        else:
            since += 1
    return since >= options.patience_blocks


def best_row(history: Sequence[Row]) -> Row:
    """The row of the highest F1, the first of equal ones."""
    return max(history, key=lambda row: (row["f1"], -row["step"]))
