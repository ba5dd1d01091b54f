"""Cutting a surface into cells: nothing is lost, nothing lies beyond its cell, and no gap opens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import ConvexHull

from happyneurons.stages.mesh.cutting import cut
from happyneurons.stages.mesh.surfaces import Surface

CELL, ORIGIN = np.array([100.0, 90.0, 110.0]), np.array([-40.0, 10.0, 0.0])


def area_nm2(surface: Surface) -> float:
    a, b, c = (surface.vertices[surface.faces[:, i]].astype(np.float64) for i in range(3))
    return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)


def hull(points: np.ndarray) -> Surface:
    """The closed surface around points, counterclockwise seen from outside."""
    found = ConvexHull(points)
    faces = found.simplices.copy()
    a, b, c = (points[faces[:, i]] for i in range(3))
    inward = np.einsum("ij,ij->i", np.cross(b - a, c - a), found.equations[:, :3]) < 0
    faces[inward] = faces[inward, ::-1]
    return Surface(points.astype(np.float32), faces.astype(np.uint32))


def unmatched_edges(pieces: list[Surface]) -> int:
    """Edges of all pieces together, ends by their place, that no edge runs along the other way."""
    forward: dict[tuple[bytes, bytes], int] = {}
    for piece in pieces:
        names = [v.tobytes() for v in piece.vertices + np.float32(0)]
        for face in piece.faces.tolist():
            for i in range(3):
                edge = names[face[i]], names[face[(i + 1) % 3]]
                forward[edge] = forward.get(edge, 0) + 1
    return sum(n != forward.get((b, a), 0) for (a, b), n in forward.items())


def check(surface: Surface) -> dict[tuple[int, int, int], Surface]:
    pieces = cut(surface, CELL, ORIGIN)
    for place, piece in pieces.items():
        low = np.array(place) * CELL + ORIGIN
        assert (piece.vertices >= low - 1e-4).all()
        assert (piece.vertices <= low + CELL + 1e-4).all()
    assert sum(map(area_nm2, pieces.values())) == pytest.approx(area_nm2(surface), rel=1e-5)
    return pieces


# Some coordinates on planes and some in between.
coordinate = st.one_of(st.integers(0, 4), st.floats(0, 4, width=16))


@given(st.lists(st.tuples(coordinate, coordinate, coordinate), min_size=3, max_size=3, unique=True))
def test_a_triangle_however_large_and_wherever_it_lies(corners: list[tuple[float, float, float]]) -> None:
    vertices = (np.array(corners, np.float64) * CELL + ORIGIN).astype(np.float32)
    surface = Surface(vertices, np.array([[0, 1, 2]], np.uint32))
    if area_nm2(surface) > 1:
        check(surface)


@pytest.mark.parametrize("points", [8, 40, 400])
def test_a_closed_surface_stays_closed_and_turned_as_it_was(points: int) -> None:
    places = np.random.default_rng(points).normal(size=(points, 3))
    places = places / np.linalg.norm(places, axis=1, keepdims=True) * 170 + [200, 200, 200]
    surface = hull(places)
    assert unmatched_edges([surface]) == 0
    pieces = check(surface)
    assert len(pieces) > 8
    assert unmatched_edges(list(pieces.values())) == 0


def test_faces_in_the_planes_themselves() -> None:
    corners = np.array([[x, y, z] for x in (0, 2) for y in (1, 3) for z in (0, 3)], np.float64)
    pieces = check(hull(corners * CELL + ORIGIN))
    assert unmatched_edges(list(pieces.values())) == 0
    assert max(place[0] for place in pieces) == 1, "the far side belongs to the last cells"


def test_nothing() -> None:
    assert cut(Surface(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint32)), CELL, ORIGIN) == {}
