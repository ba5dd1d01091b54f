"""Training a flood-filling network, in blocks that can be resumed.

Each block of steps draws its random numbers from (seed, block) and starts with new patches, so that
a checkpoint needs nothing but variables, optimizer state and history: a training that was killed
and resumed ends with the same bytes as an undisturbed one (same machine, same thread count).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from happyneurons.ffn.architecture import Architecture, initial_weights
from happyneurons.ffn.augmentation import Augmentation
from happyneurons.ffn.examples import Patch, PatchSource, Walker, logit
from happyneurons.ffn.sampling import TrainingVolume
from happyneurons.store.documents import Store

CHECKPOINT = "checkpoint.json"


class TrainingOptions(BaseModel):
    """How a network is trained; parameters of the stage ffn-train."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    steps: int = Field(5000, ge=1, description="Optimizer steps, at most")
    batch_size: int = Field(8, ge=1, le=1024, description="Fields of view in a step")
    learning_rate: float = Field(1e-3, gt=0, le=1, description="Adam's, at its highest; it falls along a cosine to 2 %")
    warmup_steps: int = Field(100, ge=0, description="Steps over which the learning rate rises from 0")
    gradient_clip: float = Field(1.0, gt=0, description="Largest norm of the gradient of all variables together")
    fov_moves: int = Field(
        1, ge=0, le=4, description="Moves of the field of view in each direction within a training patch"
    )
    seed: int = Field(1, ge=0, description="Of all random numbers")
    block_steps: int = Field(200, ge=1, description="Steps between checkpoints")
    validation_patches: int = Field(
        48, ge=1, le=10_000, description="Patches that the network is judged by after each block"
    )
    patience_blocks: int = Field(1000, ge=1, description="Stop after so many blocks without a better F1")
    minimum_gain: float = Field(0.0005, ge=0, le=1, description="What counts as better")


def learning_rate(options: TrainingOptions, step: int) -> float:
    """Linear rise, then half a cosine down to 2 % at the last step."""
    rise = min(1.0, (step + 1) / options.warmup_steps) if options.warmup_steps else 1.0
    fall = 0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * min(1.0, step / options.steps)))
    return float(options.learning_rate * rise * fall)


class Trainer:
    """A network, its optimizer and one traced training step."""

    def __init__(self, architecture: Architecture, weights: dict[str, np.ndarray], options: TrainingOptions) -> None:
        from happyneurons.ffn import network as net

        self.architecture, self.options = architecture, options
        self._net = net
        self.network = net.build_network(architecture, weights)
        self._optimizer = net.keras.optimizers.Adam(options.learning_rate, global_clipnorm=options.gradient_clip)
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

    def step(self, image: np.ndarray, seed: np.ndarray, target: np.ndarray, rate: float) -> tuple[float, np.ndarray]:
        """One optimizer step over arrays (batch, z, y, x). Returns the loss and the logits before it."""
        self._optimizer.learning_rate.assign(rate)
        loss, logits = self._step(np.stack([image, seed], axis=-1), target[..., np.newaxis])
        return float(loss), logits.numpy()[..., 0]

    def predict(self, image: np.ndarray, seed: np.ndarray) -> np.ndarray:
        """Logits of arrays (batch, z, y, x)."""
        return np.asarray(self._forward(np.stack([image, seed], axis=-1)).numpy()[..., 0])

    def weights(self) -> dict[str, np.ndarray]:
        return self._net.get_weights(self.network, self.architecture)

    def state(self) -> dict[str, np.ndarray]:
        """Everything a checkpoint needs, as arrays."""
        optimizer = {f"optimizer/{i:03d}": np.asarray(v.numpy()) for i, v in enumerate(self._optimizer.variables)}
        return {**self.weights(), **optimizer}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self._net.set_weights(self.network, self.architecture, state)
        for i, variable in enumerate(self._optimizer.variables):
            variable.assign(state[f"optimizer/{i:03d}"])


def train(
    architecture: Architecture,
    volumes: Sequence[TrainingVolume],
    options: TrainingOptions,
    augmentation: Augmentation,
    store: Store,
    *,
    validation: Sequence[TrainingVolume] | None = None,
    weights: dict[str, np.ndarray] | None = None,
    threads: int = 1,
    log: logging.Logger | None = None,
    after_block: Callable[[int], None] | None = None,
) -> tuple[dict[str, np.ndarray], list[dict[str, float]]]:
    """Train, or go on from the checkpoint in `store`. Returns the weights and a figure row for each block.

    validation: volumes for judging; the training volumes (without augmentation) if None.
    weights: where to start from; random ones if None.
    after_block: called with the step number after each checkpoint.
    """
    from happyneurons.ffn.network import use_threads

    use_threads(threads)
    trainer = Trainer(architecture, weights or initial_weights(architecture, options.seed), options)
    source = PatchSource(
        volumes, architecture, fov_moves=options.fov_moves, augmentation=augmentation, seed=options.seed
    )
    judge = PatchSource(
        validation or volumes, architecture, fov_moves=options.fov_moves, augmentation=None, seed=options.seed + 1
    )
    checkpoint = store.find_json(CHECKPOINT) or {"step": 0, "history": []}
    history: list[dict[str, float]] = checkpoint["history"]
    step = int(checkpoint["step"])
    if step:
        trainer.restore(store.get_arrays(_state_path(step)))
    while step < options.steps and not _saturated(history, options):
        block = step // options.block_steps
        last = min(step + options.block_steps, options.steps)
        loss = _run_block(trainer, source, options, block, range(step, last))
        figures = validate(trainer, judge, options)
        history = [*history, {"step": float(last), "loss": loss, **figures}]
        store.put_arrays(_state_path(last), **trainer.state())
        store.put_json(CHECKPOINT, {"step": last, "history": history})
        if step:
            store.delete(_state_path(step))
        step = last
        if log:
            log.info(
                "step %d of %d: %s", step, options.steps, ", ".join(f"{k} {v:.4f}" for k, v in history[-1].items())
            )
        if after_block:
            after_block(step)
    return trainer.weights(), history


def _run_block(trainer: Trainer, source: PatchSource, options: TrainingOptions, block: int, steps: range) -> float:
    """Mean loss of a block of steps."""
    rngs = [np.random.default_rng([options.seed, block, slot]) for slot in range(options.batch_size)]
    walkers = [Walker(trainer.architecture, lambda rng=rng: source.draw(rng)) for rng in rngs]  # type: ignore[misc]
    losses = []
    for step in steps:
        examples = [walker.next() for walker in walkers]
        image, seed, target = (np.stack(arrays) for arrays in zip(*[e for e in examples if e], strict=True))
        loss, logits = trainer.step(image, seed, target, learning_rate(options, step))
        for walker, predicted in zip(walkers, logits, strict=True):
            walker.update(predicted)
        losses.append(loss)
    return float(np.mean(losses))


def validate(trainer: Trainer, source: PatchSource, options: TrainingOptions) -> dict[str, float]:
    """Voxel accuracy, precision, recall and F1 of whole patches walked over as in inference."""
    rng = np.random.default_rng([options.seed, 2**31])
    patches = iter([source.draw(rng) for _ in range(options.validation_patches)])
    counts = np.zeros(4, np.int64)

    def finished(patch: Patch) -> None:
        mask = patch.seed >= logit(0.6)
        counts[:] += [
            (mask & patch.wanted).sum(),
            (mask & ~patch.wanted).sum(),
            (~mask & patch.wanted).sum(),
            (~mask & ~patch.wanted).sum(),
        ]

    walkers = [Walker(trainer.architecture, lambda: next(patches, None), finished) for _ in range(options.batch_size)]
    while walkers:
        pairs = [(walker, example) for walker in walkers if (example := walker.next()) is not None]
        walkers = [walker for walker, _ in pairs]
        if pairs:
            logits = trainer.predict(np.stack([e[0] for _, e in pairs]), np.stack([e[1] for _, e in pairs]))
            for (walker, _), predicted in zip(pairs, logits, strict=True):
                walker.update(predicted)
    right, wrong, missed, rest = (float(c) for c in counts)
    precision, recall = right / max(right + wrong, 1.0), right / max(right + missed, 1.0)
    f1 = 2 * right / max(2 * right + wrong + missed, 1.0)
    return {"accuracy": (right + rest) / max(counts.sum(), 1), "precision": precision, "recall": recall, "f1": f1}


def _saturated(history: list[dict[str, float]], options: TrainingOptions) -> bool:
    best, since = -1.0, 0
    for row in history:
        if row["f1"] > best + options.minimum_gain:
            best, since = row["f1"], 0
        else:
            since += 1
    return since >= options.patience_blocks


def _state_path(step: int) -> str:
    return f"checkpoints/{step:08d}.npz"
