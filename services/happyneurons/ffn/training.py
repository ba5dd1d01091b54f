"""Training a flood-filling network in blocks of steps; see :mod:`happyneurons.training.blocks`."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from happyneurons.errors import UserError
from happyneurons.ffn.architecture import Architecture
from happyneurons.ffn.examples import PatchSource, Walker
from happyneurons.training.blocks import BlockOptions, BlockSteps, MinimumGain, State, Steps, WarmupSteps
from happyneurons.training.trainer import BlockTrainer


class TrainingOptions(BlockOptions):
    """How a network is trained; parameters of the stage ffn-train."""

    steps: Steps = 5000
    batch_size: int = Field(8, ge=1, le=1024, description="Fields of view in a step of a shard")
    learning_rate: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Adam's, at its highest; it falls along a cosine to 2 %. Default: 1e-3 from random weights, 5e-5 "
        "from an initial model",
    )
    warmup_steps: WarmupSteps = 100
    trained_modules: int | None = Field(
        None,
        ge=0,
        description="Train only so many of the last modules and the convolution to the mask; those before keep the "
        "initial model's weights. Default: all. A step of fewer modules costs less, and fewer patches suffice",
    )
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
    block_steps: BlockSteps = 200
    validation_patches: int = Field(
        48, ge=1, le=10_000, description="Patches that the network is judged by after each block"
    )
    patience_blocks: int = Field(10, ge=1, description="Stop after so many blocks without a better F1")
    minimum_gain: MinimumGain = 0.0005


FROM_SCRATCH, FINE_TUNING = 1e-3, 5e-5


def learning_rate(options: TrainingOptions, step: int, *, fine_tuning: bool = False) -> float:
    """Of a step; see BlockOptions.rate."""
    highest = options.learning_rate or (FINE_TUNING if fine_tuning else FROM_SCRATCH)
    return options.rate(step, highest)


class Trainer(BlockTrainer):
    """A network, its optimizer and one traced training step."""

    def __init__(self, architecture: Architecture, weights: State, options: TrainingOptions) -> None:
        from happyneurons.ffn import network as net

        net.use_threads(options.step_threads)
        self.options = options
        network = net.build_network(architecture, weights)
        if options.trained_modules is not None:
            net.freeze_modules(network, max(0, architecture.depth - options.trained_modules))
        optimizer = net.keras.optimizers.Adam(FROM_SCRATCH, global_clipnorm=options.gradient_clip)
        super().__init__(net, architecture, network, optimizer)
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

    def step(self, image: np.ndarray, seed: np.ndarray, target: np.ndarray, rate: float) -> tuple[float, np.ndarray]:
        """One optimizer step over arrays (batch, z, y, x). Returns the loss and the logits before it."""
        self._optimizer.learning_rate.assign(rate)
        loss, logits = self._step(np.stack([image, seed], axis=-1), target[..., np.newaxis])
        return float(loss), logits.numpy()[..., 0]

    def predict(self, image: np.ndarray, seed: np.ndarray) -> np.ndarray:
        """Logits of arrays (batch, z, y, x)."""
        return np.asarray(self._forward(np.stack([image, seed], axis=-1)).numpy()[..., 0])

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
