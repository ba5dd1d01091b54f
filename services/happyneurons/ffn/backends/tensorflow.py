"""Steps of the network by TensorFlow, on CPU (or a GPU where TensorFlow finds one)."""

from __future__ import annotations

import importlib.util

from happyneurons.ffn.architecture import Architecture
from happyneurons.ffn.canvas import Step
from happyneurons.ffn.model import Model


def unavailable(architecture: Architecture) -> str:
    if importlib.util.find_spec("tensorflow") is None:
        return "TensorFlow is not installed: pip install 'happyneurons[ffn]'"
    return ""


def make_step(model: Model, threads: int) -> Step:
    from happyneurons.ffn.network import Predictor

    return Predictor(model.architecture, model.weights, threads=threads)
