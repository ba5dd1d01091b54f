"""HAPPYNeurons: from raw electron microscope tiles to neurons, with one job interface everywhere.

::

    import happyneurons as hpn

    client = hpn.connect("127.0.0.1:50051")          # an orchestrator
    run = client.submit("pipeline.yaml").wait()
    segmentation = run.open("reconcile.segmentation")  # or hpn.open(URI)
    segmentation[10, :, :]                             # (z, y, x)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from happyneurons._version import __version__

if TYPE_CHECKING:
    from happyneurons.client.client import Client, connect
    from happyneurons.client.pipeline import Pipeline
    from happyneurons.client.results import open_result as open

__all__ = ["Client", "Pipeline", "__version__", "connect", "open"]

# Imported when they are used: ranks and the command line start often, and need little.
_LAZY = {
    "Client": ("happyneurons.client.client", "Client"),
    "connect": ("happyneurons.client.client", "connect"),
    "Pipeline": ("happyneurons.client.pipeline", "Pipeline"),
    "open": ("happyneurons.client.results", "open_result"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    module, attribute = _LAZY[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
