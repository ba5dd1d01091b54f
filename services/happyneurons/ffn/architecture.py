"""What a flood-filling network looks like, and the normalization its input had in training."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from happyneurons.errors import UserError
from happyneurons.store.triples import Triple


class Architecture(BaseModel):
    """Residual 3D convolutions at one resolution: `depth` modules of two 3×3×3 convolutions.

    The first module has no skip connection; a 1×1×1 convolution makes the update of the logits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    depth: int = Field(default=6, ge=2, le=32, description="Number of modules, the first one included")
    features: int = Field(default=16, ge=1, le=256, description="Channels between the convolutions")
    fov_zyx: Triple = Field(default=(21, 21, 21), description="Field of view, voxels, odd numbers")
    deltas_zyx: Triple = Field(default=(6, 6, 6), description="Step of the field of view, voxels; below half of it")
    image_mean: float = Field(default=128.0, description="Grey value that becomes 0")
    image_stddev: float = Field(default=33.0, gt=0, description="Grey values that become 1")

    @field_validator("fov_zyx")
    @classmethod
    def _odd(cls, value: Triple) -> Triple:
        if any(v < 3 or v % 2 == 0 for v in value):
            raise ValueError("must be odd numbers of 3 or more")
        return value

    @field_validator("deltas_zyx")
    @classmethod
    def _inside(cls, value: Triple, info: Any) -> Triple:
        fov = info.data.get("fov_zyx")
        if (
            any(v < 0 for v in value)
            or not any(value)
            or (fov and any(d > f // 2 for d, f in zip(value, fov, strict=True)))
        ):
            raise ValueError("must be at least 0, at most half the field of view, and not all 0")
        return value

    def normalize(self, image: np.ndarray) -> np.ndarray:
        """float32 input of the network from grey values."""
        return (image.astype(np.float32) - np.float32(self.image_mean)) / np.float32(self.image_stddev)


def layer_names(depth: int) -> list[str]:
    """Names of the convolutions in the order they are applied."""
    return [f"conv{i}_{part}" for i in range(depth) for part in "ab"] + ["conv_lom"]


def weight_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Shape of every variable: kernels (z, y, x, in, out) and biases (out,)."""
    f = architecture.features
    shapes: dict[str, tuple[int, ...]] = {}
    for name in layer_names(architecture.depth):
        if name == "conv_lom":
            shapes[f"{name}/weights"], shapes[f"{name}/biases"] = (1, 1, 1, f, 1), (1,)
        else:
            shapes[f"{name}/weights"] = (3, 3, 3, 2 if name == "conv0_a" else f, f)
            shapes[f"{name}/biases"] = (f,)
    return shapes


def infer_architecture(weights: dict[str, np.ndarray], **settings: Any) -> Architecture:
    """Depth and features from the variables' shapes; the rest from `settings` (see Architecture).

    Raises UserError if the variables are not those of such a network.
    """
    kernel = weights.get("conv0_a/weights")
    if kernel is None or kernel.ndim != 5:
        raise UserError(
            "model: it has no 3D convolution conv0_a; only flood-filling networks of the ConvStack3D kind can be used"
        )
    depth = 0
    while f"conv{depth}_a/weights" in weights:
        depth += 1
    architecture = Architecture(depth=depth, features=int(kernel.shape[-1]), **settings)
    check_weights(architecture, weights)
    return architecture


def check_weights(architecture: Architecture, weights: dict[str, np.ndarray]) -> None:
    """Raise UserError unless every variable of the network is there with its shape."""
    for name, shape in weight_shapes(architecture).items():
        found = weights.get(name)
        if found is None:
            raise UserError(f"model: variable {name} is missing")
        if tuple(found.shape) != shape:
            raise UserError(f"model: variable {name} has shape {tuple(found.shape)}, expected {shape}")


def initial_weights(architecture: Architecture, seed: int) -> dict[str, np.ndarray]:
    """Random weights for training from scratch.

    Second convolutions of the modules start small, so that each module starts near the identity,
    and the last one at zero: the first prediction is the seed itself.
    """
    rng = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}
    for name, shape in weight_shapes(architecture).items():
        if name.endswith("biases") or name.startswith("conv_lom"):
            weights[name] = np.zeros(shape, np.float32)
            continue
        scale = np.sqrt(2.0 / float(np.prod(shape[:-1])))
        if name.split("/")[0].endswith("_b") and not name.startswith("conv0"):
            scale /= np.sqrt(architecture.depth)
        weights[name] = (scale * rng.standard_normal(shape)).astype(np.float32)
    return weights
