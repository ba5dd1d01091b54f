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
PAPER_RGB = (250, 250, 252)
# Which way x, y, z of the volume look: seen a little from above and from the side, z downwards.
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
    turn = _rotation(*view_degrees)
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
        shade = (0.35 + 0.65 * diffuse)[:, None] * base + 70 * shine[:, None]
        shade = shade * (1 - 0.35 * fog[:, None]) + np.array(PAPER_RGB) * 0.35 * fog[:, None]
        _draw(screen.astype(np.float32), shade.astype(np.float32), faces, depth, rgb, w, h)
    return _finish(rgb, depth, width_px, height_px, px_per_nm / SUPERSAMPLING)


def _rotation(azimuth: float, elevation: float) -> NDArray[np.float64]:
    """Rows: right, down and away from the eye, in volume coordinates."""
    a, e = np.deg2rad(azimuth), np.deg2rad(elevation)
    right = np.array([np.cos(a), np.sin(a), 0.0])
    away = np.array([-np.sin(a) * np.cos(e), np.cos(a) * np.cos(e), np.sin(e)])
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
    """Rasterize by sampling: each triangle at so many points that no pixel in it is missed.

    Triangles of like size are sampled together, by the same barycentric grid.
    """
    corners = screen[faces][..., :2]
    edges = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max(axis=1)
    steps = np.maximum(1, np.ceil(edges * 1.5)).astype(int)
    steps = 2 ** np.ceil(np.log2(steps)).astype(int)  # few groups
    for n in np.unique(steps):
        i, j = (g.ravel() for g in np.mgrid[0 : n + 1, 0 : n + 1])
        inside = i + j <= n
        weights = np.stack([i, j, n - i - j], axis=1)[inside].astype(np.float32) / n
        group = faces[steps == n]
        chunk = max(1, (1 << 20) // len(weights))
        for k in range(0, len(group), chunk):
            part = group[k : k + chunk]
            _paint(
                np.einsum("sk,fkc->fsc", weights, screen[part]).reshape(-1, 3),
                np.einsum("sk,fkc->fsc", weights, shade[part]).reshape(-1, 3),
                depth, rgb, w, h,
            )  # fmt: skip


def _paint(
    points: NDArray[Any], colors: NDArray[Any], depth: NDArray[np.float32], rgb: NDArray[np.float32], w: int, h: int
) -> None:
    x, y = points[:, 0].astype(np.int64), points[:, 1].astype(np.int64)
    seen = (x >= 0) & (x < w) & (y >= 0) & (y < h)
    pixel, z, colors = (y * w + x)[seen], points[seen, 2], colors[seen]
    nearer = z < depth[pixel]
    pixel, z, colors = pixel[nearer], z[nearer], colors[nearer]
    order = np.lexsort((z, pixel))  # of the samples in one pixel the nearest comes first
    pixel, first = np.unique(pixel[order], return_index=True)
    chosen = order[first]
    depth[pixel], rgb[pixel] = z[chosen], colors[chosen]


def _finish(
    rgb: NDArray[np.float32], depth: NDArray[np.float32], width: int, height: int, px_per_nm: float | None
) -> NDArray[np.uint8]:
    """Contours at jumps of depth, supersampling undone, scale bar."""
    from PIL import Image, ImageDraw, ImageFont

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
        length_nm = _round_length(width / 5 / px_per_nm)
        bar = round(length_nm * px_per_nm)
        draw = ImageDraw.Draw(picture)
        draw.rectangle((20, height - 26, 20 + bar, height - 22), fill=(40, 40, 40))
        text = f"{length_nm / 1000:g} µm" if length_nm >= 1000 else f"{length_nm:g} nm"
        draw.text((20, height - 46), text, fill=(40, 40, 40), font=ImageFont.load_default(15))
    return np.asarray(picture)


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
