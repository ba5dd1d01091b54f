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

Corners = NDArray[np.float64]
"""(n, 3, 3): triangle, corner, x y z in units of a cell."""


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
    corners = ((surface.vertices.astype(np.float64) - origin) / cell)[surface.faces]
    last = np.maximum(np.ceil(corners.max(axis=(0, 1))) - 1, 0)
    for axis in range(3):
        corners = _cut_along(corners, axis)
    places = np.clip(np.floor(corners.mean(axis=1)), 0, last).astype(np.int64)
    # On a plane to the last bit, on both of its sides.
    vertices = (corners.reshape(-1, 3) * cell + origin).astype(np.float32) + np.float32(0)
    names = np.unique(vertices.view([("", np.float32)] * 3).ravel(), return_inverse=True)[1].reshape(-1, 3)
    a, b, c = names.T
    whole = (a != b) & (b != c) & (a != c)
    vertices, names, places = vertices.reshape(-1, 3, 3)[whole], names[whole], places[whole]
    cells, numbers = np.unique(places, axis=0, return_inverse=True)
    order = np.argsort(numbers.reshape(-1), kind="stable")
    ends = np.cumsum(np.bincount(numbers.reshape(-1), minlength=len(cells)))
    found = {}
    for (x, y, z), own in zip(cells.tolist(), np.split(order, ends[:-1]), strict=True):
        _, first, faces = np.unique(names[own].ravel(), return_index=True, return_inverse=True)
        found[x, y, z] = Surface(vertices[own].reshape(-1, 3)[first], faces.reshape(-1, 3).astype(np.uint32))
    return found


def _cut_along(corners: Corners, axis: int) -> Corners:
    """Triangles none of which has corners on both sides of a whole number along an axis."""
    done = []
    while len(corners):
        along = corners[:, :, axis]
        plane = np.floor(along.min(axis=1)) + 1
        crossing = along.max(axis=1) > plane
        done.append(corners[~crossing])
        below, above = _halves(corners[crossing], plane[crossing], axis)
        done.append(below)
        corners = above
    return np.concatenate(done)


def _halves(corners: Corners, plane: NDArray[np.float64], axis: int) -> tuple[Corners, Corners]:
    """What lies below and above a plane of each triangle's own, which every one of them crosses."""
    side = np.sign(corners[:, :, axis] - plane[:, np.newaxis])
    # Turned such that the first corner is alone on its side, or, where one lies in the plane, it does.
    through = (side == 0).any(axis=1)
    lone = np.where(through, np.argmax(side == 0, axis=1), np.argmax(side == -side.sum(axis=1, keepdims=True), axis=1))
    turn = (lone[:, np.newaxis] + np.arange(3)) % 3
    a, b, c = np.take_along_axis(corners, turn[:, :, np.newaxis], axis=1).transpose(1, 0, 2)
    sign_a, sign_b = np.take_along_axis(side, turn, axis=1).T[:2]
    parts: dict[bool, list[Corners]] = {True: [], False: []}

    def put(where: NDArray[np.bool_], upper: NDArray[np.bool_], *triangle: NDArray[np.float64]) -> None:
        stacked = np.stack(triangle, axis=1)
        for up in parts:
            parts[up].append(stacked[where & (upper == up)])

    ab, ac, bc = (_meeting(p, q, plane, axis) for p, q in ((a, b), (a, c), (b, c)))
    put(through, sign_b > 0, a, b, bc)
    put(through, sign_b < 0, a, bc, c)
    put(~through, sign_a > 0, a, ab, ac)
    put(~through, sign_a < 0, ab, b, c)
    put(~through, sign_a < 0, ab, c, ac)
    return np.concatenate(parts[False]), np.concatenate(parts[True])


def _meeting(p: NDArray[np.float64], q: NDArray[np.float64], plane: NDArray[np.float64], axis: int) -> Corners:
    """Where edges meet planes: the same to the last bit for p, q as for q, p. Nonsense where they do not."""
    swap = (p[:, axis] > q[:, axis])[:, np.newaxis]
    low, high = np.where(swap, q, p), np.where(swap, p, q)
    length = high[:, axis] - low[:, axis]
    share = (plane - low[:, axis]) / np.where(length > 0, length, 1)
    point = low + (high - low) * share[:, np.newaxis]
    point[:, axis] = plane
    return np.asarray(point)
