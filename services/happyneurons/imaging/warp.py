"""Warps: smooth maps of the plane, given by their values on a regular grid.

A `GridWarp` maps source px to target px by bilinear interpolation between grid nodes. Outside the
grid it goes on linearly: the value at the nearest point of the border plus its slope there times
the distance. An affine map is therefore exact with any grid, even one of 2 x 2 nodes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

# Newton's method has converged when the target is hit to this many px.
_TOLERANCE_PX = 1e-5
# Points further off than this after all iterations have no inverse (a fold in the warp).
_NO_INVERSE_PX = 1e-2


class GridWarp:
    """A map source px → target px.

    origin_xy: source (x, y) of node [0, 0]. spacing_px: distance of neighbouring nodes, the same in
    x and y. nodes: (ny, nx, 2) float64, target (x, y) of each node; at least 2 x 2 nodes.
    """

    def __init__(self, origin_xy: ArrayLike, spacing_px: float, nodes: ArrayLike) -> None:
        self.origin_xy: Floats = np.asarray(origin_xy, dtype=np.float64).reshape(2)
        self.spacing_px = float(spacing_px)
        self.nodes: Floats = np.ascontiguousarray(nodes, dtype=np.float64)
        if self.nodes.ndim != 3 or self.nodes.shape[2] != 2 or min(self.nodes.shape[:2]) < 2:
            raise ValueError(f"nodes must be (ny >= 2, nx >= 2, 2), not {self.nodes.shape}")
        if not self.spacing_px > 0:
            raise ValueError(f"spacing_px must be positive, not {spacing_px}")

    def __repr__(self) -> str:
        ny, nx = self.nodes.shape[:2]
        return f"GridWarp(origin_xy={self.origin_xy.tolist()}, spacing_px={self.spacing_px}, {ny} x {nx} nodes)"

    # --- making one --------------------------------------------------------------------------

    @classmethod
    def affine(
        cls, matrix: ArrayLike, width: float = 1024.0, height: float = 1024.0, spacing_px: float = 1024.0
    ) -> GridWarp:
        """The affine map target = matrix[:, :2] @ source + matrix[:, 2]; matrix is (2, 3).

        The grid covers (0, 0)..(width, height); that matters only to someone who edits the nodes.
        """
        m = np.asarray(matrix, dtype=np.float64).reshape(2, 3)
        warp = cls((0.0, 0.0), spacing_px, np.zeros((_count(height, spacing_px), _count(width, spacing_px), 2)))
        return warp.with_nodes(warp.sources() @ m[:, :2].T + m[:, 2])

    @classmethod
    def identity(cls, width: float = 1024.0, height: float = 1024.0, spacing_px: float = 1024.0) -> GridWarp:
        """The map that leaves every point where it is."""
        return cls.affine([[1, 0, 0], [0, 1, 0]], width, height, spacing_px)

    @classmethod
    def translation(
        cls, shift_xy: ArrayLike, width: float = 1024.0, height: float = 1024.0, spacing_px: float = 1024.0
    ) -> GridWarp:
        """target = source + shift."""
        dx, dy = np.asarray(shift_xy, dtype=np.float64).reshape(2)
        return cls.affine([[1, 0, dx], [0, 1, dy]], width, height, spacing_px)

    def with_nodes(self, nodes: ArrayLike) -> GridWarp:
        """The same grid with other targets, (ny, nx, 2)."""
        return GridWarp(self.origin_xy, self.spacing_px, nodes)

    def translated(self, shift_xy: ArrayLike) -> GridWarp:
        """This map followed by a shift of the target."""
        return self.with_nodes(self.nodes + np.asarray(shift_xy, dtype=np.float64).reshape(2))

    def from_corner(self, corner_xy: ArrayLike) -> GridWarp:
        """The same map where source and target are counted from a corner that lies at -corner_xy: both are moved."""
        corner = np.asarray(corner_xy, dtype=np.float64).reshape(2)
        return GridWarp(self.origin_xy + corner, self.spacing_px, self.nodes + corner)

    def then(self, following: GridWarp) -> GridWarp:
        """This map followed by another, on this map's grid: exact at the nodes, interpolated between."""
        return self.with_nodes(following.map(self.nodes.reshape(-1, 2)).reshape(self.nodes.shape))

    def sources(self) -> Floats:
        """(ny, nx, 2) source (x, y) of the nodes."""
        ny, nx = self.nodes.shape[:2]
        x = self.origin_xy[0] + self.spacing_px * np.arange(nx)
        y = self.origin_xy[1] + self.spacing_px * np.arange(ny)
        return np.stack(np.meshgrid(x, y), axis=-1)

    # --- using it ----------------------------------------------------------------------------

    def map(self, xy: ArrayLike) -> Floats:
        """(n, 2) source points → (n, 2) target points."""
        return np.ascontiguousarray(_Cells(self).value_and_slopes(_points(xy).T)[0].T)

    def inverse(self, xy: ArrayLike) -> Floats:
        """(n, 2) target points → (n, 2) source points; NaN where there is none (inside a fold).

        Newton's method with halved steps where a full one leads away, then fixed-point steps.
        """
        target = _points(xy)
        source, error = self._solve(target)
        source[error > _NO_INVERSE_PX] = np.nan
        return source

    def inverse_field(self, x0: float, y0: float, width: int, height: int, step: int = 16) -> NDArray[np.float32]:
        """Source (x, y) of every pixel of a block of the target, float32 (height, width, 2), for cv2.remap.

        x0, y0: target coordinates of the block's first pixel centre. The inverse is computed every
        `step` px and interpolated linearly between. Never NaN: a fold gets the nearest solution found.
        """
        relative, low, _ = self.relative_inverse_field(x0, y0, width, height, step)
        return np.ascontiguousarray(relative + low.astype(np.float32))

    def relative_inverse_field(
        self, x0: float, y0: float, width: int, height: int, step: int = 16, margin: int = 0
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
        """(`inverse_field` less low, low, high): all sources and `margin` px around them lie in low <= (x, y) < high.

        low, high: whole px. float32 has 24 bits: relative to low it keeps 1e-4 px on any canvas, and
        cv2.remap can draw from the part of the source that starts there.
        """
        import cv2

        # Samples lie where cv2.resize, which works with pixel centres, takes them to be, and one
        # more on each side, because it repeats the outermost ones.
        nx, ny = -(-width // step) + 2, -(-height // step) + 2
        x = x0 + step * (np.arange(nx) - 1) + (step - 1) / 2
        y = y0 + step * (np.arange(ny) - 1) + (step - 1) / 2
        samples, _ = self._solve(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2))
        low = np.floor(samples.min(axis=0)).astype(np.int64) - margin
        high = np.ceil(samples.max(axis=0)).astype(np.int64) + margin + 1
        relative = (samples - low).reshape(ny, nx, 2).astype(np.float32)
        full = cv2.resize(relative, (nx * step, ny * step), interpolation=cv2.INTER_LINEAR)
        return full[step : step + height, step : step + width], low, high

    def inner_bounds(self, width: float, height: float) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1) in the target that a source image of that size covers for sure; empty if x1 < x0.

        For warps that turn by less than 45 degrees.
        """
        left, right, top, bottom = (self.map(side) for side in self._sides(width, height))
        return float(left[:, 0].max()), float(top[:, 1].max()), float(right[:, 0].min()), float(bottom[:, 1].min())

    def bounds(self, width: float, height: float) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1) in the target that holds all pixel centres of a source image of that size."""
        mapped = self.map(np.concatenate(self._sides(width, height)))
        low, high = mapped.min(axis=0), mapped.max(axis=0)
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])

    def _sides(self, width: float, height: float) -> tuple[Floats, Floats, Floats, Floats]:
        """Points along the left, right, top and bottom pixel centres of a source image, twice in each grid cell."""
        xs = np.append(np.arange(0.0, width - 1, max(1.0, self.spacing_px / 2)), width - 1.0)
        ys = np.append(np.arange(0.0, height - 1, max(1.0, self.spacing_px / 2)), height - 1.0)
        return (
            np.column_stack([np.zeros_like(ys), ys]),
            np.column_stack([np.full_like(ys, width - 1.0), ys]),
            np.column_stack([xs, np.zeros_like(xs)]),
            np.column_stack([xs, np.full_like(xs, height - 1.0)]),
        )

    # --- keeping it --------------------------------------------------------------------------

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """Arrays for an npz: `PREFIX_grid` = (origin x, origin y, spacing px), `PREFIX_nodes`."""
        return {
            f"{prefix}_grid": np.array([*self.origin_xy, self.spacing_px], dtype=np.float64),
            f"{prefix}_nodes": self.nodes,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], prefix: str) -> GridWarp:
        """What `arrays` made. Raises KeyError if there is no warp of that prefix."""
        grid = arrays[f"{prefix}_grid"]
        return cls(grid[:2], float(grid[2]), arrays[f"{prefix}_nodes"])

    # --- inside ------------------------------------------------------------------------------

    def _solve(self, target: Floats, iterations: int = 40) -> tuple[Floats, Floats]:
        """Source points of the targets (n, 2) and how far each one's image is from its target (n,)."""
        linear, shift = self._mean_affine()
        back, cells = np.asarray(np.linalg.pinv(linear), dtype=np.float64), _Cells(self)
        # One component after the other in memory, here and in what is called: three times as fast.
        goal = np.ascontiguousarray(target.T)
        source = back @ (goal - shift[:, None])
        value, slope_x, slope_y = cells.value_and_slopes(source)
        miss = goal - value
        error = np.asarray(np.hypot(miss[0], miss[1]))
        damping = np.ones(len(error))
        for _ in range(iterations):
            # Written this way round, NaN counts as done.
            todo = np.flatnonzero(error > _TOLERANCE_PX)
            if not len(todo):
                break
            at, sx, sy, m = (x.take(todo, axis=1) for x in (source, slope_x, slope_y, miss))
            det = sx[0] * sy[1] - sy[0] * sx[1]
            det = np.where(np.abs(det) < 1e-9, 1e-9, det)
            move = np.stack([sy[1] * m[0] - sy[0] * m[1], sx[0] * m[1] - sx[1] * m[0]])
            move *= damping[todo] * self.spacing_px / det
            trial = at + move
            value, new_x, new_y = cells.value_and_slopes(trial)
            new_miss = goal.take(todo, axis=1) - value
            new_error = np.hypot(new_miss[0], new_miss[1])
            better = new_error < error[todo]
            error[todo] = np.where(better, new_error, error[todo])
            damping[todo] = np.where(better, 1.0, 0.5 * damping[todo])
            source[:, todo], miss[:, todo] = np.where(better, trial, at), np.where(better, new_miss, m)
            slope_x[:, todo], slope_y[:, todo] = np.where(better, new_x, sx), np.where(better, new_y, sy)
        found = np.ascontiguousarray(source.T)
        self._relax(target, found, error, back)
        return found, error

    def _relax(self, target: Floats, source: Floats, error: Floats, back: Floats, iterations: int = 100) -> None:
        """Fixed-point steps with the mean affine map, for points that Newton left in a kink (in place).

        They may lead uphill for a while, and converge wherever the warp differs little from that map.
        """
        todo = np.flatnonzero(error > _TOLERANCE_PX)
        trial = source[todo]
        for _ in range(iterations):
            if not len(todo):
                return
            miss = target[todo] - self.map(trial)
            trial_error = np.hypot(miss[:, 0], miss[:, 1])
            better = trial_error < error[todo]
            source[todo[better]], error[todo[better]] = trial[better], trial_error[better]
            left = error[todo] > _TOLERANCE_PX
            todo, trial = todo[left], (trial + miss @ back.T)[left]

    def _mean_affine(self) -> tuple[Floats, Floats]:
        """The affine map (2 x 2 matrix, shift) nearest to the warp: where Newton's method starts."""
        source = self.sources().reshape(-1, 2)
        target = self.nodes.reshape(-1, 2)
        s, t = source - source.mean(axis=0), target - target.mean(axis=0)
        linear = np.linalg.lstsq(s, t, rcond=None)[0].T
        return linear, target.mean(axis=0) - linear @ source.mean(axis=0)


class _Cells:
    """The grid's cells as polynomials: a + p · fx + q · fy + t · fx · fy, with (fx, fy) from 0 to 1 across a cell."""

    def __init__(self, warp: GridWarp) -> None:
        self._origin, self._spacing_px = warp.origin_xy[:, None], warp.spacing_px
        self._shape = warp.nodes.shape[0] - 1, warp.nodes.shape[1] - 1
        nodes = np.moveaxis(warp.nodes, -1, 0)
        a, b, c, d = nodes[:, :-1, :-1], nodes[:, :-1, 1:], nodes[:, 1:, :-1], nodes[:, 1:, 1:]
        self._terms = np.concatenate([a, b - a, c - a, a - b - c + d]).reshape(8, -1)

    def value_and_slopes(self, source: Floats) -> tuple[Floats, Floats, Floats]:
        """Target and its derivatives by source x and by source y (per grid cell), each (2, n), for (2, n) sources."""
        cell = (source - self._origin) / self._spacing_px
        ny, nx = self._shape
        # NaN may come in (no inverse): it must go out as NaN, not as an index. fmax and fmin pass it over.
        i, j = (np.fmin(np.fmax(np.floor(c), 0), n - 1) for c, n in zip(cell, (nx, ny), strict=True))
        terms = self._terms.take((j * nx + i).astype(np.intp), axis=1)
        a, p, q, t = terms[:2], terms[2:4], terms[4:6], terms[6:]
        fx, fy = cell[0] - i, cell[1] - j
        inner_x, inner_y = np.clip(fx, 0.0, 1.0), np.clip(fy, 0.0, 1.0)
        beyond_x, beyond_y = fx - inner_x, fy - inner_y
        value = a + p * fx + q * fy + t * (fx * fy - beyond_x * beyond_y)
        # Outside, the slope across the border changes along the border: that is part of the derivative.
        slope_x = p + t * np.where(beyond_x == 0, fy, inner_y)
        slope_y = q + t * np.where(beyond_y == 0, fx, inner_x)
        return value, slope_x, slope_y


def _count(length: float, spacing_px: float) -> int:
    return max(2, int(np.ceil(length / spacing_px)) + 1)


def _points(xy: ArrayLike) -> Floats:
    points = np.asarray(xy, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"points must be (n, 2) of (x, y), not {points.shape}")
    return points
