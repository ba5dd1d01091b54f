"""A shaded picture of neurons, drawn by a z-buffer in numpy: no browser, no graphics card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from happyneurons.stages.preview.colors import color_of
from happyneurons.store.artifacts import Artifact
from happyneurons.store.layers import open_meshes

Meshes = Mapping[int, tuple[NDArray[Any], NDArray[Any]]]
MESH_BYTES = 8 << 20  # encoded; of larger objects a coarser level is drawn
SUPERSAMPLING = 2
BATCH_PX = 2_000_000  # pixels of triangles' boxes drawn in one go: bounds the memory
PAPER_RGB = (250, 250, 252)
# Seen from the side and a little from above, z of the volume upwards.
VIEW_DEGREES = (-60.0, 25.0)


def read_meshes(layer: Artifact, count: int) -> dict[int, tuple[NDArray[Any], NDArray[Any]]]:
    """Meshes of the `count` largest segments of a layer: id → (vertices in nm, faces)."""
    reader = open_meshes(layer.data_uri)
    meshes = {}
    for label in [int(v) for v in layer.properties.get("largest_segments", [])][:count]:
        sizes = [int(np.sum(s)) for s in reader.get_manifest(label).fragment_offsets]
        level = next((i for i, size in enumerate(sizes) if size <= MESH_BYTES), len(sizes) - 1)
        mesh = reader.get(label, lod=level)[label]
        meshes[label] = (np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces, np.int64))
    return meshes


def render(
    meshes: Meshes, *, width_px: int = 1024, height_px: int = 768, view_degrees: tuple[float, float] = VIEW_DEGREES
) -> NDArray[np.uint8]:
    """(height, width, 3) RGB picture of meshes in orthographic projection, with a scale bar.

    view_degrees: turn about the volume's z axis, and height of the eye above its xy plane. Colours are
    those of the segments everywhere; light comes from the eye's upper left.
    """
    w, h = width_px * SUPERSAMPLING, height_px * SUPERSAMPLING
    depth = np.full(w * h, np.inf, dtype=np.float32)
    rgb = np.tile(np.array(PAPER_RGB, dtype=np.float32), (w * h, 1))
    if not meshes:
        return _finish(rgb, depth, width_px, height_px, None)
    turn = rotation(*view_degrees)
    corners = np.array([(v.min(0), v.max(0)) for v, _ in meshes.values()], dtype=np.float64)
    centre = (corners[:, 0].min(0) + corners[:, 1].max(0)) / 2
    turned = {label: (v - centre) @ turn.T for label, (v, _) in meshes.items()}
    low = np.min([t.min(0) for t in turned.values()], axis=0)
    high = np.max([t.max(0) for t in turned.values()], axis=0)
    px_per_nm = 0.92 * min(w / max(high[0] - low[0], 1), h / max(high[1] - low[1], 1))
    middle = (low + high) / 2
    light = np.array([-0.45, -0.6, -0.66])
    span = max(float(high[2] - low[2]), 1.0)
    for label, (_, faces) in meshes.items():
        points = turned[label]
        normals = _vertex_normals(points, faces)
        screen = (points - middle) * px_per_nm + np.array([w / 2, h / 2, 0])
        facing = normals[:, 2:3]
        normals = np.where(facing > 0, -normals, normals)  # open surfaces are seen from inside, too
        diffuse = np.clip(normals @ (light / np.linalg.norm(light)), 0, 1)
        shine = np.clip(normals @ _half(light), 0, 1) ** 30
        fog = (points[:, 2] - low[2]) / span
        base = color_of(np.array([label]))[0].astype(np.float32)
        shade = (0.45 + 0.55 * diffuse)[:, None] * base + 70 * shine[:, None]
        shade = shade * (1 - 0.35 * fog[:, None]) + np.array(PAPER_RGB) * 0.35 * fog[:, None]
        _draw(screen.astype(np.float32), shade.astype(np.float32), faces, depth, rgb, w, h)
    return _finish(rgb, depth, width_px, height_px, px_per_nm / SUPERSAMPLING)


def rotation(azimuth: float, elevation: float) -> NDArray[np.float64]:
    """Rows: right, down and away from the eye, in volume coordinates; a right-handed frame: no mirroring."""
    a, e = np.deg2rad(azimuth), np.deg2rad(elevation)
    right = np.array([np.cos(a), np.sin(a), 0.0])
    away = np.array([-np.sin(a) * np.cos(e), np.cos(a) * np.cos(e), -np.sin(e)])
    return np.stack([right, np.cross(away, right), away])


def _half(light: NDArray[np.float64]) -> NDArray[np.float64]:
    half = light / np.linalg.norm(light) + np.array([0.0, 0.0, -1.0])
    return half / np.linalg.norm(half)


def _vertex_normals(points: NDArray[Any], faces: NDArray[Any]) -> NDArray[np.float64]:
    """Unit normals, each the mean of its triangles' by their areas."""
    a, b, c = (points[faces[:, i]] for i in range(3))
    face_normals = np.cross(b - a, c - a)
    normals = np.zeros_like(points, dtype=np.float64)
    for i in range(3):
        for axis in range(3):
            normals[:, axis] += np.bincount(faces[:, i], weights=face_normals[:, axis], minlength=len(points))
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return normals / np.where(length > 0, length, 1)


def _draw(
    screen: NDArray[np.float32], shade: NDArray[np.float32], faces: NDArray[Any],
    depth: NDArray[np.float32], rgb: NDArray[np.float32], w: int, h: int,
) -> None:  # fmt: skip
    """Draw triangles into the depth buffer and the picture, some thousand pixels' worth at a time."""
    corners = screen[faces]
    box = np.ptp(corners[..., :2], axis=1) + 1
    work = np.cumsum(box[:, 0] * box[:, 1])
    for part in np.split(faces, np.searchsorted(work, np.arange(BATCH_PX, work[-1], BATCH_PX)) if len(faces) else []):
        if len(part):
            _paint(screen[part], part, shade, depth, rgb, w, h)


def _paint(
    corners: NDArray[np.float32], faces: NDArray[Any], shade: NDArray[np.float32],
    depth: NDArray[np.float32], rgb: NDArray[np.float32], w: int, h: int,
) -> None:  # fmt: skip
    """All pixels whose centres lie in triangles: by rows, then by pixels of a row; the nearest stays."""
    x, y = corners[..., 0].astype(np.float64), corners[..., 1].astype(np.float64)
    row, owner = _ranges(np.clip(np.ceil(y.min(1) - 0.5), 0, h), np.clip(np.floor(y.max(1) - 0.5), -1, h - 1))
    left, right = np.full(len(row), np.inf), np.full(len(row), -np.inf)
    for i, j in ((0, 1), (1, 2), (2, 0)):
        y0, y1, x0, x1 = y[owner, i], y[owner, j], x[owner, i], x[owner, j]
        crosses = (np.minimum(y0, y1) <= row + 0.5) & (row + 0.5 <= np.maximum(y0, y1)) & (y0 != y1)
        at = x0 + (row + 0.5 - y0) * (x1 - x0) / np.where(crosses, y1 - y0, 1)
        left = np.where(crosses, np.minimum(left, at), left)
        right = np.where(crosses, np.maximum(right, at), right)
    left, right = np.clip(np.ceil(left - 0.5), 0, w), np.clip(np.floor(right - 0.5), -1, w - 1)
    column, span = _ranges(left, right)
    triangle, line = owner[span], row[span]
    weights = _barycentric(x[triangle], y[triangle], column + 0.5, line + 0.5)
    z = np.einsum("pk,pk->p", weights, corners[triangle][..., 2]).astype(np.float32)
    pixel = line * w + column
    np.minimum.at(depth, pixel, z)
    won = z == depth[pixel]
    pixel, weights, chosen = pixel[won], weights[won], faces[triangle[won]]
    rgb[pixel] = sum(weights[:, k : k + 1] * shade[chosen[:, k]] for k in range(3))


def _ranges(first: NDArray[Any], last: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All whole numbers of the ranges first..last, one after the other, and the range each belongs to."""
    begin = first.astype(np.int64)
    counts = np.maximum(last.astype(np.int64) - begin + 1, 0)
    owner = np.repeat(np.arange(len(begin)), counts)
    return np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner] + begin[owner], owner


def _barycentric(x: NDArray[Any], y: NDArray[Any], px: NDArray[Any], py: NDArray[Any]) -> NDArray[np.float64]:
    """Weights (n, 3) of triangle corners x, y (n, 3) at points px, py (n,)."""
    area = (x[:, 1] - x[:, 0]) * (y[:, 2] - y[:, 0]) - (x[:, 2] - x[:, 0]) * (y[:, 1] - y[:, 0])
    area = np.where(area == 0, 1, area)
    b = ((px - x[:, 0]) * (y[:, 2] - y[:, 0]) - (x[:, 2] - x[:, 0]) * (py - y[:, 0])) / area
    c = ((x[:, 1] - x[:, 0]) * (py - y[:, 0]) - (px - x[:, 0]) * (y[:, 1] - y[:, 0])) / area
    return np.stack([1 - b - c, b, c], axis=1)


def _finish(
    rgb: NDArray[np.float32], depth: NDArray[np.float32], width: int, height: int, px_per_nm: float | None
) -> NDArray[np.uint8]:
    """Contours at jumps of depth, supersampling undone, scale bar."""
    from PIL import Image

    s = SUPERSAMPLING
    image, z = rgb.reshape(height * s, width * s, 3), depth.reshape(height * s, width * s)
    if px_per_nm is not None:
        solid = np.where(np.isfinite(z), z, np.float32(1e6))
        jump = np.zeros(z.shape, dtype=bool)
        threshold = 24 * s
        jump[1:] |= np.abs(np.diff(solid, axis=0)) > threshold
        jump[:, 1:] |= np.abs(np.diff(solid, axis=1)) > threshold
        image = np.where(jump[..., None], image * 0.55, image)
    small = image.reshape(height, s, width, s, 3).mean(axis=(1, 3))
    picture = Image.fromarray(np.clip(np.rint(small), 0, 255).astype(np.uint8))
    if px_per_nm is not None:
        draw_scale(picture, px_per_nm)
    return np.asarray(picture)


def draw_scale(picture: Any, px_per_nm: float) -> None:
    """Draw a bar of a round length into the lower left corner of a Pillow image."""
    from PIL import ImageDraw, ImageFont

    width, height = picture.size
    length_nm = _round_length(width / 5 / px_per_nm)
    bar = round(length_nm * px_per_nm)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((20, height - 26, 20 + bar, height - 22), fill=(40, 40, 40))
    text = f"{length_nm / 1000:g} µm" if length_nm >= 1000 else f"{length_nm:g} nm"
    draw.text((20, height - 46), text, fill=(40, 40, 40), font=ImageFont.load_default(15))


def _round_length(length_nm: float) -> float:
    """The greatest of 1, 2, 5 · 10^n that is not above."""
    power = 10.0 ** np.floor(np.log10(length_nm))
    return float(max(f * power for f in (1, 2, 5) if f * power <= length_nm))


def neurons_picture(
    layer: Artifact, count: int, width_px: int, height_px: int
) -> tuple[NDArray[np.uint8], Sequence[int]]:
    """(picture, ids drawn) of a layer's largest segments."""
    meshes = read_meshes(layer, count)
    return render(meshes, width_px=width_px, height_px=height_px), sorted(meshes)
