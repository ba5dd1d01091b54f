"""The stages. Any folder here with a `stage.py` is one; nothing else has to be registered.

Other packages add stages by the entry point group `happyneurons.stages` (name = "module:Class").
HPN_STAGES, names separated by commas, leaves only these: an image of a stage sets it.
"""

from __future__ import annotations

import importlib
import logging
import os
import pkgutil
from collections.abc import Iterator
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from happyneurons.errors import UserError
from happyneurons.jobs.stage import Stage

log = logging.getLogger("happyneurons.stages")


@cache
def _plugins() -> dict[str, EntryPoint]:
    return {e.name: e for e in entry_points(group="happyneurons.stages")}


@cache
def _own() -> frozenset[str]:
    return frozenset(m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__) if m.ispkg)


def stage_names() -> list[str]:
    """Names of all stages, sorted; the folder `ffn_train` is the stage `ffn-train`.

    Raises UserError if HPN_STAGES names one that is not installed.
    """
    installed = _own() | set(_plugins())
    wanted = {name.strip() for name in os.environ.get("HPN_STAGES", "").split(",")} - {""}
    if wanted - installed:
        missing = ", ".join(sorted(wanted - installed))
        raise UserError(f"HPN_STAGES names {missing}; there are {', '.join(sorted(installed))}")
    return sorted(wanted or installed)


def load_stage(name: str) -> type[Stage[Any]]:
    """The class of a stage. Raises UserError if there is none of that name."""
    if name not in stage_names():
        raise UserError(f"no stage named {name!r}; there are {', '.join(stage_names())}")
    return _stage_class(name)


@cache
def _stage_class(name: str) -> type[Stage[Any]]:
    if name in _plugins():
        stage: type[Stage[Any]] = _plugins()[name].load()
        return stage
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}.stage")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Stage) and value.__module__ == module.__name__
    ]
    if len(found) != 1 or found[0].name != name:
        raise TypeError(f"{module.__name__} must define exactly one Stage, named {name!r}")
    return found[0]


def loadable_stages() -> Iterator[type[Stage[Any]]]:
    """Classes of all stages, sorted by name; one that cannot be loaded is logged and left out."""
    for name in stage_names():
        try:
            yield load_stage(name)
        except Exception:  # a broken plug-in must not hide the others
            log.exception("stage %s cannot be loaded", name)
