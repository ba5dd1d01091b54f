"""A picture of skeletons: lines in their segments' colours, seen as the meshes are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from happyneurons.stages.preview.colors import color_of
from happyneurons.stages.preview.neurons import PAPER_RGB, VIEW_DEGREES, draw_scale, rotation
from happyneurons.store.artifacts import Artifact
from happyneurons.store.layers import open_skeletons
from happyneurons.store.skeletons import SkeletonLayer

SUPERSAMPLING = 2
Skeletons = Mapping[int, tuple[NDArray[Any], NDArray[Any]]]
"""Segment → (n, 3) vertices x y z in nm, (m, 2) edges."""


def read_skeletons(layer: Artifact, count: int) -> dict[int, tuple[NDArray[Any], NDArray[Any]]]:
    """The `count` largest skeletons of a layer; the first ones by id where sizes are not known."""
    largest = [int(v) for v in layer.properties.get("largest_segments") or []][:count]
    if largest:
        reader = open_skeletons(layer.data_uri)
        read = [(label, reader.get(label)) for label in largest]
        return {n: (np.asarray(s.vertices, np.float64), np.asarray(s.edges, np.int64)) for n, s in read}
    folder = SkeletonLayer(layer.store())
    names = folder.names()[:count]
    numbers = [int(name) if name.isdecimal() else place for place, name in enumerate(names, start=1)]
    found = {number: folder.read(name) for number, name in zip(numbers, names, strict=True)}
    return {number: (s.vertices_nm, s.edges) for number, s in found.items()}


def render_skeletons(
    skeletons: Skeletons, *, width_px: int, height_px: int, view_degrees: tuple[float, float] = VIEW_DEGREES
) -> NDArray[np.uint8]:
    """(height, width, 3) RGB picture in orthographic projection, the nearest lines on top, with a scale bar."""
    from PIL import Image, ImageDraw

    w, h = width_px * SUPERSAMPLING, height_px * SUPERSAMPLING
    picture = Image.new("RGB", (w, h), PAPER_RGB)
    drawn = {label: part for label, part in skeletons.items() if len(part[1])}
    if not drawn:
        return np.asarray(picture.resize((width_px, height_px)))
    turn = rotation(*view_degrees)
    turned = {label: vertices @ turn.T for label, (vertices, _) in drawn.items()}
    everything = np.concatenate(list(turned.values()))
    low, high = everything.min(0), everything.max(0)
    px_per_nm = 0.9 * min(w / max(high[0] - low[0], 1), h / max(high[1] - low[1], 1))
    lines = []
    for label, points in turned.items():
        screen = (points[:, :2] - (low + high)[:2] / 2) * px_per_nm + np.array([w / 2, h / 2])
        ends = screen[drawn[label][1]]
        depth = points[drawn[label][1], 2].mean(axis=1)
        color = tuple(int(c) for c in color_of(np.array([label]))[0])
        lines += [(float(z), [tuple(p) for p in pair.tolist()], color) for z, pair in zip(depth, ends, strict=True)]
    draw = ImageDraw.Draw(picture)
    for _, pair, color in sorted(lines, key=lambda line: -line[0]):
        draw.line(pair, fill=color, width=3 * SUPERSAMPLING)
    small = picture.resize((width_px, height_px), Image.Resampling.BOX)
    draw_scale(small, px_per_nm / SUPERSAMPLING)
    return np.asarray(small)


def skeletons_picture(
    layer: Artifact, count: int, width_px: int, height_px: int
) -> tuple[NDArray[np.uint8], Sequence[int]]:
    """(picture, ids drawn) of a layer's largest skeletons."""
    skeletons = read_skeletons(layer, count)
    return render_skeletons(skeletons, width_px=width_px, height_px=height_px), sorted(skeletons)
