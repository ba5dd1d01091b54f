"""Maps fitted to matches, with wrong matches left out. Points are (n, 2) of (x, y) px."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from happyneurons.imaging.matching import Matches

Floats = NDArray[np.float64]

# Reweighting ends when no term of a map changes by more than this (px at the ends of its strip).
_SETTLED_PX = 0.002


def fit_affine(p: ArrayLike, q: ArrayLike, weights: ArrayLike | None = None, ridge: float = 0.0) -> Floats:
    """(2, 3) matrix M with q ≈ M[:, :2] @ p + M[:, 2], by weighted least squares.

    ridge pulls the linear part towards the identity: in units of (px of coordinate spread)² per
    point, so that 25 leaves a band of points narrower than about 5 px without a say across it.
    """
    p, q = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    w = np.ones(len(p)) if weights is None else np.asarray(weights, dtype=np.float64)
    total = max(float(w.sum()), 1e-12)
    cp, cq = (w @ p) / total, (w @ q) / total
    x, d = p - cp, (q - cq) - (p - cp)
    normal = (x * w[:, None]).T @ x + (ridge * total + 1e-9) * np.eye(2)
    linear = np.eye(2) + np.linalg.solve(normal, (x * w[:, None]).T @ d).T
    return np.column_stack([linear, cq - linear @ cp])


def scale_and_rotation(linear: ArrayLike) -> tuple[float, float]:
    """(root of the change of area, rotation in degrees) of a (2, 2) linear map."""
    (a, b), (c, d) = np.asarray(linear, dtype=np.float64).tolist()
    return float(np.sqrt(abs(a * d - b * c))), float(np.rad2deg(np.arctan2(c - b, a + d)))


def apply_affine(matrix: ArrayLike, xy: ArrayLike) -> Floats:
    """(n, 2) points through a (2, 3) affine matrix."""
    m = np.asarray(matrix, dtype=np.float64)
    return np.asarray(xy, dtype=np.float64) @ m[:, :2].T + m[:, 2]


@dataclass(frozen=True)
class SmoothMap:
    """A map of a strip a → b: affine, plus what bends along the strip's longer side (see `fit_smooth`)."""

    middle: Floats
    half_length: float
    along: int
    coefficients: Floats

    def __call__(self, xy: ArrayLike) -> Floats:
        """(n, 2) px of a → (n, 2) px of b."""
        p = np.asarray(xy, dtype=np.float64).reshape(-1, 2)
        return p + self._terms(p) @ self.coefficients

    def _terms(self, p: Floats) -> Floats:
        relative = (p - self.middle) / self.half_length
        s, t = relative[:, self.along], relative[:, 1 - self.along]
        return np.stack([np.ones_like(s), s, t, s * s, s * t, s**3], axis=1)


def fit_smooth(
    matches: Matches, *, least_px: float = 1.5, most_px: float = 4.0, ridge_px: float = 0.5, iterations: int = 8
) -> tuple[np.ndarray, SmoothMap]:
    """(mask of the matches that follow one smooth map, that map), for a strip of matches.

    The map is q - p = a polynomial: constant, both linear terms, and along the longer side of the
    strip the quadratic, mixed and cubic ones. Robust by reweighting (Cauchy) from a wide scale to a
    narrow one, weighted by score. Terms that the matches do not determine stay near 0: ridge_px is
    about the error of a match whose pull equals that of a px of bend. In the end a match is kept if its
    residual is below 3 * median residual, but at least least_px and at most most_px.
    """
    p, q = matches.xy_a, matches.xy_b
    if not len(matches):
        return np.zeros(0, bool), SmoothMap(np.zeros(2), 1.0, 0, np.zeros((6, 2)))
    low, high = p.min(axis=0), p.max(axis=0)
    along = int(np.argmax(high - low))
    shape = SmoothMap((low + high) / 2, max(float((high - low)[along]) / 2, 16.0), along, np.zeros((6, 2)))
    terms, goal = shape._terms(p), q - p
    start = np.median(goal, axis=0)
    goal = goal - start
    ridge = ridge_px**2 * np.diag([1e-6, 1e-2, 1e-2, 0.3, 0.1, 0.3])
    coefficients = np.zeros((6, 2))
    residual = np.linalg.norm(goal, axis=1)
    scale = max(most_px, float(np.median(residual)))
    for _ in range(iterations):
        before, narrowest = coefficients, scale == least_px / 2
        weighted = (terms * (matches.score / (1 + (residual / scale) ** 2))[:, None]).T
        coefficients = np.linalg.solve(weighted @ terms + ridge, weighted @ goal)
        residual = np.linalg.norm(goal - terms @ coefficients, axis=1)
        if narrowest and np.abs(coefficients - before).max() <= _SETTLED_PX:
            break
        scale = max(least_px / 2, scale * 0.6)
    keep = residual <= min(most_px, max(least_px, 3 * float(np.median(residual))))
    coefficients[0] += start
    return keep, SmoothMap(shape.middle, shape.half_length, along, coefficients)
