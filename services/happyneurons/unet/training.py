"""Training a U-Net in blocks of steps; see :mod:`happyneurons.training.blocks`.

Loss: cross-entropy of the classes, weighted against their frequencies, plus one minus the soft Dice
coefficient of each class (Milletari et al., "V-Net", 3DV 2016). Pixels that nobody labelled count in neither.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from happyneurons.errors import UserError
from happyneurons.training.blocks import BlockOptions, BlockSteps, MinimumGain, State, Steps, WarmupSteps
from happyneurons.training.trainer import BlockTrainer
from happyneurons.unet.architecture import Architecture

UNLABELLED = -1
"""In targets: nobody said what is there. 0 is background, 1 the first class."""

Draw = Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]
"""rng → (image (y, x) normalized float32, target (y, x) int8)."""


class TrainingOptions(BlockOptions):
    """How a network is trained; parameters of the stage mask-train."""

    steps: Steps = 600
    batch_size: int = Field(8, ge=1, le=256, description="Patches in a step of a shard")
    patch_px: int = Field(256, ge=16, le=2048, description="Side of a training patch, px of the level trained on")
    learning_rate: float = Field(
        2e-3, gt=0, le=1, description="Adam's, at its highest; it falls along a cosine to 2 % at the last step"
    )
    warmup_steps: WarmupSteps = 20
    class_balance: float = Field(
        0.5,
        ge=0,
        le=1,
        description="How much rare classes count in the cross-entropy: each by its frequency to the power of minus "
        "this. 0: all pixels alike, 1: all classes alike",
    )
    dice_weight: float = Field(1.0, ge=0, le=100, description="Of the Dice loss, beside cross-entropy's 1")
    object_patches: float = Field(
        0.7, ge=0, le=1, description="Share of patches that are cut around objects, each class as often; the rest "
        "is cut anywhere in what is annotated",
    )  # fmt: skip
    block_steps: BlockSteps = 50
    validation_patches: int = Field(
        64, ge=1, le=100_000, description="Patches that the network is judged by after each block, spread evenly"
    )
    patience_blocks: int = Field(6, ge=1, description="Stop after so many blocks without a better Dice coefficient")
    minimum_gain: MinimumGain = 0.001


def class_weights(counts: Sequence[int], balance: float) -> np.ndarray:
    """Weight of background and each class in the cross-entropy, float32, of mean 1 over the pixels counted."""
    pixels = np.maximum(np.asarray(counts, np.float64), 1.0)
    share = pixels / pixels.sum()
    weight = share**-balance
    return np.asarray(weight / (weight * share).sum(), np.float32)


class Trainer(BlockTrainer):
    """A network, its optimizer and one traced training step."""

    def __init__(
        self, architecture: Architecture, weights: State, options: TrainingOptions, balance: np.ndarray
    ) -> None:
        """balance: (1 + classes,) float32, see class_weights."""
        from happyneurons.unet import network as net

        net.use_threads(options.step_threads)
        tf = net.tf
        self.options = options
        optimizer = net.keras.optimizers.Adam(options.learning_rate, global_clipnorm=options.gradient_clip)
        super().__init__(net, architecture, net.build_network(architecture, weights), optimizer)
        count = len(architecture.classes) + 1
        weight_of = tf.constant(balance, tf.float32)

        def loss_of(logits: Any, target: Any) -> Any:
            known = tf.cast(target >= 0, tf.float32)
            labels = tf.maximum(tf.cast(target, tf.int32), 0)
            entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
            weight = tf.gather(weight_of, labels) * known
            loss = tf.reduce_sum(weight * entropy) / tf.maximum(tf.reduce_sum(known), 1.0)
            wanted = tf.one_hot(labels, count)[..., 1:] * known[..., tf.newaxis]
            found = tf.nn.softmax(logits)[..., 1:] * known[..., tf.newaxis]
            both, each = (tf.reduce_sum(a, axis=(0, 1, 2)) for a in (found * wanted, found + wanted))
            return loss + options.dice_weight * (1.0 - tf.reduce_mean((2.0 * both + 1.0) / (each + 1.0)))

        def step(image: Any, target: Any) -> Any:
            variables = self.network.trainable_variables
            with tf.GradientTape() as tape:
                loss = loss_of(self.network(image[..., tf.newaxis], training=True), target)
            self._optimizer.apply(tape.gradient(loss, variables), variables)
            return loss

        picture = (None, options.patch_px, options.patch_px)
        image, target = tf.TensorSpec(picture, tf.float32), tf.TensorSpec(picture, tf.int8)
        self._step = tf.function(step, input_signature=[image, target])

        def predict(image: Any) -> Any:
            return tf.nn.softmax(self.network(image[..., tf.newaxis], training=False))

        self._predict = tf.function(predict, input_signature=[image])

    def predict(self, images: np.ndarray) -> np.ndarray:
        """(n, y, x, 1 + classes) of normalized pictures (n, patch_px, patch_px)."""
        return np.asarray(self._predict(images).numpy())

    def run_block(self, draw: Draw, block: int, shard: int) -> float:
        """Train the steps of a block from the state that was restored; returns the mean loss.

        Raises UserError if the loss is not finite any more.
        """
        options = self.options
        rng = np.random.default_rng([options.seed, block, shard])
        losses = []
        for step in range(options.last_step(block), options.last_step(block + 1)):
            images, targets = zip(*(draw(rng) for _ in range(options.batch_size)), strict=True)
            self._optimizer.learning_rate.assign(options.rate(step, options.learning_rate))
            loss = float(self._step(np.stack(images), np.stack(targets)))
            if not np.isfinite(loss):
                raise UserError(f"mask-train: the loss is {loss} at step {step}; give a smaller params.learning_rate")
            losses.append(loss)
        return float(np.mean(losses))
