"""The U-Net in Keras 3 on TensorFlow. Importing this module imports TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from happyneurons.ffn.network import keras, tf, use_threads
from happyneurons.unet.architecture import Architecture, weight_shapes

__all__ = ["Predictor", "build_network", "get_weights", "keras", "set_weights", "tf", "use_threads"]


def build_network(architecture: Architecture, weights: Mapping[str, np.ndarray] | None = None) -> Any:
    """Keras model (batch, y, x, 1), normalized → logits (batch, y, x, 1 + classes); y, x multiples of `multiple_px`."""
    layers = keras.layers

    def convolution(net: Any, name: str, outputs: int) -> Any:
        net = layers.Conv2D(outputs, 3, padding="same", use_bias=False, name=name)(net)
        # Few steps on few sections: statistics follow fast.
        net = layers.BatchNormalization(momentum=0.95, name=f"{name}_norm")(net)
        return layers.ReLU()(net)

    depth, features, stem = architecture.depth, architecture.features, architecture.stem_px
    inputs = keras.Input((None, None, 1), name="image")
    net, skips = layers.Lambda(lambda t: tf.nn.space_to_depth(t, stem))(inputs) if stem > 1 else inputs, []
    for level in range(depth):
        net = convolution(net, f"down{level}_a", features << level)
        net = convolution(net, f"down{level}_b", features << level)
        skips.append(net)
        net = layers.MaxPooling2D(2)(net)
    net = convolution(net, "bottom_a", features << depth)
    net = convolution(net, "bottom_b", features << depth)
    for level in reversed(range(depth)):
        net = layers.Conv2DTranspose(features << level, 2, strides=2, name=f"up{level}")(net)
        net = layers.Concatenate()([skips[level], net])
        net = convolution(net, f"up{level}_a", features << level)
        net = convolution(net, f"up{level}_b", features << level)
    net = layers.Conv2D(stem**2 * (len(architecture.classes) + 1), 1, name="classes")(net)
    network = keras.Model(inputs, layers.Lambda(lambda t: tf.nn.depth_to_space(t, stem))(net) if stem > 1 else net)
    if weights is not None:
        set_weights(network, architecture, weights)
    return network


def _variables(network: Any, architecture: Architecture) -> dict[str, Any]:
    found = {}
    for name in weight_shapes(architecture):
        layer, variable = name.split("/")
        found[name] = next(v for v in network.get_layer(layer).variables if v.name == variable)
    return found


def set_weights(network: Any, architecture: Architecture, weights: Mapping[str, np.ndarray]) -> None:
    """Put variables named as in `weight_shapes` into the network."""
    for name, variable in _variables(network, architecture).items():
        variable.assign(weights[name])


def get_weights(network: Any, architecture: Architecture) -> dict[str, np.ndarray]:
    """The network's variables by name, float32."""
    return {name: np.asarray(v.numpy()) for name, v in _variables(network, architecture).items()}


class Predictor:
    """`predictor(image)`: (y, x) normalized float32 of one fixed size → (1 + classes, y, x) float32 that add up to 1.

    Pictures are computed one by one, so that what else is computed changes no bit of one's result.
    """

    def __init__(self, architecture: Architecture, weights: Mapping[str, np.ndarray], size_px: int, threads: int = 1):
        use_threads(threads)
        network = build_network(architecture, weights)

        def predict(image: Any) -> Any:
            logits = network(image[tf.newaxis, :, :, tf.newaxis], training=False)[0]
            return tf.transpose(tf.nn.softmax(logits, axis=-1), (2, 0, 1))

        self._predict = tf.function(predict, input_signature=[tf.TensorSpec((size_px, size_px), tf.float32)])

    def __call__(self, image: np.ndarray) -> np.ndarray:
        return np.asarray(self._predict(tf.constant(image)).numpy())
