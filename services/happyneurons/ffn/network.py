"""The flood-filling network on TensorFlow: fast single steps, and Keras with TensorFlow below it.

Input: channel 0 the normalized image, channel 1 the seed (the object mask so far, as logits).
Output: the seed plus the network's update, as logits. Importing this module imports TensorFlow.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
# TensorFlow reports as an error that its graph optimizer could not fuse every residual addition.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from happyneurons.ffn.architecture import Architecture, check_weights
from happyneurons.ffn.keras_network import build_network, freeze_modules, get_weights, set_weights

__all__ = ["Predictor", "build_network", "freeze_modules", "get_weights", "keras", "set_weights", "tf", "use_threads"]


def use_threads(threads: int) -> None:
    """Limit TensorFlow to `threads` in this process; without effect once it has computed something."""
    with contextlib.suppress(RuntimeError):  # "cannot be modified after initialization"
        tf.config.threading.set_intra_op_parallelism_threads(max(1, threads))
        tf.config.threading.set_inter_op_parallelism_threads(1)


class Predictor:
    """Single steps of the network at its field of view: one traced function of fixed shape.

    Called as `predictor(image, seed)` with normalized image and seed logits, both float32 arrays
    (z, y, x) of shape `architecture.fov_zyx`; returns logits of that shape.
    """

    def __init__(self, architecture: Architecture, weights: dict[str, np.ndarray], *, threads: int = 1) -> None:
        use_threads(threads)
        self.architecture = architecture
        check_weights(architecture, weights)
        # Constants instead of variables: the graph optimizer may then lay the kernels out once.
        constants = {name: tf.constant(value, tf.float32) for name, value in weights.items()}
        depth = architecture.depth

        def convolve(net: Any, name: str) -> Any:
            net = tf.nn.conv3d(net, constants[f"{name}/weights"], (1, 1, 1, 1, 1), "SAME")
            return tf.nn.bias_add(net, constants[f"{name}/biases"])

        def step(image: Any, seed: Any) -> Any:
            net = tf.stack([image, seed], axis=-1)[tf.newaxis]
            net = convolve(tf.nn.relu(convolve(net, "conv0_a")), "conv0_b")
            for i in range(1, depth):
                net += convolve(tf.nn.relu(convolve(tf.nn.relu(net), f"conv{i}_a")), f"conv{i}_b")
            return seed + convolve(tf.nn.relu(net), "conv_lom")[0, ..., 0]

        patch = tf.TensorSpec(architecture.fov_zyx, tf.float32)
        self._step = tf.function(step, input_signature=[patch, patch]).get_concrete_function()
        zeros = np.zeros(architecture.fov_zyx, np.float32)
        self(zeros, zeros)  # the first call plans the convolutions

    def __call__(self, image: np.ndarray, seed: np.ndarray) -> np.ndarray:
        return np.asarray(self._step(tf.constant(image), tf.constant(seed)).numpy())
