"""The files of a model: `model.json` (format, version, architecture, training) and `weights.npz` (float32 by name)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from pydantic import BaseModel

from happyneurons.errors import NotFoundError, UserError
from happyneurons.store.documents import Store


class Described(Protocol):
    """A network's weights, what they are made for, and where they came from."""

    @property
    def architecture(self) -> BaseModel: ...
    @property
    def weights(self) -> Mapping[str, np.ndarray]: ...
    @property
    def training(self) -> dict[str, Any]: ...


def describe_model(model: Described, format_name: str) -> dict[str, Any]:
    """What `model.json` holds."""
    return {
        "format": format_name,
        "version": 1,
        "architecture": model.architecture.model_dump(mode="json"),
        "training": model.training,
    }


def write_model(store: Store, model: Described, format_name: str) -> None:
    """Write both files, with the same bytes for the same model."""
    arrays = {name: np.ascontiguousarray(model.weights[name], np.float32) for name in sorted(model.weights)}
    store.put_arrays("weights.npz", **arrays)
    store.put_json("model.json", describe_model(model, format_name))


def read_model(store: Store) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(model.json, weights). Raises UserError if a file is missing."""
    try:
        return store.get_json("model.json"), store.get_arrays("weights.npz")
    except NotFoundError as error:
        raise UserError(f"model {store.uri}: {error}") from None
