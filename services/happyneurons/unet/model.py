"""Model artifacts of U-Nets: `model.json` (`{"format": "happyneurons-unet", "version": 1, "architecture": {…},
"training": {…}}`) and `weights.npz` (variables named as in `weight_shapes`, float32)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import ValidationError

from happyneurons.errors import UserError
from happyneurons.store.documents import Store
from happyneurons.training.artifact import describe_model, read_model, write_model
from happyneurons.unet.architecture import Architecture, weight_shapes

FORMAT = "happyneurons-unet"


@dataclass(frozen=True)
class Model:
    """training: where it came from, among it `voxel_size_nm_xyz` if the training volumes said it."""

    architecture: Architecture
    weights: dict[str, np.ndarray]
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def voxel_size_nm_xyz(self) -> tuple[float, float, float] | None:
        size = self.training.get("voxel_size_nm_xyz")
        return None if size is None else (float(size[0]), float(size[1]), float(size[2]))


def load_model(data_uri: str) -> Model:
    """Load a `model` artifact of mask-train by its data URI. Raises UserError if it is not one, or not whole."""
    if data_uri.startswith("ckpt://"):
        raise UserError(f"model {data_uri}: a flood-filling network; masks need a model of the stage mask-train")
    store = Store(data_uri)
    document, weights = read_model(store)
    if document.get("format") != FORMAT or document.get("version") != 1:
        raise UserError(
            f"model {store.uri}: model.json is of format {document.get('format')}, version {document.get('version')}; "
            f"{FORMAT}, version 1 was expected: masks need a model of the stage mask-train"
        )
    try:
        architecture = Architecture.model_validate(document["architecture"])
    except ValidationError as error:
        problem = error.errors()[0]
        raise UserError(f"model {store.uri}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None
    check_weights(architecture, weights)
    return Model(architecture, weights, document.get("training", {}))


def check_weights(architecture: Architecture, weights: Mapping[str, np.ndarray]) -> None:
    """Raise UserError unless every variable of the network is there with its shape."""
    for name, shape in weight_shapes(architecture).items():
        found = weights.get(name)
        if found is None or tuple(found.shape) != shape:
            what = "missing" if found is None else f"of shape {tuple(found.shape)}, expected {shape}"
            raise UserError(f"model: variable {name} is {what}")


def save_model(store: Store, model: Model) -> None:
    """Write `weights.npz` and `model.json`, with the same bytes for the same model."""
    check_weights(model.architecture, model.weights)
    write_model(store, model, FORMAT)


def describe(model: Model) -> dict[str, Any]:
    """What `model.json` holds."""
    return describe_model(model, FORMAT)
