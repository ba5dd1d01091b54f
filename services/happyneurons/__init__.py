"""HAPPYNeurons: from raw electron microscope tiles to neurons, with one job interface everywhere."""

from happyneurons._version import __version__

__all__ = ["__version__"]
