"""Steps of the network by Keras 3, on TensorFlow, JAX or PyTorch: what the environment variable KERAS_BACKEND names.

For accelerators that one of the three knows; on a CPU the other backends are faster.
"""

from __future__ import annotations

import importlib.util
import os

import numpy as np

from happyneurons.ffn.architecture import Architecture
from happyneurons.ffn.canvas import Step
from happyneurons.ffn.model import Model

_PACKAGES = {"tensorflow": "tensorflow", "jax": "jax", "torch": "torch"}


def unavailable(architecture: Architecture) -> str:
    engine = os.environ.get("KERAS_BACKEND", "tensorflow")
    if engine not in _PACKAGES:
        return f"KERAS_BACKEND is {engine}; it must be one of {', '.join(_PACKAGES)}"
    for package in ("keras", _PACKAGES[engine]):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed (KERAS_BACKEND is {engine})"
    return ""


def make_step(model: Model, threads: int) -> Step:
    return KerasStep(model)


class KerasStep:
    """`step(image, seed)`, float32 (z, y, x) of the field of view → logits; compiled on the first call."""

    def __init__(self, model: Model) -> None:
        from happyneurons.ffn.keras_network import build_network

        self.architecture = model.architecture
        self._network = build_network(model.architecture, model.weights)
        zeros = np.zeros(model.architecture.fov_zyx, np.float32)
        self(zeros, zeros)

    def __call__(self, image: np.ndarray, seed: np.ndarray) -> np.ndarray:
        logits = self._network.predict_on_batch(np.stack([image, seed], axis=-1)[np.newaxis])
        return np.asarray(logits)[0, ..., 0]
