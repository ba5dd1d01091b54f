"""A plain evaluation of the network in float64, which every other one is compared with."""

from __future__ import annotations

import numpy as np

from happyneurons.ffn.architecture import Architecture, initial_weights


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
