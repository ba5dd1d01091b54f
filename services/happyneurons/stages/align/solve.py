"""Where every section goes: one sparse least-squares problem over all correspondences.

Two things move tissue from one section to the next: the distortion of each section, which is to be
undone, and the tissue itself, because neurites run obliquely, which is not. Setting neighbours on
top of each other undoes both and straightens what is oblique (the "banana" problem). Here both are
unknowns: for corresponding points p in section a and q in section b,

    T_b(q) − T_a(p) = sum of the tissue's drift V between a and b,    T_z = identity + U_z

with a prior for each: distortions U are independent from section to section, have a size estimated
from the data and are smooth over a range (a Gaussian field with precision (κ² − Δ)², after Lindgren,
Rue and Lindström 2011); the drift V is as smooth, and persists over some distance in z (first-order
autoregressive). Both keep the stack's scale and place: nothing gains by shrinking or wandering off.

First U and V are affine, then they live on the nodes of a grid. Each is solved by reweighted least
squares (Cauchy weights), so that wrong correspondences lose their say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.linalg import splu

Doubles = NDArray[np.float64]

# A pair's correspondences say as much about its affine map as this many independent ones would.
_INDEPENDENT_POINTS = 12.0


@dataclass(frozen=True)
class Pair:
    """Corresponding points of the sections at positions a < b of the list of good sections."""

    a: int
    b: int
    a_xy: Doubles
    b_xy: Doubles
    weight: Doubles


@dataclass(frozen=True)
class SolveSettings:
    """Lengths in px of a section, rates in px per section."""

    node_spacing_px: float
    distortion_range_px: float
    """Distance at which two places of a section are distorted almost independently."""
    drift_px: float
    """Typical (rms) movement of tissue from one section to the next."""
    drift_range_px: float
    """The same distance for the tissue's movement."""
    drift_persistence: float
    """Correlation of the tissue's movement with that one section further."""
    noise_px: float = 0.15
    """Error of a correspondence, beyond what moves smoothly."""
    distortion_px: float | None = None
    """Typical (rms) elastic distortion of a section; None: estimated."""


@dataclass(frozen=True)
class Solution:
    """T_z(p) = matrices[z] applied to p + shifts[z] interpolated at p, for the k good sections."""

    matrices: Doubles
    """(k, 2, 3)"""
    shifts: Doubles
    """(k, ny, nx, 2), node [j, i] at (i, j) · node_spacing_px."""
    jitter_px: float
    distortion_px: float

    def nodes(self, k: int, spacing_px: float) -> Doubles:
        """(ny, nx, 2) targets of the nodes of section k."""
        ny, nx = self.shifts.shape[1:3]
        points = np.stack(np.meshgrid(np.arange(nx) * spacing_px, np.arange(ny) * spacing_px), axis=-1)
        return np.asarray(apply(self.matrices[k], points) + self.shifts[k])


def apply(matrix: Doubles, points: Doubles) -> Doubles:
    """(2, 3) affine map of (..., 2) points; plain arithmetic, the same bits with any number of threads."""
    x, y = points[..., 0], points[..., 1]
    return np.stack([m[0] * x + m[1] * y + m[2] for m in matrix], axis=-1)


def solve(
    pairs: Sequence[Pair],
    z: Sequence[int],
    width: int,
    height: int,
    settings: SolveSettings,
    weak: Sequence[NDArray[np.float64] | None] | None = None,
) -> Solution:
    """Place all good sections.

    z: their section numbers, ascending; width, height of a section. weak[k]: None or (ny, nx)
    stiffness 0..1 of section k at each node, low where tissue is torn or covered.
    """
    k = len(z)
    gaps = np.diff(np.asarray(z, dtype=np.float64))
    grid = NodeGrid(width, height, settings.node_spacing_px)
    if not pairs:
        return Solution(_identities(k), np.zeros((k, *grid.shape, 2)), 0.0, 0.0)
    matrices, jitter = _solve_affine(pairs, gaps, width, height, settings)
    shifts, distortion = _solve_elastic(pairs, gaps, matrices, grid, settings, weak)
    return _centred(Solution(matrices, shifts, jitter, distortion), grid)


def _centred(solution: Solution, grid: NodeGrid) -> Solution:
    """The same solution under the affine map that makes the sections' mean map the identity.

    Distortions have mean zero, so this is the best guess of the true frame; and it keeps the scale
    at exactly 1, which least squares with noise in its points would shrink a little.
    """
    spacing = grid.spacing_px
    ny, nx = grid.shape
    points = np.stack(np.meshgrid(np.arange(nx) * spacing, np.arange(ny) * spacing), axis=-1).reshape(-1, 2)
    count = len(solution.matrices)
    mean = sum((solution.nodes(k, spacing) for k in range(count)), np.zeros((ny, nx, 2))).reshape(-1, 2) / count
    design = np.column_stack([points, np.ones(len(points))])
    fit = np.linalg.solve(np.einsum("ni,nj->ij", design, design), np.einsum("ni,nj->ij", design, mean))
    back = np.linalg.inv(fit[:2].T)
    matrices = np.einsum("ij,kjl->kil", back, solution.matrices)
    matrices[:, :, 2] -= back @ fit[2]
    shifts = np.einsum("ij,kyxj->kyxi", back, solution.shifts)
    return Solution(matrices, shifts, solution.jitter_px, solution.distortion_px)


# --- affine --------------------------------------------------------------------------------------


def _solve_affine(
    pairs: Sequence[Pair], gaps: Doubles, width: int, height: int, settings: SolveSettings
) -> tuple[Doubles, float]:
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    half = max(width, height) / 2

    def basis(points: Doubles) -> sp.csr_matrix:
        scaled = (points - centre) / half
        return sp.csr_matrix(np.column_stack([np.ones(len(points)), scaled]))

    fits = {(pair.a, pair.b): _pair_affine(pair, basis) for pair in pairs}
    drift = settings.drift_px * np.array([1.0, 0.5, 0.5])
    jitter = np.maximum(_estimate_jitter({key: fit[0] for key, fit in fits.items()}, gaps, drift), [0.2, 0.1, 0.1])
    residual = float(np.median([fit[1] for fit in fits.values()]))
    system = _System(pairs, gaps, basis)
    import os
    drift = drift * float(os.environ.get("F1", 1)) * np.array([1.0, float(os.environ.get("F2", 1)), float(os.environ.get("F2", 1))])
    prior_u = sp.block_diag([sp.diags(1 / jitter**2)] * (len(gaps) + 1))
    prior_v = sp.diags(1 / drift**2)
    counts = np.concatenate([np.full(len(p.weight), float(len(p.weight))) for p in pairs])
    weight = system.weight * min(1.0, _INDEPENDENT_POINTS / float(counts.min())) * counts.min() / counts
    scale = max(residual, settings.noise_px)
    u = system.solve(prior_u, prior_v, settings.drift_persistence, weight, scale, system.offset, exact=True)
    matrices = _identities(len(gaps) + 1)
    matrices[:, :, :2] += np.swapaxes(u[:, 1:], 1, 2) / half
    matrices[:, :, 2] += u[:, 0] - np.einsum("kij,j->ki", matrices[:, :, :2] - np.eye(2), centre)
    return matrices, float(jitter[0])


def _estimate_jitter(fits: Mapping[tuple[int, int], Doubles], gaps: Doubles, drift: Doubles) -> Doubles:
    """rms of each affine coefficient of the sections' own distortions, (3,), from the pairs' (3, 2) fits.

    Second differences along z leave independent distortions and remove what persists; in a short
    stack there are too few of them, so that the first differences, less the expected drift, count too.
    """
    series = {a: fits[a, a + 1] for a in range(len(gaps)) if (a, a + 1) in fits}
    first = np.array([np.mean(np.square(f), axis=1) - (gaps[a] * drift) ** 2 for a, f in series.items()])
    second = np.array([np.mean(np.square(series[a + 1] - series[a]), axis=1) for a in series if a + 1 in series])
    variance = np.zeros(3)
    if len(first):
        variance = first.mean(axis=0) / 2
    if len(second):
        variance = np.maximum(variance, second.mean(axis=0) / 6)
    return np.asarray(np.sqrt(np.maximum(variance, 0)))


def _pair_affine(pair: Pair, basis: Basis) -> tuple[Doubles, float]:
    """Robust affine fit of a pair's displacement: (3, 2) coefficients and the rms of what is left."""
    design = basis(pair.a_xy).toarray()
    moved = pair.b_xy - pair.a_xy
    weight = pair.weight
    fit = np.zeros((3, 2))
    scale = 1.0
    for _ in range(5):
        weighted = design * weight[:, None]
        normal = np.einsum("ni,nj->ij", weighted, design) + 1e-9 * np.eye(3)
        fit = np.linalg.solve(normal, np.einsum("ni,nj->ij", weighted, moved))
        miss = np.linalg.norm(moved - np.einsum("ni,ij->nj", design, fit), axis=1)
        scale = max(0.05, float(np.median(miss)))
        weight = pair.weight / (1 + (miss / (3 * scale)) ** 2)
    return fit, scale


# --- elastic -------------------------------------------------------------------------------------


class NodeGrid:
    """Nodes at (i, j) · spacing that cover a section of width × height px."""

    def __init__(self, width: int, height: int, spacing_px: float) -> None:
        self.spacing_px = spacing_px
        self.shape = tuple(max(2, int(np.ceil((n - 1) / spacing_px)) + 1) for n in (height, width))
        self.count = self.shape[0] * self.shape[1]

    def basis(self, points: Doubles) -> sp.csr_matrix:
        """Bilinear interpolation at (n, 2) points as (n, nodes) matrix."""
        ny, nx = self.shape
        place = points / self.spacing_px
        i = np.clip(np.floor(place[:, 0]).astype(np.int64), 0, nx - 2)
        j = np.clip(np.floor(place[:, 1]).astype(np.int64), 0, ny - 2)
        fx, fy = np.clip(place[:, 0] - i, 0, 1), np.clip(place[:, 1] - j, 0, 1)
        columns = np.stack([j * nx + i, j * nx + i + 1, (j + 1) * nx + i, (j + 1) * nx + i + 1], axis=1)
        values = np.stack([(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy], axis=1)
        rows = np.arange(0, 4 * len(points) + 1, 4)
        return sp.csr_matrix((values.ravel(), columns.ravel(), rows), shape=(len(points), self.count))

    def precision(self, rms_px: float, range_px: float, stiffness: Doubles | None = None) -> sp.csr_matrix:
        """Precision matrix of a smooth random field of that size and range (Matérn, ν = 1).

        stiffness (ny, nx), 0..1: the field may jump where it is low.
        """
        ny, nx = self.shape
        index = np.arange(self.count).reshape(ny, nx)
        first = np.concatenate([index[:, :-1].ravel(), index[:-1].ravel()])
        second = np.concatenate([index[:, 1:].ravel(), index[1:].ravel()])
        tie = np.ones(len(first))
        if stiffness is not None:
            flat = stiffness.ravel()
            tie = np.minimum(flat[first], flat[second])
        rows = np.concatenate([first, second, first, second])
        columns = np.concatenate([second, first, first, second])
        values = np.concatenate([-tie, -tie, tie, tie])
        laplacian = sp.csr_matrix((values, (rows, columns)), shape=(self.count, self.count))
        kappa_squared = 8.0 * (self.spacing_px / range_px) ** 2
        factor = sp.identity(self.count) * kappa_squared + laplacian
        return sp.csr_matrix(factor @ factor / (4 * np.pi * kappa_squared * rms_px**2))


def _solve_elastic(
    pairs: Sequence[Pair],
    gaps: Doubles,
    matrices: Doubles,
    grid: NodeGrid,
    settings: SolveSettings,
    weak: Sequence[Doubles | None] | None,
) -> tuple[Doubles, float]:
    count = len(gaps) + 1
    system = _System(pairs, gaps, grid.basis)
    offset = np.concatenate([apply(matrices[p.b], p.b_xy) - apply(matrices[p.a], p.a_xy) for p in pairs])
    distortion = settings.distortion_px or _estimate_distortion(pairs, offset, grid)
    plain = grid.precision(distortion, settings.distortion_range_px)
    stiff = weak or [None] * count
    prior_u = sp.block_diag(
        [
            plain if s is None else grid.precision(distortion, settings.distortion_range_px, s)
            for s in stiff
        ]
    )
    import os
    prior_v = grid.precision(settings.drift_px * float(os.environ.get('F3', 1)), settings.drift_range_px)
    u = system.solve(prior_u, prior_v, settings.drift_persistence, system.weight, settings.noise_px, offset)
    return u.reshape(count, *grid.shape, 2), distortion


def _estimate_distortion(pairs: Sequence[Pair], offset: Doubles, grid: NodeGrid) -> float:
    """rms of the elastic distortion of a section, from second differences along z at the grid's cells."""
    ny, nx = grid.shape
    fields: dict[int, Doubles] = {}
    start = 0
    for pair in pairs:
        moved = offset[start : start + len(pair.weight)]
        start += len(pair.weight)
        if pair.b != pair.a + 1:
            continue
        cell = np.clip((pair.a_xy / grid.spacing_px).astype(np.int64), 0, [nx - 2, ny - 2])
        flat = cell[:, 1] * nx + cell[:, 0]
        number = np.bincount(flat, minlength=ny * nx).astype(np.float64)
        sums = np.stack([np.bincount(flat, moved[:, c], minlength=ny * nx) for c in (0, 1)], axis=1)
        fields[pair.a] = np.where(number[:, None] > 0, sums / np.maximum(number, 1)[:, None], np.nan)
    steps = [fields[a + 1] - fields[a] for a in sorted(fields) if a + 1 in fields]
    if steps:
        values, divisor = np.abs(np.stack(steps)), np.sqrt(6.0)
    else:
        values, divisor = np.abs(np.stack(list(fields.values()) or [offset])), np.sqrt(2.0)
    values = values[np.isfinite(values)]
    typical = 1.4826 * float(np.median(values)) / divisor if len(values) else 0.0
    return max(0.15, typical)


# --- the system both share -----------------------------------------------------------------------


class Basis:
    """Type of a function (n, 2) points → (n, coefficients) sparse matrix."""

    def __call__(self, points: Doubles) -> sp.csr_matrix: ...


class _System:
    """Unknowns: coefficients of U for k sections, then of V for the k − 1 intervals between them."""

    def __init__(self, pairs: Sequence[Pair], gaps: Doubles, basis: object) -> None:
        self.gaps = gaps
        self.sections = len(gaps) + 1
        rows = []
        for pair in pairs:
            at_a, at_b = basis(pair.a_xy), basis(pair.b_xy)
            self.size = at_a.shape[1]
            blocks: dict[int, sp.csr_matrix] = {pair.a: -at_a, pair.b: at_b}
            blocks |= {self.sections + i: -gaps[i] * at_a for i in range(pair.a, pair.b)}
            rows.append(_block_row(blocks, self.size, 2 * self.sections - 1))
        self.design = sp.vstack(rows).tocsr()
        self.weight = np.concatenate([p.weight / (p.b - p.a) for p in pairs])
        self.offset = np.concatenate([p.b_xy - p.a_xy for p in pairs])

    def solve(
        self, prior_u: sp.spmatrix, prior_v: sp.spmatrix, persistence: float, weight: Doubles, noise_px: float,
        offset: Doubles, exact: bool = False,
    ) -> Doubles:  # fmt: skip
        """(k, coefficients, 2) of U. offset (rows, 2): T_b(q) − T_a(p) with U = 0."""
        prior = sp.block_diag([prior_u, sp.kron(_autoregressive(self.gaps, persistence), prior_v)]).tocsc()
        design, transposed = self.design, self.design.T.tocsr()
        x = np.zeros((design.shape[1], 2))
        robust = np.ones(len(weight))
        for goal in (1e-6, 1e-6, 1e-10):
            w = weight * robust / noise_px**2
            normal = (transposed @ sp.diags(w) @ design + prior).tocsc()
            right = -(transposed @ (w[:, None] * offset))
            x = splu(normal).solve(right) if exact else self._conjugate_gradient(normal, right, x, goal)
            miss = np.linalg.norm(offset + design @ x, axis=1)
            scale = max(2 * noise_px, 3 * float(np.median(miss)))
            robust = 1 / (1 + (miss / scale) ** 2)
        self.miss = miss
        return x[: self.sections * self.size].reshape(self.sections, self.size, 2)

    def _conjugate_gradient(self, normal: sp.csc_matrix, right: Doubles, start: Doubles, goal: float) -> Doubles:
        """Both right-hand sides at once, preconditioned by the blocks of single sections and intervals.

        Sums are numpy's own, not BLAS's: the same bits with any number of threads.
        """
        blocks = [
            normal[i : i + self.size, i : i + self.size] for i in range(0, normal.shape[0], self.size)
        ]
        preconditioner = splu(sp.block_diag(blocks).tocsc(), permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True})
        matrix = normal.tocsr()
        x = start.copy()
        r = right - matrix @ x
        y = preconditioner.solve(r)
        p = y.copy()
        ry = (r * y).sum(axis=0)
        limit = goal * np.maximum((right * preconditioner.solve(right)).sum(axis=0), 1e-30)
        self.iterations = 0
        for _ in range(2000):
            if (ry <= limit).all():
                break
            self.iterations += 1
            ap = matrix @ p
            step = ry / np.maximum((p * ap).sum(axis=0), 1e-300)
            x += step * p
            r -= step * ap
            y = preconditioner.solve(r)
            before, ry = ry, (r * y).sum(axis=0)
            p = y + (ry / np.maximum(before, 1e-300)) * p
        return x


def _block_row(blocks: dict[int, sp.csr_matrix], size: int, total: int) -> sp.csr_matrix:
    """Blocks of `size` columns each, placed by index among `total` ones."""
    parts = []
    for index, block in blocks.items():
        coo = block.tocoo()
        parts.append((coo.data, coo.row, coo.col + index * size))
    data, rows, columns = (np.concatenate(x) for x in zip(*parts, strict=True))
    height = next(iter(blocks.values())).shape[0]
    return sp.csr_matrix((data, (rows, columns)), shape=(height, total * size))


def _autoregressive(gaps: Doubles, persistence: float) -> sp.csr_matrix:
    """Precision of a first-order autoregressive series of unit variance, one value an interval."""
    n = len(gaps)
    if n == 1:
        return sp.identity(1, format="csr")
    rho = persistence ** ((gaps[1:] + gaps[:-1]) / 2)
    diagonal = np.ones(n)
    diagonal[1:] += rho**2 / (1 - rho**2)
    diagonal[:-1] += rho**2 / (1 - rho**2)
    side = -rho / (1 - rho**2)
    return sp.diags([side, diagonal, side], [-1, 0, 1]).tocsr()


def _identities(k: int) -> Doubles:
    return np.tile(np.eye(2, 3), (k, 1, 1))
