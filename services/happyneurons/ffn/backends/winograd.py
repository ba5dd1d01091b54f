"""Steps of the network by our own kernels in C++: Winograd convolutions for AVX-512, AVX2 or any other processor.

The libraries lie in `happyneurons/ffn/native`, built with the package where there is a compiler
(`native/winograd.hpp` tells the method). Compared with direct convolution they multiply 5.8 times less; the
logits differ by about 1e-5. AVX2 and AVX-512 give the same bits.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

import numpy as np

from happyneurons.errors import UserError
from happyneurons.ffn.architecture import Architecture, check_weights, layer_names
from happyneurons.ffn.canvas import Step
from happyneurons.ffn.model import Model

NATIVE = Path(__file__).parents[1] / "native"
INSTRUCTION_SETS = ("avx512", "avx2", "generic")
"""Best first."""
INSTRUCTION_SET_VARIABLE = "HPN_FFN_INSTRUCTION_SET"
"""Environment variable: use this one instead of the best that the processor has."""
_ABI = 1
_MAX_DEPTH, _MAX_THREADS = 64, 256


def unavailable(architecture: Architecture) -> str:
    if not usable_sets():
        return (
            f"its library was not built ({NATIVE}): install a C++ compiler and then the package again, "
            "or use the backend tensorflow"
        )
    if architecture.depth > _MAX_DEPTH:
        return f"it computes at most {_MAX_DEPTH} modules, the network has {architecture.depth}"
    return ""


def make_step(model: Model, threads: int) -> Step:
    return WinogradStep(model.architecture, model.weights, threads=threads)


@functools.cache
def usable_sets() -> dict[str, Any]:
    """The libraries that were built and that this processor can run, best first."""
    found = {}
    for name in INSTRUCTION_SETS:
        try:
            library = ctypes.CDLL(str(NATIVE / f"{name}.so"))
            if library.hpn_ffn_abi() != _ABI or not library.hpn_ffn_usable():
                continue
            library.hpn_ffn_new.restype = ctypes.c_void_p
            library.hpn_ffn_peak_flops.restype = ctypes.c_double
        except (OSError, AttributeError):  # not built, for another machine, or left over from an older build
            continue
        found[name] = library
    return found


def peak_flops() -> float:
    """Floating point operations a second that one thread of this processor can reach, by the best instruction set."""
    return float(_library(None)[1].hpn_ffn_peak_flops())


def _library(instruction_set: str | None) -> tuple[str, Any]:
    usable = usable_sets()
    wanted = instruction_set or os.environ.get(INSTRUCTION_SET_VARIABLE) or next(iter(usable), "")
    if wanted not in usable:
        raise UserError(
            f"backend winograd: {wanted or 'no library'} cannot be used here; there is: {', '.join(usable) or 'none'} "
            f"(variable {INSTRUCTION_SET_VARIABLE})"
        )
    return wanted, usable[wanted]


class WinogradStep:
    """Single steps of the network: `step(image, seed)`, float32 (z, y, x) of `architecture.fov_zyx` → logits.

    One instance is for one thread of the caller; it computes with `threads` of its own.
    instruction_set: one of INSTRUCTION_SETS; default: the best that the processor has.
    Raises UserError if the library is not there, MemoryError if there is no memory for the network.
    """

    def __init__(
        self,
        architecture: Architecture,
        weights: dict[str, np.ndarray],
        *,
        threads: int = 1,
        instruction_set: str | None = None,
    ) -> None:
        check_weights(architecture, weights)
        self.architecture = architecture
        self.instruction_set, self._library = _library(instruction_set)
        names = layer_names(architecture.depth)
        kernels = np.concatenate([weights[f"{n}/weights"].astype(np.float32).ravel() for n in names])
        biases = np.concatenate([weights[f"{n}/biases"].astype(np.float32).ravel() for n in names])
        self._net = ctypes.c_void_p(
            self._library.hpn_ffn_new(
                architecture.depth, architecture.features, (ctypes.c_int * 3)(*architecture.fov_zyx),
                min(max(1, threads), _MAX_THREADS), _pointer(kernels), _pointer(biases),
            )
        )  # fmt: skip
        if self._net.value is None:
            raise MemoryError(f"no memory for a network of {architecture.features} features at {architecture.fov_zyx}")

    def __call__(self, image: np.ndarray, seed: np.ndarray) -> np.ndarray:
        fov = self.architecture.fov_zyx
        if image.shape != fov or seed.shape != fov:
            raise ValueError(f"image {image.shape} and seed {seed.shape} must have the field of view's shape {fov}")
        image, seed = np.ascontiguousarray(image, np.float32), np.ascontiguousarray(seed, np.float32)
        logits = np.empty(fov, np.float32)
        if self._library.hpn_ffn_step(self._net, _pointer(image), _pointer(seed), _pointer(logits)):
            raise OSError("the threads of the network could not be started: the limit of processes is reached")
        return logits

    def __del__(self) -> None:
        if hasattr(self, "_net"):
            self._library.hpn_ffn_free(self._net)


def _pointer(array: np.ndarray) -> Any:
    return array.ctypes.data_as(ctypes.c_void_p)
