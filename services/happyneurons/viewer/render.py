"""A picture of neurons without a browser."""

from __future__ import annotations

from pathlib import Path

from happyneurons.errors import UserError
from happyneurons.store.artifacts import Artifact


def render_neurons(
    mesh_layer: Artifact, path: Path, *, count: int = 20, width_px: int = 1024, height_px: int = 768
) -> list[int]:
    """Draw the `count` largest segments of a mesh layer into a PNG file; returns their ids.

    Takes some seconds of one core: see :mod:`happyneurons.stages.preview.neurons`.
    """
    from happyneurons.stages.preview.neurons import neurons_picture
    from happyneurons.stages.preview.png import png

    if mesh_layer.kind != "mesh_layer":
        raise UserError(f"{mesh_layer.uri}: expected a mesh_layer to draw, found a {mesh_layer.kind}")
    picture, drawn = neurons_picture(mesh_layer, count, width_px, height_px)
    path.write_bytes(png(picture))
    return list(drawn)
