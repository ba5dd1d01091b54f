"""Backends: what computes a step of a network.

A backend NAME is the module NAME of this package with two functions, `unavailable(architecture) -> str` (why it
cannot be used here, empty if it can) and `make_step(model, threads) -> Step`
(see :class:`happyneurons.ffn.canvas.Step`). Another backend is one more such file.

Backends agree with one another up to rounding (logits to about 1e-5), not to the last bit: a voxel in a million may
fall on the other side of a threshold.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from happyneurons.errors import UserError

if TYPE_CHECKING:
    from happyneurons.ffn.architecture import Architecture
    from happyneurons.ffn.canvas import Step
    from happyneurons.ffn.model import Model

AUTO = "auto"


def backend_names() -> list[str]:
    """`auto`, and the names of the backends there are; imports none of them."""
    return [AUTO, *sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]))]


def known_backend(name: str) -> str:
    """The name. Raises ValueError if there is no backend of that name; for parameters."""
    if name not in backend_names():
        raise ValueError(f"must be one of {', '.join(backend_names())}")
    return name


def choose(backend: str, architecture: Architecture) -> str:
    """The backend that `backend` stands for on this machine.

    `auto`: TensorFlow where there is a GPU, else the Winograd kernels, else (not built) TensorFlow.
    Raises UserError if the one that was asked for cannot be used here.
    """
    if backend == AUTO:
        if _gpu():
            return "tensorflow"
        return "tensorflow" if _module("winograd").unavailable(architecture) else "winograd"
    reason = _module(backend).unavailable(architecture)
    if reason:
        raise UserError(f"params.backend {backend}: {reason}")
    return backend


def make_step(backend: str, model: Model, threads: int) -> Step:
    """A warm step function of the model, using `threads` threads. Raises UserError if it cannot be had here."""
    step: Step = _module(choose(backend, model.architecture)).make_step(model, threads)
    return step


def _module(backend: str) -> Any:
    return importlib.import_module(f"{__package__}.{backend}")


def _gpu() -> bool:
    """Whether an NVIDIA GPU is there and not hidden. Asking TensorFlow would cost ten seconds."""
    return os.path.exists("/dev/nvidiactl") and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")
