"""Backends of the segment stage: what computes a step of the network.

A backend NAME is the module `NAME_backend.py` beside this file with one function,
`make_step(model, threads) -> Step` (see :class:`happyneurons.ffn.canvas.Step`). Another backend is
one more such file.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from happyneurons.ffn.canvas import Step
    from happyneurons.ffn.model import Model

_SUFFIX = "_backend"


def backend_names() -> list[str]:
    """Names of the backends there are; imports none of them."""
    modules = pkgutil.iter_modules([str(Path(__file__).parent)])
    return sorted(m.name.removesuffix(_SUFFIX) for m in modules if m.name.endswith(_SUFFIX))


def make_step(backend: str, model: Model, threads: int) -> Step:
    """A warm step function of the model, using `threads` threads."""
    module = importlib.import_module(f"{__package__}.{backend}{_SUFFIX}")
    step: Step = module.make_step(model, threads)
    return step
