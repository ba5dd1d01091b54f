"""The network equals its definition, for our models and for Google's checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from happyneurons.errors import UserError
from happyneurons.ffn.architecture import Architecture, initial_weights
from happyneurons.ffn.model import Model, load_model, save_model
from happyneurons.store.documents import Store
from tests.ffn.networks import lively_weights, random_patch, reference


def test_google_checkpoint_gives_the_logits_of_an_independent_evaluation(fib25_checkpoint: str) -> None:
    from happyneurons.ffn.network import Predictor, build_network

    model = load_model(f"ckpt://{fib25_checkpoint}", fov_zyx=(9, 11, 7), deltas_zyx=(2, 2, 2))
    assert (model.architecture.depth, model.architecture.features) == (12, 32)
    image, seed = random_patch(model.architecture.fov_zyx)
    expected = reference(model.weights, 12, image, seed)
    np.testing.assert_allclose(Predictor(model.architecture, model.weights)(image, seed), expected, atol=2e-4)
    network = build_network(model.architecture, model.weights)
    keras_logits = network(np.stack([image, seed], axis=-1)[np.newaxis]).numpy()[0, ..., 0]
    np.testing.assert_allclose(keras_logits, expected, atol=2e-4)


def test_own_model_survives_the_store_with_equal_bytes(tmp_path: Path) -> None:
    from happyneurons.ffn.network import Predictor

    architecture = Architecture(depth=3, features=4, fov_zyx=(9, 9, 9), deltas_zyx=(2, 2, 2))
    model = Model(architecture, lively_weights(architecture))
    stores = [Store(str(tmp_path / name)) for name in "ab"]
    for store in stores:
        save_model(store, model)
    for path in ("model.json", "weights.npz"):
        assert stores[0].get(path) == stores[1].get(path)
    loaded = load_model(stores[0].uri)
    assert loaded.architecture == architecture
    image, seed = random_patch(architecture.fov_zyx)
    np.testing.assert_allclose(
        Predictor(loaded.architecture, loaded.weights)(image, seed), reference(model.weights, 3, image, seed), atol=1e-4
    )


def test_unusable_models_are_refused_with_a_reason(tmp_path: Path, fib25_checkpoint: str) -> None:
    architecture = Architecture(depth=3, features=4)
    weights = initial_weights(architecture, 1)
    store = Store(str(tmp_path / "model"))
    save_model(store, Model(architecture, weights))
    with pytest.raises(UserError, match="deltas_zyx"):
        load_model(store.uri, deltas_zyx=(11, 6, 6))
    del weights["conv2_b/biases"]
    store.put_arrays("weights.npz", **weights)
    with pytest.raises(UserError, match="conv2_b/biases is missing"):
        load_model(store.uri)
    with pytest.raises(UserError, match="no such document|weights|model.json"):
        load_model(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="not a readable TensorFlow checkpoint"):
        load_model(f"ckpt://{fib25_checkpoint}-typo")
