"""Steps of the network by TensorFlow, on CPU (or a GPU where TensorFlow finds one)."""

from __future__ import annotations

from happyneurons.ffn.canvas import Step
from happyneurons.ffn.model import Model
from happyneurons.ffn.network import Predictor


def make_step(model: Model, threads: int) -> Step:
    return Predictor(model.architecture, model.weights, threads=threads)
