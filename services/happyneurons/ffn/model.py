"""Model artifacts: our own files, and TensorFlow 1 checkpoints of google/ffn.

Ours is a folder with `model.json` (`{"format": "happyneurons-ffn", "version": 1, "architecture":
{…}, "training": {…}}`) and `weights.npz` (variables named `conv0_a/weights`, … as float32).
Checkpoints hold the same variables under `seed_update/`; their field of view and normalization are
not in the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import ValidationError

from happyneurons.errors import UserError
from happyneurons.ffn.architecture import Architecture, check_weights, infer_architecture
from happyneurons.ffn.tensor_bundle import BundleError, TensorBundle
from happyneurons.store.documents import Store
from happyneurons.training.artifact import describe_model, read_model, write_model

FORMAT = "happyneurons-ffn"
CHECKPOINT_DEFAULTS: Mapping[str, Any] = {
    "fov_zyx": (33, 33, 33), "deltas_zyx": (8, 8, 8), "image_mean": 128.0, "image_stddev": 33.0,
}  # fmt: skip
"""What Google's published FIB-25 network was trained with."""


@dataclass(frozen=True)
class Model:
    architecture: Architecture
    weights: dict[str, np.ndarray]
    training: dict[str, Any] = field(default_factory=dict)


def load_model(data_uri: str, **overrides: Any) -> Model:
    """Load a `model` artifact by its data URI: a folder, or `ckpt://PREFIX`.

    overrides: fields of Architecture that differ from the model's own (fov_zyx, deltas_zyx,
    image_mean, image_stddev). Raises UserError if it is not a model, or does not fit.
    """
    try:
        if data_uri.startswith("ckpt://"):
            weights = read_checkpoint(data_uri.removeprefix("ckpt://"))
            return Model(infer_architecture(weights, **{**CHECKPOINT_DEFAULTS, **overrides}), weights)
        return _load_folder(Store(data_uri), overrides)
    except ValidationError as error:
        problem = error.errors()[0]
        raise UserError(f"model {data_uri}: {'.'.join(str(p) for p in problem['loc'])}: {problem['msg']}") from None


def _load_folder(store: Store, overrides: dict[str, Any]) -> Model:
    document, weights = read_model(store)
    if document.get("format") != FORMAT or document.get("version") != 1:
        raise UserError(f"model {store.uri}: model.json is not of format {FORMAT} version 1")
    architecture = Architecture.model_validate({**document["architecture"], **overrides})
    check_weights(architecture, weights)
    return Model(architecture, weights, document.get("training", {}))


def save_model(store: Store, model: Model) -> None:
    """Write `weights.npz` and `model.json`, with the same bytes for the same model."""
    check_weights(model.architecture, model.weights)
    write_model(store, model, FORMAT)


def describe(model: Model) -> dict[str, Any]:
    """What `model.json` holds."""
    return describe_model(model, FORMAT)


def read_checkpoint(prefix: str) -> dict[str, np.ndarray]:
    """Variables of a google/ffn TensorFlow 1 checkpoint, without their `seed_update/` scope.

    Kernels have the layout (z, y, x, in, out), which is Keras's own.
    """
    scope = "seed_update/"
    try:
        bundle = TensorBundle(prefix)
        names = sorted(n for n in bundle.entries if n.startswith(scope) and n.endswith(("/weights", "/biases")))
        weights = {name.removeprefix(scope): bundle[name] for name in names}
    except (BundleError, OSError) as error:
        raise UserError(f"model ckpt://{prefix}: not a readable TensorFlow checkpoint: {error}") from None
    if not weights:
        raise UserError(f"model ckpt://{prefix}: no variables under {scope}; it is not a flood-filling network")
    return weights
