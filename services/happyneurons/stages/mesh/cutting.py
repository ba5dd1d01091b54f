"""A surface cut along the planes of a grid, without gaps.

zmesh's `chunk_mesh` leaves triangles whole that cross several planes; what lies beyond a chunk is lost when its
fragment is encoded. Here every triangle is cut at every plane that it crosses, one axis after the other. Where a plane
meets an edge depends on the edge alone, so both its triangles get the same vertex, whatever chunks they fall into.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from happyneurons.stages.mesh.surfaces import Surface

Vertices = NDArray[np.float64]
"""(n, 3): x y z in units of a cell."""
Faces = NDArray[np.int64]
"""(m, 3): numbers of vertices."""


def cut(
    surface: Surface, cell_nm: Sequence[float] | np.ndarray, origin_nm: Sequence[float] | np.ndarray
) -> dict[tuple[int, int, int], Surface]:
    """The parts of a surface in each cell of a grid that it touches, by the cell's place (x, y, z).

    cell_nm: edges of a cell; origin_nm: corner of cell (0, 0, 0), where no coordinate is smaller. A triangle that lies
    in the plane between two cells belongs to the upper one, at the grid's far side to the last.
    """
    if not len(surface.faces):
        return {}
    cell, origin = (np.asarray(v, dtype=np.float64) for v in (cell_nm, origin_nm))
    vertices = (surface.vertices.astype(np.float64) - origin) / cell
    last = np.maximum(np.ceil(vertices.max(axis=0)) - 1, 0)
    faces = surface.faces.astype(np.int64)
    for axis in range(3):
        vertices, faces = _cut_along(vertices, faces, axis)
    places = np.clip(np.floor(vertices[faces].mean(axis=1)), 0, last).astype(np.int64)
    vertices_nm = (vertices * cell + origin).astype(np.float32)
    x, y, z = places.T
    numbers = np.ravel_multi_index((x, y, z), tuple(places.max(axis=0) + 1))
    order = np.argsort(numbers, kind="stable")
    begins = np.flatnonzero(np.diff(numbers[order])) + 1
    found = {}
    for own in np.split(order, begins):
        used, local = np.unique(faces[own], return_inverse=True)
        i, j, k = places[own[0]].tolist()
        found[i, j, k] = Surface(vertices_nm[used], local.reshape(-1, 3).astype(np.uint32))
    return found


def _cut_along(vertices: Vertices, faces: Faces, axis: int) -> tuple[Vertices, Faces]:
    """Triangles none of which has corners on both sides of a whole number along an axis, with new vertices."""
    done = []
    while len(faces):
        along = vertices[faces, axis]
        plane = np.floor(along.min(axis=1)) + 1
        crossing = along.max(axis=1) > plane
        done.append(faces[~crossing])
        vertices, below, faces = _halves(vertices, faces[crossing], plane[crossing], axis)
        done.append(below)
    return vertices, np.concatenate(done)


def _halves(vertices: Vertices, faces: Faces, plane: NDArray[np.float64], axis: int) -> tuple[Vertices, Faces, Faces]:
    """(vertices with new ones, what lies below, what lies above) of a plane for each triangle, which crosses it."""
    side = np.sign(vertices[faces, axis] - plane[:, np.newaxis])
    # Turned such that the first corner lies in the plane, or else is alone on its side.
    through = (side == 0).any(axis=1)
    first = np.where(through, np.argmax(side == 0, axis=1), np.argmax(side == -side.sum(axis=1, keepdims=True), axis=1))
    turn = (first[:, np.newaxis] + np.arange(3)) % 3
    turned, side = np.take_along_axis(faces, turn, axis=1), np.take_along_axis(side, turn, axis=1)

    (a, b, c), up, at = turned[through].T, side[through, 1] > 0, plane[through]
    vertices, bc = _meet(vertices, b, c, at, axis)
    with_b, with_c = np.stack([a, b, bc], axis=1), np.stack([a, bc, c], axis=1)
    below, above = [with_b[~up], with_c[up]], [with_b[up], with_c[~up]]

    (a, b, c), up, at = turned[~through].T, side[~through, 0] > 0, plane[~through]
    vertices, met = _meet(vertices, np.concatenate([a, a]), np.concatenate([b, c]), np.concatenate([at, at]), axis)
    ab, ac = np.split(met, 2)
    tip, rest = np.stack([a, ab, ac], axis=1), np.stack([ab, b, c, ab, c, ac], axis=1)
    below += [tip[~up], rest[up].reshape(-1, 3)]
    above += [tip[up], rest[~up].reshape(-1, 3)]
    return vertices, np.concatenate(below), np.concatenate(above)


def _meet(
    vertices: Vertices, p: NDArray[np.int64], q: NDArray[np.int64], plane: NDArray[np.float64], axis: int
) -> tuple[Vertices, NDArray[np.int64]]:
    """(vertices with those where edges p–q meet their planes, the numbers of these): one for an edge and a plane."""
    edges = np.stack([np.minimum(p, q), np.maximum(p, q), plane.astype(np.int64)], axis=1)
    edges, number = np.unique(edges, axis=0, return_inverse=True)
    low, high, at = vertices[edges[:, 0]], vertices[edges[:, 1]], edges[:, 2].astype(np.float64)
    share = (at - low[:, axis]) / (high[:, axis] - low[:, axis])
    points = low + (high - low) * share[:, np.newaxis]
    points[:, axis] = at
    return np.concatenate([vertices, points]), len(vertices) + number.reshape(-1)
