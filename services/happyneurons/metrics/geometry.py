"""Errors of montages and alignments against known truth, in px.

Points are (n, 2) arrays of (x, y) px. A *map* is anything with `map` and `inverse` of such points,
a `GridWarp` for one; `inverse` gives NaN where a point has no source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class PlaneMap(Protocol):
    def map(self, xy: Any) -> Floats: ...

    def inverse(self, xy: Any) -> Floats: ...


def figures(errors: np.ndarray) -> dict[str, float]:
    """median, p95, mean, max and number of the finite errors; empty if there are none."""
    values = np.asarray(errors, np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return {}
    return {
        "median": float(np.median(values)),
        "p95": float(np.percentile(values, 95)),
        "mean": float(values.mean()),
        "max": float(values.max()),
        "points": float(len(values)),
    }


def grid_points(low_xy: Any, high_xy: Any, spacing_px: float) -> Floats:
    """(n, 2) points of a regular grid inside the rectangle [low, high], x fastest."""
    axes = [np.arange(float(a), float(b) + 1e-9, spacing_px) for a, b in zip(low_xy, high_xy, strict=True)]
    return np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)


def fit_affine(source: np.ndarray, target: np.ndarray) -> Floats:
    """The source points after the affine map that takes them nearest to the target (least squares)."""
    design = np.column_stack([source, np.ones(len(source))])
    return np.asarray(design @ np.linalg.lstsq(design, target, rcond=None)[0])


def fit_similarity(source: np.ndarray, target: np.ndarray) -> Floats:
    """The source points after the rotation, scaling and shift that take them nearest to the target.

    Method: Umeyama 1991, without reflections.
    """
    s, t = source - source.mean(axis=0), target - target.mean(axis=0)
    u, singular, vt = np.linalg.svd(s.T @ t)
    signs = np.array([1.0, np.sign(np.linalg.det(u @ vt))])
    spread = float((s**2).sum())
    scale = float((singular * signs).sum()) / spread if spread > 0 else 1.0
    return np.asarray(scale * s @ (u * signs) @ vt + target.mean(axis=0))


@dataclass(frozen=True)
class MontageErrors:
    """Errors of one montaged section, px.

    seam: distances, in the montage, of the two images of a piece of tissue that two tiles show.
    residual: distances from the true places, after the best affine map of the whole section.
    unplaced: tiles that have no place in the montage.
    """

    seam: np.ndarray
    residual: np.ndarray
    unplaced: tuple[tuple[int, int], ...]


def montage_errors(
    found: Mapping[tuple[int, int], PlaneMap | None],
    true: Mapping[tuple[int, int], PlaneMap],
    size_xy: tuple[int, int],
    *,
    spacing_px: float = 10.0,
) -> MontageErrors:
    """Compare where tiles were put with where they belong.

    found: (row, col) → map tile px → montage px, None where a tile has no place.
    true: (row, col) → map tile px → px of the undistorted section. size_xy: of a tile, px.
    """
    margin = min(10.0, min(size_xy) / 8)
    points = grid_points((margin, margin), (size_xy[0] - 1 - margin, size_xy[1] - 1 - margin), spacing_px)
    images = {tile: m.map(points) for tile in sorted(true) if (m := found.get(tile)) is not None}
    places = {tile: true[tile].map(points) for tile in images}
    seams = [np.zeros(0)]
    for first, second in combinations(images, 2):
        partner = found[second]
        assert partner is not None
        # Inverses are slow: only of points that may lie in the other tile.
        low, high = places[second].min(axis=0) - 2 * margin, places[second].max(axis=0) + 2 * margin
        near = np.flatnonzero(((places[first] >= low) & (places[first] <= high)).all(axis=1))
        meets = true[second].inverse(places[first][near])
        # NaN compares false: such a point is in no overlap.
        inside = ((meets >= 1) & (meets <= np.subtract(size_xy, 2))).all(axis=1)
        seams.append(np.linalg.norm(partner.map(meets[inside]) - images[first][near[inside]], axis=1))
    residual = np.zeros(0)
    if images:
        a, b = np.concatenate(list(images.values())), np.concatenate(list(places.values()))
        residual = np.linalg.norm(fit_affine(a, b) - b, axis=1)
    unplaced = tuple(tile for tile in sorted(true) if tile not in images)
    return MontageErrors(np.concatenate(seams), residual, unplaced)


@dataclass(frozen=True)
class AlignmentErrors:
    """Errors of an aligned stack, px of the true frame.

    adjacent: section z → distances of the same piece of tissue between it and the next section
        that has a place (so a gap that was bridged is measured across).
    absolute: distances from the true places after one similarity for the whole stack.
    absolute_affine: the same after one affine map.
    """

    adjacent: Mapping[int, np.ndarray]
    absolute: np.ndarray
    absolute_affine: np.ndarray


def alignment_errors(points: np.ndarray, aligned: Mapping[int, np.ndarray]) -> AlignmentErrors:
    """Compare an alignment with the truth at the same places of the tissue in every section.

    points: (n, 2) true places. aligned: section z → (n, 2) where they came to lie, NaN where the
    section does not show them. The adjacent errors are taken after one affine map of the whole
    stack to the true frame, so that an alignment that shrinks the stack gains nothing by it.
    """
    sections = sorted(z for z, xy in aligned.items() if np.isfinite(xy).all(axis=1).any())
    if not sections:
        return AlignmentErrors({}, np.zeros(0), np.zeros(0))
    shown = {z: np.isfinite(aligned[z]).all(axis=1) for z in sections}
    a = np.concatenate([aligned[z][shown[z]] for z in sections])
    b = np.concatenate([points[shown[z]] for z in sections])
    # Regressing the aligned places on the true ones (not the reverse) leaves no bias to shrink.
    design = b - b.mean(axis=0)
    forward = np.linalg.lstsq(design, a - a.mean(axis=0), rcond=None)[0]
    back = np.linalg.pinv(forward)
    adjacent = {}
    for z, following in pairwise(sections):
        both = shown[z] & shown[following]
        adjacent[z] = np.linalg.norm((aligned[z][both] - aligned[following][both]) @ back, axis=1)
    return AlignmentErrors(
        adjacent,
        np.linalg.norm(fit_similarity(a, b) - b, axis=1),
        np.linalg.norm(fit_affine(a, b) - b, axis=1),
    )
