"""Colours of segments: the same id has the same colour in every picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BACKGROUND_ALPHA = 0.0


def hash_ids(ids: np.ndarray) -> NDArray[np.uint64]:
    """Well mixed 64 bits of each id (the finalizer of SplitMix64; Steele et al., 2014)."""
    with np.errstate(over="ignore"):
        h = np.asarray(ids).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return h ^ (h >> np.uint64(31))


def color_of(ids: np.ndarray) -> NDArray[np.uint8]:
    """(…, 3) RGB of ids: bright hues, black for 0."""
    h = hash_ids(ids)
    hue = (h & np.uint64(0xFFFF)).astype(np.float64) / 65536 * 6
    saturation = 0.55 + 0.4 * ((h >> np.uint64(16)) & np.uint64(0xFF)).astype(np.float64) / 255
    value = 0.75 + 0.25 * ((h >> np.uint64(24)) & np.uint64(0xFF)).astype(np.float64) / 255
    channels = []
    for n in (5.0, 3.0, 1.0):  # HSV to RGB without branches
        k = (n + hue) % 6
        channels.append(value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1))
    rgb = np.stack(channels, axis=-1)
    rgb[np.asarray(ids) == 0] = 0
    return np.rint(rgb * 255).astype(np.uint8)


def overlay(grey: np.ndarray, labels: np.ndarray, alpha: float) -> NDArray[np.uint8]:
    """(h, w, 3) grey picture with its segments in colour and their borders drawn."""
    values, inverse = np.unique(labels, return_inverse=True)
    colors = color_of(values)[inverse.reshape(labels.shape)].astype(np.float32)
    base = np.repeat(grey[..., np.newaxis], 3, axis=2).astype(np.float32)
    inside = (labels != 0)[..., np.newaxis]
    mixed = np.where(inside, (1 - alpha) * base + alpha * colors, base)
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:-1] |= labels[:-1] != labels[1:]
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    mixed[edge] *= 0.6
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def colored(labels: np.ndarray) -> NDArray[np.uint8]:
    """(h, w, 3) picture of labels alone."""
    flat: NDArray[Any] = np.zeros(labels.shape, dtype=np.uint8)
    return overlay(flat, labels, 1.0)
