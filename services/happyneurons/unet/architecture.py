"""The shape of a U-Net (Ronneberger, Fischer, Brox, "U-Net", MICCAI 2015), without a library that computes it.

Squares of `stem_px` pixels become channels before the first convolution, and the last one gives the classes of
as many pixels (sub-pixel convolution, Shi et al., CVPR 2016): masks are as fine as the picture, at a quarter
of the work. Processors compute many channels of few pixels much faster than few channels of many.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator


class Architecture(BaseModel):
    """What weights are made for. classes: names of what is looked for, background not among them."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    classes: tuple[str, ...] = Field(("object",), min_length=1, max_length=254)
    depth: int = Field(3, ge=1, le=6, description="How often the picture is halved")
    features: int = Field(24, ge=1, le=256, description="Channels before the first halving; they double with each")
    stem_px: int = Field(2, ge=1, le=8, description="So many pixels a side make one of the network's")
    image_mean: float = 0.0
    image_stddev: float = Field(1.0, gt=0)

    @field_validator("classes")
    @classmethod
    def _different(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) != len(names):
            raise ValueError("two classes have the same name")
        return names

    @property
    def multiple_px(self) -> int:
        """Sides of a picture are multiples of this."""
        return self.stem_px << self.depth

    @property
    def reach_px(self) -> int:
        """How far away a pixel may lie that counts in the decision on another one.

        Two convolutions 3 x 3 before each halving, two at the bottom and two after each doubling; a pixel of the
        level l is 2**l px wide, and halving looks one of its pixels further.
        """
        around = 2 * sum((2 + 1) << level for level in range(self.depth)) + (2 << self.depth)
        return self.stem_px * (around + 1)

    def normalize(self, image: np.ndarray) -> NDArray[np.float32]:
        """Grey values as the network wants them, float32 of the same shape."""
        return ((image.astype(np.float32) - self.image_mean) / self.image_stddev).astype(np.float32)


def layer_names(depth: int) -> list[str]:
    """Names of the layers with variables, from the picture to the classes."""
    names = [f"down{level}_{half}" for level in range(depth) for half in "ab"]
    names += ["bottom_a", "bottom_b"]
    for level in reversed(range(depth)):
        names += [f"up{level}", f"up{level}_a", f"up{level}_b"]
    return [*names, "classes"]


def weight_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Shapes of all variables by name, as Keras lays them out: kernels (y, x, in, out).

    Each convolution but the last is followed by a batch normalization with four variables.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def convolution(name: str, inputs: int, outputs: int) -> None:
        shapes[f"{name}/kernel"] = (3, 3, inputs, outputs)
        for variable in ("gamma", "beta", "moving_mean", "moving_variance"):
            shapes[f"{name}_norm/{variable}"] = (outputs,)

    depth, features = architecture.depth, architecture.features
    squared = architecture.stem_px**2
    channels = squared
    for level in range(depth):
        convolution(f"down{level}_a", channels, features << level)
        convolution(f"down{level}_b", features << level, features << level)
        channels = features << level
    convolution("bottom_a", channels, features << depth)
    convolution("bottom_b", features << depth, features << depth)
    for level in reversed(range(depth)):
        n = features << level
        shapes[f"up{level}/kernel"] = (2, 2, n, 2 * n)
        shapes[f"up{level}/bias"] = (n,)
        convolution(f"up{level}_a", 2 * n, n)
        convolution(f"up{level}_b", n, n)
    count = squared * (len(architecture.classes) + 1)
    shapes["classes/kernel"], shapes["classes/bias"] = (1, 1, features, count), (count,)
    return shapes


def initial_weights(architecture: Architecture, seed: int, shares: Sequence[float] = ()) -> dict[str, np.ndarray]:
    """Random weights for training from scratch (He et al., ICCV 2015), the same for the same seed.

    shares: how frequent background and each class are; the first predictions then have these frequencies.
    """
    rng = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}
    for name, shape in weight_shapes(architecture).items():
        if name.endswith("kernel"):
            inputs = shape[3] if name.startswith("up") and "_" not in name else int(np.prod(shape[:3]))
            weights[name] = (np.sqrt(2.0 / inputs) * rng.standard_normal(shape)).astype(np.float32)
        elif name.endswith(("gamma", "moving_variance")):
            weights[name] = np.ones(shape, np.float32)
        else:
            weights[name] = np.zeros(shape, np.float32)
    weights["classes/kernel"] *= np.float32(0.1)
    if len(shares):
        bias = np.log(np.maximum(np.asarray(shares, np.float64), 1e-3)).astype(np.float32)
        weights["classes/bias"] = np.tile(bias, architecture.stem_px**2)
    return weights
