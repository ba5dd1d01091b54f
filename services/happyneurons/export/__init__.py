"""Meshes and skeletons as files of other programs: OBJ, PLY and SWC, one for each segment."""

from happyneurons.export.exporting import Exported, export_layer
from happyneurons.export.layers import Layer, find_layer, open_layer

__all__ = ["Exported", "Layer", "export_layer", "find_layer", "open_layer"]
