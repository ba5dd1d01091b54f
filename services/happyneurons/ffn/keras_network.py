"""The flood-filling network in Keras 3, on whatever Keras runs on (KERAS_BACKEND: tensorflow, jax, torch).

Input: channel 0 the normalized image, channel 1 the seed (the object mask so far, as logits).
Output: the seed plus the network's update, as logits. Importing this module imports Keras and what it runs on.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from happyneurons.ffn.architecture import Architecture, check_weights, layer_names


def build_network(architecture: Architecture, weights: dict[str, np.ndarray] | None = None) -> Any:
    """Keras model (batch, z, y, x, 2) → logits (batch, z, y, x, 1), any spatial shape.

    ReLU follows every first convolution of a module and comes before each residual module and the
    last convolution; none follows the second convolutions.
    """
    layers = {
        name: keras.layers.Conv3D(
            1 if name == "conv_lom" else architecture.features,
            1 if name == "conv_lom" else 3,
            padding="same",
            activation="relu" if name.endswith("_a") else None,
            name=name,
        )
        for name in layer_names(architecture.depth)
    }
    inputs = keras.Input((None, None, None, 2), name="image_and_seed")
    net = layers["conv0_b"](layers["conv0_a"](inputs))
    for i in range(1, architecture.depth):
        update = keras.layers.ReLU()(net)
        net = net + layers[f"conv{i}_b"](layers[f"conv{i}_a"](update))
    logits = inputs[..., 1:] + layers["conv_lom"](keras.layers.ReLU()(net))
    network = keras.Model(inputs, logits)
    if weights is not None:
        set_weights(network, architecture, weights)
    return network


def freeze_modules(network: Any, modules: int) -> None:
    """Keep the first `modules` modules as they are in training; the convolution to the mask is always trained."""
    for i in range(modules):
        for half in "ab":
            network.get_layer(f"conv{i}_{half}").trainable = False


def set_weights(network: Any, architecture: Architecture, weights: dict[str, np.ndarray]) -> None:
    """Put variables named as in `weight_shapes` into the network. Raises UserError if one does not fit."""
    check_weights(architecture, weights)
    for name in layer_names(architecture.depth):
        network.get_layer(name).set_weights([weights[f"{name}/weights"], weights[f"{name}/biases"]])


def get_weights(network: Any, architecture: Architecture) -> dict[str, np.ndarray]:
    """The network's variables by name, as float32 arrays."""
    weights: dict[str, np.ndarray] = {}
    for name in layer_names(architecture.depth):
        kernel, bias = network.get_layer(name).get_weights()
        weights[f"{name}/weights"], weights[f"{name}/biases"] = kernel, bias
    return weights
