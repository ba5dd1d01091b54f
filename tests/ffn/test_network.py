"""The network equals its definition, for our models and for Google's checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from happyneurons.errors import UserError
from happyneurons.ffn.architecture import Architecture, initial_weights
from happyneurons.ffn.model import Model, load_model, save_model
from happyneurons.store.documents import Store


def convolve(net: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Zero-padded correlation of (z, y, x, in) with (z, y, x, in, out), in float64, one tap at a time."""
    half = kernel.shape[0] // 2
    padded = np.pad(net, [(half, half)] * 3 + [(0, 0)])
    out = np.zeros((*net.shape[:3], kernel.shape[-1])) + bias
    for dz, dy, dx in np.ndindex(*kernel.shape[:3]):
        part = padded[dz : dz + net.shape[0], dy : dy + net.shape[1], dx : dx + net.shape[2]]
        out += part @ kernel[dz, dy, dx]
    return out


def reference(weights: dict[str, np.ndarray], depth: int, image: np.ndarray, seed: np.ndarray) -> np.ndarray:
    def layer(net: np.ndarray, name: str) -> np.ndarray:
        return convolve(net, weights[f"{name}/weights"].astype(np.float64), weights[f"{name}/biases"])

    def relu(net: np.ndarray) -> np.ndarray:
        return np.maximum(net, 0)

    net = np.stack([image, seed], axis=-1).astype(np.float64)
    net = layer(relu(layer(net, "conv0_a")), "conv0_b")
    for i in range(1, depth):
        net = net + layer(relu(layer(relu(net), f"conv{i}_a")), f"conv{i}_b")
    return np.asarray(seed + layer(relu(net), "conv_lom")[..., 0])


def random_patch(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    return rng.standard_normal(shape, dtype=np.float32), 3 * rng.standard_normal(shape, dtype=np.float32)


def lively_weights(architecture: Architecture) -> dict[str, np.ndarray]:
    weights = initial_weights(architecture, 3)
    rng = np.random.default_rng(4)
    return {k: v + rng.normal(0, 0.05, v.shape).astype(np.float32) for k, v in weights.items()}


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
